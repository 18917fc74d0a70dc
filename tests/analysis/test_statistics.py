"""Estimates against hand computation, SciPy's own tests, published tables, and simulation.

Legend: S seeds, N test images.
"""

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ablation.analysis.statistics import (
    Assumed,
    Estimate,
    contrast,
    holm,
    seed_interval,
    seeds_needed,
    smallest_difference,
)
from ablation.base.errors import InputError
from tests.calibration import judge, pairs, simulate

DIFFERENCE = {"a": 1.0, "b": -1.0}


def runs(*rows: str) -> np.ndarray:
    """Return S x N from a string of 0 and 1 per seed."""
    return np.array([[digit == "1" for digit in row] for row in rows])


def blocks(sizes_by_right_seeds: dict[tuple[int, ...], int], seeds: int) -> np.ndarray:
    """Return S x N in which so many images are right for exactly these seeds."""
    columns = [
        [seed in right for seed in range(seeds)] for right, size in sizes_by_right_seeds.items() for _ in range(size)
    ]
    return np.array(columns).T


# ------------------------------------------------------------------------------------------------ seed_interval


def test_seed_interval_is_the_t_interval() -> None:
    estimate = seed_interval(np.array([0.80, 0.82, 0.84]))
    # Standard deviation 0.02; the 97.5 % quantile of t with 2 degrees of freedom is 4.302653 in any table.
    margin = 4.302653 * 0.02 / math.sqrt(3)
    assert estimate.value == pytest.approx(0.82)
    assert estimate.standard_error == pytest.approx(0.0115470, abs=1e-7)
    assert estimate.degrees_of_freedom == 2
    assert (estimate.low, estimate.high) == pytest.approx((0.82 - margin, 0.82 + margin), abs=1e-7)
    assert estimate.p is None


def test_seed_interval_of_one_seed_is_not_invented() -> None:
    assert seed_interval(np.array([0.9])) == Estimate(0.9, None, None, None, None, None)


def test_seed_interval_stays_among_accuracies_and_has_no_width_where_seeds_agree() -> None:
    wide = seed_interval(np.array([0.0, 1.0]))
    assert (wide.low, wide.high) == (0.0, 1.0)
    same = seed_interval(np.full(5, 0.75))
    assert (same.value, same.standard_error, same.low, same.high) == (0.75, 0.0, 0.75, 0.75)


@pytest.mark.parametrize("accuracies", [[], [0.5, math.nan], [88.0, 89.0], [[0.5, 0.6]]])
def test_seed_interval_refuses_what_are_not_accuracies(accuracies: list) -> None:
    with pytest.raises(InputError, match="expected the accuracies of one or more seeds, as fractions"):
        seed_interval(np.array(accuracies))


# ------------------------------------------------------------------------------------------------------ contrast


