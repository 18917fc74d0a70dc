"""Run a study: python -m ablation.study NAME

torch, MLflow and Optuna take seconds to import, so they are imported inside the functions that need them; `--help` and
a refused study file answer at once.
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ablation import __version__
from ablation.base.command_line import (
    WORKER_VARIABLE,
    check_device_name,
    check_finite,
    check_one_of,
    patience_option,
    refusing_unreachable_paths,
    run_command,
    store_option,
)
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.interrupts import GRACE_SECONDS, set_grace
from ablation.base.text import Table
from ablation.running.demo import demo_overrides, needs_pretraining
from ablation.spec.files import check_images, check_weights_file, find_study_file, study_files, write_new_study
from ablation.spec.reading import WithoutEffect, check_name, load_study, parse_override, read_study_file
from ablation.spec.study import StudySpec
from ablation.storage.store import Store, find_store, find_store_to_write

if TYPE_CHECKING:
    from ablation.running.running_trials import RunningTrial


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("study", metavar="NAME", required=False)
@click.option("--list", "list_only", is_flag=True, help="List the studies, or those in the --store.")
@click.option("--new", "as_new", is_flag=True, help="Write studies/NAME.toml, a commented file to start from.")
@click.option("--check", "check_only", is_flag=True, help="Validate the file, data and weights of NAME; run nothing.")
@click.option("--plan", "plan_only", is_flag=True, help="Estimate time and space by a short measurement; run nothing.")
@click.option("--status", "status_only", is_flag=True, help="Print the trials of each arm by state, and the best.")
@click.option("--repair", is_flag=True, help="Train again what MLflow lost; add to Optuna's database what it lost.")
@click.option("--redo", is_flag=True, help="Restore runs that were deleted in MLflow.")
@click.option("--demo", "as_demo", is_flag=True, help="Run it on bundled digits with a small network, as NAME-demo.")
@click.option("--name", metavar="NAME", help="Run the file as a study with another name; not with --demo.")
@store_option("Folder for results.")
@click.option("--trials", type=int, metavar="N", help="Total number of trials per arm.")
@click.option("--epochs", type=int, metavar="N", help="Number of epochs per trial.")
@click.option(
    "--device",
    default="auto",
    callback=lambda _, __, name: check_device_name(name),
    metavar="DEVICE",
    help="auto, cpu, cuda, cuda:N or mps.  [default: auto]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Number of processes that share the work.  [default: one per GPU]",
)
@click.option(
    "--feature-cache",
    type=click.FloatRange(0),
    callback=check_finite,
    default=10,
    metavar="GB",
    help="Disk space for cached features in the store; 0 computes features anew in every epoch.  [default: 10]",
)
@click.option(
    "--system-metrics",
    is_flag=True,
    envvar="MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    show_envvar=True,
    help="Log the use of CPU, memory, disk, network and GPUs with every run.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, min_open=True),
    callback=check_finite,
    default=GRACE_SECONDS,
    metavar="SECONDS",
    help="Time to save and to end after Ctrl-C, SIGTERM and the like.  [default: 30]",
)
@patience_option("Time to wait for a server that is away.  [default: 15 where results are to be delivered, else 2]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a field of the file; repeatable.")
@click.version_option(__version__)
def cli(
    study: str | None,
    list_only: bool,
    as_new: bool,
    check_only: bool,
    plan_only: bool,
    status_only: bool,
    repair: bool,
    redo: bool,
    as_demo: bool,
    name: str | None,
    store_folder: str | None,
    trials: int | None,
    epochs: int | None,
    device: str,
    workers: int | None,
    feature_cache: float,
    system_metrics: bool,
    grace: float,
    patience: float | None,
    settings: tuple[str, ...],
) -> None:
    """Run the study NAME (a file in studies/, or a path to one): tune every arm, then compare the arms.

    Running it again resumes it, up to the study's total number of trials.
    """
    shown = [("--list", list_only), ("--new", as_new), ("--check", check_only), ("--plan", plan_only),
             ("--status", status_only)]  # fmt: skip
    check_one_of(*shown, ("--repair", repair))
    check_one_of(*shown, ("--redo", redo))
    changes = [("--name", name is not None), ("--trials", trials is not None), ("--epochs", epochs is not None),
               ("--set", bool(settings)), ("--demo", as_demo)]  # fmt: skip
    for change in changes:  # they would have no effect
        check_one_of(("--list", list_only), ("--new", as_new), change)
    set_grace(grace)
    if list_only and study is not None:
        raise InputError(f"--list: lists all studies, without a NAME; --status {study} shows one of a store")
    if list_only:
        return list_studies() if store_folder is None else list_stored(find_store(store_folder), patience)
    if study is None:
        raise InputError("which study? --list lists them")
    if as_new:
        return new_study(study.removesuffix(".toml"))
    if status_only:
        show_status(name_in_stores(study, name, as_demo=as_demo), find_store_to_write(store_folder), patience)
        return None
    with refusing_unreachable_paths():
        path = find_study_file(study)
    study_name = name_in_stores(study, name, as_demo=as_demo)
    store = find_store_to_write(store_folder)
    overrides = study_overrides(path, store if as_demo else None, trials, epochs, settings)
    as_worker = WORKER_VARIABLE in os.environ
    report = None if as_worker else show_line  # the first process has shown the lines
    feature_limit = round(feature_cache * 1e9)
    is_try = as_demo or epochs is not None
    spec = load_accepted(path, study_name, overrides, store, report, is_try=is_try)
    check_inputs(spec, store)

    from ablation.base.terminal import loading

    with loading("torch, MLflow and Optuna"):
        from ablation.running.checks import check_custom_backbone, check_study
        from ablation.running.options import RunOptions
        from ablation.running.study import run_study
        from ablation.running.worker import run_worker
        from ablation.search import configure_optuna
        from ablation.tracking import configure_mlflow
        from ablation.tracking.system_metrics import check_system_metrics

    configure_mlflow()
    configure_optuna()
    check_custom_backbone(spec)
    if system_metrics:
        check_system_metrics()
    if check_only:
        return check_study(spec, store, path)
    if plan_only:
        return show_plan(spec, store, device, feature_limit)
    text = path.read_text(encoding="utf-8-sig")
    options = RunOptions(device, workers, feature_limit, system_metrics, patience, text, repair, redo)
    if as_worker:
        return run_worker(spec, store, options)
    try:
        return run_study(spec, store, options)
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "ablation.study", *sys.argv[1:]])
        print(f"\nStopped; everything that had finished is kept. To resume:\n    {command}", file=sys.stderr)
        raise


def name_in_stores(study: str, name: str | None, *, as_demo: bool) -> str:
    """Return the name of a study in stores, which may have it although its file is gone.

    Args:
        study: the name of its file, or the path.
        name: another name, of --name.
        as_demo: whether it is the demo of the file.

    Raises:
        InputError: it is no name, or a demo has another one.
    """
    if as_demo and name is not None:
        raise InputError("--name: a demo is always called NAME-demo")
    own = Path(study).stem if study.endswith(".toml") else study
    return check_name(name if name is not None else f"{own}-demo" if as_demo else own)


def study_overrides(
    path: Path, demo_store: Store | None, trials: int | None, epochs: int | None, settings: Sequence[str]
) -> list[tuple[list[str], Any]]:
    """Return what the options of the command line change in a study file; `demo_store` is that of a demo."""
    overrides = [] if demo_store is None else demo_overrides(read_study_file(path), demo_store)
    overrides += [(["trials_per_arm"], trials)] if trials is not None else []
    overrides += [(["epochs"], epochs)] if epochs is not None else []
    return overrides + [parse_override(setting) for setting in settings]


def load_accepted(
    path: Path,
    name: str,
    overrides: list[tuple[list[str], Any]],
    store: Store,
    report: Callable[[str], None] | None = None,
    *,
    is_try: bool = False,
) -> StudySpec:
    """Load a study file as every worker does, whether or not its weights and images are on this machine.

    What `check_new_study` finds is refused, but not with `--demo` or `--epochs` (`is_try`), nor in a study that the
    store has or, while its server is away, may have: earlier versions accepted more.

    Raises:
        InputError: something is wrong; names it.
    """
    with refusing_unreachable_paths():
        try:
            return load_study(path, name=name, overrides=overrides, load_backbone=load_backbone, report=report)
        except WithoutEffect as error:
            if not (is_try or may_have_begun(store, name)):
                raise
            return error.spec


def check_inputs(spec: StudySpec, store: Store) -> None:
    """Check that the store can be written, and that a study's weights and images are on this machine.

    Raises:
        InputError: something is wrong; names it.
    """
    with refusing_unreachable_paths():
        store.check_writable()
        if not needs_pretraining(spec, store):
            check_weights_file(spec)
        check_images(spec.data)


def may_have_begun(store: Store, study: str) -> bool:
    """Return whether a store has a study, or may have it: its server is away, for which a run waits."""
    from ablation.search import configure_optuna
    from ablation.search.studies import brief_storage, stored_content

    configure_optuna()
    try:
        with brief_storage(store) as storage:
            return storage is not None and stored_content(storage, study) is not None
    except StoreAway:
        return True
    except (InputError, StoreError):
        return False


def load_backbone(module: str | None, name: str, image_size: int) -> str:
    """Load a custom backbone, or one of timm's networks; torch is imported only for a study of these."""
    from ablation.base.terminal import loading

    with loading("torch"):
        from ablation.networks import timm_backbones

    return timm_backbones.load_backbone(module, name, image_size)


