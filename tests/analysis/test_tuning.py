"""What tuning chose: ends of ranges, the best of k trials, the luck of the best."""

import dataclasses
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.tuning import best_of, edges, searched_params, tuned_minus_confirmed
from ablation.spec.arms import arms
from tests.fake_results import fake_arm, fake_result, fake_run, fake_spec, fake_study


def chosen(search: dict[str, Any], **values: Any) -> StudyResult:
    """Return a study of one arm whose best trial has these values."""
    spec = fake_spec({}, search=search)
    (arm,) = arms(spec)
    run = fake_run(spec, arm, 0, 0.9)
    run = dataclasses.replace(run, spec=run.spec.model_copy(update=values))
    return fake_study(spec, [ArmResult(arm, [run], [], [])], ["a", "b"])


LR = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}


@pytest.mark.parametrize(
    ("search", "values", "expected"),
    [
        (LR, {"lr": 1e-1}, ("lr", 1e-1, True)),
        (LR, {"lr": 0.051}, ("lr", 1e-1, True)),  # 10 ** (-1 - 0.3) = 0.0501: a tenth of three decades
        (LR, {"lr": 0.050}, None),
        (LR, {"lr": 1.99e-4}, ("lr", 1e-4, False)),
        (LR, {"lr": 2.01e-4}, None),
        ({"head_dropout": {"low": 0.0, "high": 0.5}}, {"head_dropout": 0.46}, ("head_dropout", 0.5, True)),
        ({"head_dropout": {"low": 0.0, "high": 0.5}}, {"head_dropout": 0.44}, None),
        ({"head_width": {"choices": [64, 128, 256, 512, 1024]}}, {"head_width": 1024}, ("head_width", 1024, True)),
        ({"head_width": {"choices": [512, 64, 1024, 128, 256]}}, {"head_width": 64}, ("head_width", 64, False)),
        ({"head_width": {"choices": [64, 128, 256, 512, 1024]}}, {"head_width": 128}, None),
        ({"head_width": {"choices": [128, 512, 2048]}}, {"head_width": 2048}, None),  # most of three are ends
        ({"batch_size": {"low": 1, "high": 4}}, {"batch_size": 4}, None),
        ({"batch_size": {"low": 1, "high": 5}}, {"batch_size": 5}, ("batch_size", 5, True)),
        ({"batch_size": {"low": 8, "high": 100, "step": 8}}, {"batch_size": 96}, ("batch_size", 96, True)),
        ({"batch_size": {"low": 8, "high": 44, "step": 8}}, {"batch_size": 40}, ("batch_size", 40, True)),
        ({"batch_size": {"low": 8, "high": 39, "step": 8}}, {"batch_size": 32}, None),  # 8, 16, 24, 32
        ({"head_dropout": {"low": 0.0, "high": 0.5, "step": 0.2}}, {"head_dropout": 0.4}, None),
        ({"head_dropout": {"low": 0.0, "high": 0.9, "step": 0.2}}, {"head_dropout": 0.8}, ("head_dropout", 0.8, True)),
        ({"optimizer": {"choices": ["sgd", "adamw"]}}, {"optimizer": "adamw"}, None),
    ],
)
def test_edges(search: dict[str, Any], values: dict[str, Any], expected: tuple[str, Any, bool] | None) -> None:
    found = [(edge.parameter, edge.limit, edge.is_upper) for edge in edges(chosen(search, **values))]
    assert found == ([] if expected is None else [expected])


def test_the_best_of_k_by_enumeration() -> None:
    """Row 13: all choices of k trials without replacement, as Tang et al. (2020) have it."""
    values: list[float | None] = [0.5, 0.9, 0.7, 0.6, 0.8, None]
    spec = fake_spec({}, trials_per_arm=6)
    trials = fake_arm(spec, arms(spec)[0], values, [], []).trials
    best = best_of(trials)
    assert best is not None
    finished = [value for value in values if value is not None]
    for k in range(1, 6):
        largest = sorted(max(choice) for choice in combinations(finished, k))
        assert best.expected_T[k - 1] == pytest.approx(np.mean(largest))
        quantiles = np.quantile(largest, [0.1, 0.9], method="inverted_cdf")
        assert (best.low_T[k - 1], best.high_T[k - 1]) == pytest.approx(tuple(quantiles))
    assert best.last_gain == pytest.approx(0.9 - (4 * 0.9 + 0.8) / 5)
    assert best_of([]) is None


def test_many_trials_do_not_overflow() -> None:
    spec = fake_spec({}, trials_per_arm=400)
    trials = fake_arm(spec, arms(spec)[0], [n / 400 for n in range(1, 401)], [], []).trials
    best = best_of(trials)
    assert best is not None
    assert best.expected_T[0] == pytest.approx(np.mean([n / 400 for n in range(1, 401)]))
    assert best.expected_T[-1] == 1.0
    assert (np.diff(best.expected_T) > 0).all()


def test_tuned_minus_confirmed_is_a_mean_over_arms() -> None:
    result = fake_result({"truncate_at": ["block3", "block4", "block5"]}, {f"block{n}": 0.8 for n in (3, 4, 5)})
    gains = [
        (arm.best.val_accuracy or 0) - np.mean([run.val_accuracy for run in arm.confirmations])
        for arm in result.arms
        if arm.best
    ]
    found = tuned_minus_confirmed(result.arms)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(gains))
    assert found.standard_error == pytest.approx(np.std(gains, ddof=1) / np.sqrt(3))
    assert found.tunings == 3
    alone = tuned_minus_confirmed(result.arms[:1])
    assert alone is not None
    assert alone.mean == pytest.approx(gains[0])
    assert alone.standard_error is None
    assert tuned_minus_confirmed(fake_result({}, {"all": 0.9}, seeds=0).arms) is None


def test_searched_params_leave_out_what_does_not_apply() -> None:
    search = {
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "backbone_lr_scale": {"low": 1e-3, "high": 1.0, "log": True},
    }
    spec = fake_spec({"strategy": ["feature_extraction", "fine_tune_all"]}, search=search)
    run = fake_run(spec, arms(spec)[0], 0, 0.5)
    run = dataclasses.replace(run, spec=run.spec.model_copy(update={"backbone_lr_scale": None}))
    assert list(searched_params(spec, run)) == ["lr"]
    warmed = fake_spec(
        {"strategy": ["feature_extraction", "fine_tune_all"]}, search={"head_warmup_epochs": {"low": 1, "high": 2}}
    )
    run = fake_run(warmed, arms(warmed)[0], 0, 0.5)
    run = dataclasses.replace(run, spec=run.spec.model_copy(update={"head_warmup_epochs": 0}))
    assert searched_params(warmed, run) == {}  # 0, because it does not apply
