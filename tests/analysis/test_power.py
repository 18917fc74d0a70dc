"""The smallest differences that studies would find, against simulated studies."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri

from ablation.analysis import power
from ablation.analysis.estimator import OVER_SEEDS
from ablation.analysis.power import SIZES, Assumed, assumed_moments, smallest_differences, smallest_over_repeats
from ablation.analysis.repeats import repeat_moments
from ablation.analysis.seeds import Moments
from tests.calibration import OVER_REPEATS, AgainCell, pairs, simulate, simulate_repeats

ASSUMED = Assumed(seed_sd=0.005, same_arm=0.09, other_arm=0.122)  # as two of calibration's equal arms disagree


@pytest.mark.parametrize(("arms", "seeds", "images"), [("ab", 5, 3000), ("abcde", 3, 3000), ("ab", 3, 360)])
def test_the_smallest_difference_is_found_in_four_of_five_simulated_studies(arms: str, seeds: int, images: int) -> None:
    family = pairs(tuple(arms))
    moments = assumed_moments(arms, ASSUMED, seeds=seeds, images=images)
    (difference,) = smallest_differences(moments.weights(family), moments, [0])
    accuracies = dict.fromkeys(arms, 0.88) | {"a": 0.88 + difference / 2, "b": 0.88 - difference / 2}
    rng = np.random.default_rng(3)
    studies, found = 200, 0
    for _ in range(studies):
        estimate = OVER_SEEDS.simultaneous(
            family, simulate(rng, accuracies, ASSUMED.seed_sd, seeds, images), draws=999
        )[0]
        found += estimate.value > 0 and estimate.p is not None and estimate.p < 0.05
    assert abs(found / studies - 0.8) < 3 * np.sqrt(0.8 * 0.2 / studies)


def test_assumed_runs_vary_as_simulated_ones() -> None:
    moments = assumed_moments("ab", ASSUMED, seeds=5, images=3000)
    rng = np.random.default_rng(4)
    values = [
        OVER_SEEDS.contrast(
            {"a": 1.0, "b": -1.0}, simulate(rng, {"a": 0.88, "b": 0.88}, ASSUMED.seed_sd, 5, 3000)
        ).value
        for _ in range(300)
    ]
    variance = 2 * moments.variance_A[0] / 5 + 2 * moments.images_AA[0, 0]
    assert np.var(values) == pytest.approx(variance, rel=0.25)  # three standard errors of 300 values


def test_more_seeds_find_less() -> None:
    family = pairs(tuple("abc"))
    moments = assumed_moments("abc", ASSUMED, seeds=3, images=2000)
    found = [smallest_differences(moments.weights(family), moments.resized(*size), [0])[0] for size in SIZES.values()]
    assert found[0] > found[1] > found[2] > 0
    assert found[3] < found[1]


@pytest.mark.parametrize(("arms", "expected"), [(10, 150), (20, 150), (50, 23), (100, 10)])
def test_many_contrasts_take_no_more_time(monkeypatch: pytest.MonkeyPatch, arms: int, expected: int) -> None:
    """Studies of up to 20 arms have a critical value each; 50 arms have 1,225 differences."""
    simulated_of = []

    def few(weights_CA: np.ndarray, moments: Moments, draws: int) -> np.ndarray:
        simulated_of.append(draws * len(weights_CA))
        return np.linspace(1.0, 4.0, draws)

    monkeypatch.setattr(power, "largest_statistics", few)
    names = [f"a{n}" for n in range(arms)]
    moments = assumed_moments(names, ASSUMED, seeds=3, images=2000)
    smallest_differences(moments.weights(pairs(tuple(names))), moments, [0])
    assert simulated_of == [999 * arms * (arms - 1) // 2] * expected


def test_shared_critical_values_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = assumed_moments("abcdef", ASSUMED, seeds=3, images=2000)
    weights_CA = moments.weights(pairs(tuple("abcdef")))
    (own,) = smallest_differences(weights_CA, moments, [0])
    monkeypatch.setattr(power, "MANY_CONTRASTS", 1)
    (shared,) = smallest_differences(weights_CA, moments, [0])
    assert shared != own
    assert shared == pytest.approx(own, rel=0.03)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.00001])
def test_a_difference_is_found_at_the_level_of_its_test(level: float) -> None:
    """With so many seeds or repeats, the variances are known, so that both quantiles are those of the normal one.

    999 simulated studies tell the quantile of a test at 1 % to about a tenth.
    """
    needed = float(-ndtri(level / 2) + ndtri(0.8))
    family = pairs(tuple("ab"))
    moments = assumed_moments("ab", ASSUMED, seeds=100_000, images=3000)
    error = (2 * moments.variance_A[0] / 100_000 + 2 * moments.images_AA[0, 0]) ** 0.5
    (found,) = smallest_differences(moments.weights(family), moments, [0], level)
    assert found == pytest.approx(needed * error, rel=0.1 if level == 0.01 else 0.02)
    repeats = repeat_moments(simulate_repeats(np.random.default_rng(8), AgainCell(2, 400, 2.0)))
    weights_CA = repeats.weights(pairs(repeats.arms))
    error = (2 * repeats.shared_variance / 400 + repeats.variance_parts(weights_CA)[1][0]) ** 0.5
    (found,) = smallest_over_repeats(weights_CA, repeats, [0], level)
    assert found == pytest.approx(needed * error, rel=0.02)


@pytest.mark.parametrize(("arms", "luck"), [(2, 2.0), (3, 0.5)])
def test_the_smallest_difference_over_repeats_is_found_in_four_of_five(arms: int, luck: float) -> None:
    """Of simulated sets of five repeats, with the moments of a very large set as the true ones."""
    cell = AgainCell(arms, 5, luck)
    rng = np.random.default_rng(8)
    truth = repeat_moments(simulate_repeats(rng, replace(cell, repeats=400)))
    family = pairs(truth.arms)
    (difference,) = smallest_over_repeats(truth.weights(family), replace(truth, repeats=5), [0])
    studies, found = 200, 0
    for _ in range(studies):
        right = simulate_repeats(rng, cell)
        right[truth.arms[0]] = right[truth.arms[0]] + difference
        estimate = OVER_REPEATS.simultaneous(family, right, draws=999)[0]
        found += estimate.value > 0 and estimate.p is not None and estimate.p < 0.05
    assert abs(found / studies - 0.8) < 3 * np.sqrt(0.8 * 0.2 / studies)
