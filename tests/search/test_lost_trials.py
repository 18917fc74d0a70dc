"""Trials that one of the two databases has lost, told to Optuna again."""

from typing import Any

import pytest

from ablation.search.lost_trials import KnownTrial, tell_again
from ablation.spec.arms import arms
from ablation.storage.locks import open_locks
from ablation.storage.store import Store
from tests.fake_results import fake_run, fake_spec
from tests.search.steps import begin, claim_next, end, records

SPEC = fake_spec({"truncate_at": ["block1"]})
(ARM,) = arms(SPEC)


def known(number: int, value: float) -> KnownTrial:
    return KnownTrial(fake_run(SPEC, ARM, number, value).spec, "finished", value, "", f"run {number}", {1: value})


def test_a_trial_that_ends_while_it_is_told_keeps_its_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process tells Optuna, and releases the lock, after the trials were read."""
    studies = begin(SPEC, store)
    study = studies.tuning["block1"]
    claim = claim_next(SPEC, store, studies)
    read, answers = study.get_trials, [study.get_trials(deepcopy=False)]
    end(claim, "finished", 0.5)
    monkeypatch.setattr(study, "get_trials", lambda **kwargs: answers.pop() if answers else read(**kwargs))
    assert tell_again(SPEC, ARM, study, [known(0, 0.5)], open_locks(store.optuna_url)) == []
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_a_trial_that_died_unseen_is_told(store: Store) -> None:
    studies = begin(SPEC, store)
    study = studies.tuning["block1"]
    claim_next(SPEC, store, studies).release()
    assert tell_again(SPEC, ARM, study, [known(0, 0.5)], open_locks(store.optuna_url)) == [0]
    (trial,) = study.trials
    assert (trial.state.name, trial.value, trial.intermediate_values) == ("COMPLETE", 0.5, {1: 0.5})
    assert trial.user_attrs["run_id"] == "run 0"


def test_a_trial_that_waits_is_told_or_begun(store: Store) -> None:
    """Optuna's database is of a moment at which its process had enqueued the trial, and not asked for it."""
    studies = begin(SPEC, store)
    study = studies.tuning["block1"]
    for lr in (0.25, 0.5):
        study.enqueue_trial({"lr": lr})
    assert tell_again(SPEC, ARM, study, [known(1, 0.5), known(2, 0.75)], open_locks(store.optuna_url)) == [1, 2]
    assert [(trial.state.name, trial.value) for trial in study.trials] == [
        ("RUNNING", None), ("COMPLETE", 0.5), ("COMPLETE", 0.75),
    ]  # fmt: skip
    assert study.trials[0].system_attrs["fixed_params"] == {"lr": 0.25}
    assert [record.state for record in records(studies, store)] == ["interrupted", "finished", "finished"]


def test_what_confirmation_runs_confirm_exists(store: Store) -> None:
    """Of trial 2, which is confirmed, nothing is left: it is to be trained again, as is 1."""
    study = begin(SPEC, store).tuning["block1"]
    locks: Any = open_locks(store.optuna_url)
    assert tell_again(SPEC, ARM, study, [known(0, 0.5)], locks, least=3) == [0]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "RUNNING"]
