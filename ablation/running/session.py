"""A session: the stores, images and weights that a process has open while it works on a study."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ablation.analysis.wording import shown_question
from ablation.base.device import check_device, select_precision
from ablation.base.errors import InputError, StoreAway
from ablation.base.retries import wait_out
from ablation.base.terminal import say, say_prose, track_progress, waiting
from ablation.base.text import escape_markdown, plural
from ablation.data.image_set import ImageSet
from ablation.data.reading import list_own_images, load_split
from ablation.data.split import Split, split_seed
from ablation.networks.weights import Weights
from ablation.running.checks import load_weights, objective_hints
from ablation.running.demo import demo_weights_path, is_demo, needs_pretraining
from ablation.running.demo_network import pretrain_demo_network
from ablation.running.options import RunOptions, worker_devices
from ablation.running.repair import RUN_STATUS, adopted_keys, logged_study, restore_ended_trials
from ablation.running.study_view import StudyView
from ablation.search.claims import clean_up_ended_trials
from ablation.search.identity import check_identity
from ablation.search.status import count_runs, trial_records
from ablation.search.studies import (
    ArmStudies,
    arm_key,
    brief_storage,
    create_arms,
    experiment_key,
    has_trials,
    is_known,
    open_storage,
    read_decisions,
    settle_precision,
    stored_content,
    superseded_keys,
    trial_ends,
)
from ablation.spec.architectures import is_faster_in_bfloat16
from ablation.spec.arms import arms
from ablation.spec.looks import most_seeds_of_arms, seeds_of_arms
from ablation.spec.study import StudySpec
from ablation.storage.locks import Locks, check_held, open_locks, study_lock
from ablation.storage.store import Store
from ablation.tracking.client import STUDY_JSON, RunStatus, check_experiment, open_client
from ablation.tracking.experiment import Tracker
from ablation.tracking.summary_run import SummaryRun
from ablation.tracking.trial_run import TrialRun


@dataclass(frozen=True)
class Session:
    """A study while a process works on it: images, weights, Optuna studies by arm, and where results go.

    `content` is the study's identity as its Optuna studies store it. `precision` is what its new trials compute in,
    which the first process settled for all others, whatever their machines. A process that only supervises workers
    holds hardly any pixels, see `champion.keep_examples`.
    """

    spec: StudySpec
    store: Store
    options: RunOptions
    locks: Locks
    studies: ArmStudies
    content: dict[str, Any]
    tracker: Tracker
    images: ImageSet
    split: Split
    weights: Weights | None
    precision: str

    @cached_property
    def summary(self) -> SummaryRun:
        """The study's summary run in MLflow."""
        return SummaryRun(self.tracker, f"{arm_key(self.studies.tuning[arms(self.spec)[0].name])}/summary")


def open_session(spec: StudySpec, store: Store, options: RunOptions, *, is_worker: bool = False) -> Session:
    """Read weights and images, open the stores, and finish what a crash left unfinished.

    All of the user's input is checked before the store is touched, and quick checks come first.

    Args:
        spec: the study.
        store: where its results go.
        options: the options of the run.
        is_worker: whether another process has started this one to help it.

    Raises:
        InputError: the study, its data or its weights cannot be used as they are.
        StoreAway: a server does not answer.
        StoreError: a store cannot be used.
    """
    is_to_pretrain = needs_pretraining(spec, store)
    if options.device_name not in ("auto", "cpu"):
        check_device(options.device_name)
    is_begun = wait_out(lambda: _check_begun(spec, store), options.patience)
    if spec.data.is_own and spec.backbone.weights and not spec.backbone.has_weights_file:
        list_own_images(spec.data)  # so that a folder which cannot be used is told before weights are downloaded
    weights = None if is_to_pretrain else load_weights(spec)
    processes = 1 if is_worker else len(worker_devices(options))  # a supervisor of workers drops its own images
    images, split = load_split(
        spec.data, split_seed(spec.seed), track=track_progress, processes=processes, is_begun=is_begun
    )
    if images.reading and not is_worker:
        say_prose(images.reading)
    for hint in objective_hints(spec) if not is_worker else []:
        say_prose(hint)
    if is_to_pretrain:
        with waiting("Pretraining the demo's network on the digits 0-4 (a few seconds)"):
            if store.has_remote_tracking:
                wait_out(lambda: open_client(store), options.patience)
            store.prepare()
            pretrain_demo_network(demo_weights_path(store, spec.backbone.name), spec.backbone.name)
        weights = load_weights(spec)

    with waiting("Opening the store"):
        content = study_identity(spec, weights, images)
        locks, studies, tracker, precision = wait_out(
            lambda: open_stores(spec, store, content, options, is_worker=is_worker), options.patience
        )
        session = Session(spec, store, options, locks, studies, content, tracker, images, split, weights, precision)
        with suppress(StoreAway):  # tried again when the study ends
            # The process that started a worker has just compared all runs.
            (deliver if is_worker else deliver_and_reconcile)(session)
    return session


def _check_begun(spec: StudySpec, store: Store) -> bool:
    """Check that a study which has begun is the same; return whether it has begun.

    Raises:
        InputError: another study of the same name is in the store, or Optuna's database cannot be opened.
        StoreAway: it is away.
    """
    with brief_storage(store) as storage:
        if storage is None:
            return False
        is_late = spec.preregister and has_trials(storage, spec.name)
        content = stored_content(storage, spec.name)  # after that: until the first trial, it may be replaced
        if is_late and not (content or {}).get("preregister", False):
            raise InputError(
                f"preregister: study {spec.name!r} has trials already, and a registration comes before the first; "
                "register it as a study of its own, with --name"
            )
        later = ("backbone.weights_digest", "data.digest", "data.decoding")
        check_identity(storage, spec.name, spec.content(), ignored=later)
        return content is not None


