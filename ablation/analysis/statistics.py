"""How sure a difference is: intervals and tests over seeds and test images, and Holm's correction.

A confirmation run is right or wrong about each test image: y[arm, seed, image] = accuracy(arm) + seed effect + image
effect(arm) + residual. Seeds are the runs' own; the images are the same for all arms, so that an image's difficulty
for all of them cancels out of a difference. Both are samples: another seed, or other images, would give other results.

Legend: A arms, S seeds (may differ between arms), N test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtr, ndtr, stdtr, stdtrit  # scipy.stats takes longer to import

from ablation.base.errors import InputError

CONFIDENCE = 0.95
ALPHA = 0.05  # chance of any false declaration among the differences that are tested together
POWER = 0.8  # chance to find a difference, for which `smallest_difference` asks
DRAWS = 4000  # of variances, which make a power certain to less than one percent


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or a difference of accuracies, as a fraction, with its uncertainty.

    `low` and `high` are the 95 % t interval, cut to the possible range. `p` is two-sided, of `value == 0`, from the
    same t statistic. All but `value` are None where there are too few seeds or images.
    """

    value: float
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def seed_interval(accuracies_S: np.ndarray) -> Estimate:
    """Return the mean accuracy over seeds with its t interval, S - 1 degrees of freedom, and no p.

    The interval is about other seeds on these very images; `contrast` with one weight of 1 also treats the images as a
    sample. Where all seeds agree, its width is zero.

    Args:
        accuracies_S: accuracies as fractions. With one, there is no interval.

    Raises:
        InputError: there are no accuracies, or one is not a number from 0 to 1.
    """
    accuracies_S = np.asarray(accuracies_S, np.float64)
    S = accuracies_S.size
    if accuracies_S.ndim != 1 or S == 0 or not ((accuracies_S >= 0) & (accuracies_S <= 1)).all():
        raise InputError(f"expected the accuracies of one or more seeds, as fractions, not {accuracies_S}")
    value = float(accuracies_S.mean())
    if S == 1:
        return Estimate(value)
    standard_error = float(accuracies_S.std(ddof=1) / np.sqrt(S))
    margin = _t_quantile(S - 1) * standard_error
    return Estimate(value, standard_error, S - 1, max(value - margin, 0.0), min(value + margin, 1.0))


