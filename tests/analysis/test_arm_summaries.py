"""Arms in numbers, against values worked out by hand. Legend: S seeds, N images, K classes."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ablation.analysis.answer import analyse
from ablation.analysis.arm_summaries import best_so_far, champion_run, confusion_matrix, late_rise, winning_arm
from ablation.analysis.results import StudyResult
from ablation.analysis.runs import RunResult
from ablation.spec.arms import arms
from tests.fake_results import (
    FOUR,
    TWO_BY_TWO,
    draw_predictions,
    fake_arm,
    fake_predictions,
    fake_result,
    fake_run,
    fake_spec,
    fake_study,
    with_validation,
)

LABELS_N = np.array([0, 0, 1, 1])
CUTS = ["block3", "block4", "block5"]


def test_an_arm_by_hand() -> None:
    spec = fake_spec({"truncate_at": ["block3", "block5"]}, confirm={"seeds": 2})
    arm = arms(spec)[0]
    predictions_S = [
        fake_predictions(np.array([0, 0, 1, 0]), LABELS_N, 2),
        fake_predictions(np.array([0, 0, 0, 0]), LABELS_N, 2),
    ]
    found = fake_arm(spec, arm, [0.6, 0.9, None], [0.8, 0.7], predictions_S)
    empty = fake_arm(spec, arms(spec)[1], [None, None, None], [], [])
    summary, without = analyse(fake_study(spec, [found, empty], ["cat", "dog"])).arms

    assert summary.test is not None
    assert summary.val is not None
    assert (summary.test.mean, summary.test.seeds) == (0.625, 2)
    assert summary.test.standard_deviation == pytest.approx(0.125 * np.sqrt(2))
    assert summary.estimate is not None
    assert (summary.estimate.value, summary.estimate.low, summary.estimate.high) == (0.625, 0.0, 1.0)
    assert summary.val.mean == pytest.approx(0.75)
    assert summary.class_accuracies_K is not None
    assert summary.confusion_KK is not None
    np.testing.assert_allclose(summary.class_accuracies_K, [1.0, 0.25])
    np.testing.assert_allclose(summary.confusion_KK, [[1.0, 0.0], [0.75, 0.25]])
    assert summary.training_runs == 2

    assert without.test is None
    assert without.estimate is None
    assert without.confusion_KK is None


def test_the_training_time_is_of_the_confirmation_runs_else_of_the_best_trial() -> None:
    """A made-up run takes as many seconds as its arm's name has characters, plus its number."""
    result = fake_result({"truncate_at": CUTS}, dict.fromkeys(CUTS, 0.8), failed_arms=("block5",))
    first, second, failed = result.arms
    last_best = fake_arm(result.spec, second.arm, [0.6, 0.7, 0.9], [], [])
    summaries = analyse(dataclasses.replace(result, arms=[first, last_best, failed])).arms
    assert [(summary.training_seconds, summary.training_runs) for summary in summaries] == [(7, 3), (8, 1), (None, 0)]


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = confusion_matrix(np.array([1, 1, 0]), np.array([0, 0, 1]), 3)
    np.testing.assert_array_equal(matrix, [[0, 1, 0], [1, 0, 0], [np.nan, np.nan, np.nan]])


def trials_of(values: list[float | None], state: str = "finished") -> list[RunResult]:
    spec = fake_spec({})
    return [
        fake_run(spec, arms(spec)[0], n, value, state=state if value is not None else "failed")
        for n, value in enumerate(values)
    ]


def test_best_so_far_skips_what_failed() -> None:
    curve = best_so_far(trials_of([None, 0.5, 0.4, 0.6, 0.6, 0.7]))
    np.testing.assert_array_equal(curve, [np.nan, 0.5, 0.5, 0.6, 0.6, 0.7])
    assert late_rise(curve) == pytest.approx(0.1)  # from 0.6 after four of six trials


@pytest.mark.parametrize(
    ("curve", "rise"),
    [([0.5, 0.5], None), ([np.nan, np.nan, 0.5], None), ([0.5, 0.7, 0.7], 0.0), ([0.1, 0.2, 0.3, 0.4], 0.4 - 0.3)],
)
def test_late_rise(curve: list[float], rise: float | None) -> None:
    assert late_rise(np.array(curve)) == (None if rise is None else pytest.approx(rise))


def test_the_first_of_equals_wins() -> None:
    result = fake_result({"truncate_at": CUTS}, {"block3": 0.7, "block4": 0.8, "block5": 0.9})
    even = with_validation(result, dict.fromkeys(CUTS, 0.5))
    chosen = winning_arm(even)
    assert chosen is not None
    assert chosen.arm.name == "block3"
    assert champion_run(chosen).number == 0


def spoil(change: Callable[[RunResult, np.random.Generator], RunResult], result: StudyResult) -> StudyResult:
    random = np.random.default_rng(3)
    found = [
        dataclasses.replace(arm, confirmations=[change(run, random) for run in arm.confirmations])
        for arm in result.arms
    ]
    return dataclasses.replace(result, arms=found)


def nonsense(run: RunResult, random: np.random.Generator) -> RunResult:
    labels_N = run.predictions.labels_N if run.predictions else LABELS_N
    drawn = draw_predictions(float(random.uniform()), labels_N, 4, seed=int(random.integers(1000)))
    return dataclasses.replace(run, test_accuracy=float(random.uniform()), test_loss=-1.0, predictions=drawn)


def without(run: RunResult, _: np.random.Generator) -> RunResult:
    return dataclasses.replace(run, test_accuracy=None, test_loss=None, predictions=None)


@pytest.mark.parametrize("change", [nonsense, without])
def test_no_test_figure_has_a_say_in_what_is_chosen(
    change: Callable[[RunResult, np.random.Generator], RunResult],
) -> None:
    result = fake_result(TWO_BY_TWO, FOUR, seed_deviation=0.01)
    spoilt = spoil(change, result)
    chosen, again = winning_arm(result), winning_arm(spoilt)
    assert chosen is not None
    assert again is not None
    assert chosen.arm == again.arm == arms(result.spec)[1]
    assert champion_run(chosen).run_id == champion_run(again).run_id
    assert champion_run(chosen).val_accuracy == max(run.val_accuracy or 0 for run in chosen.confirmations)