def test_contrast_by_hand() -> None:
    # a: accuracies 1 and 1/2, s² = 1/8; squares 3/2 = 1/2 (seeds) + 1/2 (images) + 1/2 (rest), so r = 1/6.
    # b: accuracies 1/4 and 1/2, s² = 1/32; squares 15/8 = 1/8 + 11/8 + 3/8, so r = 1/8.
    # D = (0, 1, 0, 1/2), variance 11/48; images: (11/48 - 1/12 - 1/16) / 4 = 1/48; seeds: 1/16 and 1/64.
    estimate = contrast(DIFFERENCE, {"a": runs("1111", "1100"), "b": runs("1000", "1010")})
    variance = 1 / 16 + 1 / 64 + 1 / 48
    df = variance**2 / (1 / 16**2 / 1 + 1 / 64**2 / 1 + 1 / 48**2 / 3)
    assert estimate.value == 0.375
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert estimate.degrees_of_freedom == pytest.approx(df, rel=1e-12)
    assert estimate.p == pytest.approx(2 * scipy_stats.t(df).sf(0.375 / math.sqrt(variance)), rel=1e-9)
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
        "a": blocks({(0,): 10, (1,): 6, (2,): 4}, 3),
        "b": blocks({(1, 2, 3): 8, (0, 2, 3): 5, (0, 1, 3): 4, (0, 1, 2): 3}, 4),
    }
    assert correct["a"].mean(axis=1) == pytest.approx([0.5, 0.3, 0.2])
    reference = scipy_stats.ttest_ind([0.5, 0.3, 0.2], [0.6, 0.75, 0.8, 0.85], equal_var=False)
    estimate = contrast(DIFFERENCE, correct)
    assert estimate.value / estimate.standard_error == pytest.approx(reference.statistic)
    assert estimate.degrees_of_freedom == pytest.approx(reference.df)
    assert estimate.p == pytest.approx(reference.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_without_seed_variance_it_is_the_paired_t_test_over_images() -> None:
    rng = np.random.default_rng(4)
    image_a_N, image_b_N = rng.random((2, 150)) < np.array([[0.9], [0.8]])
    estimate = contrast(DIFFERENCE, {"a": np.tile(image_a_N, (3, 1)), "b": np.tile(image_b_N, (5, 1))})
    reference = scipy_stats.ttest_rel(image_a_N.astype(float), image_b_N.astype(float))
    assert estimate.value / estimate.standard_error == pytest.approx(reference.statistic)
    assert estimate.degrees_of_freedom == 149
    assert estimate.p == pytest.approx(reference.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_seeds_that_agree_by_chance_are_not_certainty() -> None:
    # All runs of an arm have the same accuracy, though they err on different images: the seeds' variance is estimated
    # as 0, and the residual would be subtracted from the images' all the same.
    rng = np.random.default_rng(5)
    correct = {
        arm: np.array([rng.permutation(np.arange(300) >= wrong) for _ in range(2)])
        for arm, wrong in (("a", 30), ("b", 36))
    }
    estimate = contrast(DIFFERENCE, correct)
    reference = scipy_stats.ttest_rel(correct["a"].mean(axis=0), correct["b"].mean(axis=0))
    assert estimate.value == pytest.approx(0.02)
    assert (estimate.p, estimate.degrees_of_freedom) == pytest.approx((reference.pvalue, 299))


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
    assert seeds_needed(DIFFERENCE, {"a": many, "b": one}, family=1) is None
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
    margin = scipy_stats.t(99).ppf(0.975) / 100
    assert estimate.value == value
    assert estimate.standard_error == pytest.approx(0.01)
    assert estimate.degrees_of_freedom == 99
    assert (estimate.low, estimate.high) == pytest.approx((value - margin, min(value + margin, 1.0)))
    assert estimate.p == pytest.approx(2 * scipy_stats.t(99).sf(value * 100), abs=1e-90)
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
        ({"a": 1.0}, {"b": np.ones((2, 4), bool)}, "there are no runs of arm 'a'"),
        ({"a": 0.0}, {"a": np.ones((2, 4), bool)}, "needs an arm with a weight other than 0"),
        ({}, {"a": np.ones((2, 4), bool)}, "needs an arm with a weight other than 0"),
        (DIFFERENCE, {"a": np.ones((2, 4), bool), "b": np.ones((2, 5), bool)}, "not tested on the same images"),
    ],
)
def test_contrast_refuses_what_it_cannot_compare(weights: dict, correct: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        contrast(weights, correct)
    with pytest.raises(InputError, match=message):
        seeds_needed(weights, correct, family=1)


# ---------------------------------------------------------------------------------------------------------- holm


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.4, 1.0]) == [1.0, 1.0, 1.0]
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_against_statsmodels() -> None:
    # statsmodels 0.15.0: multipletests(p, method="holm")[1]
    p = [0.0201, 0.7, 0.0003, 0.049, 0.0124, 0.3, 0.0089, 0.0475]
    expected = [0.1005, 0.7, 0.0024, 0.19, 0.0744, 0.6, 0.0623, 0.19]
    assert holm(p) == pytest.approx(expected)


def test_holm_declares_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(7)
    counts = set()
    for _ in range(200):
        p = rng.random(6) ** 4
        rejected = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] >= 0.05 / (6 - step):
                break
            rejected.add(int(index))
        assert {i for i, adjusted in enumerate(holm(list(p))) if adjusted < 0.05} == rejected
        counts.add(len(rejected))
    assert len(counts) > 4


