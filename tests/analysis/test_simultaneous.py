"""Contrasts tested together, against SciPy's tables, and simulation. Legend: S seeds, N test images."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ablation.analysis.estimator import OVER_SEEDS
from ablation.analysis.seeds import Moments, seed_moments
from ablation.analysis.simultaneous import critical, from_normal_scale, largest_statistics, normal_scale
from tests.calibration import pairs, simulate

ARMS = tuple("abcde")
contrast, simultaneous, chances_of_best = OVER_SEEDS.contrast, OVER_SEEDS.simultaneous, OVER_SEEDS.chances_of_best


def normal_moments(arms: int, variance: float = 1e-4, seeds: int = 5000) -> Moments:
    """Return independent arms whose variances are known so well that t is the normal distribution."""
    names = tuple(ARMS[:arms])
    zeros = np.zeros(arms)
    return Moments(
        names, zeros, None, 10**6, 10**6, np.full(arms, seeds), np.full(arms, variance), zeros, np.zeros((arms, arms))
    )


def threshold(moments: Moments, contrasts: list[dict[str, float]]) -> float:
    return critical(largest_statistics(moments.weights(contrasts), moments, 99_999))


@pytest.mark.parametrize("arms", [3, 5])
def test_all_pairs_with_many_seeds_are_tukeys_test(arms: int) -> None:
    reference = scipy_stats.studentized_range.ppf(0.95, arms, np.inf) / np.sqrt(2)
    assert threshold(normal_moments(arms), pairs(ARMS[:arms])) == pytest.approx(reference, abs=0.02)


def test_comparisons_with_a_control_are_dunnetts_test() -> None:
    """Equal arms have correlation 1/2: P(all |z| < c) = 0.95 by SciPy's multivariate normal distribution."""
    contrasts = [{arm: 1.0, "a": -1.0} for arm in "bcde"]
    found = threshold(normal_moments(5), contrasts)
    covariance = np.full((4, 4), 0.5) + 0.5 * np.eye(4)
    inside = scipy_stats.multivariate_normal(cov=covariance).cdf(np.full(4, found), lower_limit=np.full(4, -found))
    assert inside == pytest.approx(0.95, abs=0.003)
    assert found < threshold(normal_moments(5), pairs(ARMS))


def test_images_that_arms_share_are_in_the_correlation() -> None:
    """With the images alone at work, two contrasts of the same arms are one test, and need no correction."""
    contrasts = [{"a": 1.0, "b": -1.0}, {"a": 0.5, "b": -0.5}]
    assert threshold(normal_moments(2), contrasts) == pytest.approx(1.96, abs=0.02)
    moments = normal_moments(4, variance=1e-12)
    # b and c have the same image effects, so that a - b and a - c are nearly the same contrast
    images_AA = np.array([[2.0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1.0]]) * 1e-6
    shared = replace(moments, images_AA=images_AA)
    assert threshold(shared, [{"a": 1.0, "b": -1.0}, {"a": 1.0, "c": -1.0}]) == pytest.approx(1.96, abs=0.02)
    assert threshold(shared, [{"a": 1.0, "b": -1.0}, {"c": 1.0, "d": -1.0}]) > 2.1


@pytest.mark.parametrize("degrees", [2, 4.3, 30, 1e6])
@pytest.mark.parametrize("t", [0.5, 2.0, 8.0])
def test_the_normal_scale_keeps_probabilities(t: float, degrees: float) -> None:
    deviate = normal_scale(np.array(t**2), np.array(degrees))
    reference = scipy_stats.norm.isf(scipy_stats.t(degrees).sf(t))
    assert deviate == pytest.approx(reference, rel=0.03)
    assert from_normal_scale(float(deviate), np.array(degrees)) == pytest.approx(t)


