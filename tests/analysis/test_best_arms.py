"""Hsu's comparisons with the best, beside published critical values, SciPy and a simulation by other code.

Legend: A arms, S seeds, N test images.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ablation.analysis.best_arms import compared_with_best, one_sided_deviates
from ablation.analysis.estimator import OVER_SEEDS, Estimator
from ablation.analysis.repeats import repeat_moments
from ablation.analysis.seeds import Moments
from ablation.analysis.simultaneous import chunks
from ablation.spec.objective import OBJECTIVES

DRAWS = 99_999
# Dunnett (1955), one-sided, 5 %, infinitely many degrees of freedom: number of treatments beside the control -> value.
DUNNETT = {1: 1.64, 2: 1.92, 3: 2.06, 4: 2.16, 5: 2.23, 9: 2.42}


def plain_moments(means: list[float], seeds: int, variance: float = 1e-4) -> Moments:
    """Return moments of arms with equal variances over seeds and no image effects, as of a balanced one-way layout."""
    A, N = len(means), 10**6
    return Moments(
        arms=tuple(f"arm {a}" for a in range(A)),
        means_A=np.array(means),
        sums_AU=None,
        images=N,
        units=N,
        seeds_A=np.full(A, seeds),
        variance_A=np.full(A, variance),
        residual_A=np.zeros(A),
        images_AA=np.zeros((A, A)),
    )


def deviates(moments: Moments) -> list[float]:
    unit_AA = np.eye(len(moments.arms))
    pairs = np.array([unit_AA[a] - unit_AA[b] for a, b in combinations(range(len(unit_AA)), 2)])
    return one_sided_deviates(moments.signed_statistics(pairs, DRAWS), len(unit_AA))


@pytest.mark.parametrize(("treatments", "value"), DUNNETT.items())
def test_with_many_seeds_the_critical_values_are_dunnetts(treatments: int, value: float) -> None:
    found = deviates(plain_moments([0.9] * (treatments + 1), seeds=100_000))
    assert found == pytest.approx([value] * (treatments + 1), abs=0.02)


def test_unequal_variances_give_each_control_its_own_critical_value() -> None:
    """The correlation of two differences from a control is v / (v + v'), so that a noisy control needs less."""
    moments = plain_moments([0.9] * 3, seeds=100_000)
    variances = np.array([16e-4, 1e-4, 1e-4])
    found = deviates(Moments(**{**vars(moments), "variance_A": variances}))
    for k, deviate in enumerate(found):
        others = [a for a in range(3) if a != k]
        covariance = variances[k] + np.diag(variances[others])
        scale = np.sqrt(np.diag(covariance))
        normal = stats.multivariate_normal(np.zeros(2), covariance / np.outer(scale, scale))
        assert normal.cdf([deviate] * 2) == pytest.approx(0.95, abs=0.003)
    assert found[0] < found[1] - 0.05


def runs(accuracies: list[float], seeds: int, images: int = 4_000, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    drawn = [np.clip(random.normal(a, 0.004, seeds), 0, 1) for a in accuracies]
    return {
        f"arm {a}": random.random((seeds, images)) < drawn_S[:, None] for a, drawn_S in enumerate(drawn)
    }  # independent images


def reference(correct: dict[str, np.ndarray], draws: int = 200_000) -> dict[str, tuple[float, float]]:
    """Return Hsu's intervals of a balanced one-way layout of independent runs, by another simulation.

    A run's accuracy contains its images, which are drawn anew by each run here, so that Welch's t is the statistic of a
    difference of means of accuracies.
    """
    rng = np.random.default_rng(5)
    values_AS = np.array([y_SN.mean(axis=1) for y_SN in correct.values()])
    A, S = values_AS.shape
    means, variances = values_AS.mean(axis=1), values_AS.var(axis=1, ddof=1)
    errors_BA = rng.standard_normal((draws, A)) * np.sqrt(variances / S)
    drawn_BA = variances * rng.chisquare(S - 1, (draws, A)) / (S - 1)

    def parts(v: np.ndarray, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
        both = (v[..., i] + v[..., j]) / S
        return both, both**2 / ((v[..., i] / S) ** 2 + (v[..., j] / S) ** 2) * (S - 1)

    upper = np.full((A, A), np.inf)
    for k in range(A):
        others = [j for j in range(A) if j != k]
        tails = []
        for j in others:
            both, df = parts(drawn_BA, k, j)
            tails.append(stats.t.cdf((errors_BA[:, k] - errors_BA[:, j]) / np.sqrt(both), df))
        level = np.quantile(np.max(tails, axis=0), 0.95)
        for j in others:
            both, df = parts(variances, k, j)
            upper[k, j] = means[k] - means[j] + stats.t.ppf(level, df) * np.sqrt(both)
    high = [max(0.0, upper[k].min()) for k in range(A)]
    low = [min((-upper[j, i] for j in range(A) if j != i and high[j] > 0), default=0.0) for i in range(A)]
    return {arm: (low[a], high[a]) for a, arm in enumerate(correct)}


def test_the_intervals_of_independent_runs_are_those_of_another_simulation() -> None:
    correct = runs([0.90, 0.895, 0.87, 0.86], seeds=6)
    found, expected = OVER_SEEDS.from_best(correct), reference(correct)
    assert found.keys() == expected.keys()
    for arm, (low, high) in expected.items():
        assert (found[arm].low, found[arm].high) == pytest.approx((low, high), abs=0.0015)
    assert [found[arm].may_be_best for arm in found] == [True, True, False, False]


def test_a_single_best_arm_has_a_lower_end_of_zero_and_the_others_no_higher_end() -> None:
    found = OVER_SEEDS.from_best(runs([0.95, 0.80, 0.70], seeds=5))
    best, *others = found.values()
    assert best.low == 0
    assert 0.15 < best.high < 0.18
    assert [other.high for other in others] == [0, 0]
    assert [other.may_be_best for other in others] == [False, False]
    assert -0.18 < others[0].low < -0.15
    assert -0.28 < others[1].low < -0.25


def test_arms_with_too_few_seeds_and_single_arms_are_left_out() -> None:
    correct = runs([0.9, 0.8, 0.7], seeds=4)
    correct["arm 1"] = correct["arm 1"][:2]
    assert OVER_SEEDS.from_best(correct).keys() == {"arm 0", "arm 2"}
    del correct["arm 0"]
    assert OVER_SEEDS.from_best(correct) == {}


def test_arms_that_agree_on_every_image_may_all_be_best() -> None:
    same_SN = runs([0.9], seeds=3)["arm 0"]
    found = OVER_SEEDS.from_best({"a": same_SN, "b": same_SN.copy()})
    assert all(ends.may_be_best and ends.low < 0 < ends.high < 0.03 for ends in found.values())


def test_two_arms_over_repeats_have_a_one_sided_t_interval() -> None:
    """With so many images, only repeats vary; the upper bound of either side is that of a one-sided paired t test."""
    random = np.random.default_rng(3)
    first_R, second_R = random.normal(0.9, 0.01, (2, 6))
    right = {"a": np.tile(first_R[:, None], 50_000), "b": np.tile(second_R[:, None], 50_000)}
    found = Estimator("tuning").from_best(right)
    difference_R = first_R - second_R
    margin = stats.t.ppf(0.95, 5) * stats.sem(difference_R)
    mean = difference_R.mean()
    assert abs(mean) < margin
    for arm, value in (("a", mean), ("b", -mean)):
        assert (found[arm].low, found[arm].high) == pytest.approx((value - margin, value + margin), abs=3e-4)
    assert compared_with_best(repeat_moments(right)) == found
    assert Estimator("tuning").from_best({"a": right["a"]}) == {}


def test_of_losses_the_lowest_is_the_best() -> None:
    random = np.random.default_rng(1)
    image_N = random.exponential(0.3, 2_000)
    losses = {
        arm: (mean + image_N + 0.1 * random.standard_normal((4, 2_000)) + 0.003 * random.standard_normal((4, 1)))
        for arm, mean in (("low", 0.3), ("high", 0.4))
    }
    found = Estimator(objective=OBJECTIVES["loss"]).from_best(losses)
    assert (found["low"].low, found["high"].high) == (0, 0)
    assert 0.1 < found["low"].high < 0.12
    assert -0.12 < found["high"].low < -0.1


@pytest.mark.parametrize(("arms", "simulated"), [(20, 99_999), (21, 9_999)])
def test_of_many_arms_fewer_studies_are_simulated(arms: int, simulated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def few(moments: Moments, pairs: np.ndarray, draws: int) -> Iterator[np.ndarray]:
        asked.append((len(pairs), draws))
        return signed_statistics(moments, pairs, 99)

    signed_statistics = Moments.signed_statistics
    monkeypatch.setattr(Moments, "signed_statistics", few)
    OVER_SEEDS.from_best(runs([0.9] * arms, seeds=3, images=50))
    assert asked == [(arms * (arms - 1) // 2, simulated)]


def test_a_bounded_number_of_statistics_is_computed_at_a_time() -> None:
    """Of 440 contrasts as many as of one, because figures depend on it: those of stored studies must not change."""
    assert list(chunks(DRAWS)) == list(chunks(DRAWS, 440)) == [9_091] * 10 + [9_089]
    assert set(chunks(DRAWS, 1_128)) == {3_546, DRAWS % 3_546}
    assert sum(chunks(DRAWS, 1_128)) == DRAWS
    weights_CA = np.tile([1.0, -1.0], (1_128, 1))
    moments = plain_moments([0.9, 0.8], seeds=5)
    right = repeat_moments({arm: np.random.default_rng(n).random((3, 20)) for n, arm in enumerate("ab")})
    for each in (moments, right):
        assert next(each.signed_statistics(weights_CA, DRAWS)).shape == (3_546, 1_128)


def test_a_stricter_level_has_wider_intervals() -> None:
    """At a level that simulated studies are too few for, too: Bonferroni's bound takes their place."""
    correct = runs([0.90, 0.895, 0.87], seeds=6)
    widths = [
        [ends.high - ends.low for ends in Estimator(level=level).from_best(correct).values()]
        for level in (0.05, 0.01, 0.00001)
    ]
    assert widths[0][0] < widths[1][0] < widths[2][0]
