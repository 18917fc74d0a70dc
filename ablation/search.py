"""All of Optuna: storage, samplers, pruners, claiming trials, and from an Optuna trial to hyper-parameters."""

import shutil
import sqlite3
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ablation import architecture, custom
from ablation.design import Arm, arms, next_arm
from ablation.interrupts import uninterrupted
from ablation.locks import EXCLUSIVE, POSTGRES_CONNECT_ARGS, Locks, opening
from ablation.seeding import named_seed
from ablation.spec import Choices, Hyperparameters, InputError, StudySpec, applies, first_line
from ablation.store import Store, StoreAway, StoreError, build_database, sqlite_path

if TYPE_CHECKING:
    from ablation.train import EpochMetrics

QUASI_RANDOM_UP_TO = 20  # trials per arm; the Tuning Playbook advises quasi-random search for small budgets
MAY_CHANGE = ("trials_per_arm", "confirm")  # of a study that has trials
CONFIRMATION = "/confirmation"  # ends the name of the Optuna study with an arm's confirmation runs

TrialEnd = Literal["finished", "pruned", "failed"]
TRIAL_ENDS: dict[TrialState, TrialEnd] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class ClaimLost(Exception):
    """The trial has another owner, or has ended: what this process did for it is not wanted any more."""


@dataclass(frozen=True)
class ArmStudies:
    """The Optuna studies of a study, by the arm's name: one that tunes the arm, one that confirms what tuning found.

    A confirmation run is a trial of the second, so that it is claimed, continued and told like any other. Its user
    attribute `confirms` is the number of the tuned trial whose configuration it trains again.
    """

    tuning: dict[str, optuna.Study]
    confirmation: dict[str, optuna.Study]
    ended: dict[tuple[str, int], "TrialRecord"] = field(default_factory=dict)
    """What is known of trials that have ended, by Optuna study and number, so that a long study costs no more."""

    def all(self) -> list[optuna.Study]:
        """Return every Optuna study."""
        return [*self.tuning.values(), *self.confirmation.values()]


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise what can go wrong with the database under way as StoreAway (a server that may come back) or StoreError.

    A trial that another process has ended is a ClaimLost.
    """
    import sqlalchemy.exc

    try:
        with uninterrupted():
            yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise ClaimLost("another worker has ended it") from None
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause: Any = error if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else error.__cause__ or error
        reason = first_line(getattr(cause, "orig", None) or cause)
        is_lost = isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
        if is_lost and not isinstance(cause.orig, sqlite3.Error):
            raise StoreAway(f"Optuna's database does not answer ({reason})") from None
        raise StoreError(f"Optuna's database cannot be used ({reason})") from None


# -------------------------------------------------------------------------------------------------- search space


def distribution(spec: StudySpec, parameter: str, *, high: int | None = None) -> BaseDistribution:
    """Return Optuna's distribution for a searched parameter; `high` lowers the range's upper end."""
    searched = spec.search.get(parameter)
    if isinstance(searched, Choices):
        return CategoricalDistribution(searched.choices)
    if isinstance(searched.low, int):
        upper = searched.high if high is None else min(searched.high, high)
        return IntDistribution(searched.low, upper, log=searched.log, step=searched.step or 1)
    return FloatDistribution(searched.low, searched.high, log=searched.log, step=searched.step)


def optuna_name(spec: StudySpec, parameter: str, truncate_at: str) -> str:
    """Return the parameter's name in Optuna: one per case where its range depends on another searched parameter."""
    depends = parameter == "freeze_depth" and spec.search.get("truncate_at") is not None
    return f"{parameter}_{truncate_at}" if depends else parameter


def full_space(spec: StudySpec, arm: Arm) -> dict[str, BaseDistribution]:
    """Return every parameter that a trial of an arm may sample, whether it applies or not."""
    space = {}
    for parameter in spec.search.entries():
        for cut in spec.possible("truncate_at", arm.levels):
            high = architecture.kept_blocks(spec.backbone.name, cut) if parameter == "freeze_depth" else None
            space[optuna_name(spec, parameter, cut)] = distribution(spec, parameter, high=high)
    return space