def test_intervals_and_p_values_say_the_same() -> None:
    rng = np.random.default_rng(2)
    correct = simulate(rng, {"a": 0.88, "b": 0.88, "c": 0.875, "d": 0.87, "e": 0.85}, 0.004, 4, 2000)
    estimates = simultaneous(pairs(ARMS), correct)
    singles = [contrast(weights, correct) for weights in pairs(ARMS)]
    assert {e.p is not None and e.p < 0.05 for e in estimates} == {True, False}
    for estimate, single in zip(estimates, singles, strict=True):
        assert None not in (estimate.p, estimate.low, estimate.high, single.p, single.low, single.high)
        assert (estimate.p < 0.05) == (estimate.low > 0 or estimate.high < 0)
        assert estimate.p >= 0.99 * single.p
        assert estimate.low < single.low < single.high < estimate.high
        assert (estimate.value, estimate.standard_error) == (single.value, single.standard_error)
    assert simultaneous(pairs(ARMS), correct) == estimates, "the simulation's seed is fixed"


def test_a_single_difference_is_not_corrected() -> None:
    correct = simulate(np.random.default_rng(3), {"a": 0.88, "b": 0.87}, 0.004, 3, 1000)
    assert simultaneous(pairs(("a", "b")), correct) == [contrast({"a": 1.0, "b": -1.0}, correct)]
    assert simultaneous([], correct) == []


def test_two_seeds_are_not_tested() -> None:
    runs = simulate(np.random.default_rng(3), {"a": 0.88, "b": 0.87}, 0.004, 3, 1000)
    assert list(OVER_SEEDS.usable({"a": runs["a"], "b": runs["b"][:2]})) == ["a"]


def test_few_images_that_differ_are_not_shown_in_a_family() -> None:
    """Six images out of six favour a; p = 0.03 alone, and far from that among three pairs."""
    base_N = np.arange(500) >= 50
    worse_N = base_N & (np.arange(500) < 494)
    correct = {"a": np.tile(base_N, (3, 1)), "b": np.tile(worse_N, (3, 1)), "c": np.tile(base_N, (3, 1))}
    alone = contrast({"a": 1.0, "b": -1.0}, correct)
    first, equal, _ = simultaneous(pairs(("a", "b", "c")), correct)
    assert alone.p == pytest.approx(scipy_stats.binomtest(6, 6).pvalue)
    assert first.p is not None
    assert first.p > 0.05
    assert first.low is not None
    assert first.low < 0
    assert equal.p == 1.0


def test_equal_arms_are_declared_different_in_one_study_of_twenty() -> None:
    rng = np.random.default_rng(4)
    truth = dict.fromkeys(ARMS, 0.88)
    studies, declared, covered = 200, 0, 0
    for _ in range(studies):
        estimates = simultaneous(pairs(ARMS), simulate(rng, truth, 0.003, 4, 1000), draws=999)
        declared += any(e.p is not None and e.p < 0.05 for e in estimates)
        covered += all(e.low is not None and e.high is not None and e.low <= 0 <= e.high for e in estimates)
    assert declared == studies - covered
    assert declared <= 19  # 5 % of 200 and three times the standard deviation of that number


def test_the_chance_of_being_best_by_integration() -> None:
    """Two arms: the chance that a difference with its t distribution is positive."""
    rng = np.random.default_rng(5)
    correct = simulate(rng, {"a": 0.88, "b": 0.87}, 0.006, 40, 2000)
    chances = chances_of_best(correct)
    difference = contrast({"a": 1.0, "b": -1.0}, correct)
    assert difference.standard_error is not None
    expected = scipy_stats.norm.cdf(difference.value / difference.standard_error)
    assert chances["a"] == pytest.approx(expected, abs=0.01)
    assert sum(chances.values()) == pytest.approx(1)
    assert chances_of_best({"a": correct["a"]}) == {}


def test_chances_of_equal_arms_are_equal() -> None:
    y_SN = simulate(np.random.default_rng(6), {"a": 0.9}, 0.003, 5, 500)["a"]
    assert list(chances_of_best(dict.fromkeys("abcd", y_SN)).values()) == pytest.approx([0.25] * 4, abs=0.01)


def test_moments_of_more_seeds_and_images() -> None:
    moments = seed_moments(simulate(np.random.default_rng(7), {"a": 0.9, "b": 0.8}, 0.02, 5, 1000))
    larger = moments.resized(2, 4)
    assert list(larger.seeds_A) == [10, 10]
    assert larger.images == 4000
    # the seeds' own part stays, the images' part is a quarter
    own_A = moments.variance_A - moments.residual_A
    assert larger.variance_A == pytest.approx(own_A + moments.residual_A / 4)
    assert larger.images_AA == pytest.approx(moments.images_AA / 4)