# -------------------------------------------------------------------------------------------------- seeds_needed


def two_arms_apart(effect_size: float) -> dict[str, np.ndarray]:
    """Return two arms 0.25 apart whose seeds have the standard deviation 0.25 / effect_size, and no image variance.

    Each image is right for two of a's four seeds and for three of b's.
    """
    N = 10_000
    x = 0.25 / effect_size * math.sqrt(3 / 4)  # accuracies mean + x, mean + x, mean - x, mean - x
    more, fewer = round(N * (0.5 + x)), round(N * (0.5 - x))
    once, rest = round(N * (0.25 - x)), round(N * (0.25 + x))
    return {
        "a": blocks({(0, 1): more, (2, 3): fewer}, 4),
        "b": blocks({(1, 2, 3): once, (0, 2, 3): once, (0, 1, 3): rest, (0, 1, 2): N - 2 * once - rest}, 4),
    }


@pytest.mark.parametrize(
    ("effect_size", "family", "power", "needed"),
    [
        # statsmodels 0.15.0: TTestIndPower().solve_power(effect_size, None, 0.05 / family, power), rounded up
        (1.0, 1, 0.8, 17),  # 16.715; also in Cohen (1988), table 2.4.1
        (1.25, 5, 0.8, 17),  # 16.683
        (1.25, 10, 0.9, 24),  # 23.431
        (1.5, 1, 0.9, 11),  # 10.401
        (2.0, 5, 0.9, 10),  # 9.252
        (2.0, 45, 0.8, 12),  # 11.162; a shifted central t would say 11
    ],
)
def test_seeds_needed_without_image_variance_agrees_with_statsmodels(
    effect_size: float, family: int, power: float, needed: int
) -> None:
    assert seeds_needed(DIFFERENCE, two_arms_apart(effect_size), family=family, power=power) == needed


def test_seeds_needed_reaches_its_power_and_one_seed_fewer_does_not() -> None:
    """Draw contrasts with image variance anew, component by component, and count how many would be declared."""
    correct = simulate(np.random.default_rng(8), {"a": 0.88, "b": 0.872}, 0.006, 5, 10_000)
    difference = contrast(DIFFERENCE, correct)
    needed = seeds_needed(DIFFERENCE, correct, family=3)
    s_squared = [correct[arm].mean(axis=1).var(ddof=1) for arm in "ab"]
    of_images = difference.standard_error**2 - sum(s_squared) / 5
    assert of_images > 0.1 * difference.standard_error**2, "the images play a part"
    assert needed > 5

    def power(S: int) -> float:
        rng = np.random.default_rng(9)
        draws = 100_000
        value = difference.value + math.sqrt(sum(s_squared) / S + of_images) * rng.standard_normal(draws)
        seen = [v / S * rng.chisquare(S - 1, draws) / (S - 1) for v in s_squared]
        variance = seen[0] + seen[1] + of_images
        df = variance**2 / ((seen[0] ** 2 + seen[1] ** 2) / (S - 1) + of_images**2 / 9999)
        return float(np.mean(2 * scipy_stats.t.sf(np.abs(value) / np.sqrt(variance), df) < 0.05 / 3))

    assert power(needed - 1) < 0.805
    assert power(needed) > 0.795
    assert power(needed) - power(needed - 1) > 0.005, "the bounds above tell the two apart"


def test_more_differences_or_more_power_need_more_seeds() -> None:
    correct = two_arms_apart(1.0)
    by_family = [seeds_needed(DIFFERENCE, correct, family=family) for family in (1, 3, 10, 45)]
    assert all(few < more for few, more in pairwise(by_family))
    assert seeds_needed(DIFFERENCE, correct, family=10, most=by_family[2]) == by_family[2]
    assert seeds_needed(DIFFERENCE, correct, family=10, most=by_family[2] - 1) is None