@storage_errors()
def suggest(trial: optuna.Trial, spec: StudySpec, arm: Arm) -> dict[str, Any]:
    """Return all hyper-parameters of a trial: its arm's levels, what Optuna chooses, and the fixed rest.

    A parameter that does not apply is not sampled; it becomes None (`head_warmup_epochs`: 0).
    """
    chosen: dict[str, Any] = {}
    blocks = 0
    # `strategy`, `truncate_at` and `freeze_depth` come first: they decide what else applies.
    order = ["strategy", "truncate_at", "freeze_depth"]
    order += [name for name in Hyperparameters.model_fields if name not in order]
    for parameter in order:
        if "truncate_at" in chosen:
            blocks = architecture.kept_blocks(spec.backbone.name, chosen["truncate_at"])
        applicable = parameter == "strategy" or applies(
            parameter, chosen["strategy"], chosen.get("freeze_depth"), blocks
        )
        if not applicable:
            chosen[parameter] = 0 if parameter == "head_warmup_epochs" else None
        elif parameter in arm.levels:
            chosen[parameter] = arm.levels[parameter]
        elif spec.search.get(parameter) is not None:
            name = optuna_name(spec, parameter, chosen.get("truncate_at", ""))
            high = blocks if parameter == "freeze_depth" else None
            chosen[parameter] = _suggest_one(trial, name, distribution(spec, parameter, high=high))
        else:
            chosen[parameter] = spec.default(parameter)
    return chosen


def _suggest_one(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(name, dist.choices)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, log=dist.log, step=dist.step)
    assert isinstance(dist, FloatDistribution)
    return trial.suggest_float(name, dist.low, dist.high, log=dist.log, step=dist.step)


# ------------------------------------------------------------------------------------------------------ samplers


class NumberedQMCSampler(QMCSampler):
    """Optuna's scrambled Sobol sequence, its point chosen by the trial's number alone.

    Optuna's own counts the points that were asked for, so that trial *n* depends on who asked first. The space is
    given, not inferred, because arms with conditional parameters must still get the same points. A parameter outside
    it cannot occur.
    """

    def __init__(self, space: dict[str, BaseDistribution], seed: int):
        super().__init__(scramble=True, seed=seed, warn_asynchronous_seeding=False)
        self._space = space
        self._number = 0

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the given space."""
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point with the trial's number."""
        self._number = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class NumberedRandomSampler(BaseSampler):
    """Optuna's random sampler, seeded by the trial's number and the parameter's name."""

    def __init__(self, seed: int):
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: every parameter is drawn by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing, see above."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw the parameter."""
        seed = named_seed(self._seed, trial.number, param_name) % 2**32
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)


def make_sampler(spec: StudySpec, arm: Arm, trials_so_far: int) -> BaseSampler:
    """Return the sampler that the study asks for; the first two kinds depend on (study seed, trial number) alone."""
    kind = spec.search.sampler
    if kind == "auto":
        kind = "qmc" if spec.trials_per_arm <= QUASI_RANDOM_UP_TO else "tpe"
    seed = named_seed(spec.seed, "sampler") % 2**32  # what Optuna's samplers take
    if kind == "qmc":
        # One space for all arms, in one order: a longer or reordered one would move the points.
        everywhere = {name: dist for other in arms(spec) for name, dist in full_space(spec, other).items()}
        return NumberedQMCSampler(dict(sorted((everywhere | full_space(spec, arm)).items())), seed)
    if kind == "random":
        return NumberedRandomSampler(seed)
    return TPESampler(group=True, seed=named_seed(seed, trials_so_far) % 2**32)


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """Return the pruner that the study asks for."""
    if spec.search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    if spec.search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=spec.epochs)
    return optuna.pruners.NopPruner()


# ------------------------------------------------------------------------------------------------------- storage