def contrast(weights: Mapping[str, float], correct: Mapping[str, np.ndarray]) -> Estimate:
    """Return a weighted sum of the arms' mean accuracies: a difference, a marginal mean, or an interaction.

    The variance has two parts. The seeds' part is the sum of w² s² / S, with s² the variance of an arm's S accuracies.
    The images' part is the variance over images of D = sum of w * (mean over seeds), less the residual's share of it,
    which s² contains already (sum of w² r / S with r the residual mean square), over N; 0 if that is negative. Degrees
    of freedom are Satterthwaite's (1946): S - 1 for each arm's part, N - 1 for the images'. `tests/calibration.py`
    simulates its coverage.

    Two floors keep few seeds that agree by chance from looking like certainty; both have N - 1 degrees of freedom. The
    variance is at least that of a paired t test over the images, which is right if seeds have no effect of their own.
    It is also at least that of a single image in N on which the arms differ, since N images on which they do not differ
    cannot show that they never do; this is the weight that Agresti and Min (2005) give to such images.

    Args:
        weights: arm -> weight; arms with weight 0 are ignored. {"a": 1, "b": -1} is how much better a is than b.
        correct: arm -> whether each run is right about each image, bool, S x N; the same images in the same order.

    Returns:
        The estimate; without an interval if an arm has one seed only, or if there is one image only.

    Raises:
        InputError: no weight differs from 0, an arm is missing, or arrays are not as described.
    """
    parts = _components(weights, correct)
    if not parts.has_variance:
        return Estimate(parts.value)
    variance, degrees_of_freedom = (float(x) for x in _variance(parts, parts.seeds_A))
    standard_error = float(np.sqrt(variance))
    margin = _t_quantile(degrees_of_freedom) * standard_error
    return Estimate(
        value=parts.value,
        standard_error=standard_error,
        degrees_of_freedom=degrees_of_freedom,
        low=max(parts.value - margin, parts.lowest),
        high=min(parts.value + margin, parts.highest),
        p=float(2 * stdtr(degrees_of_freedom, -abs(parts.value) / standard_error)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the given order (Holm, 1979).

    Declaring those below alpha keeps the chance of any false declaration in the family below alpha, whatever the
    dependence between them. (SciPy has Benjamini and Hochberg's correction, which controls another rate.)
    """
    m = len(p_values)
    adjusted = [0.0] * m
    largest = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Kendall's rank correlation (tau-b, which allows for ties), from -1 to 1.

    Returns:
        None where one of the two has no order: fewer than two values, or all of them equal.
    """
    x_PP, y_PP = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(x), np.asarray(y)))
    ordered = np.sqrt(float((x_PP**2).sum()) * float((y_PP**2).sum()))
    return float((x_PP * y_PP).sum() / ordered) if ordered > 0 else None


def seeds_needed(
    weights: Mapping[str, float],
    correct: Mapping[str, np.ndarray],
    *,
    family: int,
    power: float = POWER,
    most: int = 1000,
) -> int | None:
    """Return the smallest number of seeds per arm that would show the observed difference, the images being the same.

    The difference and the variance components are those that were estimated, so it is a guide to planning and no more.
    The power is the noncentral t distribution's at level ALPHA / family, the first step of Holm's correction.

    Args:
        weights: as in `contrast`.
        correct: as in `contrast`.
        family: how many differences are tested together.
        power: the chance to find a difference of the observed size.
        most: the largest number of seeds to try.

    Returns:
        The number of seeds, at least 2; None if `most` are not enough (the images alone hide the difference, or there
        is none), or if there is one seed or one image only, so that no variance can be estimated.

    Raises:
        InputError: as in `contrast`.
    """
    parts = _components(weights, correct)
    if not parts.has_variance:
        return None
    candidates = np.arange(2, most + 1)
    variance, degrees_of_freedom = _variance(parts, candidates[:, None])
    critical = -stdtrit(degrees_of_freedom, ALPHA / family / 2)
    powers = 1 - nctdtr(degrees_of_freedom, abs(parts.value) / np.sqrt(variance), critical)
    powers = np.where(np.isnan(powers), 1.0, powers)  # SciPy gives up where the difference is many standard errors
    enough = np.flatnonzero(powers >= power)
    return int(candidates[enough[0]]) if enough.size else None


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


def smallest_difference(
    arms_per_level: int,
    assumed: Assumed,
    *,
    seeds: int,
    images: int,
    family: int,
) -> float | None:
    """Return the smallest difference between two levels that a study of this size would show with a chance of `POWER`.

    The test is that of `contrast`, at level ALPHA / family as in `seeds_needed`. Its power is the mean over many
    studies' variances of seeds, drawn as they would be estimated: with two or three seeds, a noncentral t distribution
    with the degrees of freedom of the true ones would promise 80 % where it is 65 %.

    Runs that disagree on a share d of the images have a residual mean square of d / 2. The additional disagreement of
    runs of two arms is each arm's own image effect.

    Args:
        arms_per_level: how many arms each level has, all with the same weight.
        assumed: about the runs.
        seeds: of each arm.
        images: of the test split.
        family: how many differences are tested together.

    Returns:
        The difference as a fraction; None where there are fewer than two seeds or images.
    """
    if seeds < 2 or images < 2:
        return None
    arms, weight = 2 * arms_per_level, 1 / arms_per_level
    residual = assumed.same_arm / 2 / images
    by_seed = weight**2 * (assumed.seed_sd**2 + residual)
    parts = _Components(
        value=0.0,
        lowest=-1.0,
        highest=1.0,
        seeds_A=np.full(arms, seeds),
        images=images,
        by_seed_A=by_seed * np.random.default_rng(0).chisquare(seeds - 1, (DRAWS, arms)) / (seeds - 1),
        residual_A=np.full(arms, weight**2 * residual),
        by_image=arms * weight**2 * (assumed.other_arm - assumed.same_arm) / 2 / images,
    )
    variance, degrees_of_freedom = _variance(parts, parts.seeds_A)
    threshold = -stdtrit(degrees_of_freedom, ALPHA / family / 2) * np.sqrt(variance)
    true_error = np.sqrt(arms * by_seed / seeds + parts.by_image)

    def missing_power(difference: float) -> float:
        return POWER - float(ndtr((difference - threshold) / true_error).mean())

    return float(brentq(missing_power, 0.0, threshold.max() + 10 * true_error))


@dataclass(frozen=True)
class _Components:
    """A contrast's value and the parts of its variance, for any number of seeds.

    `by_seed_A` is w² s² and `residual_A` w² r / N of each arm, both to be divided by a number of seeds; `by_image` is
    the images' own variance in the contrast, over N. `lowest` and `highest` are the contrast's possible range.
    """

    value: float
    lowest: float
    highest: float
    seeds_A: np.ndarray
    images: int
    by_seed_A: np.ndarray
    residual_A: np.ndarray
    by_image: float

    @property
    def has_variance(self) -> bool:
        """Whether there are enough seeds and images to estimate how much they vary."""
        return self.images > 1 and int(self.seeds_A.min()) > 1


def _components(weights: Mapping[str, float], correct: Mapping[str, np.ndarray]) -> _Components:
    weight_of = {arm: float(weight) for arm, weight in weights.items() if weight != 0}
    if not weight_of:
        raise InputError("a contrast needs an arm with a weight other than 0")
    for arm in weight_of:
        if arm not in correct:
            raise InputError(f"there are no runs of arm {arm!r}")
        y_SN = correct[arm]
        if y_SN.dtype != bool or y_SN.ndim != 2 or y_SN.size == 0:
            raise InputError(f"arm {arm!r}: expected bool, seeds x images, not {y_SN.dtype} of shape {y_SN.shape}")
    counts = {arm: correct[arm].shape[1] for arm in weight_of}
    if len(set(counts.values())) > 1:
        raise InputError(f"the arms were not tested on the same images: their numbers are {counts}")

    N = next(iter(counts.values()))
    seeds, by_seed, residual = [], [], []
    value, difference_N = 0.0, np.zeros(N)
    for arm, weight in weight_of.items():
        S = len(correct[arm])
        accuracy_S, image_mean_N = correct[arm].mean(axis=1), correct[arm].mean(axis=0)
        accuracy = float(accuracy_S.mean())
        # The two-way table without replication. Correct counts 1, so the mean is the mean of squares, too.
        total_squares = S * N * accuracy * (1 - accuracy)
        seed_squares, image_squares = N * _sum_of_squares(accuracy_S), S * _sum_of_squares(image_mean_N)
        residual_squares = total_squares - seed_squares - image_squares
        seeds.append(S)
        by_seed.append(weight**2 * _sum_of_squares(accuracy_S) / max(S - 1, 1))
        residual.append(weight**2 * residual_squares / max((S - 1) * (N - 1), 1) / N)
        value += weight * accuracy
        difference_N += weight * image_mean_N
    seeds_A, residual_A = np.array(seeds), np.array(residual)
    paired = _sum_of_squares(difference_N) / max(N - 1, 1) / N
    return _Components(
        value=value,
        lowest=sum(min(weight, 0.0) for weight in weight_of.values()),
        highest=sum(max(weight, 0.0) for weight in weight_of.values()),
        seeds_A=seeds_A,
        images=N,
        by_seed_A=np.array(by_seed),
        residual_A=residual_A,
        by_image=paired - float((residual_A / seeds_A).sum()),
    )


def _variance(parts: _Components, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the contrast's variance and its degrees of freedom for numbers of seeds, 2 or more.

    The last axis of `seeds` broadcasts against the arms; the results are without that axis.
    """
    N = parts.images
    by_seed = parts.by_seed_A / seeds
    by_image = max(parts.by_image, 0.0)
    variance = by_seed.sum(axis=-1) + by_image
    paired = parts.by_image + (parts.residual_A / seeds).sum(axis=-1)
    one_image = (max(parts.highest, -parts.lowest) / N) ** 2
    least = np.maximum(paired, one_image)
    is_floored = variance < least
    spread = (by_seed**2 / (seeds - 1)).sum(axis=-1) + by_image**2 / (N - 1)
    degrees_of_freedom = np.where(is_floored, N - 1, variance**2 / np.where(is_floored, 1.0, spread))
    return np.maximum(variance, least), degrees_of_freedom


def _t_quantile(degrees_of_freedom: float) -> float:
    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def _sum_of_squares(x: np.ndarray) -> float:
    return float(((x - x.mean()) ** 2).sum())
