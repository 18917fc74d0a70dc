"""A study's arms as Optuna studies: opened, created, read."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.search.patient_storage import RecordMissing, ask_database, patient_storage
from ablation.spec.arms import arms
from ablation.spec.looks import Decision, decision_from, is_open, seeds_of_arms
from ablation.spec.objective import Objective
from ablation.spec.study import StudySpec
from ablation.spec.trial import trial_name
from ablation.storage.locks import POSTGRES_CONNECT_ARGS, opening
from ablation.storage.new_database import build_database
from ablation.storage.outages import opening_reason
from ablation.storage.store import POSTGRESQL_PACKAGES, Store, sqlite_path

LOOKS = "looks"  # user attribute of the first arm's Optuna study: what the planned looks so far decided
CONFIRMATION = "/confirmation"  # ends the name of the Optuna study with an arm's confirmation runs
AGAIN = "again"  # user attribute of an Optuna study: the numbers of ended trials that are to be trained again
NEW_RUNS = "new_runs"  # another: number -> id of the MLflow run, of those that were trained again
METRIC_NAMES = "study:metric_names"  # Optuna's own system attribute of what `Study.set_metric_names` sets

TrialEnd = Literal["finished", "pruned", "failed"]

TRIAL_ENDS: dict[TrialState, TrialEnd] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
END_STATES = {end: state for state, end in TRIAL_ENDS.items()}


@dataclass(frozen=True)
class TrialRecord:
    """A trial as Optuna's database has it. `value` is the objective's of the best epoch.

    `confirms` is None for a trial; for a confirmation run it is the number of the trial whose `params` are trained
    again; they are empty where that was deleted. `seconds` are from its first beginning to its end, or until now.
    """

    arm: str
    number: int
    confirms: int | None
    state: Literal["finished", "pruned", "failed", "running", "interrupted", "unknown"]
    value: float | None
    params: dict[str, Any]
    epochs: int
    reason: str
    run_id: str
    seconds: float | None = None
    higher_is_better: bool = True

    @property
    def name(self) -> str:
        """The trial's name in the terminal."""
        return trial_name(self.arm, self.number, is_confirmation=self.confirms is not None)

    @property
    def has_ended(self) -> bool:
        """Whether the trial is finished, pruned or failed."""
        return self.state in ("finished", "pruned", "failed")


@dataclass(frozen=True)
class ArmStudies:
    """The Optuna studies of a study, by the arm's name: one for the trials, one for the confirmation runs.

    A confirmation run is a trial of the second, so that it is claimed, resumed and ended like any other. Its user
    attribute `confirms` is the number of the trial whose configuration it trains again.
    """

    tuning: dict[str, optuna.Study]
    confirmation: dict[str, optuna.Study]
    ended: dict[str, list[TrialRecord]] = field(default_factory=dict)
    """Cache by Optuna study: its trials up to the first that has not ended, so that a long study stays cheap."""

    def all(self) -> list[optuna.Study]:
        """Return every Optuna study."""
        return [*self.tuning.values(), *self.confirmation.values()]


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """Return the study's pruner."""
    if spec.search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    if spec.search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=spec.epochs)
    return optuna.pruners.NopPruner()


def open_storage(store: Store, *, create: bool = False) -> BaseStorage | None:
    """Open Optuna's database; return None if it has no tables of Optuna's, unless `create`.

    Raises:
        InputError: it cannot be opened.
        StoreAway: it is away.
    """
    where = store.root / "optuna.db" if store.has_own_optuna else "OPTUNA_STORAGE"  # an address may hold a password
    if not store.has_remote_optuna and (path := sqlite_path(store.optuna_url)).is_dir():
        raise InputError(f"{path} is a folder, not Optuna's database")
    try:
        return ask_database(lambda: _open(store, create))
    except ModuleNotFoundError as error:
        raise InputError(f"OPTUNA_STORAGE: needs {error.name}: {POSTGRESQL_PACKAGES}") from None
    except (StoreError, ImportError, RuntimeError, ValueError) as error:
        raise InputError(f"{where}: cannot be opened as Optuna's database ({opening_reason(error)})") from None