def test_no_number_of_seeds_shows_what_the_images_hide() -> None:
    same = simulate(np.random.default_rng(10), {"a": 0.88}, 0.003, 5, 2000)["a"]
    assert seeds_needed(DIFFERENCE, {"a": same, "b": same}, family=1) is None
    # Four more images right of 400 with 40 disagreements: no seed changes anything, so no number of them helps.
    a, b = runs("1" * 22 + "0" * 18 + "1" * 360), runs("0" * 22 + "1" * 18 + "1" * 360)
    hidden = {"a": np.tile(a, (5, 1)), "b": np.tile(b, (5, 1))}
    assert contrast(DIFFERENCE, hidden).value == pytest.approx(0.01)
    assert seeds_needed(DIFFERENCE, hidden, family=1, most=100_000) is None


# --------------------------------------------------------------------------------------------------- calibration


def test_intervals_are_calibrated_in_simulated_studies() -> None:
    """A small part of `tests/calibration.py`, with bounds that a wrong variance would break.

    Without the images' variance 31 of the 200 studies would declare a difference, and with the residual counted twice
    about 99 % of the intervals would cover.
    """
    rng = np.random.default_rng(11)
    truth = dict.fromkeys("abcd", 0.88)
    family = pairs(tuple("abcd"))
    declared, covered, estimates = [], [], []
    for _ in range(200):
        correct = simulate(rng, truth, 0.002, 5, 2000)
        declared_of_study, covered_of_study = judge(family, correct, truth)
        declared.append(declared_of_study.any())
        covered.append(covered_of_study.mean())
        estimates.append([contrast(weights, correct) for weights in family])
    values = np.array([[e.value for e in row] for row in estimates])
    variances = np.array([[e.standard_error**2 for e in row] for row in estimates])
    assert sum(declared) <= 16  # 5 % of 200 and twice the standard deviation of that number
    assert 0.93 < np.mean(covered) < 0.97
    assert 0.8 < variances.mean() / (values**2).mean() < 1.25


# ------------------------------------------------------------------------------------------------------- imports


def test_import_does_not_wait_for_scipy_stats() -> None:
    code = "import sys, ablation.analysis.statistics; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arms_per_level", "seeds", "images", "family"),
    [(1, 5, 3000, 1), (1, 3, 3000, 10), (1, 3, 360, 1), (2, 4, 3000, 1)],
)
def test_the_smallest_difference_is_found_in_four_of_five_simulated_studies(
    arms_per_level: int, seeds: int, images: int, family: int
) -> None:
    assumed = Assumed(seed_sd=0.005, same_arm=0.09, other_arm=0.122)  # as two of calibration's equal arms disagree
    difference = smallest_difference(arms_per_level, assumed, seeds=seeds, images=images, family=family)
    assert difference is not None
    names = [(f"{level}{number}", sign) for level, sign in (("a", 1), ("b", -1)) for number in range(arms_per_level)]
    accuracies = {name: 0.88 + sign * difference / 2 for name, sign in names}
    weights = {name: sign / arms_per_level for name, sign in names}
    rng = np.random.default_rng(3)
    studies = 200
    found = 0
    for _ in range(studies):
        estimate = contrast(weights, simulate(rng, accuracies, assumed.seed_sd, seeds, images))
        found += estimate.value > 0 and estimate.p is not None and estimate.p < 0.05 / family
    assert abs(found / studies - 0.8) < 3 * np.sqrt(0.8 * 0.2 / studies)


def test_no_smallest_difference_without_two_seeds_and_images() -> None:
    assumed = Assumed(seed_sd=0.005, same_arm=0.09, other_arm=0.122)
    assert smallest_difference(1, assumed, seeds=1, images=1000, family=1) is None
    assert smallest_difference(1, assumed, seeds=5, images=1, family=1) is None


@pytest.mark.parametrize("seed", [21, 23, 25])
def test_a_difference_of_many_standard_errors_needs_two_seeds(seed: int) -> None:
    """There, SciPy's distribution function returns NaN for some arguments."""
    random = np.random.default_rng(seed)
    base = random.random(1000) < 0.99
    first = np.array([base ^ (random.random(1000) < 0.002) for _ in range(3)])
    missed = random.random(1000) < 0.35 + seed * 0.01
    second = np.array([(base & ~missed) ^ (random.random(1000) < 0.002) for _ in range(3)])
    assert seeds_needed(DIFFERENCE, {"a": first, "b": second}, family=6) == 2
