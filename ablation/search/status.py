"""The progress of a study: its trials by state; the studies of a store."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ablation.base.errors import InputError
from ablation.base.text import Table, plural
from ablation.search.studies import (
    AGAIN,
    NEW_RUNS,
    TRIAL_ENDS,
    ArmStudies,
    TrialEnd,
    TrialRecord,
    arm_key,
    begun_trials,
    open_storage,
    stored_studies,
    study_arms,
    trial_lock,
)
from ablation.spec.objective import ACCURACY, Objective
from ablation.storage.locks import Locks, open_locks
from ablation.storage.store import Store


def trial_records(studies: ArmStudies, locks: Locks) -> dict[str, list[TrialRecord]]:
    """Return arm -> its trials in order, then its confirmation runs."""
    records: dict[str, list[TrialRecord]] = {}
    for arm, study in studies.tuning.items():
        tuned = begun_trials(study)
        records[arm] = _records_of(studies, arm, study, tuned, locks)
        if arm in studies.confirmation:
            confirmation = studies.confirmation[arm]
            runs = confirmation.get_trials(deepcopy=False)
            by_number = {frozen.number: frozen for frozen in tuned}
            records[arm] += _records_of(studies, arm, confirmation, runs, locks, by_number)
    return records


def _records_of(
    studies: ArmStudies, arm: str, study: optuna.Study, trials: list[FrozenTrial], locks: Locks,
    tuned: Mapping[int, FrozenTrial] | None = None,
) -> list[TrialRecord]:  # fmt: skip
    """Return the records of an Optuna study's trials; of confirmation runs, with those of which they are, by number."""
    ended = studies.ended.setdefault(study.study_name, [])
    new = trials[len(ended) :]
    attributes = study.user_attrs if new else {}  # read once: each time asks the database
    numbers = [frozen.number for frozen in new if _end(frozen, attributes) is None]
    key = arm_key(study) if numbers else ""
    locked = locks.are_taken([trial_lock(f"{key}/{number}") for number in numbers])
    taken = dict(zip(numbers, locked, strict=True))
    if False in locked:  # a process tells a trial's end before it releases its lock: since the trials were read?
        latest, attributes = study.get_trials(deepcopy=False), study.user_attrs
        new = [latest[frozen.number] for frozen in new]
    new_runs, records = attributes.get(NEW_RUNS, {}), []
    for frozen in new:
        lock_state = {True: "running", False: "interrupted", None: "unknown"}[taken.get(frozen.number, False)]
        state: Any = _end(frozen, attributes) or lock_state
        confirms: Any = None if tuned is None else frozen.user_attrs.get("confirms", min(tuned, default=0))
        with_params = (tuned or {}).get(confirms, frozen)  # a confirmation run itself has none
        records.append(
            TrialRecord(
                arm=arm,
                number=frozen.number,
                confirms=confirms,
                state=state,
                value=frozen.value if frozen.state is TrialState.COMPLETE else None,
                params=dict(with_params.params),
                epochs=len(frozen.intermediate_values),
                reason=frozen.user_attrs.get("reason", ""),
                run_id=new_runs.get(str(frozen.number)) or frozen.user_attrs.get("run_id", ""),
                seconds=_seconds(frozen),
                higher_is_better=study.direction is not StudyDirection.MINIMIZE,
            )
        )
    all_records = [*ended, *records]
    places = itertools.count(len(ended))  # a number is missing where a trial waits that was restored from a backup
    ended += itertools.takewhile(lambda record: record.has_ended and record.number == next(places), records)
    return all_records


def _end(frozen: FrozenTrial, attributes: Mapping[str, Any]) -> TrialEnd | None:
    """Return how a trial ended; None if it has not, or is trained again by its Optuna study's user attributes."""
    return None if frozen.number in attributes.get(AGAIN, []) else TRIAL_ENDS.get(frozen.state)


def _seconds(frozen: FrozenTrial) -> float | None:
    """Return the seconds since a trial began, or until it ended; None where it is not known when it began."""
    if frozen.datetime_start is None:
        return None
    end = frozen.datetime_complete or datetime.now()  # without a time zone, as Optuna stores it
    return max(0.0, (end - frozen.datetime_start).total_seconds())


