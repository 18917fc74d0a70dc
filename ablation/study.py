"""Run a study: python -m ablation.study NAME

torch, MLflow and Optuna take seconds to import, so they are imported inside the functions that need them; `--help` and
a refused study file answer at once.
"""

import math
import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click

from ablation import __version__, custom, demo
from ablation.architecture import BACKBONES, block_names, kept_blocks
from ablation.command_line import STOPPED, run_command
from ablation.design import arms
from ablation.seeding import check_device_name
from ablation.spec import (
    InputError,
    StudySpec,
    check_name,
    expand,
    load_study,
    nearest,
    parse_override,
    read_study_file,
)
from ablation.store import Store, StoreAway, StoreError, find_store
from ablation.weights import Weights, check_layers, read_weights, torchvision_weights

if TYPE_CHECKING:
    from ablation.data import ImageSet, Split
    from ablation.locks import Locks
    from ablation.search import ArmStudies
    from ablation.tracking import RunStatus, Tracker
    from ablation.view import StudyView

PACKAGE = Path(__file__).parent
# The working folder's, then those of an installed copy or of the repository.
STUDY_FOLDERS = (Path("studies"), PACKAGE / "studies", PACKAGE.parent / "studies")
WAIT_SECONDS = 1  # between two looks for a trial whose worker has died


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("study", metavar="NAME", required=False)
@click.option("--list", "list_only", is_flag=True, help="List the studies with their questions.")
@click.option("--new", "as_new", is_flag=True, help="Write studies/NAME.toml, a commented file to begin with.")
@click.option("--check", "check_only", is_flag=True, help="Say whether NAME could run: its file, data and weights.")
@click.option("--plan", "plan_only", is_flag=True, help="Print what it would take, measured for a moment; run nothing.")
@click.option("--status", "status_only", is_flag=True, help="Print what the store holds of the study.")
@click.option("--demo", "as_demo", is_flag=True, help="Run it on bundled digits with a small network, as NAME-demo.")
@click.option("--name", metavar="NAME", help="Run a variant as a study of its own, not with --demo.")
@click.option("--store", "store_option", metavar="DIR", help="Where results go.  [default: mlruns]")
@click.option("--trials", type=int, metavar="N", help="Trials per arm, in total.")
@click.option("--epochs", type=int, metavar="N", help="Epochs per trial.")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Processes that share the work.  [default: one per GPU]"
)
@click.option(
    "--feature-cache",
    type=click.FloatRange(0),
    default=10,
    metavar="GB",
    help="Disk for what frozen layers compute, kept in the store; with 0 it is computed in every epoch.  [default: 10]",
)
@click.option(
    "--system-metrics",
    is_flag=True,
    envvar="MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    show_envvar=True,
    help="Log the use of CPU, memory, disk, network and GPUs with every run.",
)
@click.option("--as-worker", is_flag=True, hidden=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a field of the file; repeatable.")
@click.version_option(__version__)
def cli(
    study: str | None,
    list_only: bool,
    as_new: bool,
    check_only: bool,
    plan_only: bool,
    status_only: bool,
    as_demo: bool,
    name: str | None,
    store_option: str | None,
    trials: int | None,
    epochs: int | None,
    device: str,
    workers: int | None,
    feature_cache: float,
    system_metrics: bool,
    as_worker: bool,
    settings: tuple[str, ...],
) -> None:
    """Run the study NAME (a file in studies/, or a path to one): tune every arm, then compare them.

    Running it again goes on where it stopped, up to the study's total of trials.
    """
    if list_only:
        return list_studies()
    if study is None:
        raise InputError("which study? --list lists them")
    if as_new:
        return write_new_study(study)
    path = find_study(study)
    if as_demo and name is not None:
        raise InputError("--name: a demo is always called NAME-demo")
    study_name = check_name(name or (f"{path.stem}-demo" if as_demo else path.stem))
    store = find_store(store_option)
    if status_only:
        return show_status(study_name, store)
    store.check_writable()

    overrides = demo.overrides(read_study_file(path), store) if as_demo else []
    overrides += [(["trials_per_arm"], trials)] if trials is not None else []
    overrides += [(["epochs"], epochs)] if epochs is not None else []
    overrides += [parse_override(setting) for setting in settings]
    spec = load_study(path, name=study_name, overrides=overrides)
    check_own_backbone(spec)
    check_device_name(device)
    if not math.isfinite(feature_cache):
        raise InputError(f"--feature-cache: must be a number of GB, got {feature_cache}")
    feature_limit = round(feature_cache * 1e9)
    if system_metrics:
        check_system_metrics()
    if check_only:
        return check_study(spec, store, path)
    if plan_only:
        return show_plan(spec, device, feature_limit)
    file_text = path.read_text(encoding="utf-8")
    if as_worker:
        return run_worker(spec, store, device, feature_limit, file_text, system_metrics)
    return run_study(spec, store, device, feature_limit, file_text, system_metrics, workers)


def check_system_metrics() -> None:
    """Refuse what MLflow could not use of its variables for system metrics.

    Raises:
        InputError: names the variable.
    """
    variables: tuple[tuple[str, type[float]], ...] = (
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", float),  # seconds
        ("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", int),
    )
    for name, number_type in variables:
        text = os.environ.get(name) or "1"
        try:
            is_fine = 0 < number_type(text) < math.inf
        except ValueError:
            is_fine = False
        if not is_fine:
            kind = "whole number" if number_type is int else "number"
            raise InputError(f"{name}: must be a {kind} above 0, got {text!r}")


# ------------------------------------------------------------------------------------------------- finding studies


def study_files() -> dict[str, Path]:
    """Return the studies by name; one in the working folder's `studies` hides one that comes along."""
    return {path.stem: path for folder in reversed(STUDY_FOLDERS) for path in sorted(folder.glob("*.toml"))}


def find_study(study: str) -> Path:
    """Return the file of a study given by name or by path.

    Raises:
        InputError: there is none; says which name is nearest.
    """
    if study.endswith(".toml"):
        if not Path(study).is_file():
            raise InputError(f"{study}: no such file")
        return Path(study)
    files = study_files()
    if study not in files:
        raise InputError(f"no study {study!r}{nearest(study, sorted(files))}")
    return files[study]


def list_studies() -> None:
    """Print every study with its question."""
    from ablation.tables import Table
    from ablation.view import show_table

    rows = [[name, str(read_study_file(path).get("question", ""))] for name, path in sorted(study_files().items())]
    show_table(Table("Studies", ["name", "question"], rows))


def write_new_study(name: str) -> None:
    """Write a commented study file to the working folder's `studies`.

    Raises:
        InputError: there is one of that name, or it cannot be written.
    """
    from ablation.view import say

    path = STUDY_FOLDERS[0] / f"{check_name(name)}.toml"
    if name in study_files():
        raise InputError(f"--new: there is a study {name!r}: {study_files()[name]}")
    schema = PACKAGE / "study.schema.json"
    if PACKAGE.parent == Path.cwd():  # so that the file suits every clone of the repository
        schema = Path("..") / schema.relative_to(Path.cwd())
    template = (PACKAGE / "templates" / "study.toml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template.format(schema=schema, command=name))
    except OSError as error:
        raise InputError(f"--new: {path} cannot be written ({error.strerror})") from None
    say(f"{path} is written. Change it to what you want to know, then:\n    python -m ablation.study --check {name}")


def check_study(spec: StudySpec, store: Store, path: Path) -> None:
    """Say that a study can run, once its images and its weights file have been looked at, too; nothing is downloaded.

    Raises:
        InputError: something is wrong with them.
    """
    from ablation.data import check_split, measure, split_seed
    from ablation.tables import count_arms
    from ablation.view import say

    is_to_pretrain = needs_pretraining(spec, store)
    check_places(spec, is_to_pretrain)
    if spec.backbone.has_weights_file and not is_to_pretrain:
        load_weights(spec)
    elif spec.backbone.weights is not None and not is_to_pretrain:
        torchvision_weights(spec.backbone.name, spec.backbone.weights)
    size = measure(spec.data)
    if spec.data.source in ("imagefolder", "digits"):  # others may not be there yet
        check_split(spec.data, split_seed(spec.seed))
    trainings = len(arms(spec)) * (spec.trials_per_arm + spec.confirm.seeds)
    say(
        f"{path} is fine: {count_arms(len(arms(spec)))}, {trainings} trainings on {size.train:,} images of "
        f"{size.classes} classes (with those for validation)"
    )


# ---------------------------------------------------------------------------------------------- plan and status


def show_plan(spec: StudySpec, device_name: str, feature_limit: int) -> None:
    """Print what the study would do and need, by a short measurement on its device, and what less would give up."""
    from ablation.data import measure
    from ablation.plan import StudyPlan, arms_table, budget_table, conditions, feature_bytes, frozen_parts, plan
    from ablation.probe import probe
    from ablation.seeding import make_deterministic, select_device
    from ablation.view import show_table, waiting

    size = measure(spec.data)
    given = conditions(spec, size, select_device(device_name))
    if spec.deterministic:
        make_deterministic()
    stores_features = feature_bytes(spec, size) <= feature_limit
    planned = plan(spec, size.classes, stores_features=stores_features)
    kinds = [kind for arm in planned for kind in (arm.cheapest, arm.costliest)]
    with waiting("Measuring how fast this machine is"):
        measured = probe(kinds, frozen_parts(spec) if stores_features else [], given)
    study = StudyPlan(spec, size, feature_limit, planned, given, measured)
    show_table(arms_table(study))
    show_table(budget_table(study))


def show_status(study: str, store: Store) -> None:
    """Print the arms of a study with their trials by state."""
    from ablation import search
    from ablation.locks import open_locks
    from ablation.tables import status_table
    from ablation.view import show_table

    storage = None if store.is_empty else search.open_storage(store)
    locks = open_locks(store.optuna_url)
    found = search.study_arms(storage, study) if storage else search.ArmStudies({}, {})
    if not found.tuning:
        known = search.stored_studies(storage) if storage else []
        raise InputError(f"{store.root}: has no study {study!r}{nearest(study, known) if known else ''}")
    contents = [arm.user_attrs.get("content", {}) for arm in found.tuning.values()]
    budget = max(content.get("trials_per_arm", 0) for content in contents)
    seeds = max(content.get("confirm", {}).get("seeds", 0) for content in contents)
    show_table(status_table(study, search.records(found, locks), budget, seeds))


# ------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Running:
    """A study that is being worked on: its images and weights, its Optuna studies by arm, and where results go."""

    spec: StudySpec
    store: Store
    locks: "Locks"
    studies: "ArmStudies"
    content: dict[str, Any]
    tracker: "Tracker"
    images: "ImageSet"
    split: "Split"
    weights: Weights | None
    device_name: str
    feature_limit: int
    file_text: str
    system_metrics: bool


def run_study(
    spec: StudySpec,
    store: Store,
    device_name: str,
    feature_limit: int,
    file_text: str,
    system_metrics: bool,
    workers: int | None,
) -> None:
    """Bring every arm to its budget, confirm what was found, and print the answer."""
    from ablation import view

    processes = 1 + workers if workers is not None and workers > 1 else 1  # this one and its workers
    running = prepare(spec, store, device_name, feature_limit, file_text, system_metrics, processes)
    devices = worker_devices(device_name, workers)
    begin_summary(running)
    try:
        if len(devices) == 1:
            work(running)
        else:
            supervise(running, devices)
        finish(running)
    except BaseException as error:
        with suppress(StoreAway, StoreError):
            running.tracker.end_summary(summary_key(running), "SCHEDULED")
            if isinstance(error, KeyboardInterrupt):
                tidy_up(running)
        raise
    view.say(f"\nLook at it in the MLflow UI:\n    {ui_command(store)}")
    if store.has_own_tracking:
        address = ui_address(running.tracker.experiment_id, has_confirmations=spec.confirm.seeds > 0)
        view.say(f"    then open {address}")


def run_worker(
    spec: StudySpec, store: Store, device_name: str, feature_limit: int, file_text: str, system_metrics: bool
) -> None:
    """Work on a study until nothing is left, for a process that started this one to do so and shows the answer."""
    stop_with_parent()
    work(prepare(spec, store, device_name, feature_limit, file_text, system_metrics, is_worker=True))


def stop_with_parent() -> None:
    """Stop this process as Ctrl-C would, when the standard input that its parent holds is closed: it asks, or died."""
    import threading

    def wait() -> None:
        os.read(0, 1)  # sys.stdin would be locked when Python ends
        if hasattr(signal, "pthread_kill"):  # it ends a sleep of the main thread
            signal.pthread_kill(main_thread, signal.SIGTERM)
        else:
            signal.raise_signal(signal.SIGTERM)

    main_thread = threading.get_ident()
    threading.Thread(target=wait, daemon=True).start()


def worker_devices(device_name: str, workers: int | None) -> list[str]:
    """Return the device of each worker: one worker per GPU unless a number is given, and GPUs shared in turn.

    Raises:
        InputError: this machine does not have the device.
    """
    from ablation.seeding import check_device, gpu_count

    check_device(device_name)
    gpus = gpu_count() if device_name in ("auto", "cuda") else 0
    count = workers or (gpus if gpus and device_name == "auto" else 1)
    return [f"cuda:{number % gpus}" if gpus > 1 else device_name for number in range(count)]


def prepare(
    spec: StudySpec,
    store: Store,
    device_name: str,
    feature_limit: int,
    file_text: str,
    system_metrics: bool,
    processes: int = 1,
    is_worker: bool = False,
) -> Running:
    """Read weights and images, open the stores, and tidy up what a crash left.

    Everything that the user can have got wrong is checked before the store is touched, what is quick to check first.
    """
    from ablation import view

    is_to_pretrain = needs_pretraining(spec, store)
    check_places(spec, is_to_pretrain)
    if device_name not in ("auto", "cpu"):
        from ablation.seeding import check_device

        check_device(device_name)
    if not store.is_empty:
        from ablation import search

        storage = search.open_storage(store)
        if storage is not None:
            digests = ("backbone.weights_digest", "data.digest")
            search.check_identity(storage, spec.name, identity(spec, None, ""), ignored=digests)
    weights = None if is_to_pretrain else load_weights(spec)
    images, split = load_data(spec, processes)
    if is_to_pretrain:
        with view.waiting("Pretraining the demo's network on the digits 0-4 (a few seconds)"):
            if store.has_remote_tracking:
                from ablation.tracking import open_client

                open_client(store)
            store.prepare()
            demo.make_weights(demo.weights_path(store))
        weights = load_weights(spec)

    with view.waiting("Starting (torch, Optuna and MLflow take a few seconds to load)"):
        content = identity(spec, weights, images.digest)
        locks, studies, tracker = open_stores(spec, store, content, is_begun=is_worker)
        running = Running(
            spec,
            store,
            locks,
            studies,
            content,
            tracker,
            images,
            split,
            weights,
            device_name,
            feature_limit,
            file_text,
            system_metrics,
        )
        tidy_up(running)
    return running


def open_stores(
    spec: StudySpec, store: Store, content: dict[str, Any], *, is_begun: bool
) -> tuple["Locks", "ArmStudies", "Tracker"]:
    """Check that the study can go on in its stores, then open them, making what does not exist."""
    from ablation import search
    from ablation.locks import open_locks
    from ablation.tracking import Tracker, check_experiment, open_client

    storage = search.open_storage(store)  # once: it takes a tenth of a second
    if storage is not None:
        search.check_identity(storage, spec.name, content, is_begun=is_begun)
    check_experiment(store, spec.name, search.experiment_key(storage, spec.name) if storage is not None else None)
    store.prepare()
    client, storage = open_client(store, create=True), storage or search.open_storage(store, create=True)
    assert client is not None
    assert storage is not None
    locks = open_locks(store.optuna_url)
    with locks.exclusive():
        search.check_identity(storage, spec.name, content)  # another process may have begun a moment ago
        tracker = Tracker(client, store, spec.name, spec.question)
        studies = search.create_arms(storage, spec, content, tracker.key)
    return locks, studies, tracker


def tidy_up(running: Running) -> int:
    """Hand over what MLflow has yet to get, and close its runs whose trials have ended.

    Returns:
        How many trials still wait for MLflow.
    """
    from ablation import search
    from ablation.trial import RUN_STATUS

    only_best = running.spec.tracking.checkpoints == "best_per_arm"

    def complete(key: str, folder: Path, owner: str, is_best: bool) -> bool:
        run = running.tracker.trial_run(key, folder, owner)
        if only_best and not is_best:
            run.delete_checkpoint()  # which may have been delivered after the better one
        return run.complete()

    def statuses() -> dict[str, "RunStatus | None"]:
        ends = search.trial_ends(running.studies)
        return {key: RUN_STATUS[end] if end else None for key, end in ends.items()}

    waiting = search.sweep(running.store, running.locks, running.studies, complete)
    with suppress(StoreAway):
        running.tracker.reconcile(statuses)
        running.tracker.mark_superseded(search.superseded_keys(running.studies))
    return waiting


def work(running: Running) -> None:
    """Take one trial after the other until every arm has its budget and all trials have ended.

    Where nothing is free but others still work, it waits: a worker that dies leaves a trial to go on with.
    """
    from ablation import search, trial
    from ablation.features import FeatureCache, pretrained_network
    from ablation.seeding import select_device
    from ablation.tables import format_params
    from ablation.view import StudyView

    spec = running.spec
    device = select_device(running.device_name)
    with StudyView(spec.name, [arm.name for arm in arms(spec)]) as progress:
        features = FeatureCache(
            running.store.work_root / "features",
            running.feature_limit,
            lambda: pretrained_network(spec, running.weights, device),
            progress.computes,
        )
        workbench = trial.set_up(
            spec,
            running.images,
            running.split,
            running.weights,
            device,
            features,
            running.tracker,
            study_files_of(running),
            running.system_metrics,
        )
        waits_for_mlflow = False
        while True:
            try:
                if waits_for_mlflow:
                    waits_for_mlflow = tidy_up(running) > 0
                look(running, progress)  # other processes may share the work
                claim = search.claim_trial(spec, running.store, running.locks, running.studies, running.content)
                if claim is None and search.all_ended(spec, running.studies):
                    return
                trial_spec = trial.trial_spec(workbench, claim) if claim else None
            except StoreAway as away:
                running.locks.release_all()  # whatever had been taken before it went away
                progress.waits(f"{away}; waiting")
                time.sleep(trial.AWAY_SECONDS)
                continue
            if claim is None or trial_spec is None:
                progress.waits("waiting for the trials of other workers")
                time.sleep(WAIT_SECONDS)
                continue
            tuned = claim.trial if claim.best is None else claim.best
            params = format_params(tuned.params) + (" (continued)" if claim.continued else "")
            progress.trial_started_now(trial_spec, params)
            outcome = trial.run_trial(workbench, claim, trial_spec, progress.epoch)
            progress.trial_ended(trial_spec, outcome.state, outcome.value, outcome.reason)
            waits_for_mlflow = waits_for_mlflow or not outcome.is_delivered


def supervise(running: Running, devices: list[str]) -> None:
    """Let several processes work on the study, and show what they do."""
    from ablation.view import StudyView
    from ablation.workers import run_workers

    with StudyView(running.spec.name, [arm.name for arm in arms(running.spec)]) as progress:

        def trials_left() -> int:
            with suppress(StoreAway):
                look(running, progress)
            return progress.trials - progress.ended

        command = [sys.executable, "-m", "ablation.study", *sys.argv[1:], "--as-worker"]
        run_workers(command, devices, progress.worker_says, trials_left)


def look(running: Running, progress: "StudyView") -> None:
    """Show what the study has come to, whoever did it."""
    from ablation import search
    from ablation.tables import total_runs

    spec = running.spec
    found = search.records(running.studies, running.locks)
    progress.update(
        found, sum(total_runs(trials, spec.trials_per_arm, spec.confirm.seeds) for trials in found.values())
    )


def study_files_of(running: Running) -> dict[str, str]:
    """Return the files that every run keeps: the study file, and what it says with overrides and defaults."""
    return {"study.toml": running.file_text, "study.json": running.spec.model_dump_json(indent=2)}


def summary_key(running: Running) -> str:
    """Return the key of the study's summary run."""
    from ablation import search

    return f"{search.arm_key(running.studies.tuning[arms(running.spec)[0].name])}/summary"


def begin_summary(running: Running) -> None:
    """Write down what the report needs to know of the study besides its runs."""
    from ablation import search
    from ablation.data import normalisation_for
    from ablation.gallery import draw_samples, samples_file
    from ablation.tracking import SAMPLES_FILE

    spec, images, split = running.spec, running.images, running.split
    backbone = spec.backbone.name
    own_backbone = {  # what the report needs to know of it without its code
        "blocks": len(block_names(backbone)),
        "has_batch_norm": BACKBONES[backbone].has_batch_norm,
    }
    about = {
        "version": __version__,
        "own_backbone": own_backbone if custom.is_custom(backbone) else None,
        "spec": spec.model_dump(mode="json"),
        "command": shlex.join(["python", "-m", "ablation.study", *sys.argv[1:]]),
        "classes": images.classes,
        "data_digest": images.digest,
        "weights_digest": running.weights.digest if running.weights else None,
        "train_images": len(split.train_N),
        "val_images": len(split.val_N),
        "test_images": len(images.test_labels_N),
        "arm_keys": [search.arm_key(study) for study in running.studies.all()],
    }
    possible = {kind for levels in spec.combinations() for kind in spec.possible("augmentation", levels)}
    augmentations = sorted(possible - {"none"}, reverse=True)  # flip before crop_flip, which does more
    normalisation = normalisation_for(running.weights, spec.data.image_size)
    samples = draw_samples(images, split.train_N, normalisation, augmentations, spec.seed)
    files = {name: text.encode() for name, text in study_files_of(running).items()}
    files[SAMPLES_FILE] = samples_file(samples)
    with running.locks.exclusive():  # two that begin at once must not both make the run
        running.tracker.begin_summary(summary_key(running), spec.name, about, files)


def finish(running: Running) -> None:
    """Write and print the report, and register the champion.

    Raises:
        StoreError: the results are safe, but MLflow does not answer and has yet to get some of them.
    """
    from ablation import view
    from ablation.champion import crown
    from ablation.report import show_report, write_report
    from ablation.results import NothingFinished

    spec, store = running.spec, running.store
    waiting = tidy_up(running)
    try:
        with running.locks.exclusive():  # two that end at once must not both write it, and the later one knows more
            report = write_report(store, spec.name)
            crown(store, report.result, running.images)
            running.tracker.describe(f"**{report.answer}**\n\n{spec.question}")  # the UI shows the first line
            running.tracker.end_summary(summary_key(running), "FINISHED")
    except NothingFinished as nothing:
        with suppress(StoreAway):
            running.tracker.end_summary(summary_key(running), "FAILED")
        show_how_far(running)
        view.say(f"There is nothing to report: {nothing}.")
        return
    except StoreAway as away:
        show_how_far(running)
        raise StoreError(
            f"{away}; the report and the runs of {waiting} trials wait for it, kept in {store.work_root}: "
            "run the same command again when it answers"
        ) from None
    show_report(report)


def show_how_far(running: Running) -> None:
    """Print the study's arms with their trials by state."""
    from ablation import search
    from ablation.tables import status_table
    from ablation.view import show_table

    spec, found = running.spec, search.records(running.studies, running.locks)
    show_table(status_table(spec.name, found, spec.trials_per_arm, spec.confirm.seeds))


def check_own_backbone(spec: StudySpec) -> None:
    """Refuse a backbone of the user's own that does not compute what it should on the study's images."""
    if not custom.is_custom(spec.backbone.name):
        return
    from ablation.blocks import check_custom

    backbone = spec.backbone.name
    cuts = {cut for levels in spec.combinations() for cut in spec.possible("truncate_at", levels)}
    strategies = {strategy for levels in spec.combinations() for strategy in spec.possible("strategy", levels)}
    try:
        check_custom(
            backbone,
            max(cuts, key=lambda cut: kept_blocks(backbone, cut)),
            spec.data.image_size,
            learns=strategies != {"feature_extraction"},
            starts_random="from_scratch" in strategies or spec.backbone.missing_layers == "random",
        )
    except ValueError as error:
        raise InputError(f"backbone.{error}") from None


def needs_pretraining(spec: StudySpec, store: Store) -> bool:
    """Say whether the weights are those of a demo, and are still to be made."""
    return spec.backbone.weights == str(demo.weights_path(store)) and not demo.weights_path(store).exists()


def check_places(spec: StudySpec, is_to_pretrain: bool) -> None:
    """Refuse files and folders that are not there, before anything large is read or downloaded."""
    weights = spec.backbone.weights
    if spec.backbone.has_weights_file and not is_to_pretrain and not expand(str(weights)).is_file():
        raise InputError(f"backbone.weights: {weights}: no such file")
    if spec.data.source == "imagefolder":
        from ablation.data import list_imagefolder

        list_imagefolder(expand(str(spec.data.root)))


def load_weights(spec: StudySpec) -> Weights | None:
    """Read the pretrained weights if any arm starts from them, and check that they have every layer that is needed."""
    cuts: set[str] = set()
    for levels in spec.combinations():
        if set(spec.possible("strategy", levels)) != {"from_scratch"}:
            cuts.update(spec.possible("truncate_at", levels))
    if not cuts or spec.backbone.weights is None:
        return None
    weights = read_weights(spec.backbone.name, spec.backbone.weights)
    if spec.backbone.missing_layers == "error":
        check_layers(weights, spec.backbone.weights, spec.backbone.name, cuts)
    return weights


def load_data(spec: StudySpec, processes: int) -> tuple["ImageSet", "Split"]:
    """Read the images and split them; so many processes will hold them."""
    from ablation.data import load_split, split_seed
    from ablation.view import track_progress

    return load_split(spec.data, split_seed(spec.seed), track=track_progress, processes=processes)


def identity(spec: StudySpec, weights: Weights | None, data_digest: str) -> dict[str, Any]:
    """Return the study's content with what its weights and its data hold, as JSON can store it."""
    content = spec.content()
    content["backbone"]["weights_digest"] = weights.digest if weights else None
    content["data"]["digest"] = data_digest
    return content


def ui_command(store: Store) -> str:
    """Return the command that opens the MLflow UI on a store."""
    if store.has_own_tracking:
        database = store.root / "mlflow.db"
        if database.is_relative_to(Path.cwd()):
            database = database.relative_to(Path.cwd())
        return f"python -m mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database}')}"
    if store.tracking_uri.startswith("http"):
        return "open the address in MLFLOW_TRACKING_URI"
    return 'python -m mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'


def ui_address(experiment_id: str, *, has_confirmations: bool) -> str:
    """Return the address of an experiment's charts in a UI started by `ui_command`, of confirmation runs if any."""
    # The UI opens in its GenAI mode without the workflow.
    query = {"compareRunsMode": "CHART", "workflowType": "machine_learning"}
    if has_confirmations:
        query |= {"searchFilter": "tags.kind = 'confirmation'"}
        query |= {"orderByKey": "metrics.`test_accuracy`", "orderByAsc": "false"}
    return f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def main() -> int:
    """Run the command line; return its exit status."""
    status = run_command(cli)
    if status == STOPPED and "--as-worker" not in sys.argv:
        command = shlex.join(["python", "-m", "ablation.study", *sys.argv[1:]])
        print(f"\nStopped; whatever had finished is kept. To go on:\n    {command}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
