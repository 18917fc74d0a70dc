"""Place workers of a study by an engine: python -m ablation.launch NAME --on ENGINE"""

import importlib
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ablation import __version__
from ablation.base.command_line import check_one_of, refusing_unreachable_paths, run_command
from ablation.base.errors import InputError, NoSuchStudy, StoreAway, StoreError
from ablation.base.text import Table, plural
from ablation.launching.request import Engine, EngineWorker, Launch, launch_label, read_options
from ablation.spec.files import find_study_file
from ablation.spec.study import StudySpec
from ablation.storage.store import Store, find_store_to_write
from ablation.study import (
    check_inputs,
    load_accepted,
    may_have_begun,
    name_in_stores,
    show_status,
    study_overrides,
)
from ablation.study import cli as study_command

if TYPE_CHECKING:
    from ablation.running.running_trials import RunningTrial

# Options of `python -m ablation.study` that are no worker's.
NOT_FOR_WORKERS = {
    "list_only": "--list", "as_new": "--new", "check_only": "--check", "plan_only": "--plan",
    "status_only": "--status", "repair": "--repair", "redo": "--redo",
}  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("study", metavar="NAME")
@click.argument("arguments", metavar="[-- STUDY OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--on",
    "engine_name",
    type=click.Choice(["local", "slurm", "ray", "kubernetes"]),
    required=True,
    help="The engine that places the workers.",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Number of workers.  [default: 1; local: one per GPU]"
)
@click.option("--per-gpu", metavar="N", help="Workers on each GPU, or auto: as many as fit; with --on local.")
@click.option(
    "--engine-option", "settings", multiple=True, metavar="KEY=VALUE", help="Pass an option to the engine; repeatable."
)
@click.option(
    "--engine-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file whose table [launch] holds engine options.",
)
@click.option("--print", "print_only", is_flag=True, help="Print what would be submitted; submit nothing.")
@click.option("--status", "status_only", is_flag=True, help="Print the trials of each arm and the engine's workers.")
@click.option("--cancel", "cancel_only", is_flag=True, help="End the study's workers, queued and running.")
@click.version_option(__version__)
def cli(
    study: str,
    arguments: tuple[str, ...],
    engine_name: str,
    workers: int | None,
    per_gpu: str | None,
    settings: tuple[str, ...],
    engine_file: Path | None,
    print_only: bool,
    status_only: bool,
    cancel_only: bool,
) -> None:
    """Place workers of the study NAME by an engine; what follows `--` are options of `python -m ablation.study`.

    Workers share the study's total number of trials: launching again adds workers, not trials.
    """
    check_one_of(("--print", print_only), ("--status", status_only), ("--cancel", cancel_only))
    options = read_options(settings, engine_file)
    if per_gpu is not None:
        options["per-gpu"] = per_gpu
    if "per-gpu" in options and (engine_name != "local" or workers is not None):
        raise InputError("--per-gpu: goes with --on local and without --workers")
    given = study_command.make_context("study", [study, *arguments]).params
    for parameter, option in NOT_FOR_WORKERS.items():
        if given[parameter]:
            raise InputError(f"{option}: is no option of a worker; python -m ablation.study {option} is a command")
    if given["workers"] is not None:
        raise InputError("--workers: belongs before --")
    name = name_in_stores(study, given["name"], as_demo=given["as_demo"])
    store = find_store_to_write(given["store_folder"])
    label, folder = launch_label(name, store), store.root / "launch"
    try:
        engine = cast(Engine, importlib.import_module(f"ablation.launching.{engine_name}"))
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError("--on ray: needs ray: python -m pip install ray") from None
    if status_only:
        running = show_status_or_none(name, store, given["patience"])
        output = engine.output(label, folder, options)
        return show_workers(engine.workers(label, options), engine_name, label, running, output)
    if cancel_only:
        found = engine.workers(label, options)
        deleted = engine.cancel(label, options)  # what waits for an engine's queue may have no worker yet
        if found:
            return print(
                f"{plural(len(found), 'worker')} of {name} asked to save and end; what they have done is kept."
            )
        rest = f"; deleted: {', '.join(deleted)}" if deleted else missing_study(name, store)
        return print(f"No worker of {name} runs or waits on {engine_name}{rest}.")
    with refusing_unreachable_paths():
        path = find_study_file(study)
    with redirect_stdout(sys.stderr):  # standard output is what would be submitted, with --print
        spec = check_study(engine_name, path, name, store, given)
        if engine_name == "local" and options.get("per-gpu") == "auto":
            options["per-gpu"] = str(fitting_workers(spec, store, given))
    launch = Launch(
        study=name,
        label=label,
        study_file=path.absolute(),
        arguments=arguments,
        workers=workers,
        grace=given["grace"],
        options=options,
        folder=folder,
        working_folder=Path.cwd(),
    )
    return print(engine.compose(launch) if print_only else engine.submit(launch))


