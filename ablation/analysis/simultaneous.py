"""Several contrasts tested together: single-step max-|t| by simulation (Hothorn, Bretz and Westfall, 2008).

Legend: A arms, B simulated studies, C contrasts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtr, ndtri

from ablation.analysis.statistics import (
    ALPHA,
    Estimate,
    Means,
    Moments,
    arm_moments,
    contrast,
    contrast_errors,
    estimate,
    exact_test,
)
from ablation.spec.objective import ACCURACY, Objective

FEWEST_SEEDS = 3  # of an arm whose differences are tested; two say too little of their own variance
DRAWS = 99_999  # simulated studies: p = 0.05 is certain to 0.0007, p = 0.01 to 0.0003
CHUNK = 9_091  # studies simulated at a time, at most: an eleventh of DRAWS
MOST_STATISTICS = 440 * CHUNK  # of these studies together; with more than 440 contrasts, fewer studies at a time
FEWEST_BEYOND = 9  # simulated studies beyond a critical value; where fewer are, Bonferroni's bound takes its place
SEED = 20_080_601  # of the simulation, so that the same runs give the same report


def usable_arms(correct: Mapping[str, np.ndarray], groups_N: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the arms that have seeds and images, or groups of them, enough to be tested; arguments: `arm_moments`."""
    if groups_N is not None and groups_N.max() == 0:  # a single group
        return {}
    return {arm: y_SN for arm, y_SN in correct.items() if len(y_SN) >= FEWEST_SEEDS and y_SN.shape[1] > 1}


def simultaneous(
    contrasts: Sequence[Mapping[str, float]],
    correct: Mapping[str, np.ndarray],
    draws: int = DRAWS,
    groups_N: np.ndarray | None = None,
    level: float = ALPHA,
    objective: Objective = ACCURACY,
) -> list[Estimate]:
    """Return contrasts with simultaneous 95 % intervals, and p-values that are corrected for their number.

    At another level than 5 %, as at one look of several, intervals miss with that chance, and p-values are multiplied
    so that 0.05 remains the limit. The chance that any of the intervals misses, and that any p-value of a true null
    hypothesis is below 0.05, is 5 %.
    Studies are simulated in which no contrast differs from 0 and variances and covariances, shared images included,
    are those estimated; each gets its own variance estimates and Satterthwaite's degrees of freedom. The largest
    statistic of each study is what the statistics found are compared with.

    Args:
        contrasts: arm -> weight, of arms in `usable_arms`.
        correct: as in `arm_moments`.
        draws: simulated studies; (draws + 1) / 20 must be whole.
        groups_N: as in `arm_moments`.
        level: chance of any false declaration.
        objective: as in `arm_moments`.
    """
    if len(contrasts) < 2:
        return [at_level(contrast(weights, correct, groups_N, level, objective), level) for weights in contrasts]
    used = {arm for weights in contrasts for arm, weight in weights.items() if weight}
    moments = arm_moments({arm: y_SN for arm, y_SN in correct.items() if arm in used}, groups_N, objective)
    weights_CA = moments.weights(contrasts)
    variance_1C, degrees_1C = contrast_errors(weights_CA, moments, moments.variance_A[None])
    largest_B = np.concatenate(list(largest_statistics(weights_CA, moments, draws)))
    errors = (np.sqrt(variance_1C[0]), degrees_1C[0])
    margins_C = from_normal_scale(critical(largest_B, level, len(contrasts)), degrees_1C[0])
    statistics_C = normal_scale((weights_CA @ moments.means_A / errors[0]) ** 2, degrees_1C[0])
    return simultaneous_estimates(weights_CA, moments, errors, margins_C, (statistics_C, largest_B), level)


def simultaneous_estimates(
    weights_CA: np.ndarray,
    moments: Means,
    errors: tuple[np.ndarray, np.ndarray],
    margins_C: np.ndarray,
    statistics: tuple[np.ndarray, np.ndarray],
    level: float = ALPHA,
) -> list[Estimate]:
    """Return contrasts with simultaneous intervals and corrected p-values.

    Args:
        weights_CA: the contrasts.
        moments: of the arms.
        errors: standard errors and degrees of freedom, both C.
        margins_C: half of each interval's width in standard errors.
        statistics: on the normal scale, those of the contrasts, and the largest of each simulated study; an empty
            array of these leaves p-values uncorrected.
        level: as in `simultaneous`.
    """
    statistics_C, largest_B = statistics
    C = len(weights_CA)
    of_each = float(2 * ndtr(-critical(largest_B, level, C)))
    is_bounded = len(largest_B) > 0 and _rank(largest_B, level) < FEWEST_BEYOND
    estimates = []
    for weights_A, error, degrees, margin, statistic in zip(weights_CA, *errors, margins_C, statistics_C, strict=True):
        exact, errors_1 = exact_test(weights_A, moments, of_each), (float(error), float(degrees))
        single = estimate(weights_A, moments, errors_1, exact, level=of_each, critical=float(margin))
        reached = float(statistic) if exact is None else min(float(statistic), float(-ndtri(exact[2] / 2)))
        p, alone = 0.0, float(2 * ndtr(-reached))
        if is_bounded:
            p = min(1.0, C * alone)
        elif len(largest_B):
            p = (1 + int((largest_B >= reached).sum())) / (len(largest_B) + 1)
        estimates.append(at_level(replace(single, p=max(p, alone)), level))
    return estimates


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


