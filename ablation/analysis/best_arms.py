"""Which arms may be the best: Hsu's constrained multiple comparisons with the best (Hsu, 1984; 1996, chapter 4).

For every arm i, an interval of its mean minus the highest mean of the other arms; all of them hold together in 95 of
100 studies. They rest on one-sided comparisons with each arm k in turn as if it were the best (Dunnett, 1955): only
those with the arm that is truly the best have to hold, so that less is paid than for all pairs. With U_kj the upper
bound of k minus j, the upper end is D_i = max(0, min_j U_ij); the arms with D_i > 0 may be the best, and the lower end
is the least of -U_ji over those of them that are not i, or 0 where i is the only one.

Legend: A arms, B simulated studies, C contrasts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri

from ablation.analysis.simultaneous import DRAWS, FEWEST_BEYOND
from ablation.analysis.statistics import ALPHA, Means, estimate, exact_test

MANY_ARMS = 20  # above which fewer studies are simulated, because the pairs grow with the square of the arms
DRAWS_OF_MANY = 9_999


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


def compared_with_best(moments: Means, draws: int = DRAWS, level: float = ALPHA) -> dict[str, FromBest]:
    """Return how far each of two arms or more is from the best other one.

    Args:
        moments: of the arms.
        draws: simulated studies, of many arms at most `DRAWS_OF_MANY`; (draws + 1) / 20 must be whole.
        level: chance that any of the intervals misses.
    """
    A = len(moments.arms)
    numbers, unit_AA = range(A), np.eye(A)
    pairs_CA = np.array([unit_AA[first] - unit_AA[second] for first, second in combinations(numbers, 2)])
    simulated = moments.signed_statistics(pairs_CA, min(draws, DRAWS_OF_MANY) if A > MANY_ARMS else draws)
    upper_AA = np.full((A, A), np.inf)  # of the row's mean minus the column's
    for k, deviate in enumerate(one_sided_deviates(simulated, A, level)):
        others = [j for j in numbers if j != k]
        weights_CA = moments.objective.sign * (unit_AA[k] - unit_AA[others])
        of_each = float(2 * ndtr(-deviate))  # the level of an interval whose upper end is the one-sided bound
        for j, weights_A, *spread in zip(others, weights_CA, *moments.spread(weights_CA, deviate), strict=True):
            error, degrees, margin, _ = map(float, spread)
            exact = exact_test(weights_A, moments, of_each)
            high = estimate(weights_A, moments, (error, degrees), exact, level=of_each, critical=margin).high
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