@contextmanager
def brief_storage(store: Store) -> Iterator[BaseStorage | None]:
    """Open Optuna's database as `open_storage` does for this context alone; of a server, each connection is scarce."""
    storage = open_storage(store)
    try:
        yield storage
    finally:
        if storage is not None:
            storage.remove_session()


def _open(store: Store, create: bool) -> BaseStorage | None:
    connect_args: dict[str, Any] = {"timeout": 60}  # seconds to wait for another writer
    if store.has_remote_optuna:
        connect_args = dict(POSTGRES_CONNECT_ARGS)
    with opening(store.optuna_url, create=create):
        if not create and not _has_tables(store, connect_args):
            return None
        build_database(store.optuna_url, lambda url: optuna.storages.RDBStorage(_template(url)).engine.dispose())
        engine_kwargs: dict[str, Any] = {"connect_args": connect_args}
        if store.has_remote_optuna:  # of which many workers share the connections
            engine_kwargs |= {"pool_pre_ping": True, "pool_size": 1}
        database = optuna.storages.RDBStorage(_template(store.optuna_url), engine_kwargs=engine_kwargs)
        database.engine.dispose()  # it has opened two, of which it needs one from now on
        return patient_storage(database)


def _template(url: str) -> str:
    """Return an address as Optuna takes it: a template, in which braces that are meant are doubled."""
    return url.replace("{", "{{").replace("}", "}}")


def _has_tables(store: Store, connect_args: dict[str, Any]) -> bool:
    if not store.has_remote_optuna and not sqlite_path(store.optuna_url).exists():
        return False
    engine = sqlalchemy.create_engine(store.optuna_url, connect_args=connect_args)
    try:
        has_tables = bool(sqlalchemy.inspect(engine).has_table("studies"))
        if has_tables and not store.has_remote_optuna:
            with engine.connect() as connection:
                fault = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if fault != "ok":
                reason = (
                    "it is damaged: restore it from a backup, or move it away and let --repair tell a new one of all "
                    "that MLflow has"
                )
                raise StoreError(f"Optuna's database cannot be used ({reason})", reason)
        return has_tables
    finally:
        engine.dispose()


def has_trials(storage: BaseStorage | None, study: str) -> bool:
    """Return whether a storage has a trial of a study."""
    return storage is not None and any(
        has_begun(storage, name) for name in stored_arms(storage, study, confirmation=False)
    )


def is_known(storage: BaseStorage | None, study: str, keys: Collection[str]) -> bool:
    """Return whether a storage has trials of a study, or has one of these arms, by their keys."""
    return storage is not None and (has_trials(storage, study) or bool({*_stored_keys(storage, study)} & {*keys}))


def stored_arms(storage: BaseStorage, study: str, *, confirmation: bool | None = None) -> dict[str, dict[str, Any]]:
    """Return the user attributes of a study's Optuna studies, by their names.

    All are read at once: to ask for each takes seconds where a study has a hundred arms.

    Args:
        storage: where they are.
        study: the study's name.
        confirmation: only those with confirmation runs, or only those with trials; None for both.
    """
    return {
        frozen.study_name: frozen.user_attrs
        for frozen in storage.get_all_studies()
        if frozen.study_name.startswith(f"{study}/")
        and confirmation in (None, frozen.study_name.endswith(CONFIRMATION))
    }


def has_begun(storage: BaseStorage, name: str) -> bool:
    """Return whether an Optuna study has a trial; one that was deleted meanwhile has none."""
    try:
        return bool(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False))
    except RecordMissing:
        return False