def show_line(text: str) -> None:
    """Print a line; rich is imported only if there is one."""
    from ablation.base.terminal import say

    say(text)


def new_study(name: str) -> None:
    """Write a commented study file to start from, and print the next step."""
    from ablation.base.terminal import say

    path = write_new_study(name)
    say(f"{path} is written. Change it to what you want to know, then:\n    python -m ablation.study --check {name}")


def list_studies() -> None:
    """Print every study with its question."""
    from ablation.base.terminal import show_table

    rows = [[name, question_of(path)] for name, path in sorted(study_files().items())]
    show_table(Table("Studies", ["name", "question"], rows))


def question_of(path: Path) -> str:
    """Return the question of a study file, or why the file cannot be read."""
    try:
        return str(read_study_file(path).get("question", ""))
    except InputError as error:
        return str(error)


def list_stored(store: Store, patience: float | None) -> None:
    """Print the studies of a store: how many of their runs ended."""
    from ablation.base.retries import wait_out
    from ablation.base.terminal import loading, show_table

    with loading("Optuna"):
        from ablation.search import configure_optuna
        from ablation.search.patient_storage import read_again
        from ablation.search.status import read_stored

    configure_optuna()
    show_table(wait_out(partial(read_again, partial(read_stored, store)), patience))


def show_plan(spec: StudySpec, store: Store, device_name: str, feature_limit: int) -> None:
    """Measure the study's device briefly; print the time and space that the study and smaller budgets need."""
    from ablation.base.terminal import show_table, waiting
    from ablation.planning.device_choice import faster_on_cpu
    from ablation.planning.measured_plan import measured_plan
    from ablation.planning.tables import arms_table, budget_table

    with waiting("Measuring how fast this machine is"):
        study = measured_plan(spec, device_name, feature_limit)
        on_cpu = None if study.conditions.device.type == "cpu" else faster_on_cpu(study)
    from ablation.analysis.looks import count_looks  # imports MLflow, whose memory the measurement leaves out

    show_table(arms_table(study, on_cpu))
    show_table(budget_table(study, count_looks(store, spec.name)))


def show_status(study: str, store: Store, patience: float | None) -> "list[RunningTrial]":
    """Print the arms of a study with their trials by state, and the trials that train now, which are returned."""
    from ablation.base.retries import wait_out
    from ablation.base.terminal import loading, show_table

    with loading("MLflow and Optuna"):
        from ablation.running.running_trials import running_table
        from ablation.running.status import read_status
        from ablation.search import configure_optuna
        from ablation.search.patient_storage import read_again
        from ablation.tracking import configure_mlflow

    configure_mlflow()
    configure_optuna()
    arms, running = wait_out(partial(read_again, partial(read_status, study, store)), patience)
    show_table(arms)
    if running:
        show_table(running_table(running))
    return running


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(cli)


if __name__ == "__main__":
    sys.exit(main())
