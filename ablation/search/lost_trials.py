"""Trials that one of the two databases has lost: told to Optuna again, or marked to be trained again."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from ablation.search.claims import interrupted_trial
from ablation.search.space import known_params, optuna_name, suggest
from ablation.search.studies import AGAIN, END_STATES, TrialEnd, again_numbers, trial_key, trial_lock
from ablation.spec.arms import Arm
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.locks import Locks


@dataclass(frozen=True)
class KnownTrial:
    """A trial, or a confirmation run, that has ended, as its MLflow run has it.

    `value` is the objective's best validation value, None unless it finished; `values` are those of its epochs, by
    number.
    `began` and `ended` are in local time, without a time zone, as Optuna stores them.
    """

    spec: TrialSpec
    end: TrialEnd
    value: float | None
    reason: str
    run_id: str
    values: dict[int, float] = field(default_factory=dict)
    began: datetime | None = None
    ended: datetime | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The user attributes of its Optuna trial."""
        values = {"spec": self.spec.to_params(), "run_id": self.run_id}
        values |= {"reason": self.reason} if self.reason else {}
        return values if self.spec.confirms is None else {"confirms": self.spec.confirms, **values}


def tell_again(
    spec: StudySpec, arm: Arm, study: optuna.Study, known: Iterable[KnownTrial], locks: Locks, least: int = 0
) -> list[int]:
    """Tell Optuna of ended trials that its database lacks, or has not seen ending; return their numbers.

    A number in between, of which nothing is known, becomes a trial that was interrupted; so does one that waits to be
    begun, because its process died before. The caller holds the claim lock.

    Args:
        spec: the study.
        arm: the arm.
        study: the Optuna study of its trials, or of its confirmation runs.
        known: trials of it.
        locks: the study's; a trial on which a process works is left alone.
        least: how many trials there are at least, because confirmation runs confirm them.

    Raises:
        StoreAway: Optuna's database does not answer.
    """
    by_number = {trial.spec.trial: trial for trial in known}
    trials, told = study.get_trials(deepcopy=False), []
    for number in range(max([least, *(number + 1 for number in by_number)])):
        trial = by_number.get(number)
        if number >= len(trials):
            study.add_trial(_interrupted(spec, arm, number) if trial is None else _ended(spec, arm, trial))
            told += [] if trial is None else [number]
            continue
        if trials[number].state is TrialState.WAITING:
            study.ask()  # begins the first one that waits
        if trial is not None and not trials[number].state.is_finished():
            running = interrupted_trial(locks, study, trials[number])
            if running is not None:
                _end(study, running, trial)
                locks.release(trial_lock(trial_key(study, number)))
                told.append(number)
    return told


def _ended(spec: StudySpec, arm: Arm, trial: KnownTrial) -> FrozenTrial:
    params, distributions = ({}, {}) if trial.spec.confirms is not None else searched(spec, arm, trial.spec)
    ended = trial.ended or datetime.now()
    return FrozenTrial(
        number=-1, trial_id=-1, state=END_STATES[trial.end], value=trial.value, datetime_start=trial.began or ended,
        datetime_complete=ended, params=params, distributions=distributions, user_attrs=trial.attributes,
        system_attrs={}, intermediate_values=trial.values,
    )  # fmt: skip


def _interrupted(spec: StudySpec, arm: Arm, number: int) -> FrozenTrial:
    known = known_params(spec, arm, number)
    return create_trial(state=TrialState.RUNNING, system_attrs={} if known is None else {"fixed_params": known})


def _end(study: optuna.Study, trial: optuna.Trial, known: KnownTrial) -> None:
    """End a trial whose process died, or whose database is older, before Optuna was told."""
    frozen = study.get_trials(deepcopy=False)[trial.number]
    for name, value in known.attributes.items():
        if name not in frozen.user_attrs:
            trial.set_user_attr(name, value)
    for epoch, value in known.values.items():
        if epoch not in frozen.intermediate_values:
            trial.report(value, epoch)
    study.tell(trial, known.value, END_STATES[known.end])


def searched(spec: StudySpec, arm: Arm, trial: TrialSpec) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return what Optuna chose of a trial's parameters, by their names there, with their distributions."""
    values = {optuna_name(spec, name, trial.truncate_at): getattr(trial, name) for name in spec.search.entries()}
    fixed = FixedTrial(values)
    suggest(cast(optuna.Trial, fixed), spec, arm)
    return {name: values[name] for name in fixed.distributions}, dict(fixed.distributions)


def train_again(study: optuna.Study, numbers: Iterable[int]) -> None:
    """Note that ended trials of an Optuna study are to be trained again; the caller holds the claim lock."""
    study.set_user_attr(AGAIN, sorted({*again_numbers(study), *numbers}))
