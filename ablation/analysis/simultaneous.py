"""Several contrasts tested together: single-step max-|t| by simulation (Hothorn, Bretz and Westfall, 2008).

Legend: A arms, B simulated studies, C contrasts.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.special import ndtr, ndtri

from ablation.analysis.statistics import ALPHA, Estimate, Means, estimate, exact_test

FEWEST_SEEDS = 3  # of an arm whose differences are tested; two say too little of their own variance
DRAWS = 99_999  # simulated studies: p = 0.05 is certain to 0.0007, p = 0.01 to 0.0003
CHUNK = 9_091  # studies simulated at a time, at most: an eleventh of DRAWS
MOST_STATISTICS = 440 * CHUNK  # of these studies together; with more than 440 contrasts, fewer studies at a time
FEWEST_BEYOND = 9  # simulated studies beyond a critical value; where fewer are, Bonferroni's bound takes its place
SEED = 20_080_601  # of the simulation, so that the same runs give the same report


def simultaneous_estimates(
    weights_CA: np.ndarray, moments: Means, largest_B: np.ndarray, level: float = ALPHA
) -> list[Estimate]:
    """Return contrasts with simultaneous intervals and corrected p-values.

    Args:
        weights_CA: the contrasts.
        moments: of the arms.
        largest_B: see `largest_statistics`; an empty array leaves intervals and p-values uncorrected.
        level: chance that any of the intervals misses.
    """
    C = len(weights_CA)
    deviate = critical(largest_B, level, C)
    of_each = float(2 * ndtr(-deviate))
    is_bounded = len(largest_B) > 0 and _rank(largest_B, level) < FEWEST_BEYOND
    estimates = []
    for weights_A, *spread in zip(weights_CA, *moments.spread(weights_CA, deviate), strict=True):
        error, degrees, margin, statistic = map(float, spread)
        exact = exact_test(weights_A, moments, of_each)
        single = estimate(weights_A, moments, (error, degrees), exact, level=of_each, critical=margin)
        reached = statistic if exact is None else min(statistic, float(-ndtri(exact[2] / 2)))
        p, alone = 0.0, float(2 * ndtr(-reached))
        if is_bounded:
            p = min(1.0, C * alone)
        elif len(largest_B):
            p = (1 + int((largest_B >= reached).sum())) / (len(largest_B) + 1)
        estimates.append(at_level(replace(single, p=max(p, alone)), level))
    return estimates


def largest_statistics(weights_CA: np.ndarray, moments: Means, draws: int) -> np.ndarray:
    """Return the largest statistic over the contrasts of each simulated study, on the normal scale."""
    statistics = moments.signed_statistics(weights_CA, draws)
    return np.concatenate([np.abs(statistics_BC).max(axis=1) for statistics_BC in statistics])


def critical(largest_B: np.ndarray, level: float = ALPHA, contrasts: int = 1) -> float:
    """Return the statistic above which a contrast is shown; never below that of a single contrast.

    Args:
        largest_B: the largest statistic of each simulated study; an empty array leaves a single contrast.
        level: chance that a study without any difference has one above.
        contrasts: their number, for a level so low that the simulated studies cannot tell: Bonferroni's bound.
    """
    alone = float(-ndtri(level / 2))
    if not len(largest_B):
        return alone
    rank = _rank(largest_B, level)
    if rank < FEWEST_BEYOND:
        return float(-ndtri(level / contrasts / 2))
    return max(float(np.partition(largest_B, -rank)[-rank]), alone)


def _rank(largest_B: np.ndarray, level: float) -> int:
    """Return how many simulated studies lie at or above the critical value: p < level where fewer reach a statistic."""
    return int(np.ceil(level * (len(largest_B) + 1) - 1e-6)) - 1


def at_level(estimate: Estimate, level: float) -> Estimate:
    """Return an estimate whose p is multiplied so that 0.05 is the limit of a test at this level."""
    return estimate if estimate.p is None else replace(estimate, p=min(1.0, estimate.p * (ALPHA / level)))


def normal_scale(squared_t: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Return |t| as the normal deviate of the same probability (Wallace, 1959, within 3 %), from t².

    Contrasts with different degrees of freedom have comparable values there.
    """
    scaled: np.ndarray = (8 * degrees + 1) / (8 * degrees + 3) * np.sqrt(degrees * np.log1p(squared_t / degrees))
    return scaled


def from_normal_scale(deviate: float | np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Return the t of `normal_scale`'s value."""
    unscaled = deviate * (8 * degrees + 3) / (8 * degrees + 1)
    t: np.ndarray = np.sqrt(degrees * np.expm1(unscaled**2 / degrees))
    return t


def covariance_root(matrix_AA: np.ndarray) -> np.ndarray:
    """Return the root of the nearest covariance matrix."""
    values, vectors = np.linalg.eigh(matrix_AA)
    root_AA: np.ndarray = vectors * np.sqrt(values.clip(min=0.0))
    return root_AA


def chunks(draws: int, contrasts: int = 1) -> Iterator[int]:
    """Yield how many of so many simulated studies are computed at a time, for a bounded number of statistics."""
    most = min(CHUNK, max(1, MOST_STATISTICS // contrasts))
    yield from (min(most, draws - start) for start in range(0, draws, most))
