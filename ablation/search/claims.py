"""Trials: claimed, resumed, reported, ended. A trial belongs to the process that holds its lock."""

import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ablation.base.errors import StoreAway
from ablation.search.identity import changed_declarations, content_changes, refuse_replaced
from ablation.search.patient_storage import ClaimLost
from ablation.search.space import NumberedRandomSampler, known_params, make_sampler
from ablation.search.studies import (
    AGAIN,
    END_STATES,
    NEW_RUNS,
    TRIAL_ENDS,
    ArmStudies,
    TrialEnd,
    again_numbers,
    arm_key,
    begun_trials,
    best_trial,
    best_trials,
    have_all_ended,
    is_confirmation_of,
    read_decisions,
    trial_key,
    trial_lock,
)
from ablation.spec.arms import Arm, arms, next_arm
from ablation.spec.looks import seeds_of_arms
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import Objective
from ablation.spec.study import StudySpec
from ablation.storage.locks import CLAIM_LOCK, Locks, check_held
from ablation.storage.store import Store


@dataclass(frozen=True)
class Claim:
    """A trial that belongs to this process until it ends or is released.

    `key` is unique among the trials of all databases. `owner` is unique among the claims of this trial before it
    ended, or empty where locks cannot be lost. `best` is the best trial of the arm's repeat for a confirmation run,
    else None; a confirmation run is `superseded` if another trial was the best when it began.
    """

    arm: Arm
    study: optuna.Study
    trial: optuna.Trial
    key: str
    folder: Path
    locks: Locks
    resumed: bool  # whether another process began it
    owner: str
    best: FrozenTrial | None
    superseded: bool
    earlier: FrozenTrial | None = None
    """The trial as it ended before MLflow lost its run; None unless it is trained again for that reason."""
    reported: set[int] = field(default_factory=set)
    """The epochs that Optuna's database has; empty for a trial that is trained again, which reports none."""

    @property
    def ended(self) -> TrialEnd | None:
        """How it ended before MLflow lost its run; None unless it is trained again for that reason."""
        return None if self.earlier is None else TRIAL_ENDS[self.earlier.state]

    def release(self) -> None:
        """Release the trial's lock, so that another process can claim the trial."""
        self.locks.release(trial_lock(self.key))


def clean_up_ended_trials(
    store: Store,
    locks: Locks,
    studies: ArmStudies,
    complete: Callable[[str, Path, str, bool, Callable[[], None]], bool],
) -> int:
    """Upload to MLflow what ended trials still have in their folders, then delete the folders.

    Args:
        store: where the study is.
        locks: the study's locks.
        studies: the study's arms.
        complete: uploads the rest of a trial; takes its key, its folder, its last owner, whether it is its arm's best,
            and what to call before each upload, and returns whether MLflow has everything.

    Returns:
        The number of trials that still wait for MLflow.
    """
    waiting = 0
    for study in studies.all():
        folders = [folder for folder in store.trial_folder(arm_key(study)).glob("*") if folder.name.isdecimal()]
        for folder in sorted(folders, key=lambda folder: int(folder.name)):
            number = int(folder.name)
            key = trial_key(study, number)
            with locks.exclusive():
                is_mine = locks.try_acquire(trial_lock(key))
            if not is_mine:
                continue
            trials = study.get_trials(deepcopy=False)
            trial = trials[number] if number < len(trials) else None
            if trial is not None and (not trial.state.is_finished() or number in again_numbers(study)):
                locks.release(trial_lock(key))  # another process will resume it
                continue
            attributes = {} if trial is None else trial.user_attrs
            best = best_trial(study, attributes.get("confirms"))
            is_best = best is not None and best.number == number
            check = partial(check_held, locks, trial_lock(key))
            is_complete = complete(key, folder, attributes.get("owner", ""), is_best, check)
            if not (is_complete and _delete_folder(locks, key, folder)):
                locks.release(trial_lock(key))
                waiting += 1
    return waiting


