"""Optuna's studies of another objective than accuracy: direction, metric, pruner, and what is best."""

import pytest
from optuna.study import StudyDirection

from ablation.search.claims import report_epochs, should_prune
from ablation.search.space import suggest
from ablation.search.status import best_record, status_table, trial_records
from ablation.search.studies import best_trial, best_trials, is_better
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import ACCURACY, OBJECTIVES
from ablation.storage.locks import open_locks
from ablation.storage.store import Store
from tests.search.steps import begin, claim_next, end, study

ONE_ARM = ('factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1},pruner='median',sampler='random'}")
LOSS = OBJECTIVES["loss"]


def epochs(losses: list[float]) -> list[EpochMetrics]:
    """Return the metrics of epochs with these losses, whose accuracies say the opposite."""
    return [EpochMetrics(n, 1.0, 0.5, loss, loss / 10, 0.1, 1.0, n, loss / 10, loss / 10) for n, loss in
            enumerate(losses, start=1)]  # fmt: skip


@pytest.mark.parametrize("name", ["macro_f1", "loss"])
def test_direction_and_metric(store: Store, name: str) -> None:
    spec = study("vgg_truncation", *ONE_ARM, f"objective={name}", "confirm.seeds=1", "search.pruner=none")
    studies = begin(spec, store)
    expected = StudyDirection.MINIMIZE if name == "loss" else StudyDirection.MAXIMIZE
    for optuna_study in studies.all():
        assert optuna_study.direction is expected
        assert optuna_study.metric_names == [f"val_{name}"]


def test_a_begun_study_without_trials_may_change_its_objective(store: Store) -> None:
    accuracy, loss = (study("vgg_truncation", *ONE_ARM, f"objective={name}") for name in ("accuracy", "loss"))
    begin(accuracy, store)
    assert begin(loss, store).tuning["block1"].direction is StudyDirection.MINIMIZE
    again = begin(accuracy, store).tuning["block1"]
    assert (again.direction, again.metric_names) == (StudyDirection.MAXIMIZE, ["val_accuracy"])


def test_the_lowest_loss_is_the_best(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_ARM, "objective=loss", "trials_per_arm=4")
    studies = begin(spec, store)
    for value in (0.5, 0.3, 0.3, 0.9):
        claim = claim_next(spec, store, studies)
        suggest(claim.trial, spec, claim.arm)
        end(claim, "finished", value)
    tuning = studies.tuning["block1"]
    best = best_trial(tuning)
    assert best is not None
    assert best.number == 1  # the first of equals
    assert best_trials(spec, tuning)[0].number == 1
    assert is_better(0.2, 9, best, LOSS)
    assert not is_better(0.3, 9, best, LOSS)
    assert is_better(0.4, 9, best, ACCURACY)
    trials = trial_records(studies, open_locks(store.optuna_url))
    record = best_record(trials["block1"])
    assert record is not None
    assert (record.number, record.value) == (1, 0.3)
    table = status_table("small", trials, 4, {"block1": 0}, goal=LOSS)
    assert table.columns[2] == "best val. loss"
    assert table.rows[0][2] == "0.3000"


def test_the_pruner_ends_trials_of_a_high_loss(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_ARM, "objective=loss", "trials_per_arm=4")
    studies = begin(spec, store)
    pruned = []
    for losses in ([2.0, 1.0, 0.5], [2.0, 1.1, 0.6], [2.0, 3.0, 4.0], [2.0, 0.4, 0.3]):
        claim = claim_next(spec, store, studies)
        suggest(claim.trial, spec, claim.arm)
        report_epochs(claim, epochs(losses), LOSS)
        assert list(claim.study.trials[claim.trial.number].intermediate_values.values()) == losses
        pruned.append(should_prune(claim))
        end(claim, "finished", min(losses))
    assert pruned == [False, False, True, False]
