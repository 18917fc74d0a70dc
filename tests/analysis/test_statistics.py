"""Estimates against hand computation, SciPy's own tests, published tables, and simulation.

Legend: S seeds, N test images.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ablation.analysis.estimator import OVER_SEEDS
from ablation.analysis.seeds import seed_moments
from ablation.analysis.statistics import Estimate, exact_test
from ablation.base.errors import InputError
from tests.calibration import simulate

DIFFERENCE = {"a": 1.0, "b": -1.0}
contrast = OVER_SEEDS.contrast


def runs(*rows: str) -> np.ndarray:
    """Return S x N from a string of 0 and 1 per seed."""
    return np.array([[digit == "1" for digit in row] for row in rows])


def blocks(sizes_by_right_seeds: dict[tuple[int, ...], int], seeds: int) -> np.ndarray:
    """Return S x N in which so many images are right for exactly these seeds."""
    columns = [
        [seed in right for seed in range(seeds)] for right, size in sizes_by_right_seeds.items() for _ in range(size)
    ]
    return np.array(columns).T


# ------------------------------------------------------------------------------------------------------ contrast


def test_contrast_by_hand() -> None:
    # a: accuracies 1 and 1/2, s² = 1/8; squares 3/2 = 1/2 (seeds) + 1/2 (images) + 1/2 (rest), so r = 1/6.
    # b: accuracies 1/4 and 1/2, s² = 1/32; squares 15/8 = 1/8 + 11/8 + 3/8, so r = 1/8.
    # s² is at least r / 4 and 1 / 16: b's is below 1 / 16, whose degrees of freedom are those of the images.
    # D = (0, 1, 0, 1/2), variance 11/48; images: (11/48 - 1/12 - 1/16) / 4 = 1/48; seeds: 1/16 and 1/64.
    estimate = contrast(DIFFERENCE, {"a": runs("1111", "1100"), "b": runs("1000", "1010")})
    variance = 1 / 16 + 1 / 32 + 1 / 48
    df = variance**2 / (1 / 16**2 / 1 + 1 / 32**2 / 3 + 1 / 48**2 / 3)
    assert estimate.value == 0.375
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert estimate.degrees_of_freedom == pytest.approx(df, rel=1e-12)
    assert 2 * scipy_stats.t(df).sf(0.375 / math.sqrt(variance)) < 0.5
    assert estimate.p == 0.5  # McNemar's: both of the two images that differ favour a
    margin = scipy_stats.t(df).ppf(0.975) * math.sqrt(variance)
    assert estimate.low == pytest.approx(0.375 - margin)
    assert estimate.high == 1.0  # 0.375 + margin is more than two accuracies can differ by
    assert 0.375 + margin > 1
    reverse = contrast({"a": -1.0, "b": 1.0}, {"a": runs("1111", "1100"), "b": runs("1000", "1010")})
    assert (reverse.low, reverse.high) == pytest.approx((-1.0, -estimate.low))


def test_contrast_scales_with_its_weights() -> None:
    rng = np.random.default_rng(3)
    correct = simulate(rng, {"a": 0.8, "b": 0.7, "c": 0.75}, 0.02, 4, 300)
    one = contrast({"a": 0.5, "b": -0.25, "c": -0.25}, correct)
    two = contrast({"a": -1.0, "b": 0.5, "c": 0.5}, correct)
    assert two.value == pytest.approx(-2 * one.value)
    assert two.standard_error == pytest.approx(2 * one.standard_error)
    assert (two.degrees_of_freedom, two.p) == pytest.approx((one.degrees_of_freedom, one.p))
    assert (two.low, two.high) == pytest.approx((-2 * one.high, -2 * one.low))
    expected = 0.5 * correct["a"].mean() - 0.25 * correct["b"].mean() - 0.25 * correct["c"].mean()
    assert one.value == pytest.approx(expected)


def test_without_image_variance_it_is_welchs_test() -> None:
    # Each image is right for one of a's three seeds, and for three of b's four: D is the same for all images.
    correct = {
        "a": blocks({(0,): 100, (1,): 60, (2,): 40}, 3),
        "b": blocks({(1, 2, 3): 80, (0, 2, 3): 50, (0, 1, 3): 40, (0, 1, 2): 30}, 4),
    }
    assert correct["a"].mean(axis=1) == pytest.approx([0.5, 0.3, 0.2])
    reference = scipy_stats.ttest_ind([0.5, 0.3, 0.2], [0.6, 0.75, 0.8, 0.85], equal_var=False)
    estimate = contrast(DIFFERENCE, correct)
    assert estimate.value / estimate.standard_error == pytest.approx(reference.statistic)
    assert estimate.degrees_of_freedom == pytest.approx(reference.df)
    assert estimate.p == pytest.approx(reference.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_without_seed_variance_it_is_the_paired_t_test_over_images() -> None:
    """Up to the smallest plausible variance over seeds, 1 / N² of a run."""
    rng = np.random.default_rng(4)
    N = 3000
    image_a_N, image_b_N = rng.random((2, N)) < np.array([[0.9], [0.89]])
    estimate = contrast(DIFFERENCE, {"a": np.tile(image_a_N, (3, 1)), "b": np.tile(image_b_N, (5, 1))})
    reference = scipy_stats.ttest_rel(image_a_N.astype(float), image_b_N.astype(float))
    error = estimate.value / reference.statistic
    assert estimate.standard_error**2 == pytest.approx(error**2 + (1 / 3 + 1 / 5) / N**2)
    assert estimate.degrees_of_freedom == pytest.approx(N - 1, rel=0.01)
    assert estimate.p == pytest.approx(reference.pvalue, rel=0.01)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=0.01)


def test_seeds_that_agree_by_chance_are_not_certainty() -> None:
    """All runs of an arm have the same accuracy, though they err on different images: s² is 0, and MS / N is not."""
    rng = np.random.default_rng(5)
    correct = {
        arm: np.array([rng.permutation(np.arange(300) >= wrong) for _ in range(2)])
        for arm, wrong in (("a", 30), ("b", 36))
    }
    moments = seed_moments(correct)
    assert moments.variance_A == pytest.approx(moments.residual_A)
    for y_SN, residual in zip(correct.values(), moments.residual_A, strict=True):
        rest_SN = y_SN - y_SN.mean(axis=0) - y_SN.mean(axis=1, keepdims=True) + y_SN.mean()
        assert residual == pytest.approx((rest_SN**2).sum() / 299 / 300)
    # With two runs of equal accuracy, the residual of both is the variance over images of their means' difference.
    reference = scipy_stats.ttest_rel(correct["a"].mean(axis=0), correct["b"].mean(axis=0))
    estimate = contrast(DIFFERENCE, correct)
    assert estimate.value == pytest.approx(0.02)
    assert estimate.standard_error >= 0.999 * 0.02 / reference.statistic


def test_what_the_arms_share_cancels() -> None:
    """Images that are hard for every arm make each accuracy unsure, and no difference."""
    rng = np.random.default_rng(6)
    shared_N = rng.random(1000) < 0.7
    own_SN = rng.random((2, 3, 1000)) < 0.99
    correct = {"a": shared_N & own_SN[0], "b": shared_N & own_SN[1]}
    single, difference = contrast({"a": 1.0}, correct), contrast(DIFFERENCE, correct)
    assert single.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 1000), rel=0.1)
    assert difference.standard_error < single.standard_error / 3


def test_one_seed_or_one_image_gives_no_interval() -> None:
    many, one = runs("1101", "0111"), runs("1100")
    assert contrast(DIFFERENCE, {"a": many, "b": one}) == Estimate(0.25, None, None, None, None, None)
    assert contrast(DIFFERENCE, {"a": runs("1", "1"), "b": runs("0", "1")}).p is None
    # An arm without weight plays no part.
    assert contrast({"a": 1.0, "b": 0.0, "absent": 0.0}, {"a": many, "b": one}) == contrast({"a": 1.0}, {"a": many})


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [("1011", "1011", 0.0), ("1111", "1111", 0.0), ("0000", "0000", 0.0), ("1111", "0000", 1.0)],
)
def test_no_variance_at_all_counts_as_one_image_that_differs(a: str, b: str, value: float) -> None:
    with np.errstate(all="raise"):
        estimate = contrast(DIFFERENCE, {"a": runs(a * 25, a * 25), "b": runs(b * 25, b * 25)})
    # One image of 100 on which the arms differ has variance 1 / 100, and their mean over 100 images 1 / 100².
    # The seeds of each arm have variance 1 / 100² at least, and their mean half of it: 99 degrees of freedom each.
    margin = scipy_stats.t(198).ppf(0.975) / 100
    assert estimate.value == value
    assert estimate.standard_error == pytest.approx(0.01)
    assert estimate.degrees_of_freedom == pytest.approx(198)
    assert (estimate.low, estimate.high) == pytest.approx((value - margin, min(value + margin, 1.0)))
    assert estimate.p == pytest.approx(2 * scipy_stats.t(198).sf(value * 100), abs=1e-90)
    assert (estimate.p == 1.0) == (value == 0.0)


def test_an_arm_that_is_always_right_is_not_surely_perfect() -> None:
    estimate = contrast({"a": 1.0}, {"a": np.ones((5, 200), bool)})
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(1 - scipy_stats.t(199).ppf(0.975) / 200)


@pytest.mark.parametrize(
    ("weights", "correct", "message"),
    [
        ({"a": 1.0}, {"a": np.ones((2, 4), np.uint8)}, r"arm 'a': expected bool, seeds x images, not uint8"),
        ({"a": 1.0}, {"a": np.ones((2, 4), np.int64)}, r"not int64 of shape \(2, 4\)"),
        ({"a": 1.0}, {"a": np.ones(4, bool)}, r"of shape \(4,\)"),
        ({"a": 1.0}, {"a": np.ones((0, 4), bool)}, r"of shape \(0, 4\)"),
        (DIFFERENCE, {"a": np.ones((2, 4), bool), "b": np.ones((2, 5), bool)}, "not tested on the same images"),
    ],
)
def test_contrast_refuses_what_it_cannot_compare(weights: dict, correct: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        contrast(weights, correct)


# ------------------------------------------------------------------------------------------------- exact test


@pytest.mark.parametrize(("first", "second"), [(9, 0), (7, 2), (5, 4), (0, 6), (1, 0)])
def test_few_images_that_differ_pass_mcnemars_exact_test(first: int, second: int) -> None:
    """The p is SciPy's binomial test, and the interval holds Clopper and Pearson's."""
    N = 500
    a_N, b_N = np.ones(N, bool), np.ones(N, bool)
    b_N[:first], a_N[first : first + second] = False, False
    estimate = contrast(DIFFERENCE, {"a": np.tile(a_N, (3, 1)), "b": np.tile(b_N, (3, 1))})
    reference = scipy_stats.binomtest(first, first + second)
    assert estimate.p is not None
    assert estimate.p >= reference.pvalue * (1 - 1e-9)
    assert (estimate.low <= 0 <= estimate.high) == (estimate.p > 0.05)
    low, high = ((first + second) / N * (2 * end - 1) for end in reference.proportion_ci(0.95))
    assert estimate.low <= low + 1e-12
    assert estimate.high >= high - 1e-12


def test_ten_images_that_differ_are_enough_for_a_t_test() -> None:
    a_N, b_N = np.ones(500, bool), np.arange(500) >= 10
    correct = {"a": np.tile(a_N, (3, 1)), "b": np.tile(b_N, (3, 1))}
    moments = seed_moments(correct)
    assert exact_test(moments.weights([DIFFERENCE])[0], moments, 0.05) is None
    assert exact_test(np.array([1.0, 0.0]), moments, 0.05) is None, "a mean is no difference"


# ------------------------------------------------------------------------------------------------------- imports


def test_import_does_not_wait_for_scipy_stats() -> None:
    code = "import sys, ablation.analysis.estimator; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
