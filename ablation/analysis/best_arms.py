"""Which arms may be the best: Hsu's constrained multiple comparisons with the best (Hsu, 1984; 1996, chapter 4).

For every arm i, an interval of its mean minus the highest mean of the other arms; all of them hold together in 95 of
100 studies. They rest on one-sided comparisons with each arm k in turn as if it were the best (Dunnett, 1955): only
those with the arm that is truly the best have to hold, so that less is paid than for all pairs. With U_kj the upper
bound of k minus j, the upper end is D_i = max(0, min_j U_ij); the arms with D_i > 0 may be the best, and the lower end
is the least of -U_ji over those of them that are not i, or 0 where i is the only one.

Legend: A arms, B simulated studies, C contrasts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri

from ablation.analysis.repeats import RepeatMoments, repeat_moments, signed_over_repeats, variance_parts
from ablation.analysis.simultaneous import DRAWS, FEWEST_BEYOND, from_normal_scale, signed_statistics, usable_arms
from ablation.analysis.statistics import ALPHA, Means, Moments, arm_moments, contrast_errors, estimate, exact_test
from ablation.spec.objective import ACCURACY, Objective

MANY_ARMS = 20  # above which fewer studies are simulated, because the pairs grow with the square of the arms
DRAWS_OF_MANY = 9_999

# The standard error, degrees of freedom and margin in standard errors of contrasts, for a deviate on the normal scale.
Errors = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class FromBest:
    """By how much an arm's mean is better than the best of the other arms': the ends of the interval.

    Fractions (a loss: nats), positive where the arm is better. `low` is at most 0, `high` at least 0.
    """

    low: float
    high: float

    @property
    def may_be_best(self) -> bool:
        """Whether the arm may be the best."""
        return self.high > 0


def compared_with_best(
    correct: Mapping[str, np.ndarray],
    draws: int = DRAWS,
    groups_N: np.ndarray | None = None,
    level: float = ALPHA,
    objective: Objective = ACCURACY,
) -> dict[str, FromBest]:
    """Return how far each arm in `usable_arms` is from the best other one; empty below two of them.

    Args:
        correct: as in `statistics.arm_moments`.
        draws: simulated studies, of many arms at most `DRAWS_OF_MANY`; (draws + 1) / 20 must be whole.
        groups_N: as in `statistics.arm_moments`.
        level: chance that any of the intervals misses.
        objective: the metric.
    """
    usable = usable_arms(correct, groups_N)
    if len(usable) < 2:
        return {}
    moments = arm_moments(usable, groups_N, objective)

    def errors(weights_CA: np.ndarray, deviate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        variance_1C, degrees_1C = contrast_errors(weights_CA, moments, moments.variance_A[None])
        return np.sqrt(variance_1C[0]), degrees_1C[0], from_normal_scale(deviate, degrees_1C[0])

    statistics = signed_statistics(_pairs(moments), moments, _affordable(draws, moments))
    return _from_best(moments, statistics, errors, level)


def compared_with_best_over_repeats(
    right: Mapping[str, np.ndarray],
    draws: int = DRAWS,
    groups_N: np.ndarray | None = None,
    level: float = ALPHA,
    objective: Objective = ACCURACY,
) -> dict[str, FromBest]:
    """Return the same where repeats of a study are the unit.

    Args:
        right: as in `repeats.repeat_moments`.
        draws: simulated studies, of many arms at most `DRAWS_OF_MANY`; (draws + 1) / 20 must be whole.
        groups_N: as in `statistics.arm_moments`.
        level: chance that any of the intervals misses.
        objective: the metric.
    """
    usable = usable_arms(right, groups_N)
    return best_over_repeats(repeat_moments(usable, groups_N, objective), draws, level) if len(usable) > 1 else {}


def best_over_repeats(moments: RepeatMoments, draws: int = DRAWS, level: float = ALPHA) -> dict[str, FromBest]:
    """Return the same from the moments of two arms or more over three repeats or more."""

    def errors(weights_CA: np.ndarray, deviate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        of_repeats_C, of_images_C = variance_parts(weights_CA, moments)
        degrees_C = np.full(len(weights_CA), moments.repeats - 1.0)
        errors_C = np.sqrt(of_repeats_C + of_images_C)
        widths_C = np.sqrt(from_normal_scale(deviate, degrees_C) ** 2 * of_repeats_C + deviate**2 * of_images_C)
        return errors_C, degrees_C, widths_C / errors_C

    statistics = signed_over_repeats(_pairs(moments), moments, _affordable(draws, moments))
    return _from_best(moments, statistics, errors, level)


def _from_best(moments: Means, simulated: Iterator[np.ndarray], errors: Errors, level: float) -> dict[str, FromBest]:
    A = len(moments.arms)
    numbers = range(A)
    upper_AA = np.full((A, A), np.inf)  # of the row's mean minus the column's
    for k, deviate in enumerate(one_sided_deviates(simulated, A, level)):
        others = [j for j in numbers if j != k]
        weights_CA = moments.objective.sign * (np.eye(A)[k] - np.eye(A)[others])
        of_each = float(2 * ndtr(-deviate))  # the level of an interval whose upper end is the one-sided bound
        for j, weights_A, error, degrees, margin in zip(others, weights_CA, *errors(weights_CA, deviate), strict=True):
            exact, errors_1 = exact_test(weights_A, moments, of_each), (float(error), float(degrees))
            high = estimate(weights_A, moments, errors_1, exact, level=of_each, critical=float(margin)).high
            upper_AA[k, j] = np.inf if high is None else high
    high_A = np.maximum(upper_AA.min(axis=1), 0.0)
    ends = {}
    for i, arm in enumerate(moments.arms):
        rivals = [j for j in numbers if j != i and high_A[j] > 0]
        ends[arm] = FromBest(float(min((-upper_AA[j, i] for j in rivals), default=0.0)), float(high_A[i]))
    return ends


def one_sided_deviates(simulated: Iterator[np.ndarray], arms: int, level: float = ALPHA) -> list[float]:
    """Return, for each arm, the deviate that a difference from another exceeds in a share of simulated studies.

    Never below that of a single difference; Bonferroni's bound where the simulated studies are too few.

    Args:
        simulated: the statistics of all pairs of arms, in the order of `itertools.combinations`, B x C at a time.
        arms: their number.
        level: that share.
    """
    pairs = np.array(list(combinations(range(arms), 2)))
    largest: list[list[np.ndarray]] = [[] for _ in range(arms)]
    for statistics_BC in simulated:
        for k, of_arm in enumerate(largest):
            signed_BC = np.hstack([statistics_BC[:, pairs[:, 0] == k], -statistics_BC[:, pairs[:, 1] == k]])
            of_arm.append(signed_BC.max(axis=1))
    deviates = []
    for of_arm in largest:
        largest_B = np.concatenate(of_arm)
        rank = int(level * (len(largest_B) + 1))
        if rank < FEWEST_BEYOND:
            deviates.append(float(-ndtri(level / (arms - 1))))
        else:
            deviates.append(max(float(np.partition(largest_B, -rank)[-rank]), float(-ndtri(level))))
    return deviates


def _affordable(draws: int, moments: Means) -> int:
    """Return how many studies are simulated, for the pairs of these arms."""
    return min(draws, DRAWS_OF_MANY) if len(moments.arms) > MANY_ARMS else draws


def _pairs(moments: Moments | RepeatMoments) -> np.ndarray:
    """Return the differences of all pairs of arms, C x A."""
    unit_AA = np.eye(len(moments.arms))
    return np.array([unit_AA[first] - unit_AA[second] for first, second in combinations(range(len(unit_AA)), 2)])