def best_record(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the finished trial with the best value, the first of equals; no confirmation run."""
    finished = [trial for trial in trials if trial.value is not None and trial.confirms is None]
    return max(finished, key=lambda trial: (trial.value or 0.0) * (1 if trial.higher_is_better else -1), default=None)


def count_states(trials: Sequence[TrialRecord]) -> str:
    """Return the number of trials in each state, such as '7 finished, 1 failed'."""
    counts: Counter[str] = Counter(trial.state for trial in trials)
    order = ("finished", "pruned", "failed", "running", "interrupted", "unknown")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state]) or "none"


def _best_of_repeats(trials: Sequence[TrialRecord], repeats: int) -> list[TrialRecord | None]:
    return [best_record([trial for trial in trials if trial.number % repeats == repeat]) for repeat in range(repeats)]


def superseded_runs(trials: Sequence[TrialRecord], repeats: int = 1) -> list[TrialRecord]:
    """Return the confirmation runs of an arm whose configuration is no longer the best of its repeat."""
    numbers = {trial.number for trial in _best_of_repeats(trials, repeats) if trial is not None}
    return [trial for trial in trials if trial.confirms is not None and numbers and trial.confirms not in numbers]


def total_runs(trials: Sequence[TrialRecord], trials_per_arm: int, seeds: int, repeats: int = 1) -> int:
    """Return the number of trials and confirmation runs that an arm has or will have; budgets may have shrunk."""
    tuned = [trial for trial in trials if trial.confirms is None]
    is_tuned = len(tuned) >= trials_per_arm and all(trial.has_ended for trial in tuned)
    confirmations = current = 0
    for best in _best_of_repeats(trials, repeats):
        runs = sum(trial.confirms == best.number for trial in trials) if best is not None else 0
        confirmations += runs if is_tuned and best is None else max(seeds, runs)  # else there is nothing to confirm
        current += runs
    superseded = len(trials) - len(tuned) - current
    return max(trials_per_arm, len(tuned)) + confirmations + superseded


def count_runs(
    trials: Mapping[str, Sequence[TrialRecord]], trials_per_arm: int, seeds: Mapping[str, int], repeats: int = 1
) -> tuple[int, int]:
    """Return how many runs of a study have ended, and how many it has or will have; see `status_table`."""
    ended = sum(trial.has_ended for records in trials.values() for trial in records)
    return ended, sum(total_runs(records, trials_per_arm, seeds[name], repeats) for name, records in trials.items())


def status_table(
    study: str,
    trials: dict[str, list[TrialRecord]],
    trials_per_arm: int,
    seeds: Mapping[str, int],
    repeats: int = 1,
    goal: Objective = ACCURACY,
) -> Table:
    """Return the table of `--status`: the arms' trials by state, with the reasons of failures.

    Args:
        study: its name.
        trials: arm -> its trials and confirmation runs.
        trials_per_arm: the budget.
        seeds: arm -> confirmation runs of each repeat of its tuning.
        repeats: the number of these.
        goal: what chooses the best trial.
    """
    rows, notes = [], []
    for name, records in trials.items():
        best = best_record(records)
        tuned = [trial for trial in records if trial.confirms is None]
        superseded = superseded_runs(records, repeats)
        current = [trial for trial in records if trial.confirms is not None and trial not in superseded]
        rows.append(
            [
                name,
                count_states(tuned),
                *(["-", "-"] if best is None else [f"{best.value:.4f}", best.run_id]),
                count_states(current) + (f"; {len(superseded)} superseded" if superseded else ""),
            ]
        )
        for trial in records:
            if trial.state == "failed":
                notes.append(f"{trial.name} {trial.state}: {trial.reason}")
    if any(trial.state == "unknown" for records in trials.values() for trial in records):
        notes.append("unknown: running or interrupted; this user may not read the trials' locks.")
    ended, total = count_runs(trials, trials_per_arm, seeds, repeats)
    budget = max([trials_per_arm, *(sum(t.confirms is None for t in records) for records in trials.values())])
    most, least = repeats * max(seeds.values(), default=0), repeats * min(seeds.values(), default=0)
    up_to = "up to " if least < most else ""
    per_arm = plural(budget, "trial") + (f" and {up_to}{plural(most, 'confirmation run')}" if most else "")
    tunings = f", in {repeats} tunings" if repeats > 1 else ""
    title = f"{study}: {ended} of {total} runs ended ({per_arm} per arm{tunings})"
    best_value = f"best val. {goal.label}"
    columns = ["arm", "trials", best_value, "its MLflow run", "confirmation runs"]
    return Table(title, columns, rows, notes, optional=["confirmation runs", best_value])


def read_stored(store: Store) -> Table:
    """Return the table of --list --store: the studies of a store, with how many of their runs ended.

    Raises:
        InputError: the folder is no store, or an empty one.
        StoreAway: a server does not answer.
        StoreError: Optuna's database cannot be used.
    """
    store.check_reachable()
    storage = open_storage(store)
    if storage is None:
        raise InputError(f"{store.root}: is no store, or an empty one")
    locks = open_locks(store.optuna_url)
    rows = []
    for name in stored_studies(storage):
        studies = study_arms(storage, name)
        runs = [run for arm_runs in trial_records(studies, locks).values() for run in arm_runs]
        question = next((arm.user_attrs.get("content", {}).get("question") for arm in studies.tuning.values()), None)
        counts = [count_states([run for run in runs if (run.confirms is None) == tuned]) for tuned in (True, False)]
        rows.append([name, str(len(studies.tuning)), *counts, question or "-"])
    return Table(
        f"Studies in {store.root}",
        ["name", "arms", "trials", "confirmation runs", "question"],
        rows,
        optional=["question", "confirmation runs"],
    )
