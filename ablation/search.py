"""All of Optuna: storage, samplers, pruners, claiming trials, and from an Optuna trial to hyper-parameters."""

import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from filelock import BaseFileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ablation import architecture
from ablation.design import Arm, arms, next_arm
from ablation.seeding import named_seed
from ablation.spec import Choices, Hyperparameters, InputError, StudySpec, applies, first_line
from ablation.store import Store, build_database, try_lock

if TYPE_CHECKING:
    from ablation.train import EpochMetrics

QUASI_RANDOM_UP_TO = 20  # trials per arm; the Tuning Playbook advises quasi-random search for small budgets
MAY_CHANGE = ("trials_per_arm", "confirm.seeds")  # of a study that has trials

ArmStudies = dict[str, optuna.Study]  # by the arm's name
TrialEnd = Literal["finished", "pruned", "failed"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


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


def open_storage(store: Store) -> optuna.storages.RDBStorage:
    """Open Optuna's database, making it where it does not exist.

    Raises:
        InputError: it cannot be opened.
    """
    import sqlalchemy.exc

    is_sqlite = store.optuna_url.startswith("sqlite")
    engine_kwargs = {"connect_args": {"timeout": 60}} if is_sqlite else None  # seconds to wait for another writer
    try:
        if store.has_own_optuna:
            build_database(store.root / "optuna.db", lambda url: optuna.storages.RDBStorage(url).engine.dispose())
        return optuna.storages.RDBStorage(store.optuna_url, engine_kwargs=engine_kwargs)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        where = store.root / "optuna.db" if store.has_own_optuna else "OPTUNA_STORAGE"  # an address may hold a password
        raise InputError(f"{where}: cannot be opened as Optuna's database ({reason})") from None


def study_arms(storage: optuna.storages.RDBStorage, study: str) -> ArmStudies:
    """Return the arms that a study has in the storage, by name."""
    prefix = f"{study}/"
    names = [name for name in optuna.get_all_study_names(storage) if name.startswith(prefix)]
    return {name.removeprefix(prefix): optuna.load_study(study_name=name, storage=storage) for name in names}


def stored_studies(storage: optuna.storages.RDBStorage) -> list[str]:
    """Return the names of all studies in the storage."""
    return sorted({name.split("/")[0] for name in optuna.get_all_study_names(storage)})


def check_identity(
    storage: optuna.storages.RDBStorage, study: str, content: dict[str, Any], ignored: Sequence[str] = ()
) -> None:
    """Refuse to go on with a study whose file, data or weights differ from what its trials were made by.

    Args:
        storage: where its trials are.
        study: its name.
        content: what it is now.
        ignored: fields that are not known yet.

    Raises:
        InputError: names the changed fields, and a name under which the variant can run.
    """
    for arm in study_arms(storage, study).values():
        if not arm.get_trials(deepcopy=False):
            continue
        changed = [
            f"{field} (was {old!r}, is {new!r})"
            for field, old, new in differences(arm.user_attrs["content"], content)
            if field not in (*MAY_CHANGE, *ignored)
        ]
        if changed:
            taken = stored_studies(storage)
            free = next(name for number in count(2) if (name := f"{study}-{number}") not in taken)
            how = "in another --store" if study.endswith("-demo") else f"as a study of its own, with --name {free}"
            raise InputError(
                f"study {study!r} has trials that were made with other settings: {'; '.join(changed)}; "
                f"run this variant {how}"
            )


def differences(old: Any, new: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """Return (field, old, new) for every place in which two nested contents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{field}.{key}" if field else key)
        return found
    return [] if old == new else [(field, old, new)]


def create_arms(storage: optuna.storages.RDBStorage, spec: StudySpec, content: dict[str, Any]) -> ArmStudies:
    """Return the Optuna study of every arm by the arm's name, making those that do not exist.

    Each has user attributes `content`, what the study is, and `key`, which is the arm's alone in all the world, so that
    its trials are told from those of a study with the same name in another database.
    """
    studies = {}
    for arm in arms(spec):
        study = optuna.create_study(
            storage=storage,
            study_name=f"{spec.name}/{arm.name}",
            direction="maximize",
            pruner=make_pruner(spec),
            load_if_exists=True,
        )
        if "key" not in study.user_attrs:
            study.set_user_attr("key", uuid.uuid4().hex)
        if study.user_attrs.get("content") != content:
            study.set_user_attr("content", content)
            study.set_metric_names(["val_accuracy"])
        studies[arm.name] = study
    return studies


# ------------------------------------------------------------------------------------------------------ claiming


@dataclass(frozen=True)
class Claim:
    """A trial that belongs to this process until it ends or releases `lock`."""

    arm: Arm
    study: optuna.Study
    trial: optuna.Trial
    folder: Path
    lock: BaseFileLock
    continued: bool  # whether another process began it

    @property
    def key(self) -> str:
        """What tells this trial from every other, in whatever database."""
        return f"{self.study.user_attrs['key']}/{self.trial.number}"

    @property
    def has_ended(self) -> bool:
        """Whether Optuna has been told how it ended."""
        return self.study.get_trials(deepcopy=False)[self.trial.number].state.is_finished()


def sweep(spec: StudySpec, store: Store, studies: ArmStudies) -> None:
    """Delete what trials left behind that ended, but whose process died before it could tidy up."""
    with store.claim_lock():
        for name, study in studies.items():
            for frozen in study.get_trials(deepcopy=False):
                if frozen.state.is_finished():
                    shutil.rmtree(store.trial_folder(spec.name, name, frozen.number), ignore_errors=True)


def claim_trial(spec: StudySpec, store: Store, studies: ArmStudies) -> Claim | None:
    """Return the next trial to work on: one that its process left unfinished, else a new one; None when all is done."""
    with store.claim_lock():
        for arm in arms(spec):
            study = studies[arm.name]
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                folder = store.trial_folder(spec.name, arm.name, frozen.number)
                lock = try_lock(folder)
                if lock is None:
                    continue  # its process lives
                # Read again: its process may have ended it just before we got the lock.
                if study.get_trials(deepcopy=False)[frozen.number].state is not TrialState.RUNNING:
                    lock.release()
                    continue
                study.sampler = make_sampler(spec, arm, frozen.number)
                return Claim(arm, study, optuna.Trial(study, frozen._trial_id), folder, lock, continued=True)

        used = {name: len(study.get_trials(deepcopy=False)) for name, study in studies.items()}
        chosen = next_arm(arms(spec), used, spec.trials_per_arm)
        if chosen is None:
            return None
        study = studies[chosen.name]
        study.sampler = make_sampler(spec, chosen, used[chosen.name])
        trial = study.ask()
        folder = store.trial_folder(spec.name, chosen.name, trial.number)
        lock = try_lock(folder)
        assert lock is not None, "a trial that was just made has no other owner"
        return Claim(chosen, study, trial, folder, lock, continued=False)


def report(claim: Claim, history: Iterable["EpochMetrics"]) -> None:
    """Tell Optuna the validation accuracy of epochs; those it knows already are left out."""
    known = claim.study.get_trials(deepcopy=False)[claim.trial.number].intermediate_values
    for metrics in history:
        if metrics.epoch not in known:
            claim.trial.report(metrics.val_accuracy, metrics.epoch)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return an arm's finished trial with the highest value, the first of equals; None where none has finished."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(finished, key=lambda trial: trial.value or 0.0, default=None)


def is_better(value: float, number: int, than: FrozenTrial) -> bool:
    """Say whether a trial with this value and number takes the place of `best_trial`."""
    assert than.value is not None
    return (value, -number) > (than.value, -than.number)


def end_trial(claim: Claim, state: TrialEnd, value: float | None, reason: str) -> None:
    """Tell Optuna how a trial ended, drop what it needed to go on, and release it."""
    if reason:
        claim.trial.set_user_attr("reason", reason)
    if state == "finished":
        claim.study.tell(claim.trial, value)
    else:
        claim.study.tell(claim.trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
    claim.lock.release()
    shutil.rmtree(claim.folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the storage knows it. `value` is the best epoch's validation accuracy."""

    arm: str
    number: int
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


def records(study_name: str, arm: str, study: optuna.Study, store: Store) -> list[TrialRecord]:
    """Return an arm's trials in order."""
    names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    found = []
    for frozen in study.get_trials(deepcopy=False):
        state: Any = names.get(frozen.state)
        if state is None:
            folder = store.trial_folder(study_name, arm, frozen.number)
            state = "running" if _is_owned(store, folder) else "interrupted"
        found.append(
            TrialRecord(
                arm=arm,
                number=frozen.number,
                state=state,
                value=frozen.value if frozen.state is TrialState.COMPLETE else None,
                params=dict(frozen.params),
                epochs=len(frozen.intermediate_values),
                reason=frozen.user_attrs.get("reason", ""),
                run_id=frozen.user_attrs.get("run_id", ""),
            )
        )
    return found


def _is_owned(store: Store, folder: Path) -> bool:
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return False
    with store.claim_lock():  # a claim must not take our look for another owner
        lock = try_lock(folder)
        if lock is not None:
            lock.release()
    return lock is None