def study_arms(storage: BaseStorage, study: str) -> ArmStudies:
    """Return the arms that a study has in the storage; none if there is no such study."""
    prefix = f"{study}/"
    all_studies = ArmStudies({}, {})
    for name in optuna.get_all_study_names(storage):
        if name.startswith(prefix):
            arm, is_confirmation = name.removeprefix(prefix).removesuffix(CONFIRMATION), name.endswith(CONFIRMATION)
            studies = all_studies.confirmation if is_confirmation else all_studies.tuning
            studies[arm] = optuna.load_study(study_name=name, storage=storage)
    return all_studies


def stored_content(storage: BaseStorage, study: str) -> dict[str, Any] | None:
    """Return the content with which a study was begun; None if there is no such study."""
    contents = (arm.get("content") for arm in stored_arms(storage, study, confirmation=False).values())
    return next((content for content in contents if content is not None), None)


def settle_precision(storage: BaseStorage, study: str, studies: ArmStudies, precision: str) -> str:
    """Return what a study's trials compute in: what was settled before, else this, which is then settled.

    A study whose database was lost, and told of its trials again, keeps their precision. The caller holds the lock.
    """
    tuning = studies.tuning.values()
    stored = stored_arms(storage, study, confirmation=False)
    unsettled = [arm for arm in tuning if "precision" not in stored[arm.study_name]]
    settled = [stored[arm.study_name]["precision"] for arm in tuning if arm not in unsettled]
    if not settled:
        trials = [trial for arm in tuning for trial in arm.get_trials(deepcopy=False)]
        settled = [trial.user_attrs["spec"]["precision"] for trial in trials if "spec" in trial.user_attrs]
    chosen = str(next(iter(settled), precision))
    for arm in unsettled:
        arm.set_user_attr("precision", chosen)
    return chosen


def stored_studies(storage: BaseStorage) -> list[str]:
    """Return the names of all studies in the storage."""
    return sorted({name.split("/")[0] for name in optuna.get_all_study_names(storage)})


def experiment_key(storage: BaseStorage, study: str) -> str | None:
    """Return the key of the MLflow experiment of a study's trials; None if no trial has begun."""
    keys = {name: arm.get("experiment") for name, arm in stored_arms(storage, study, confirmation=False).items()}
    return next((key for name, key in keys.items() if key is not None and has_begun(storage, name)), None)


def create_arms(
    storage: BaseStorage,
    spec: StudySpec,
    content: dict[str, Any],
    experiment: str,
    keys: Mapping[str, str] | None = None,
) -> ArmStudies:
    """Return the Optuna studies of every arm; create those that do not exist.

    Each has a globally unique user attribute `key`, which distinguishes its trials from those of a study with the same
    name in another database. One for trials also has `content`, the study's content, and `experiment`, the key of the
    MLflow experiment with its runs.

    Args:
        storage: where they are.
        spec: the study.
        content: its content.
        experiment: the key of its experiment.
        keys: name of an Optuna study -> its key, where a database was lost and its runs are in MLflow.
    """
    studies = ArmStudies({}, {})
    direction = StudyDirection.MAXIMIZE if spec.goal.higher_is_better else StudyDirection.MINIMIZE
    metric_names = [spec.goal.val_metric]
    all_stored = {stored.study_name: stored for stored in storage.get_all_studies()}  # asked once, not per arm

    def create(name: str, pruner: optuna.pruners.BasePruner, attributes: Mapping[str, Any]) -> optuna.Study:
        """Return an Optuna study with these user attributes, and a key; create it unless it exists."""
        new = partial(
            optuna.create_study, storage=storage, study_name=name, direction=direction, pruner=pruner,
            load_if_exists=True,
        )  # fmt: skip
        stored = all_stored.get(name)
        study = new() if stored is None else optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        if study.direction is not direction:  # without trials, see `check_identity`; a direction cannot be changed
            optuna.delete_study(study_name=name, storage=storage)
            study, stored = new(), None
        has = study.user_attrs if stored is None else stored.user_attrs
        if stored is None or stored.system_attrs.get(METRIC_NAMES) != metric_names:
            study.set_metric_names(metric_names)
        key = (keys or {}).get(name) or has.get("key") or uuid.uuid4().hex
        for attribute, value in {"key": key, **attributes}.items():
            if has.get(attribute) != value:
                study.set_user_attr(attribute, value)
        return study

    for arm in arms(spec):
        name = f"{spec.name}/{arm.name}"
        studies.tuning[arm.name] = create(name, make_pruner(spec), {"experiment": experiment, "content": content})
        name += CONFIRMATION
        if spec.confirm.seeds > 0 or name in all_stored:
            studies.confirmation[arm.name] = create(name, optuna.pruners.NopPruner(), {})
    return studies