def open_stores(
    spec: StudySpec, store: Store, content: dict[str, Any], options: RunOptions, *, is_worker: bool
) -> tuple[Locks, ArmStudies, Tracker, str]:
    """Check that the study can run or be resumed in its stores, then open them, creating what does not exist.

    Returns:
        The study's locks, its Optuna studies, its MLflow experiment, and what new trials compute in.

    Raises:
        InputError: another study of the same name is in the store, or a store cannot be opened.
        StoreAway: a server does not answer.
    """
    device, is_faster = check_device(worker_devices(options)[0]), is_faster_in_bfloat16(spec.backbone.name)
    preferred = select_precision(spec.precision, device, is_faster_in_bfloat16=is_faster)
    own_weights = demo_weights_path(store, spec.backbone.name) if is_demo(spec, store) else None
    check = partial(check_identity, study=spec.name, content=content, own_weights=own_weights)
    storage = open_storage(store)  # once: it takes a tenth of a second
    if storage is not None:
        check(storage, is_begun=is_worker)
    key = experiment_key(storage, spec.name) if storage is not None else None
    experiment_id = check_experiment(store, spec.name, key, is_repair=options.repair, is_redo=options.redo)
    keys: dict[str, str] = {}
    if experiment_id is not None and not is_worker and not has_trials(storage, spec.name):
        record = logged_study(store, spec.name)
        storage = open_storage(store)  # another process may have begun the study meanwhile
        if record is not None and not is_known(storage, spec.name, record.about.get("arm_keys", [])):
            keys = adopted_keys(spec, content, record, is_repair=options.repair)
    store.prepare()
    client, storage = open_client(store, create=True), storage or open_storage(store, create=True)
    assert client is not None
    assert storage is not None
    locks = open_locks(store.optuna_url)
    with locks.exclusive(study_lock(spec.name)):
        check(storage)  # another process may have begun a moment ago
        tracker = Tracker(client, store, spec.name, escape_markdown(shown_question(spec.question)), experiment_id)
        with locks.exclusive():  # nobody may claim a trial between this check and the change of content
            check(storage)
            studies = create_arms(storage, spec, content, tracker.key, keys)
        added = 0 if is_worker else restore_ended_trials(spec, studies, locks, tracker)
        if added:
            say(f"Added to Optuna's database: {plural(added, 'trial')} that only MLflow had")
        check_held(locks, study_lock(spec.name))
        precision = settle_precision(storage, spec.name, studies, preferred)
    return locks, studies, tracker, precision


def deliver(session: Session) -> None:
    """Deliver to MLflow what it has not received yet of trials that have ended.

    Raises:
        StoreAway: a server does not answer; says how many trials' results wait for it, and where.
        StoreError: MLflow's store or Optuna's database cannot be used.
    """
    only_best = session.spec.tracking.checkpoints == "best_per_arm"

    def complete(key: str, folder: Path, owner: str, is_best: bool, ensure_held: Callable[[], None]) -> bool:
        run = TrialRun(session.tracker, key, folder, owner, ensure_held)
        if only_best and not is_best:
            run.delete_checkpoint(key)  # it may have been delivered after the better one
        return run.complete()

    waiting_trials = clean_up_ended_trials(session.store, session.locks, session.studies, complete)
    if waiting_trials:
        kept = f"the results of {plural(waiting_trials, 'trial')} are kept in {session.store.work_root} until it does"
        raise StoreAway(f"{session.tracker.away or 'MLflow does not answer'}; {kept}")


def deliver_and_reconcile(session: Session) -> None:
    """Deliver to MLflow what it has not received yet; leave one run for each trial that has ended, and close it.

    Raises:
        StoreAway: as `deliver`.
        StoreError: as `deliver`.
    """

    def statuses() -> dict[str, RunStatus | None]:
        ends = trial_ends(session.studies)
        return {key: RUN_STATUS[end] if end else None for key, end in ends.items()}

    deliver(session)
    session.tracker.reconcile(statuses)
    session.tracker.mark_superseded(superseded_keys(session.spec, session.studies))


def show_progress(session: Session, progress: StudyView) -> None:
    """Show how far the study is, whichever process did the work."""
    spec = session.spec
    trials_by_arm = trial_records(session.studies, session.locks)
    decisions = read_decisions(spec, session.studies)
    fewest, most = (of_arms(spec.confirm, trials_by_arm, decisions) for of_arms in (seeds_of_arms, most_seeds_of_arms))
    _, total = count_runs(trials_by_arm, spec.trials_per_arm, most, spec.confirm.repeats)
    progress.update(trials_by_arm, total, (fewest, most) if spec.confirm.looks else None)


def run_files(session: Session) -> dict[str, str]:
    """Return the files that every run keeps: the study file, and its content with overrides and defaults."""
    return {"study.toml": session.options.file_text, STUDY_JSON: session.spec.model_dump_json(indent=2)}


def study_identity(spec: StudySpec, weights: Weights | None, images: ImageSet) -> dict[str, Any]:
    """Return the study's content with the digests of its weights and its data, as JSON can store it.

    The version of the decoding is left out where pixels do not depend on it.
    """
    content = spec.content()
    content["backbone"]["weights_digest"] = weights.digest if weights else None
    content["data"]["digest"] = images.digest
    if images.decoding is not None:
        content["data"]["decoding"] = images.decoding
    return content