def chances_of_best(
    correct: Mapping[str, np.ndarray],
    draws: int = DRAWS,
    groups_N: np.ndarray | None = None,
    objective: Objective = ACCURACY,
) -> dict[str, float]:
    """Return, for each arm in `usable_arms`, the share of simulated studies in which its mean is the best.

    Each study draws the arms' means from their estimates, with the same errors as in `simultaneous`.
    """
    usable = usable_arms(correct, groups_N)
    if len(usable) < 2:
        return {}
    moments = arm_moments(usable, groups_N, objective)
    counts_A = np.zeros(len(usable), int)
    for error_BA, variance_BA in simulated(moments, draws):
        # The drawn variance in place of the estimated one gives each arm's error the t distribution.
        widened_BA = error_BA * np.sqrt(moments.variance_A / variance_BA)
        best_B = (moments.goodness_A + widened_BA).argmax(axis=1)
        counts_A += np.bincount(best_B, minlength=len(usable))
    return dict(zip(moments.arms, (counts_A / draws).tolist(), strict=True))


def simulated(moments: Moments, draws: int, contrasts: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield errors of the arms' means and estimates of their variances over seeds, both B x A, a chunk at a time.

    Args:
        moments: of the arms.
        draws: simulated studies.
        contrasts: how many statistics of each study are computed.
    """
    random = np.random.default_rng(SEED)
    root_AA = covariance_root(moments.images_AA)
    A = len(moments.arms)
    for B in chunks(draws, contrasts):
        of_seeds_BA = random.standard_normal((B, A)) * np.sqrt(moments.variance_A / moments.seeds_A)
        of_images_BA = random.standard_normal((B, A)) @ root_AA.T
        degrees_A = moments.seeds_A - 1
        variance_BA = np.maximum(moments.variance_A * random.chisquare(degrees_A, (B, A)) / degrees_A, moments.least_A)
        yield of_seeds_BA + of_images_BA, variance_BA


def covariance_root(matrix_AA: np.ndarray) -> np.ndarray:
    """Return the root of the nearest covariance matrix."""
    values, vectors = np.linalg.eigh(matrix_AA)
    root_AA: np.ndarray = vectors * np.sqrt(values.clip(min=0.0))
    return root_AA


def chunks(draws: int, contrasts: int = 1) -> Iterator[int]:
    """Yield how many of so many simulated studies are computed at a time, for a bounded number of statistics."""
    most = min(CHUNK, max(1, MOST_STATISTICS // contrasts))
    yield from (min(most, draws - start) for start in range(0, draws, most))


def largest_statistics(weights_CA: np.ndarray, moments: Moments, draws: int) -> Iterator[np.ndarray]:
    """Yield the largest statistic over the contrasts of each simulated study, on the normal scale."""
    for statistics_BC in signed_statistics(weights_CA, moments, draws):
        yield np.abs(statistics_BC).max(axis=1)


def signed_statistics(weights_CA: np.ndarray, moments: Moments, draws: int) -> Iterator[np.ndarray]:
    """Yield the statistic of each contrast in simulated studies without differences, B x C, on the normal scale."""
    variance_1C, _ = contrast_errors(weights_CA, moments, moments.variance_A[None])
    simulated_C = (weights_CA**2) @ (moments.variance_A / moments.seeds_A)
    simulated_C += ((weights_CA @ covariance_root(moments.images_AA)) ** 2).sum(axis=1)
    scale_C = variance_1C[0] / simulated_C  # so that each contrast's simulated variance is the one that it is given
    for error_BA, variance_BA in simulated(moments, draws, len(weights_CA)):
        variance_BC, degrees_BC = contrast_errors(weights_CA, moments, variance_BA)
        errors_BC = error_BA @ weights_CA.T
        yield np.copysign(normal_scale(errors_BC**2 * scale_C / variance_BC, degrees_BC), errors_BC)