def again_numbers(study: optuna.Study) -> list[int]:
    """Return the numbers of an Optuna study's ended trials that are to be trained again, because MLflow lost them."""
    return list(study.user_attrs.get(AGAIN, []))


def trial_key(study: optuna.Study, number: int) -> str:
    """Return the key of a trial, which is unique among the trials of all databases."""
    return f"{arm_key(study)}/{number}"


def trial_lock(key: str) -> str:
    """Return the name of a trial's lock; where locks are files, it is in the trial's folder."""
    return f"checkpoints/{key}"


def best_trials(spec: StudySpec, study: optuna.Study) -> dict[int, FrozenTrial]:
    """Return the best trial of each repeat of an arm's tuning, see `best_trial`, without those that have none."""
    best: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        repeat = spec.repeat_of(trial.number)
        if repeat not in best or is_better(trial.value or 0.0, trial.number, best[repeat], spec.goal):
            best[repeat] = trial
    return dict(sorted(best.items()))


def is_confirmation_of(frozen: FrozenTrial, tuned: FrozenTrial) -> bool:
    """Return whether a confirmation run is one of this trial; one without the attribute died when it was created."""
    return bool(frozen.user_attrs.get("confirms", tuned.number) == tuned.number)


def begun_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have begun; a known one does not if its process dies between enqueueing and asking."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]


def all_ended(spec: StudySpec, studies: ArmStudies) -> bool:
    """Return whether every arm has its budget and its confirmation runs, and no trial is unfinished."""
    decisions = read_decisions(spec, studies)
    return not is_open(spec.confirm, decisions) and _have_all_seeds(spec, studies, decisions)


def is_look_due(spec: StudySpec, studies: ArmStudies) -> bool:
    """Return whether all runs of a planned look have ended that has not decided yet how the study continues."""
    decisions = read_decisions(spec, studies)
    return is_open(spec.confirm, decisions) and _have_all_seeds(spec, studies, decisions)


def _have_all_seeds(spec: StudySpec, studies: ArmStudies, decisions: Sequence[Decision]) -> bool:
    seeds = seeds_of_arms(spec.confirm, studies.tuning, decisions)
    return all(
        have_all_ended(spec, studies.tuning[arm.name]) and _is_confirmed(spec, studies, arm.name, seeds[arm.name])
        for arm in arms(spec)
    ) and not any(again_numbers(study) for study in studies.all())


def read_decisions(spec: StudySpec, studies: ArmStudies) -> list[Decision]:
    """Return what the planned looks so far decided."""
    return stored_decisions(studies.tuning[arms(spec)[0].name]) if spec.confirm.looks else []


def stored_decisions(first_arm: optuna.Study) -> list[Decision]:
    """Return what the planned looks so far decided, as the Optuna study of the first arm's trials has it."""
    return [decision_from(stored) for stored in first_arm.user_attrs.get(LOOKS, [])]


def store_decisions(spec: StudySpec, studies: ArmStudies, decisions: Sequence[Decision]) -> None:
    """Store what the planned looks so far decided; the caller holds the study's lock."""
    studies.tuning[arms(spec)[0].name].set_user_attr(LOOKS, [decision.stored() for decision in decisions])


def have_all_ended(spec: StudySpec, study: optuna.Study) -> bool:
    """Return whether an arm has its budget of trials, and all of them have ended."""
    trials = begun_trials(study)
    return len(trials) >= spec.trials_per_arm and all(trial.state.is_finished() for trial in trials)