def open_storage(store: Store, *, create: bool = False) -> optuna.storages.RDBStorage | None:
    """Open Optuna's database; one without Optuna's tables is left as it is and None returned, unless `create`.

    Raises:
        InputError: it cannot be opened.
    """
    import sqlalchemy
    import sqlalchemy.exc

    where = store.root / "optuna.db" if store.has_own_optuna else "OPTUNA_STORAGE"  # an address may hold a password
    connect_args: dict[str, Any] = {"timeout": 60}  # seconds to wait for another writer
    if store.has_remote_optuna:
        connect_args = dict(POSTGRES_CONNECT_ARGS)
    try:
        with opening(store.optuna_url, create=create):
            if not create and not _has_tables(store, connect_args):
                return None
            build_database(store.optuna_url, lambda url: optuna.storages.RDBStorage(url).engine.dispose())
            return optuna.storages.RDBStorage(
                store.optuna_url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": store.has_remote_optuna}
            )
    except ModuleNotFoundError as error:
        raise InputError(f"OPTUNA_STORAGE: needs {error.name}; install ablation[postgresql]") from None
    except (sqlalchemy.exc.SQLAlchemyError, StoreAway, ImportError, RuntimeError, ValueError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        raise InputError(f"{where}: cannot be opened as Optuna's database ({reason})") from None


def _has_tables(store: Store, connect_args: dict[str, Any]) -> bool:
    import sqlalchemy

    if not store.has_remote_optuna and not sqlite_path(store.optuna_url).exists():
        return False
    engine = sqlalchemy.create_engine(store.optuna_url, connect_args=connect_args)
    try:
        return bool(sqlalchemy.inspect(engine).has_table("studies"))
    finally:
        engine.dispose()


@storage_errors()
def study_arms(storage: optuna.storages.RDBStorage, study: str) -> ArmStudies:
    """Return the arms that a study has in the storage; none where there is no such study."""
    prefix = f"{study}/"
    found = ArmStudies({}, {})
    for name in optuna.get_all_study_names(storage):
        if name.startswith(prefix):
            arm, is_confirmation = name.removeprefix(prefix).removesuffix(CONFIRMATION), name.endswith(CONFIRMATION)
            studies = found.confirmation if is_confirmation else found.tuning
            studies[arm] = optuna.load_study(study_name=name, storage=storage)
    return found


@storage_errors()
def stored_studies(storage: optuna.storages.RDBStorage) -> list[str]:
    """Return the names of all studies in the storage."""
    return sorted({name.split("/")[0] for name in optuna.get_all_study_names(storage)})


def check_identity(
    storage: optuna.storages.RDBStorage,
    study: str,
    content: dict[str, Any],
    ignored: Sequence[str] = (),
    *,
    is_begun: bool = False,
) -> None:
    """Refuse to go on with a study whose file, data, weights or code differ from what its trials were made by.

    Args:
        storage: where its trials are.
        study: its name.
        content: what it is now.
        ignored: fields that are not known yet.
        is_begun: whether another process has begun it and asks this one to help, with trials or yet without.

    Raises:
        InputError: names the changed fields, and a name under which the variant can run.
    """
    for arm in study_arms(storage, study).tuning.values():
        if not is_begun and not arm.get_trials(deepcopy=False):
            continue
        changed = _changed(arm, content, ignored)
        if changed:
            taken = stored_studies(storage)
            free = next(name for number in count(2) if (name := f"{study}-{number}") not in taken)
            how = "in another --store" if study.endswith("-demo") else f"as a study of its own, with --name {free}"
            raise InputError(
                f"study {study!r} has trials that were made with other settings: {'; '.join(changed)}; "
                f"run this variant {how}"
            )


def _changed(arm: optuna.Study, content: dict[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    return [
        f"{field} (was {old!r}, is {new!r}{_why(field, old, new)})"
        for field, old, new in differences(arm.user_attrs["content"], content)
        if not any(f"{field}.".startswith(f"{other}.") for other in (*MAY_CHANGE, *ignored))
    ]


def _why(field: str, old: Any, new: Any) -> str:
    """Return in words what a digest that has changed stands for."""
    is_own = field == "backbone.name" and all(isinstance(name, str) and custom.is_custom(name) for name in (old, new))
    if is_own and custom.function_name(old) == custom.function_name(new):
        return ": its code, or what that imports, has changed"
    return {"data.digest": ": the images have changed"}.get(field, "")


def experiment_key(storage: optuna.storages.RDBStorage, study: str) -> str | None:
    """Return the key of the MLflow experiment that a study's trials were logged to; None where none has begun."""
    tuning = study_arms(storage, study).tuning.values()
    keys = [arm.user_attrs.get("experiment") for arm in tuning if arm.get_trials(deepcopy=False)]
    return next((key for key in keys if key is not None), None)


def differences(old: Any, new: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """Return (field, old, new) for every place in which two nested contents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{field}.{key}" if field else key)
        return found
    return [] if old == new else [(field, old, new)]


@storage_errors()
def create_arms(
    storage: optuna.storages.RDBStorage, spec: StudySpec, content: dict[str, Any], experiment: str
) -> ArmStudies:
    """Return the Optuna studies of every arm, making those that do not exist.

    Each has a user attribute `key`, which is its alone in all the world, so that its trials are told from those of a
    study with the same name in another database. One that tunes also has `content`, what the study is, and
    `experiment`, the key of the MLflow experiment that its runs are in.
    """
    studies = ArmStudies({}, {})
    existing = set(optuna.get_all_study_names(storage))
    for arm in arms(spec):
        study = _create(storage, f"{spec.name}/{arm.name}", make_pruner(spec))
        if study.user_attrs.get("experiment") != experiment:
            study.set_user_attr("experiment", experiment)
        if study.user_attrs.get("content") != content:
            study.set_user_attr("content", content)
        studies.tuning[arm.name] = study
        name = f"{spec.name}/{arm.name}{CONFIRMATION}"
        if spec.confirm.seeds > 0 or name in existing:
            studies.confirmation[arm.name] = _create(storage, name, optuna.pruners.NopPruner())
    return studies


def _create(storage: optuna.storages.RDBStorage, name: str, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    if not study.metric_names:
        study.set_metric_names(["val_accuracy"])
    if "key" not in study.user_attrs:
        study.set_user_attr("key", uuid.uuid4().hex)
    return study


# ------------------------------------------------------------------------------------------------------ claiming


@dataclass(frozen=True)
class Claim:
    """A trial that belongs to this process until it ends or is released.

    `key` tells it from every other trial, in whatever database; `owner` this claim from others of the same trial, where
    locks can be lost. `best` is None unless it is a confirmation run: the arm's best trial, which it confirms - or did
    when it was begun, and is `superseded`.
    """

    arm: Arm
    study: optuna.Study
    trial: optuna.Trial
    key: str
    folder: Path
    locks: Locks
    continued: bool  # whether another process began it
    owner: str
    best: FrozenTrial | None
    superseded: bool

    def release(self) -> None:
        """Let another process have it."""
        self.locks.release(trial_lock(self.key))


def trial_lock(key: str) -> str:
    """Return the name of a trial's lock; where locks are files, it is in the trial's folder."""
    return f"checkpoints/{key}"


@storage_errors()
def sweep(store: Store, locks: Locks, studies: ArmStudies, complete: Callable[[str, Path, str, bool], bool]) -> int:
    """Tidy up after trials that ended: hand over what MLflow has yet to get, then delete their folders.

    Args:
        store: where the study is.
        locks: its locks.
        studies: its arms.
        complete: called with a trial's key, its folder, its last owner and whether it is its arm's best; returns
            whether MLflow has everything now.

    Returns:
        How many trials still wait for MLflow.
    """
    waiting = 0
    for study in studies.all():
        arm_key = study.user_attrs["key"]
        folders = [folder for folder in store.trial_folder(arm_key).glob("*") if folder.name.isdecimal()]
        for folder in sorted(folders, key=lambda folder: int(folder.name)):
            key, number = f"{arm_key}/{folder.name}", int(folder.name)
            with locks.exclusive():
                is_mine = locks.try_acquire(trial_lock(key))
            if not is_mine:
                continue
            trials = study.get_trials(deepcopy=False)
            trial = trials[number] if number < len(trials) else None
            best = best_trial(study, trial.user_attrs.get("confirms") if trial is not None else None)
            if trial is not None and not trial.state.is_finished():
                locks.release(trial_lock(key))  # it will go on
                continue
            owner = trial.user_attrs.get("owner", "") if trial is not None else ""
            if complete(key, folder, owner, best is not None and best.number == number):
                _drop(locks, key, folder)
            else:
                locks.release(trial_lock(key))
                waiting += 1
    return waiting


def _drop(locks: Locks, key: str, folder: Path) -> None:
    """Free a trial's lock and delete its folder; exclusively, because nobody may just be opening the lock's file."""
    with locks.exclusive():
        locks.release(trial_lock(key))
        shutil.rmtree(folder, ignore_errors=True)


@storage_errors()
def claim_trial(
    spec: StudySpec, store: Store, locks: Locks, studies: ArmStudies, content: dict[str, Any]
) -> Claim | None:
    """Return the next trial to work on: one that its process left unfinished, else a new one, else a confirmation run.

    Where nothing is free, None. Where StoreAway is raised, a lock may have been taken already: free all.

    Raises:
        InputError: another process has begun another study (`content`) of the same name at the same time.
    """
    with locks.exclusive():
        for arm in arms(spec):
            study = studies.tuning[arm.name]
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if (key := _take_over(locks, study, frozen)) is not None:
                    study.sampler = make_sampler(spec, arm, frozen.number)
                    return _claim(store, locks, arm, study, optuna.Trial(study, frozen._trial_id), key, continued=True)

        used = {name: len(study.get_trials(deepcopy=False)) for name, study in studies.tuning.items()}
        chosen = next_arm(arms(spec), used, spec.trials_per_arm)
        if chosen is None:
            return _claim_confirmation(spec, store, locks, studies)
        study = studies.tuning[chosen.name]
        if changed := _changed(study, content):
            raise InputError(f"another study called {spec.name!r} was begun at the same time: {'; '.join(changed)}")
        study.sampler = make_sampler(spec, chosen, used[chosen.name])
        trial, key = _ask(locks, study)
        return _claim(store, locks, chosen, study, trial, key, continued=False)


def _claim_confirmation(spec: StudySpec, store: Store, locks: Locks, studies: ArmStudies) -> Claim | None:
    """Return the next confirmation run of an arm whose tuning is complete; None if none is free.

    One that was begun for a configuration which is not the best any more is returned as superseded, to be ended.
    """
    best_trials: dict[str, FrozenTrial] = {}
    for arm in arms(spec):
        best = best_trial(studies.tuning[arm.name]) if _has_ended_all(spec, studies.tuning[arm.name]) else None
        if arm.name not in studies.confirmation or best is None:
            continue
        best_trials[arm.name] = best
        study = studies.confirmation[arm.name]
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (key := _take_over(locks, study, frozen)) is not None:
                trial = optuna.Trial(study, frozen._trial_id)
                return _claim(store, locks, arm, study, trial, key, continued=True, best=best)

    used = {
        name: sum(_confirms(frozen, best) for frozen in studies.confirmation[name].get_trials(deepcopy=False))
        for name, best in best_trials.items()
    }
    chosen = next_arm([arm for arm in arms(spec) if arm.name in best_trials], used, spec.confirm.seeds)
    if chosen is None:
        return None
    study = studies.confirmation[chosen.name]
    study.sampler = NumberedRandomSampler(0)  # nothing is sampled
    trial, key = _ask(locks, study)
    return _claim(store, locks, chosen, study, trial, key, continued=False, best=best_trials[chosen.name])


def _confirms(frozen: FrozenTrial, tuned: FrozenTrial) -> bool:
    """Say whether a confirmation run is one of this tuned trial; it died as it was made if it does not say which."""
    return bool(frozen.user_attrs.get("confirms", tuned.number) == tuned.number)


def _take_over(locks: Locks, study: optuna.Study, frozen: FrozenTrial) -> str | None:
    """Take the lock of a running trial and return its key; None where its process lives, or has just ended it."""
    key = f"{study.user_attrs['key']}/{frozen.number}"
    if not locks.try_acquire(trial_lock(key)):
        return None
    # Read again: its process may have ended it just before we got the lock.
    if study.get_trials(deepcopy=False)[frozen.number].state is not TrialState.RUNNING:
        locks.release(trial_lock(key))
        return None
    return key


def _ask(locks: Locks, study: optuna.Study) -> tuple[optuna.Trial, str]:
    """Make a new trial and take its lock; return it with its key."""
    if not locks.is_held(EXCLUSIVE):  # lost with its connection: another process may be counting, too
        raise StoreAway("the database does not answer")
    trial = study.ask()
    key = f"{study.user_attrs['key']}/{trial.number}"
    is_mine = locks.try_acquire(trial_lock(key))
    assert is_mine, "a trial that was just made has no other owner"
    return trial, key


def _claim(
    store: Store,
    locks: Locks,
    arm: Arm,
    study: optuna.Study,
    trial: optuna.Trial,
    key: str,
    *,
    continued: bool,
    best: FrozenTrial | None = None,
) -> Claim:
    """Make the claim; `best` is the arm's best trial, for a confirmation run."""
    owner = ""
    if store.has_remote_optuna:  # a lock can be lost with its connection; this tells who took the trial then
        owner = f"-{uuid.uuid4().hex}"
        trial.set_user_attr("owner", owner)
    if best is not None and "spec" not in trial.user_attrs:  # it is new, or died before it began
        trial.set_user_attr("confirms", best.number)
    superseded = best is not None and trial.user_attrs["confirms"] != best.number
    return Claim(arm, study, trial, key, store.trial_folder(key), locks, continued, owner, best, superseded)


def hold(claim: Claim) -> bool:
    """Make sure that a trial still belongs to this process, before anything is written for it.

    A connection that was lost took the lock with it: it is taken again, unless another process has the trial now.

    Returns:
        False while the database does not answer.

    Raises:
        ClaimLost: the trial has another owner, or another has ended it.
    """
    try:
        if claim.locks.is_held(trial_lock(claim.key)):
            return True
        if not claim.locks.try_acquire(trial_lock(claim.key)):
            raise ClaimLost("another worker has taken it over")
        with storage_errors():
            frozen = claim.study.get_trials(deepcopy=False)[claim.trial.number]
    except StoreAway:
        claim.release()  # whose it is has not been seen, so the next call has to look again
        return False
    if frozen.user_attrs.get("owner", "") != claim.owner:
        claim.release()
        raise ClaimLost("another worker took it over while the database was away")
    return True


@storage_errors()
def all_ended(spec: StudySpec, studies: ArmStudies) -> bool:
    """Return whether every arm has its budget and its confirmation runs, and no trial is unfinished."""
    return all(
        _has_ended_all(spec, studies.tuning[arm.name]) and _is_confirmed(spec, studies, arm.name) for arm in arms(spec)
    )


def _has_ended_all(spec: StudySpec, study: optuna.Study) -> bool:
    trials = study.get_trials(deepcopy=False)
    return len(trials) >= spec.trials_per_arm and all(trial.state.is_finished() for trial in trials)


def _is_confirmed(spec: StudySpec, studies: ArmStudies, arm: str) -> bool:
    """Say whether the arm's best trial has its confirmation runs; where no trial finished there is nothing to do."""
    best = best_trial(studies.tuning[arm])
    if arm not in studies.confirmation or best is None:
        return True
    trials = studies.confirmation[arm].get_trials(deepcopy=False)
    ended = all(trial.state.is_finished() for trial in trials)
    return ended and sum(_confirms(trial, best) for trial in trials) >= spec.confirm.seeds


@storage_errors()
def superseded_keys(studies: ArmStudies) -> list[str]:
    """Return the keys of the confirmation runs of configurations that are not their arm's best any more."""
    keys = []
    for arm, study in studies.confirmation.items():
        best = best_trial(studies.tuning[arm])
        for frozen in study.get_trials(deepcopy=False):
            if best is not None and not _confirms(frozen, best):
                keys.append(f"{study.user_attrs['key']}/{frozen.number}")
    return keys


@storage_errors()
def stored_spec(claim: Claim) -> dict[str, str] | None:
    """Return what the trial was when it began (as `store_spec` got it); None if it has not begun."""
    stored: dict[str, str] | None = claim.trial.user_attrs.get("spec")
    return stored


@storage_errors()
def store_spec(claim: Claim, params: dict[str, str]) -> None:
    """Keep what the trial is, for whoever continues it."""
    claim.trial.set_user_attr("spec", params)


@storage_errors()
def report(claim: Claim, history: Iterable["EpochMetrics"]) -> None:
    """Tell Optuna the validation accuracy of epochs; those it knows already are left out."""
    known = claim.study.get_trials(deepcopy=False)[claim.trial.number].intermediate_values
    for metrics in history:
        if metrics.epoch not in known:
            claim.trial.report(metrics.val_accuracy, metrics.epoch)


@storage_errors()
def should_prune(claim: Claim) -> bool:
    """Return whether the study's pruner gives the trial up, from what was reported."""
    return claim.trial.should_prune()


@storage_errors()
def best_trial(study: optuna.Study, confirms: int | None = None) -> FrozenTrial | None:
    """Return an arm's finished trial with the highest value, the first of equals; None where none has finished.

    Of confirmation runs, only those that confirm the trial with that number.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(
        (trial for trial in finished if trial.user_attrs.get("confirms") == confirms),
        key=lambda trial: trial.value or 0.0,
        default=None,
    )


def is_better(value: float, number: int, than: FrozenTrial) -> bool:
    """Say whether a trial with this value and number takes the place of `best_trial`."""
    assert than.value is not None
    return (value, -number) > (than.value, -than.number)


@storage_errors()
def has_ended(claim: Claim) -> bool:
    """Say whether Optuna has been told how the trial ended."""
    return claim.study.get_trials(deepcopy=False)[claim.trial.number].state.is_finished()


@storage_errors()
def end_trial(claim: Claim, state: TrialEnd, value: float | None, reason: str, run_id: str | None) -> None:
    """Tell Optuna how a trial ended; nothing is done where that was told already.

    Args:
        claim: the trial.
        state: how it ended.
        value: its value, if it finished.
        reason: why it did not finish, or "".
        run_id: its MLflow run's id, if it is known, for those who look it up.
    """
    if has_ended(claim):
        return
    if run_id is not None:
        claim.trial.set_user_attr("run_id", run_id)
    if reason:
        claim.trial.set_user_attr("reason", reason)
    if state == "finished":
        claim.study.tell(claim.trial, value)
    else:
        claim.study.tell(claim.trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def drop(claim: Claim) -> None:
    """Delete what an ended trial needed to go on, and release it."""
    _drop(claim.locks, claim.key, claim.folder)


@storage_errors()
def arm_key(study: optuna.Study) -> str:
    """Return the key of an arm; see `create_arms`."""
    return str(study.user_attrs["key"])


@storage_errors()
def trial_ends(studies: ArmStudies) -> dict[str, TrialEnd | None]:
    """Return how every trial ended, by its key; None for those that have not."""
    return {
        f"{study.user_attrs['key']}/{frozen.number}": TRIAL_ENDS.get(frozen.state)
        for study in studies.all()
        for frozen in study.get_trials(deepcopy=False)
    }


# ------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the storage knows it. `value` is the best epoch's validation accuracy.

    A confirmation run `confirms` the trial with that number; its `params` are that trial's.
    """

    arm: str
    number: int
    confirms: int | None
    state: Literal["finished", "pruned", "failed", "running", "interrupted"]
    value: float | None
    params: dict[str, Any]
    epochs: int
    reason: str
    run_id: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state in ("finished", "pruned", "failed")


@storage_errors()
def records(studies: ArmStudies, locks: Locks) -> dict[str, list[TrialRecord]]:
    """Return arm -> its trials in order, then its confirmation runs."""
    found: dict[str, list[TrialRecord]] = {}
    for arm, study in studies.tuning.items():
        tuned = study.get_trials(deepcopy=False)
        found[arm] = [_record(studies, arm, study, frozen, frozen, locks) for frozen in tuned]
        if arm in studies.confirmation:
            confirmation = studies.confirmation[arm]
            for frozen in confirmation.get_trials(deepcopy=False):
                confirmed = tuned[frozen.user_attrs.get("confirms", 0)]
                found[arm].append(_record(studies, arm, confirmation, frozen, confirmed, locks))
    return found


def _record(
    studies: ArmStudies, arm: str, study: optuna.Study, frozen: FrozenTrial, tuned: FrozenTrial, locks: Locks
) -> TrialRecord:
    key = study.study_name, frozen.number
    if key in studies.ended:
        return studies.ended[key]
    state: Any = TRIAL_ENDS.get(frozen.state)
    if state is None:
        is_owned = locks.is_taken(trial_lock(f"{study.user_attrs['key']}/{frozen.number}"))
        state = "running" if is_owned else "interrupted"
    record = TrialRecord(
        arm=arm,
        number=frozen.number,
        confirms=None if tuned is frozen else tuned.number,
        state=state,
        value=frozen.value if frozen.state is TrialState.COMPLETE else None,
        params=dict(tuned.params),
        epochs=len(frozen.intermediate_values),
        reason=frozen.user_attrs.get("reason", ""),
        run_id=frozen.user_attrs.get("run_id", ""),
    )
    if record.has_ended:
        studies.ended[key] = record
    return record


def parameter_importances(
    spec: StudySpec, arm: Arm, trials: Sequence[tuple[dict[str, Any], float]]
) -> dict[str, float]:
    """Return the share of each searched parameter in how much an arm's validation accuracies vary; they sum to 1.

    By functional ANOVA over a random forest (Hutter et al., 2014), Optuna's `FanovaImportanceEvaluator`.

    Args:
        spec: the study.
        arm: the arm.
        trials: the searched parameters and the value of its finished trials; those that not all of them have are left
            out.

    Returns:
        Parameter -> share, the largest first; nothing where parameters or values do not vary.
    """
    if len({value for _, value in trials}) < 2 or len({str(params) for params, _ in trials}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    for params, value in trials:
        distributions = {name: distribution(spec, name) for name in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    try:
        shares = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except RuntimeError:  # no tree of the forest found a split
        return {}
    return {name: float(share) for name, share in shares.items()} if any(shares.values()) else {}
