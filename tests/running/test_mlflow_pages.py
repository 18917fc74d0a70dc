"""What MLflow shows of a study beside its trials, computed from its results."""

import numpy as np
import pytest

from ablation.running.mlflow_pages import arm_runs, confirmed_models
from ablation.spec.arms import Arm
from tests.fake_results import fake_result

RESULT = fake_result(
    {"strategy": ["feature_extraction", "fine_tune_all", "from_scratch"]},
    {"feature_extraction": 0.7, "fine_tune_all": 0.9, "from_scratch": 0.5},
    images=200, failed_arms=("from_scratch",),
)  # fmt: skip


def test_an_arms_run_has_its_numbers() -> None:
    first, second = arm_runs(RESULT)  # nothing of the arm in which every trial failed
    arm = RESULT.arms[1]
    test_S = [run.test_accuracy for run in arm.confirmations]
    val_S = [run.val_accuracy for run in arm.confirmations]
    assert second.arm == Arm("fine_tune_all", {"strategy": "fine_tune_all"})
    assert (first.metrics["rank"], second.metrics["rank"]) == (2, 1)
    expected = {"test_accuracy": np.mean(test_S), "test_sd": np.std(test_S, ddof=1)}
    expected |= {"best_val_accuracy": np.mean(val_S), "val_sd": np.std(val_S, ddof=1), "seeds": 3}
    assert {name: second.metrics[name] for name in expected} == pytest.approx(expected)
    assert second.metrics["test_low"] < second.metrics["test_accuracy"] < second.metrics["test_high"]
    values = f"{np.mean(test_S):.4f} ± {np.std(test_S, ddof=1):.4f}"
    assert second.note == f"Rank 1 of 2 by validation accuracy; test accuracy {values} (n = 3)."


def test_an_arm_that_is_not_confirmed_comes_after_those_that_are() -> None:
    result = fake_result({"truncate_at": ["block1"]}, {"block1": 0.9}, seeds=0, images=50)
    (run,) = arm_runs(result)
    assert run.metrics["best_val_accuracy"] == result.arms[0].best.val_accuracy  # type: ignore[union-attr]
    assert "test_accuracy" not in run.metrics
    assert run.note == "Rank 1 of 1 by validation accuracy; no confirmation run has finished."


def test_each_confirmation_run_has_a_model() -> None:
    models = confirmed_models(RESULT)
    runs = [run for arm in RESULT.arms for run in arm.confirmations]
    assert [model.run_id for model in models] == [run.run_id for run in runs]
    assert models[0].metrics == {"test_accuracy": runs[0].test_accuracy, "test_loss": 0.5}
    assert models[0].arm.levels == {"strategy": "feature_extraction"}


def test_the_unit_of_an_arm_with_repeats_is_the_repeat() -> None:
    """Six runs in three repeats: the deviation is that of the repeats' means."""
    confirm = {"seeds": 2, "repeats": 3}
    result = fake_result({"truncate_at": ["block1"]}, {"block1": 0.9}, seeds=2, images=200, confirm=confirm)
    (run,) = arm_runs(result)
    of_repeats = [[c.test_accuracy for c in result.arms[0].confirmations if c.spec.repeat == r] for r in range(3)]
    means_R = np.mean(np.array(of_repeats, float), axis=1)
    assert run.metrics["seeds"] == 6
    assert run.metrics["test_sd"] == pytest.approx(np.std(means_R, ddof=1))
    assert {model.repeat for model in confirmed_models(result)} == {0, 1, 2}
