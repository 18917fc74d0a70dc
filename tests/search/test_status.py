"""The table of `--status`."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ablation.search.status import (
    TrialRecord,
    best_record,
    count_states,
    status_table,
    superseded_runs,
    total_runs,
    trial_records,
)
from ablation.search.studies import AGAIN, ArmStudies
from ablation.storage.locks import open_locks


def record(
    arm: str, number: int, state: str, value: float | None = None, reason: str = "", confirms: int | None = None
) -> TrialRecord:
    params = {"lr": 0.012345, "head_width": 8}
    return TrialRecord(arm, number, confirms, state, value, params, 2, reason, f"run-{arm}-{number}")


TRIALS = {
    "a": [record("a", 0, "finished", 0.5), record("a", 1, "finished", 0.75), record("a", 2, "finished", 0.75)],
    "b": [record("b", 0, "failed", reason="it diverged"), record("b", 1, "running")],
}


def test_the_best_is_the_first_of_equals() -> None:
    assert best_record(TRIALS["a"]).number == 1
    assert best_record(TRIALS["b"]) is None


def test_no_trial_has_a_state() -> None:
    assert count_states([]) == "none"


def test_status_table() -> None:
    confirmed = [
        *TRIALS["a"],
        record("a", 0, "failed", reason="no memory", confirms=1),
        record("a", 1, "finished", 0.9, confirms=1),  # better than what it confirms, yet not the best trial
    ]
    table = status_table("small", {**TRIALS, "a": confirmed}, 3, {"a": 2, "b": 2})
    assert table.title == "small: 6 of 10 runs ended (3 trials and 2 confirmation runs per arm)"
    assert table.rows == [
        ["a", "3 finished", "0.7500", "run-a-1", "1 finished, 1 failed"],
        ["b", "1 failed, 1 running", "-", "-", "none"],
    ]
    assert table.notes == ["a confirmation #0 failed: no memory", "b #0 failed: it diverged"]
    stopped = status_table("small", {**TRIALS, "a": confirmed}, 3, {"a": 2, "b": 5})  # by a planned look
    assert stopped.title == "small: 6 of 13 runs ended (3 trials and up to 5 confirmation runs per arm)"


def test_superseded_runs_are_counted_by_themselves() -> None:
    """The study was extended, and another trial became the best; its first confirmation run has failed."""
    extended = [
        *TRIALS["a"],
        *(record("a", number, "finished", 0.5, confirms=0) for number in range(3)),
        record("a", 3, "failed", reason="no memory", confirms=1),
    ]
    table = status_table("small", {"a": extended}, 3, {"a": 3})
    assert table.rows[0][-1] == "1 failed; 3 superseded"
    assert table.title.startswith("small: 7 of 9 runs ended")
    # With two repeats, trials 0 and 2 are one repeat's, and trial 1 is the other's.
    two_repeats = [*TRIALS["a"], *(record("a", n, "finished", 0.5, confirms=c) for n, c in enumerate((0, 1, 2)))]
    assert [run.number for run in superseded_runs(two_repeats, repeats=2)] == [0]


def test_total_runs() -> None:
    assert total_runs([], 3, 2) == 5
    assert total_runs(TRIALS["a"], 3, 0) == 3
    assert total_runs(TRIALS["a"], 2, 2) == 5  # the budget was larger once
    assert total_runs(TRIALS["b"][:1], 1, 2) == 1  # no trial finished: there is nothing to confirm
    superseded = record("a", 0, "finished", 0.5, confirms=0)
    assert total_runs([*TRIALS["a"], superseded], 3, 2) == 6
    more_seeds_once = [record("a", number, "finished", 0.5, confirms=1) for number in range(3)]
    assert total_runs([*TRIALS["a"], *more_seeds_once], 3, 2) == 6


def test_total_runs_of_repeats() -> None:
    """Trials 0 and 2 are the first repeat's, 1 the second's: what confirms 1 and the better of the others counts."""
    assert total_runs([], 5, 2, 3) == 5 + 3 * 2
    tuned = [record("a", 0, "finished", 0.5), record("a", 1, "finished", 0.7), record("a", 2, "finished", 0.6)]
    assert total_runs(tuned, 3, 2, 2) == 3 + 2 * 2
    confirmed = [record("a", n, "finished", 0.5, confirms=confirms) for n, confirms in enumerate((2, 1, 1, 1, 0))]
    assert total_runs([*tuned, *confirmed], 3, 2, 2) == 3 + (2 + 3) + 1  # three seeds once, and one superseded
    lost = [record("a", 0, "finished", 0.5), record("a", 1, "failed")]
    assert total_runs(lost, 2, 2, 2) == 2 + 2  # the second repeat has nothing to confirm


def test_a_trial_that_waited_is_counted_once_it_has_begun(tmp_path: Path) -> None:
    """One that was restored from a backup waits before one that has ended."""
    study = optuna.create_study()
    study.set_user_attr("key", "0123")
    study.enqueue_trial({})
    study.add_trial(optuna.trial.create_trial(value=0.5))
    studies, locks = ArmStudies({"a": study}, {}), open_locks(f"sqlite:///{tmp_path}/optuna.db")

    def numbers() -> list[int]:
        return [record.number for record in trial_records(studies, locks)["a"]]

    assert numbers() == [1]
    study.tell(study.ask(), state=TrialState.FAIL)
    assert numbers() == numbers() == [0, 1]


def test_a_confirmation_run_has_the_parameters_of_what_it_confirms_though_another_waits(tmp_path: Path) -> None:
    tuning, confirmation = optuna.create_study(), optuna.create_study()
    for study in (tuning, confirmation):
        study.set_user_attr("key", "0123")
    tuning.enqueue_trial({})
    for lr in (0.25, 0.5):
        distributions = {"lr": optuna.distributions.FloatDistribution(0, 1)}
        tuning.add_trial(optuna.trial.create_trial(params={"lr": lr}, distributions=distributions, value=0.5))
    for attributes in ({"confirms": 1}, {"confirms": 2}, {}):  # the last one died when it was created
        confirmation.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=attributes))
    studies = ArmStudies({"a": tuning}, {"a": confirmation})
    records = trial_records(studies, open_locks(f"sqlite:///{tmp_path}/optuna.db"))["a"]
    confirmed = [(record.confirms, record.params) for record in records[2:]]
    assert confirmed == [(1, {"lr": 0.25}), (2, {"lr": 0.5}), (1, {"lr": 0.25})]


def test_a_trial_that_ends_while_its_lock_is_read_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process tells its end, then releases its lock, after the trials were read."""
    study = optuna.create_study()
    study.set_user_attr("key", "0123")
    trial, again = study.ask(), study.ask()
    study.tell(again, 0.75)
    study.set_user_attr(AGAIN, [again.number])
    studies, locks = ArmStudies({"a": study}, {}), open_locks(f"sqlite:///{tmp_path}/optuna.db")

    def are_taken(names: list[str]) -> list[bool]:
        if not study.user_attrs[AGAIN]:
            return [False]
        study.tell(trial, 0.5)
        study.set_user_attr(AGAIN, [])
        return [name.endswith("/2") for name in names]

    monkeypatch.setattr(locks, "are_taken", are_taken)
    study.ask()
    records = trial_records(studies, locks)["a"]
    assert [(record.state, record.value) for record in records] == [
        ("finished", 0.5),
        ("finished", 0.75),
        ("running", None),
    ]
    assert [record.state for record in trial_records(studies, locks)["a"]] == ["finished", "finished", "interrupted"]