def _delete_folder(locks: Locks, key: str, folder: Path) -> bool:
    """Release a trial's lock and delete its folder; return False if the lock was lost, and the folder is another's.

    This happens under the exclusive lock: otherwise another process could open the lock file in between.
    """
    with locks.exclusive():
        if not locks.is_held(trial_lock(key)):
            return False
        locks.release(trial_lock(key))
        shutil.rmtree(folder, ignore_errors=True)
        return True


def claim_trial(
    spec: StudySpec, store: Store, locks: Locks, studies: ArmStudies, content: dict[str, Any]
) -> Claim | None:
    """Claim the next trial: one that was interrupted, else a new one, else a confirmation run, else a lost one.

    Returns:
        The claim; None if no trial is free.

    Raises:
        InputError: another process has begun a study of the same name with other content at the same time.
        StoreAway: the database does not answer. This process may hold a lock already, so the caller must release all.
    """
    with locks.exclusive():
        trial_counts = {}
        for arm in arms(spec):
            study = studies.tuning[arm.name]
            begun = begun_trials(study)
            trial_counts[arm.name] = len(begun)
            if (trial := first_interrupted(locks, study, begun)) is not None:
                study.sampler = make_sampler(spec, arm, trial.number)
                return _claim(store, locks, arm, trial, resumed=True)

        new_arm = next_arm(arms(spec), trial_counts, spec.trials_per_arm)
        if new_arm is None:
            return _claim_confirmation(spec, store, locks, studies, content) or _claim_lost(spec, store, locks, studies)
        study = studies.tuning[new_arm.name]
        refuse_replaced(spec.name, content_changes(study.user_attrs.get("content", {}), content))
        number = trial_counts[new_arm.name]
        study.sampler = make_sampler(spec, new_arm, number)
        known = known_params(spec, new_arm, number)
        return _claim(store, locks, new_arm, _new_trial(locks, study, known), resumed=False)


def _claim_confirmation(
    spec: StudySpec, store: Store, locks: Locks, studies: ArmStudies, content: dict[str, Any]
) -> Claim | None:
    """Claim the next confirmation run of an arm whose tuning is complete; None if none is free.

    A run whose configuration is no longer the best of its repeat is claimed as superseded, so that the caller can end
    it. The next run is one of the configuration with the fewest runs, of the first repeat that has one, so that a study
    stopped halfway can compare its arms paired by repeat.
    """
    waiting: list[tuple[int, int, Arm, FrozenTrial]] = []  # number of runs, repeat, arm, best trial
    seeds = seeds_of_arms(spec.confirm, studies.tuning, read_decisions(spec, studies))
    for arm in arms(spec):
        is_tuned = arm.name in studies.confirmation and have_all_ended(spec, studies.tuning[arm.name])
        best = best_trials(spec, studies.tuning[arm.name]) if is_tuned else {}
        if not best:
            continue
        study = studies.confirmation[arm.name]
        trials = study.get_trials(deepcopy=False)
        counts = {repeat: sum(is_confirmation_of(frozen, tuned) for frozen in trials) for repeat, tuned in best.items()}
        if (trial := first_interrupted(locks, study, trials)) is not None:
            confirms = trials[trial.number].user_attrs.get("confirms")
            repeat = min(counts, key=lambda r: counts[r]) if confirms is None else spec.repeat_of(confirms)
            # A repeat may have lost all finished trials: what confirmed one is then superseded by another's best.
            tuned = best.get(repeat, next(iter(best.values())))
            return _claim(store, locks, arm, trial, resumed=True, best=tuned)
        waiting += [
            (counts[repeat], repeat, arm, tuned) for repeat, tuned in best.items() if counts[repeat] < seeds[arm.name]
        ]
    if not waiting:
        return None
    _, _, new_arm, tuned = min(waiting, key=lambda each: each[:2])
    stored_content = studies.tuning[new_arm.name].user_attrs.get("content", {})
    refuse_replaced(spec.name, changed_declarations(stored_content, content))
    study = studies.confirmation[new_arm.name]
    study.sampler = NumberedRandomSampler(0)  # nothing is sampled
    return _claim(store, locks, new_arm, _new_trial(locks, study), resumed=False, best=tuned)