def _is_confirmed(spec: StudySpec, studies: ArmStudies, arm: str, seeds: int) -> bool:
    """Return whether the best trial of each repeat has so many confirmation runs; True if no trial finished."""
    best = best_trials(spec, studies.tuning[arm]).values()
    if arm not in studies.confirmation or not best:
        return True
    trials = studies.confirmation[arm].get_trials(deepcopy=False)
    if not all(trial.state.is_finished() for trial in trials):
        return False
    return all(sum(is_confirmation_of(trial, tuned) for trial in trials) >= seeds for tuned in best)


def superseded_keys(spec: StudySpec, studies: ArmStudies) -> list[str]:
    """Return the keys of the confirmation runs whose configuration is no longer the best of its repeat."""
    keys = []
    for arm, study in studies.confirmation.items():
        best = best_trials(spec, studies.tuning[arm]).values()
        for frozen in study.get_trials(deepcopy=False):
            if best and not any(is_confirmation_of(frozen, tuned) for tuned in best):
                keys.append(trial_key(study, frozen.number))
    return keys


def best_trial(study: optuna.Study, confirms: int | None = None) -> FrozenTrial | None:
    """Return the finished trial of an Optuna study with the best value, the first of equals; None if none finished.

    In a study of confirmation runs, only those that confirm the trial with the number `confirms` count.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction is StudyDirection.MINIMIZE else 1
    return max(
        (trial for trial in finished if trial.user_attrs.get("confirms") == confirms),
        key=lambda trial: sign * (trial.value or 0.0),
        default=None,
    )


def is_better(value: float, number: int, than: FrozenTrial, goal: Objective) -> bool:
    """Return whether a trial with this value and number would replace the best trial `than`."""
    return (goal.goodness(value), -number) > (goal.goodness(than.value), -than.number)


def arm_key(study: optuna.Study) -> str:
    """Return the key of an arm; see `create_arms`.

    Raises:
        StoreError: it has none, because somebody has damaged the database.
    """
    return _key(study.study_name, study.user_attrs)


def _stored_keys(storage: BaseStorage, study: str) -> list[str]:
    return [_key(name, attributes) for name, attributes in stored_arms(storage, study).items()]


def _key(name: str, attributes: Mapping[str, Any]) -> str:
    if attributes.get("key") is None:
        raise StoreError(f"Optuna's database cannot be used (the study {name!r} in it has lost its key)")
    return str(attributes["key"])


def has_confirmations(spec: StudySpec, studies: ArmStudies) -> bool:
    """Return whether a confirmation run has finished whose configuration is still the best of its repeat."""
    for arm, study in studies.confirmation.items():
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = best_trials(spec, studies.tuning[arm]).values()
        if any(is_confirmation_of(frozen, tuned) for frozen in finished for tuned in best):
            return True
    return False


def trial_ends(studies: ArmStudies) -> dict[str, TrialEnd | None]:
    """Return how every trial ended, by its key; None for those that have not ended, or are trained again."""
    ends: dict[str, TrialEnd | None] = {}
    for study in studies.all():
        attributes = study.user_attrs  # read once: each time asks the database
        key, again = _key(study.study_name, attributes), attributes.get(AGAIN, [])
        for frozen in study.get_trials(deepcopy=False):
            ends[f"{key}/{frozen.number}"] = None if frozen.number in again else TRIAL_ENDS.get(frozen.state)
    return ends


def own_arm_keys(store: Store, study: str) -> list[str]:
    """Return the keys of a study's arms in the store's Optuna database; none where that has not the study, or is away.

    Results need MLflow alone, but an MLflow store may hold a study of the same name from another database.
    """
    try:
        with brief_storage(store) as storage:
            return [] if storage is None else _stored_keys(storage, study)
    except (InputError, StoreAway, StoreError):
        return []