def check_study(engine_name: str, path: Path, name: str, store: Store, given: Mapping[str, Any]) -> StudySpec:
    """Return the study, or refuse one that no worker could run.

    Images and weights are looked for where the workers see this machine's.

    Raises:
        InputError: something is wrong; names it.
    """
    demo_store = store if given["as_demo"] else None
    overrides = study_overrides(path, demo_store, given["trials"], given["epochs"], given["settings"])
    is_try = given["as_demo"] or given["epochs"] is not None
    spec = load_accepted(path, name, overrides, store, is_try=is_try)
    if engine_name != "kubernetes":
        check_inputs(spec, store)
    return spec


def fitting_workers(spec: StudySpec, store: Store, given: Mapping[str, Any]) -> int:
    """Return how many workers fit on each GPU, by the memory that a short measurement of the study needs.

    Raises:
        InputError: there is no GPU.
    """
    from ablation.base.cores import usable_cores
    from ablation.base.device import check_device
    from ablation.base.terminal import say, waiting
    from ablation.launching.local import usable_gpus
    from ablation.planning.forecast import memory, workers_that_fit
    from ablation.planning.measured_plan import measured_plan

    gpus = usable_gpus()
    if check_device(given["device"]).type != "cuda":
        raise InputError("--per-gpu auto: is for CUDA devices; say --workers N")
    with waiting("Measuring the memory that a worker needs"):
        study = measured_plan(spec, given["device"], round(given["feature_cache"] * 1e9))
    needed, free = memory(study).total, study.probe.free_bytes
    count = workers_that_fit(needed, free, usable_cores() // gpus)
    say(f"{plural(count, 'worker')} on each GPU: each needs about {needed / 1e9:.1f} of {free / 1e9:.1f} GB")
    return count


def show_status_or_none(study: str, store: Store, patience: float | None) -> "list[RunningTrial]":
    """Print the arms of a study as --status does, or a line if it has not begun; return the trials that train now."""
    try:
        return show_status(study, store, patience)
    except NoSuchStudy as nothing:
        print(f"No trial has begun ({nothing}).\n")
        return []


def missing_study(name: str, store: Store) -> str:
    """Return in brackets that a store has no study of a name, and the nearest that there is; "" if it may have it."""
    from ablation.running.status import read_status

    with suppress(InputError, StoreAway, StoreError):
        if not may_have_begun(store, name):
            try:
                read_status(name, store)
            except NoSuchStudy as nothing:
                return f" ({nothing})"
    return ""


def show_workers(
    workers: list[EngineWorker], engine_name: str, label: str, running: "list[RunningTrial]", output: str
) -> None:
    """Print the workers that an engine has, running or waiting, each with the trials that its processes train.

    `output`: how to see what workers wrote that have ended; it is shown where there are no others.
    """
    from ablation.base.terminal import show_table

    rows = []
    for worker in workers:
        # A worker without a job of an engine is known by its host's name (a pod), or by its process on its host.
        own = [
            trial
            for trial in running
            if worker.id in (trial.job, trial.host) or (worker.id, worker.host) == (trial.process, trial.host)
        ]
        now = [", ".join(trial.trial for trial in own) or "-", ", ".join(trial.last_sign for trial in own) or "-"]
        rows.append([worker.id, worker.state, worker.host, worker.since, *now])
    notes = [] if rows else [f"no worker runs or waits{f'; {output}' if output else ''}"]
    columns = [f"{engine_name} id", "state", "host", "since", "trial", "last epoch"]
    show_table(Table(f"Workers on {engine_name} ({label})", columns, rows, notes, optional=["since", "host"]))


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(cli)


if __name__ == "__main__":
    sys.exit(main())