def _claim_lost(spec: StudySpec, store: Store, locks: Locks, studies: ArmStudies) -> Claim | None:
    """Claim an ended trial whose run MLflow has lost, see `lost_trials.train_again`; None if none is free."""
    for arm in arms(spec):
        of_both_kinds = [studies.tuning[arm.name], studies.confirmation.get(arm.name)]
        for study in (study for study in of_both_kinds if study is not None):
            for number in again_numbers(study):
                key = trial_key(study, number)
                if not locks.try_acquire(trial_lock(key)):
                    continue
                frozen = study.get_trials(deepcopy=False)[number]
                confirms = frozen.user_attrs.get("confirms")
                tuned = dict(enumerate(studies.tuning[arm.name].get_trials(deepcopy=False)))
                # It has its parameters itself: somebody may have deleted the tuned trial.
                best = None if confirms is None else tuned.get(confirms, frozen)
                trial, folder = optuna.Trial(study, frozen._trial_id), store.trial_folder(key)
                owner = frozen.user_attrs.get("owner", "")
                return Claim(arm, study, trial, key, folder, locks, True, owner, best, False, frozen)
    return None


def first_interrupted(locks: Locks, study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Trial | None:
    """Acquire the lock of the first of an Optuna study's trials whose process has died; return the trial."""
    running = [frozen for frozen in trials if frozen.state is TrialState.RUNNING]
    key = arm_key(study) if running else ""
    taken = locks.are_taken([trial_lock(f"{key}/{frozen.number}") for frozen in running])
    free = (frozen for frozen, is_taken in zip(running, taken, strict=True) if not is_taken)
    return next((trial for frozen in free if (trial := interrupted_trial(locks, study, frozen)) is not None), None)


def interrupted_trial(locks: Locks, study: optuna.Study, frozen: FrozenTrial) -> optuna.Trial | None:
    """Acquire the lock of a running trial and return the trial; None if its process lives or has just ended it."""
    lock = trial_lock(trial_key(study, frozen.number))
    if not locks.try_acquire(lock):
        return None
    # Read again: its process may have ended it just before this one acquired the lock.
    if study.get_trials(deepcopy=False)[frozen.number].state is not TrialState.RUNNING:
        locks.release(lock)
        return None
    return optuna.Trial(study, frozen._trial_id)


def _new_trial(locks: Locks, study: optuna.Study, known: dict[str, Any] | None = None) -> optuna.Trial:
    """Create a trial, with the parameters that are known of it, and acquire its lock."""
    check_held(locks, CLAIM_LOCK)  # else another process may be counting, too
    # A trial that waits already was enqueued by a process that died before it asked.
    if known is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(known)
    trial = study.ask()
    is_mine = locks.try_acquire(trial_lock(trial_key(study, trial.number)))
    assert is_mine, "a new trial has no other owner"
    return trial


def _claim(
    store: Store, locks: Locks, arm: Arm, trial: optuna.Trial, *, resumed: bool, best: FrozenTrial | None = None
) -> Claim:
    """Return the claim of a trial whose lock this process holds; see `Claim` for `best`."""
    key = trial_key(trial.study, trial.number)
    owner = ""
    if store.has_remote_optuna:  # a lock can be lost with its connection; this names who claimed the trial then
        owner = f"-{uuid.uuid4().hex}"
        trial.set_user_attr("owner", owner)
    if best is not None and "spec" not in trial.user_attrs:  # it is new, or its process died before it began
        trial.set_user_attr("confirms", best.number)
    superseded = best is not None and trial.user_attrs["confirms"] != best.number
    return Claim(
        arm, trial.study, trial, key, store.trial_folder(key), locks,
        resumed=resumed, owner=owner, best=best, superseded=superseded,
        reported={*_stored(trial).intermediate_values} if resumed else set(),
    )  # fmt: skip


def ensure_held(claim: Claim) -> None:
    """Check that a trial still belongs to this process; call this before writing anything for it.

    If the lock was lost with its connection, it is acquired again, unless another process has the trial now.

    Raises:
        ClaimLost: another process owns the trial, or has ended it.
        StoreAway: the database does not answer, so nobody knows.
    """
    if claim.locks.is_held(trial_lock(claim.key)):
        return
    if not claim.locks.try_acquire(trial_lock(claim.key)):
        raise ClaimLost("another worker has taken it over")
    try:
        frozen = _stored(claim.trial)
    except StoreAway:
        claim.release()  # the owner is unknown, so the next call must check again
        raise
    is_done = claim.earlier is not None and has_ended(claim)
    if frozen.user_attrs.get("owner", "") != claim.owner or is_done:
        claim.release()
        raise ClaimLost("another worker took it over while the database was away")


def _stored(trial: optuna.Trial) -> FrozenTrial:
    """Return a trial as Optuna's database has it; one trial takes as long in a large study as in a small one."""
    return trial.storage.get_trial(trial._trial_id)


def stored_spec(claim: Claim) -> dict[str, str] | None:
    """Return the parameters that `store_spec` stored when the trial began; None if it has not begun."""
    stored: dict[str, str] | None = claim.trial.user_attrs.get("spec")
    return stored


def store_spec(claim: Claim, params: dict[str, str]) -> None:
    """Store the parameters of the trial's TrialSpec, for the process that resumes it."""
    claim.trial.set_user_attr("spec", params)


def report_epochs(claim: Claim, history: Iterable[EpochMetrics], objective: Objective) -> None:
    """Report the objective's validation values of epochs to Optuna, except those that were reported before."""
    if claim.earlier is not None:
        return
    for metrics in history:
        if metrics.epoch not in claim.reported:
            claim.trial.report(metrics.value(objective), metrics.epoch)
            claim.reported.add(metrics.epoch)


def should_prune(claim: Claim) -> bool:
    """Return whether the study's pruner would end the trial, by the epochs that were reported."""
    return claim.trial.should_prune()


def has_ended(claim: Claim) -> bool:
    """Return whether the trial has ended in Optuna's database; one that is trained again, whether that has ended."""
    if claim.earlier is not None:
        return claim.trial.number not in again_numbers(claim.study)
    return _stored(claim.trial).state.is_finished()


def end_trial(claim: Claim, state: TrialEnd, value: float | None, reason: str, run_id: str | None) -> None:
    """Report to Optuna how a trial ended, unless it has ended there already.

    Args:
        claim: the trial.
        state: how it ended.
        value: its value, if it finished.
        reason: why it did not finish, or "".
        run_id: the id of its MLflow run, if known.
    """
    if has_ended(claim):
        return
    if claim.earlier is not None:
        with claim.locks.exclusive():
            left = [number for number in again_numbers(claim.study) if number != claim.trial.number]
            runs = {**claim.study.user_attrs.get(NEW_RUNS, {}), str(claim.trial.number): run_id}
            claim.study.set_user_attr(NEW_RUNS, runs)
            claim.study.set_user_attr(AGAIN, left)
        return
    if run_id is not None:
        claim.trial.set_user_attr("run_id", run_id)
    if reason:
        claim.trial.set_user_attr("reason", reason)
    claim.study.tell(claim.trial, value, END_STATES[state])


def release_and_delete(claim: Claim) -> bool:
    """Delete the folder of an ended trial, which only a resumed one would need, and release the trial.

    Returns:
        False if the trial's lock was lost with its connection: another process may have the folder now.
    """
    return _delete_folder(claim.locks, claim.key, claim.folder)
