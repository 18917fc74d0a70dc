"""Trials: claimed, resumed, reported, ended. A trial belongs to the process that holds its lock."""

import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ablation.base.errors import InputError, StoreAway
from ablation.search.space import NumberedRandomSampler, make_sampler
from ablation.search.studies import (
    ArmStudies,
    ClaimLost,
    TrialEnd,
    best_trial,
    changed_fields,
    have_all_ended,
    is_confirmation_of,
    storage_errors,
    trial_lock,
)
from ablation.spec.arms import Arm, arms, next_arm
from ablation.spec.metrics import EpochMetrics
from ablation.spec.study import StudySpec
from ablation.storage.locks import EXCLUSIVE, Locks
from ablation.storage.store import Store


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


@storage_errors()
def clean_up_ended_trials(
    store: Store, locks: Locks, studies: ArmStudies, complete: Callable[[str, Path, str, bool], bool]
) -> int:
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
                _delete_folder(locks, key, folder)
            else:
                locks.release(trial_lock(key))
                waiting += 1
    return waiting


def _delete_folder(locks: Locks, key: str, folder: Path) -> None:
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
        if changed := changed_fields(study, content):
            raise InputError(f"another study called {spec.name!r} was begun at the same time: {'; '.join(changed)}")
        study.sampler = make_sampler(spec, chosen, used[chosen.name])
        trial, key = _new_trial(locks, study)
        return _claim(store, locks, chosen, study, trial, key, continued=False)


def _claim_confirmation(spec: StudySpec, store: Store, locks: Locks, studies: ArmStudies) -> Claim | None:
    """Return the next confirmation run of an arm whose tuning is complete; None if none is free.

    One that was begun for a configuration which is not the best any more is returned as superseded, to be ended.
    """
    best_trials: dict[str, FrozenTrial] = {}
    for arm in arms(spec):
        best = best_trial(studies.tuning[arm.name]) if have_all_ended(spec, studies.tuning[arm.name]) else None
        if arm.name not in studies.confirmation or best is None:
            continue
        best_trials[arm.name] = best
        study = studies.confirmation[arm.name]
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (key := _take_over(locks, study, frozen)) is not None:
                trial = optuna.Trial(study, frozen._trial_id)
                return _claim(store, locks, arm, study, trial, key, continued=True, best=best)

    used = {
        name: sum(is_confirmation_of(frozen, best) for frozen in studies.confirmation[name].get_trials(deepcopy=False))
        for name, best in best_trials.items()
    }
    chosen = next_arm([arm for arm in arms(spec) if arm.name in best_trials], used, spec.confirm.seeds)
    if chosen is None:
        return None
    study = studies.confirmation[chosen.name]
    study.sampler = NumberedRandomSampler(0)  # nothing is sampled
    trial, key = _new_trial(locks, study)
    return _claim(store, locks, chosen, study, trial, key, continued=False, best=best_trials[chosen.name])


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


def _new_trial(locks: Locks, study: optuna.Study) -> tuple[optuna.Trial, str]:
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


def ensure_held(claim: Claim) -> bool:
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
def stored_spec(claim: Claim) -> dict[str, str] | None:
    """Return what the trial was when it began (as `store_spec` got it); None if it has not begun."""
    stored: dict[str, str] | None = claim.trial.user_attrs.get("spec")
    return stored


@storage_errors()
def store_spec(claim: Claim, params: dict[str, str]) -> None:
    """Keep what the trial is, for whoever continues it."""
    claim.trial.set_user_attr("spec", params)


@storage_errors()
def report_epochs(claim: Claim, history: Iterable[EpochMetrics]) -> None:
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


def release_and_delete(claim: Claim) -> None:
    """Delete what an ended trial needed to go on, and release it."""
    _delete_folder(claim.locks, claim.key, claim.folder)
