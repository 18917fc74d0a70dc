"""The smallest difference that a study of some size would find, of its seeds or of its repeats.

Legend: A arms, B simulated studies, C contrasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from ablation.analysis.repeats import RepeatMoments
from ablation.analysis.seeds import Moments
from ablation.analysis.simultaneous import SEED, critical, from_normal_scale, largest_statistics
from ablation.analysis.statistics import ALPHA

POWER = 0.8  # chance to find a difference
STUDIES = 150  # simulated, each with its own variances and critical value
DRAWS = 999  # of each study's test
MANY_CONTRASTS = 190  # of 20 arms; with more, only some of the studies get a critical value of their own
FEWEST_CRITICAL = 10  # studies that do, however many contrasts there are
REPEAT_DRAWS = 9_999  # studies simulated with repeats, whose critical value is the same for all

# Name -> how many times the repeats.
REPEAT_SIZES = {"R repeats": 1, "2R repeats": 2, "4R repeats": 4}

# Name -> how many times the seeds, and the test images.
SIZES = {"S seeds": (1, 1), "2S seeds": (2, 1), "4S seeds": (4, 1), "2S seeds, 4 times the images": (2, 4)}


@dataclass(frozen=True)
class Assumed:
    """Assumptions about runs before there are any.

    Attributes:
        seed_sd: standard deviation of a run's accuracy over other images than the test split's, as a fraction.
        same_arm: share of the images on which two runs of an arm disagree.
        other_arm: the same of two runs of two arms that are equally good.
    """

    seed_sd: float
    same_arm: float
    other_arm: float


def assumed_moments(arms: Sequence[str], assumed: Assumed, *, seeds: int, images: int) -> Moments:
    """Return the moments of equally good arms that have yet to run.

    Runs that disagree on a share d of the images have a residual mean square of d / 2. The additional disagreement of
    runs of two arms is each arm's own image effect.
    """
    A = len(arms)
    residual_A = np.full(A, assumed.same_arm / 2 / images)
    return Moments(
        arms=tuple(arms),
        means_A=np.zeros(A),
        seeds_A=np.full(A, seeds),
        variance_A=assumed.seed_sd**2 + residual_A,
        residual_A=residual_A,
        images_AA=np.eye(A) * (assumed.other_arm - assumed.same_arm) / 2 / images,
        sums_AU=None,
        images=images,
        units=images,
    )


def smallest_differences(
    weights_CA: np.ndarray, moments: Moments, wanted: Sequence[int], level: float = ALPHA
) -> list[float]:
    """Return the smallest true values of contrasts that would be shown with a chance of `POWER`, fractions.

    All contrasts are tested together, see `Estimator.simultaneous`. The power is the mean over simulated studies, whose
    variances are estimated anew: with few seeds, a noncentral t distribution with the degrees of freedom of the true
    variances would promise 80 % where it is 65 %. Their critical values vary little; with more than `MANY_CONTRASTS`
    contrasts, studies share those that can be simulated in the same time.

    Args:
        weights_CA: the contrasts.
        moments: the true values; the means play no part.
        wanted: the numbers of the contrasts of interest.
        level: chance of any false declaration.
    """
    _, variance_BA = next(moments.simulated(STUDIES))
    variance_BC, degrees_BC = moments.errors(weights_CA, variance_BA)
    thresholds = []
    own = min(STUDIES, max(FEWEST_CRITICAL, STUDIES * MANY_CONTRASTS // len(weights_CA)))
    for variance_A in variance_BA[:own]:
        largest_B = largest_statistics(weights_CA, replace(moments, variance_A=variance_A), DRAWS)
        thresholds.append(critical(largest_B, level, len(weights_CA)))
    thresholds_B = np.resize(thresholds, STUDIES)  # in turn
    needed_BC = from_normal_scale(thresholds_B[:, None], degrees_BC) * np.sqrt(variance_BC)
    true_1C, _ = moments.errors(weights_CA, moments.variance_A[None])
    return [_smallest(needed_BC[:, c], float(np.sqrt(true_1C[0, c]))) for c in wanted]


def smallest_over_repeats(
    weights_CA: np.ndarray, moments: RepeatMoments, wanted: Sequence[int], level: float = ALPHA
) -> list[float]:
    """Return the same of contrasts over repeats of a study, see `Estimator.simultaneous`.

    Args:
        weights_CA: the contrasts.
        moments: the true values; what a repeat does to an arm has the same variance for all.
        wanted: the numbers of the contrasts of interest.
        level: chance of any false declaration.
    """
    R = moments.repeats
    largest_B = largest_statistics(weights_CA, moments, REPEAT_DRAWS)
    threshold = critical(largest_B if len(weights_CA) > 1 else largest_B[:0], level, len(weights_CA))
    t = float(from_normal_scale(threshold, np.array(R - 1.0)))
    drawn_B = np.random.default_rng(SEED).chisquare(R - 1, REPEAT_DRAWS) / (R - 1)
    of_repeats_C = moments.shared_variance * (weights_CA**2).sum(axis=1) / R
    _, images_C = moments.variance_parts(weights_CA)
    return [
        _smallest(
            np.sqrt(t**2 * of_repeats_C[c] * drawn_B + threshold**2 * images_C[c]),
            float(np.sqrt(of_repeats_C[c] + images_C[c])),
        )
        for c in wanted
    ]


def _smallest(needed_B: np.ndarray, error: float) -> float:
    """Return the true value that exceeds what simulated studies need, each its own, with a chance of `POWER`."""

    def missing_power(difference: float) -> float:
        return POWER - float(ndtr((difference - needed_B) / error).mean())

    return float(brentq(missing_power, 0.0, needed_B.max() + 10 * error))
