"""What Optuna's database and MLflow hold of a study's trials: compared, put into words, mended.

One of the two may be older than the other, lost, or edited by a person. Nothing that either of them has is lost: what
MLflow has and Optuna lacks is added to Optuna's database; what Optuna has and MLflow lacks is trained again, under the
same number and seed.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.text import plural
from ablation.search.identity import content_changes
from ablation.search.lost_trials import KnownTrial, tell_again, train_again
from ablation.search.studies import (
    CONFIRMATION,
    ArmStudies,
    TrialEnd,
    arm_key,
    brief_storage,
    study_arms,
    trial_ends,
)
from ablation.spec.arms import arms
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.locks import Locks
from ablation.storage.store import Store
from ablation.tracking.client import PREDICTIONS_FILE, PatientClient, RunStatus, find_experiment, reading_client
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import (
    HiddenFile,
    RunRecord,
    StudyRecord,
    artifact_path,
    edited_tags,
    read_runs,
    read_study,
    run_file,
    run_words,
    runs_of_arms,
)

Kind = Literal["lost", "damaged", "hidden", "edited", "deleted", "missing_in_optuna", "orphan"]

TEXTS: dict[Kind, str] = {
    "lost": "MLflow lacks the runs of {}: unless another machine has yet to deliver them, --repair trains them again",
    "damaged": "The test predictions of {} are lost or damaged: --repair trains them again",
    "hidden": "This user may not read the test predictions of {}",
    "edited": "Tags of the runs of {} were edited or deleted, and they are left out: --repair writes the tags again",
    "deleted": "Deleted in MLflow, and left out: {}; --redo restores them",
    "missing_in_optuna": "Optuna's database lacks {}, which MLflow has: the study's next start adds them",
    "orphan": "MLflow has runs of trials that do not exist: {}",
}
BY_REPAIR: dict[Kind, str] = {  # what `--repair` says instead, which does it now
    "lost": "MLflow lacks the runs of {}: they are trained again",
    "damaged": "The test predictions of {} are lost or damaged: they are trained again",
    "edited": "Tags of the runs of {} were edited or deleted, and are written again",
}
BY_REDO: dict[Kind, str] = {"deleted": "Deleted in MLflow, and restored: {}"}
MOST_NAMES = 5  # in a text

RUN_STATUS: dict[TrialEnd, RunStatus] = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
ENDS: dict[str, TrialEnd] = {status: end for end, status in RUN_STATUS.items()}


@dataclass(frozen=True)
class Difference:
    """A trial of which the two databases say different things. `run` is its MLflow run, if there is one."""

    kind: Kind
    key: str
    words: str
    run: RunRecord | None = None


def compare(
    ends: Mapping[str, TrialEnd | None], arm_names: Mapping[str, tuple[str, str]], runs: Iterable[RunRecord]
) -> list[Difference]:
    """Return where Optuna's database and MLflow differ.

    Args:
        ends: how each of Optuna's trials ended, by its key; None for those that have not.
        arm_names: the key of an Optuna study -> what people call its trials, and its arm: ("trial", "block1").
        runs: those of MLflow, also deleted ones. Runs of other arms belong to another database.
    """
    by_key: dict[str, list[RunRecord]] = {key: [] for key in ends}
    for run in runs_of_arms(runs, arm_names):
        by_key.setdefault(run.key, []).append(run)
    differences = []
    for key, of_key in by_key.items():
        active = [run for run in of_key if not run.is_deleted]
        best = max(active or of_key, key=lambda run: run.is_complete, default=None)
        kind = _kind(key in ends, ends.get(key), best)
        if kind is not None:
            arm, _, number = key.rpartition("/")
            noun, name = arm_names[arm]
            differences.append(Difference(kind, key, f"{noun} #{number} of {name}", best))
    order = list(arm_names)

    def place(difference: Difference) -> tuple[int, int]:
        arm, _, number = difference.key.rpartition("/")
        return order.index(arm), int(number)

    return sorted(differences, key=place)


def _kind(is_known: bool, end: TrialEnd | None, run: RunRecord | None) -> Kind | None:
    if not is_known:
        assert run is not None
        if run.is_deleted:
            return None
        return "missing_in_optuna" if run.is_complete else "orphan"
    if end is None:
        return None
    if run is None:
        return "lost"
    if run.is_deleted:
        return "deleted"
    if end == "finished" and not run.is_complete:
        return "lost"
    return "edited" if edited_tags(run) else None


def difference_texts(differences: Sequence[Difference], mended: Mapping[Kind, str] | None = None) -> list[str]:
    """Return differences as lines for people, one for each kind; `mended`: the texts of those that are mended now."""
    texts = []
    for kind, text in {**TEXTS, **(mended or {})}.items():
        names = [difference.words for difference in differences if difference.kind == kind]
        if names:
            more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
            texts.append(text.format(", ".join([*names[:MOST_NAMES], *more])))
    return texts


def find_differences(
    client: PatientClient, experiment_id: str, store: Store, studies: ArmStudies, *, thoroughly: bool
) -> list[Difference]:
    """Return where a study's Optuna database and MLflow differ, and which predictions are lost.

    Args:
        client: of the store's MLflow.
        experiment_id: the study's.
        store: where the study is.
        studies: its Optuna studies.
        thoroughly: whether to download the files of predictions, where they are not in the store itself.

    Raises:
        StoreAway: a server does not answer.
        StoreError: a store cannot be used.
    """
    # Other processes may work on the study. A trial exists before its run, and its run ends before it: of trials that
    # end, or begin, while the runs are read, nothing is known yet.
    ends_before = trial_ends(studies)
    runs = read_runs(client, experiment_id)
    ends = {key: ends_before.get(key) for key in trial_ends(studies)}
    names = {arm_key(study): ("trial", arm) for arm, study in studies.tuning.items()}
    names |= {arm_key(study): ("confirmation run", arm) for arm, study in studies.confirmation.items()}
    waiting = {key for key in ends if store.trial_folder(key).is_dir()}  # for MLflow, or they are being delivered
    differences = [d for d in compare(ends, names, runs) if not (d.kind == "lost" and d.key in waiting)]
    differing = {difference.key for difference in differences}
    for run in runs_of_arms(runs, names):
        has_predictions = ends.get(run.key) == "finished" and run.is_confirmation and run.key not in differing
        if has_predictions and not run.is_deleted:
            fault = _fault(store, run, thoroughly=thoroughly)
            differences += [] if fault is None else [Difference(fault, run.key, run_words(run), run)]
    return differences


def _fault(store: Store, run: RunRecord, *, thoroughly: bool) -> Kind | None:
    """Return what is wrong with the predictions of a confirmation run."""
    if "superseded" in run.tags or not (thoroughly or store.has_own_tracking):
        return None
    try:
        with run_file(store, run, PREDICTIONS_FILE):
            return None
    except HiddenFile:
        return "hidden"
    except InputError:
        return "damaged"


def stored_differences(store: Store, study: str) -> list[str]:
    """Return in words where a study's two databases differ, as far as both can be read.

    Args:
        store: where the study is.
        study: its name.
    """
    try:
        with brief_storage(store) as storage:
            studies = ArmStudies({}, {}) if storage is None else study_arms(storage, study)
            if not studies.tuning:
                return []
            client = reading_client(store)
            experiment_id = find_experiment(client, store, study).experiment_id
            return difference_texts(find_differences(client, experiment_id, store, studies, thoroughly=False))
    except (InputError, StoreAway, StoreError) as error:
        return [f"The trials were not compared with MLflow's runs: {error}"]


def mend(differences: Sequence[Difference], store: Store, studies: ArmStudies, locks: Locks, tracker: Tracker) -> None:
    """Write edited tags again, and note which trials are to be trained again.

    Raises:
        StoreAway: a server does not answer; call this again.
        StoreError: a store cannot be used.
    """
    for difference in differences:
        if difference.kind == "edited":
            assert difference.run is not None
            for name, value in edited_tags(difference.run).items():
                tracker.client.set_tag(difference.run.run_id, name, value)
        if difference.kind == "damaged" and store.has_own_tracking:
            assert difference.run is not None
            place = artifact_path(store, difference.run, PREDICTIONS_FILE)
            if place.is_dir():  # into which MLflow would put the new file
                shutil.rmtree(place)
    lost = [difference.key for difference in differences if difference.kind in ("lost", "damaged")]
    with locks.exclusive():
        for study in studies.all():
            key = arm_key(study)
            numbers = [int(number) for arm, _, number in (each.rpartition("/") for each in lost) if arm == key]
            if numbers:
                train_again(study, numbers)


def restore_deleted(differences: Sequence[Difference], tracker: Tracker) -> None:
    """Restore the runs of ended trials that somebody has deleted in MLflow.

    Raises:
        StoreAway: the tracking server does not answer; call this again.
    """
    for difference in differences:
        if difference.kind == "deleted":
            assert difference.run is not None
            tracker.client.restore_run(difference.run.run_id)


def restore_ended_trials(spec: StudySpec, studies: ArmStudies, locks: Locks, tracker: Tracker) -> int:
    """Add to Optuna's database the trials that have ended as far as MLflow knows; return their number.

    Its database may be older than MLflow's, or a process may have died in between.

    Raises:
        StoreAway: a server does not answer.
        StoreError: a store cannot be used.
    """
    keys = {arm_key(study) for study in studies.all()}
    runs = runs_of_arms(read_runs(tracker.client, tracker.experiment_id), keys)
    ends = trial_ends(studies)
    missing: dict[str, list[KnownTrial]] = {}  # by the key of the Optuna study
    active = {run.key for run in runs if not run.is_deleted}
    for run in runs:
        is_double = run.is_deleted and run.key in active  # else somebody has deleted the trial, which stays deleted
        if run.is_complete and not is_double and ends.get(run.key) is None:
            missing.setdefault(run.key.rpartition("/")[0], []).append(_known_trial(tracker.client, run))
    if not missing:
        return 0
    told: list[int] = []
    with locks.exclusive():
        for arm in arms(spec):
            tuning, confirmation = studies.tuning[arm.name], studies.confirmation.get(arm.name)
            confirming = [] if confirmation is None else missing.get(arm_key(confirmation), [])
            least = max((run.spec.confirms + 1 for run in confirming if run.spec.confirms is not None), default=0)
            told += tell_again(spec, arm, tuning, missing.get(arm_key(tuning), []), locks, least)
            told += [] if confirmation is None else tell_again(spec, arm, confirmation, confirming, locks)
    return len(told)


def _known_trial(client: PatientClient, run: RunRecord) -> KnownTrial:
    end, spec = ENDS[run.status], TrialSpec.from_params(run.params)
    history = client.get_metric_history(run.run_id, spec.goal.val_metric)
    return KnownTrial(
        spec=spec,
        end=end,
        value=run.metrics[spec.goal.best_metric] if end == "finished" else None,
        reason=run.tags.get("reason", ""),
        run_id=run.run_id,
        values={point.step: point.value for point in history},
        began=None if run.began is None else datetime.fromtimestamp(run.began / 1000),
        ended=None if run.ended is None else datetime.fromtimestamp(run.ended / 1000),
    )


def logged_study(store: Store, study: str) -> StudyRecord | None:
    """Return the study of a name that MLflow has, whichever Optuna database it is of; None without a run of it."""
    try:
        record = read_study(store, study)
    except HiddenFile:
        raise
    except InputError:
        return None
    return record if record.runs else None


def runs_without_trials(study: str, record: StudyRecord) -> str:
    """Return in words that Optuna's database lacks a study of which MLflow has a record."""
    runs = plural(len(record.runs), "run")
    return f"MLflow has {runs} of a study {study!r}, of which Optuna's database has no trial"


def adopted_keys(spec: StudySpec, content: dict[str, Any], record: StudyRecord, *, is_repair: bool) -> dict[str, str]:
    """Return the keys of the Optuna studies whose runs MLflow has, where Optuna's database has no trial of the study.

    Args:
        spec: the study.
        content: its content.
        record: what MLflow has.
        is_repair: whether a person has said that the runs are those of a database that was lost.

    Returns:
        Name of an Optuna study -> its key.

    Raises:
        InputError: nobody has said so, or the runs are of a study with other settings.
    """
    has = runs_without_trials(spec.name, record)
    if not is_repair:
        raise InputError(f"{has}: if its trials were lost, --repair tells it of them; else choose another --name")
    names = [f"{spec.name}/{arm.name}{end}" for end in ("", CONFIRMATION) for arm in arms(spec)]
    keys = record.about.get("arm_keys", [])
    try:
        logged = StudySpec.model_validate_json(json.dumps(record.about["spec"])).content()
        logged["backbone"]["weights_digest"] = record.about["weights_digest"]
        logged["data"]["digest"] = record.about["data_digest"]
        changes = content_changes(logged, content, ignored=("data.decoding",))
    except (KeyError, ValueError):
        changes = ["they are of another version"]
    if changes or len(keys) not in (len(names) // 2, len(names)):
        raise InputError(f"{has}, and they were made with other settings: {'; '.join(changes) or 'other arms'}")
    return dict(zip(names, keys, strict=False))
