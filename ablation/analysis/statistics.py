"""How sure a metric or a difference is: one estimator over seeds and test images.

A confirmation run is right or wrong about each test image: y[arm, seed, image] = accuracy(arm) + seed effect + image
effect(arm) + residual. Seeds are the runs' own; the images are the same for all arms, so that an image's difficulty
for all of them cancels out of a difference. Both are samples: another seed, or other images, would give other results.
`simultaneous.py` tests several contrasts together, and `repeats.py` has the estimator over repeats of a whole study.

Where images belong to groups, such as those of a patient, groups are what is sampled: images of a group may be easy or
hard together. The images' part of a variance then comes from sums over groups, and G groups take the place of N images
in degrees of freedom, in the smallest plausible variance and in the exact test.

Of a metric that is no share of right answers, y[arm, seed, image] is the run's metric plus the image's influence on it
(see `image_scores`), so that its mean over images is the metric and its variance over images, over N, is that of the
metric (Hampel, 1974; the infinitesimal jackknife). Images then count unequally: an image of a rare class may weigh as
much as ten others. Degrees of freedom of the images' part are the number of images that carry it, as in Bell and
McCaffrey (2002), which also takes the place of the exact test.

Legend: A arms, C contrasts, S seeds (may differ between arms), N test images, G groups of them, U units: groups, or
else images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import bdtr, betaincinv, stdtr, stdtrit  # scipy.stats takes longer to import

from ablation.base.errors import InputError
from ablation.spec.objective import ACCURACY, Objective

ALPHA = 0.05  # chance of any false declaration among the differences that are tested together
SMALLEST_STEP = 1e-9
FEWEST_DISCORDANT = 10  # images on which two sides differ; below, the t distribution is no good approximation


@dataclass(frozen=True)
class Estimate:
    """A metric, or a difference, as a fraction (a loss: in nats), with its uncertainty.

    `low` and `high` are the 95 % interval, cut to the possible range. `p` is two-sided, of `value == 0`; it is below
    0.05 where the interval excludes 0. All but `value` are None where there are too few seeds or images.
    """

    value: float
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether its p-value, corrected where several are tested, is below 0.05."""
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True)
class Means:
    """The arms' mean accuracies, or other metrics.

    Attributes:
        arms: their names.
        means_A: mean over runs and images.
        sums_AU: mean over runs of each image, or the sum of these over each group, less the arm's mean unless they are
            accuracies; None where no runs exist yet.
        images: N.
        units: U, how many of them are independent: G groups, or N.
        objective: the metric.
        step: how much the metric times N may plausibly differ by a single image; 1 for an accuracy.
    """

    arms: tuple[str, ...]
    means_A: np.ndarray
    sums_AU: np.ndarray | None
    images: int
    units: int
    objective: Objective = field(default=ACCURACY, kw_only=True)
    step: float = field(default=1.0, kw_only=True)

    @property
    def goodness_A(self) -> np.ndarray:
        """The means, negative where lower is better, so that the largest is the best."""
        return self.objective.sign * self.means_A

    def weights(self, contrasts: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Return contrasts (arm -> weight) as a matrix, C x A."""
        return np.array([[contrast.get(arm, 0.0) for arm in self.arms] for contrast in contrasts])

    def least_variance(self, weights_CA: np.ndarray) -> np.ndarray:
        """Return the smallest plausible variance of each contrast: that of a single unit on which the arms differ."""
        largest_C = np.maximum(weights_CA.clip(min=0).sum(axis=1), -weights_CA.clip(max=0).sum(axis=1))
        least_C: np.ndarray = (self.step * largest_C / self.units) ** 2
        return least_C


@dataclass(frozen=True)
class Moments(Means):
    """What is known of the arms' mean accuracies from their seeds, for contrasts of any weights.

    Attributes:
        seeds_A: number of seeds.
        variance_A: of a run's metric over seeds, at least `least_A`; NaN with one seed.
        residual_A: the part of it that is due to the images being a sample for each run anew: MS / N with MS the mean
            square of the residual, see `image_covariance`.
        images_AA: covariance of the arms' own image effects, over N. An estimate: not always positive semi-definite.
    """

    seeds_A: np.ndarray
    variance_A: np.ndarray
    residual_A: np.ndarray
    images_AA: np.ndarray

    @property
    def least_A(self) -> np.ndarray:
        """The smallest plausible variance over seeds: runs differ on images, and by one of the units at least."""
        least_A: np.ndarray = np.maximum(self.residual_A, self.step**2 / self.units**2)
        return least_A

    @property
    def has_variance(self) -> bool:
        """Whether there are enough seeds and images to estimate how much they vary."""
        return self.units > 1 and int(self.seeds_A.min()) > 1

    def resized(self, seeds: float, images: float) -> "Moments":
        """Return what they would be with this many times the seeds and the images, the true values being the same."""
        residual_A = self.residual_A / images
        variance_A = np.maximum(self.variance_A - self.residual_A, 0.0) + residual_A
        return replace(
            self,
            seeds_A=np.round(self.seeds_A * seeds).astype(int),
            variance_A=np.maximum(variance_A, self.step**2 * (images * self.units) ** -2),
            residual_A=residual_A,
            images_AA=self.images_AA / images,
            sums_AU=None,
            images=round(self.images * images),
            units=round(self.units * images),
        )


def variances(weights_CA: np.ndarray, covariance_AA: np.ndarray) -> np.ndarray:
    """Return the variance of each contrast from a covariance of the arms, C; negative where that is no covariance."""
    variance_C: np.ndarray = ((weights_CA @ covariance_AA) * weights_CA).sum(axis=1)
    return variance_C


def image_covariance(values_XN: np.ndarray, groups_N: np.ndarray | None = None) -> np.ndarray:
    """Return the covariance of means over images that are a sample, X x X, from values of each image whose means are 0.

    Without groups, it is that of a single image over N: sum of products / (N - 1) / N. With them, sums over groups take
    the place of images (the variance of a ratio by linearisation, Cochran, 1977): G / (G - 1) times the sum over groups
    of the products of the groups' sums, over N².

    Args:
        values_XN: less their means.
        groups_N: what each image belongs to, as numbers from 0, int64.
    """
    N = values_XN.shape[1]
    if groups_N is None:
        of_images_XX: np.ndarray = values_XN @ values_XN.T / max(N - 1, 1) / N
        return of_images_XX
    sums_XG = group_sums(values_XN, groups_N)
    G = sums_XG.shape[1]
    of_groups_XX: np.ndarray = sums_XG @ sums_XG.T * (G / max(G - 1, 1)) / N**2
    return of_groups_XX


def group_sums(values_XN: np.ndarray, groups_N: np.ndarray | None) -> np.ndarray:
    """Return the sums of values over each group, X x G; without groups, the values."""
    if groups_N is None:
        return values_XN
    G = int(groups_N.max()) + 1
    return np.array([np.bincount(groups_N, values_N, G) for values_N in values_XN])


def arm_moments(
    correct: Mapping[str, np.ndarray], groups_N: np.ndarray | None = None, objective: Objective = ACCURACY
) -> Moments:
    """Return the moments of arms.

    The variance over seeds is s² of an arm's accuracies, at least MS / N, which it contains in expectation, and at
    least 1 / N²: few seeds that agree by chance are no certainty.

    Args:
        correct: arm -> whether each run is right about each image, bool, S x N; the same images in the same order. Of
            another objective than accuracy, `image_scores`, float64.
        groups_N: what each image belongs to, as numbers from 0, int64; None for images that are independent.
        objective: the metric.

    Raises:
        InputError: arrays are not as described.
    """
    kind = np.dtype(bool if objective.counts_images else np.float64)
    for arm, y_SN in correct.items():
        if y_SN.dtype != kind or y_SN.ndim != 2 or y_SN.size == 0:
            raise InputError(f"arm {arm!r}: expected {kind}, seeds x images, not {y_SN.dtype} of shape {y_SN.shape}")
    counts = {arm: y_SN.shape[1] for arm, y_SN in correct.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the arms were not tested on the same images: their numbers are {counts}")
    N = next(iter(counts.values()))
    seeds_A = np.array([len(y_SN) for y_SN in correct.values()])
    image_means_AN = np.array([y_SN.mean(axis=0) for y_SN in correct.values()])
    means_A = image_means_AN.mean(axis=1)
    variances, residuals = [], []
    for y_SN, mean, image_mean_N in zip(correct.values(), means_A, image_means_AN, strict=True):
        S = len(y_SN)
        # The two-way table without replication. Correct counts 1, so the mean is the mean of squares, too.
        seed_squares = N * _sum_of_squares(y_SN.mean(axis=1))
        all_squares = S * N * mean * (1 - mean) if objective.counts_images else _sum_of_squares(y_SN)
        residual_squares = all_squares - seed_squares - S * _sum_of_squares(image_mean_N)
        variances.append(seed_squares / N / (S - 1) if S > 1 else np.nan)
        if groups_N is None:
            residuals.append(max(residual_squares, 0.0) / max((S - 1) * (N - 1), 1) / N)
        else:
            rest_SN = y_SN - y_SN.mean(axis=1, keepdims=True) - image_mean_N + mean
            residuals.append(float(image_covariance(rest_SN, groups_N).trace()) / max(S - 1, 1))
    residual_A = np.array(residuals)
    centred_AN = image_means_AN - means_A[:, None]
    images_AA = image_covariance(centred_AN, groups_N) - np.diag(residual_A / seeds_A)
    sums_AG = group_sums(image_means_AN if objective.counts_images else centred_AN, groups_N)
    moments = Moments(
        arms=tuple(correct),
        means_A=means_A,
        sums_AU=sums_AG,
        images=N,
        units=sums_AG.shape[1],
        seeds_A=seeds_A,
        variance_A=np.array(variances),
        residual_A=residual_A,
        images_AA=images_AA,
        objective=objective,
        step=image_step(correct, objective),
    )
    return replace(moments, variance_A=np.maximum(moments.variance_A, moments.least_A))


def image_step(values: Mapping[str, np.ndarray], objective: Objective) -> float:
    """Return how much a metric times N may plausibly differ by a single image: the root mean square of the most.

    The most that an image counts in any run stands for it; 1 for accuracies. Never 0, so that runs without any loss can
    be compared.
    """
    if objective.counts_images:
        return 1.0
    most_N = np.max([np.abs(y_XN).max(axis=0) for y_XN in values.values()], axis=0)
    return max(float(np.sqrt((most_N**2).mean())), SMALLEST_STEP)


def carrying_units(weights_CA: np.ndarray, moments: Means) -> np.ndarray:
    """Return how many images (or groups) carry the images' part of each contrast's variance, at most all U of them.

    (Sum of d²)² over the sum of d⁴ of their influences d: m where m of them count the same and the others nothing, at
    least 2. All U for accuracies, whose few discordant images have an exact test, and before there are runs.
    """
    if moments.objective.counts_images or moments.sums_AU is None:
        return np.full(len(weights_CA), moments.units)
    squares_CU = (weights_CA @ moments.sums_AU) ** 2
    fourth_C = (squares_CU**2).sum(axis=1)
    carrying_C = np.divide(squares_CU.sum(axis=1) ** 2, fourth_C, out=np.zeros(len(fourth_C)), where=fourth_C > 0)
    units_C: np.ndarray = np.where(fourth_C > 0, np.clip(carrying_C, 2.0, moments.units), moments.units)
    return units_C


def contrast_errors(weights_CA: np.ndarray, moments: Moments, variance_BA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of each contrast, and its degrees of freedom (Satterthwaite, 1946), both B x C.

    The seeds' part is the sum of w² s² / S; the images' part is the variance over images of the contrast's mean over
    seeds, less the residual's share of it, which s² contains already; 0 if that is negative. Degrees of freedom are
    S - 1 for each arm's part, N - 1 for the images' and for an arm whose variance is its smallest plausible one, which
    the images tell (G - 1 with groups). The variance is at least that of a single image in N on which the
    arms differ, since N images on which they do not differ cannot show that they never do; this is the weight that
    Agresti and Min (2005) give to such images. Where images count unequally, `carrying_units` take the place of N.

    Args:
        weights_CA: the contrasts.
        moments: of the arms.
        variance_BA: B times the variances over seeds of the arms.
    """
    N, units_C = moments.units, carrying_units(weights_CA, moments)
    by_seed_BA = variance_BA / moments.seeds_A
    images_C = np.maximum(variances(weights_CA, moments.images_AA), 0.0)
    variance_BC = by_seed_BA @ (weights_CA**2).T + images_C
    degrees_BA = np.where(variance_BA <= moments.least_A, N - 1, moments.seeds_A - 1)
    spread_BC = (by_seed_BA**2 / degrees_BA) @ (weights_CA**4).T + images_C**2 / (units_C - 1)
    least_C = moments.least_variance(weights_CA)
    degrees_BC = np.where(variance_BC < least_C, units_C - 1, variance_BC**2 / spread_BC)
    return np.maximum(variance_BC, least_C), degrees_BC


def contrast(
    weights: Mapping[str, float],
    correct: Mapping[str, np.ndarray],
    groups_N: np.ndarray | None = None,
    level: float = ALPHA,
    objective: Objective = ACCURACY,
) -> Estimate:
    """Return a weighted sum of the arms' means of the objective with its own 95 % t interval, see `contrast_errors`.

    Args:
        weights: arm -> weight; arms with weight 0 are ignored. {"a": 1, "b": -1} is a minus b.
        correct: as in `arm_moments`.
        groups_N: as in `arm_moments`.
        level: chance that the interval misses.
        objective: as in `arm_moments`.

    Returns:
        The estimate; without an interval if an arm has one seed only, or if there is one image only.

    Raises:
        InputError: no weight differs from 0, an arm is missing, or arrays are not as described.
    """
    used = {arm: float(weight) for arm, weight in weights.items() if weight != 0}
    if not used:
        raise InputError("a contrast needs an arm with a weight other than 0")
    for arm in used:
        if arm not in correct:
            raise InputError(f"there are no runs of arm {arm!r}")
    moments = arm_moments({arm: correct[arm] for arm in used}, groups_N, objective)
    weights_CA = moments.weights([used])
    value = float(weights_CA[0] @ moments.means_A)
    if not moments.has_variance:
        return Estimate(value)
    variance, degrees_of_freedom = (x.item() for x in contrast_errors(weights_CA, moments, moments.variance_A[None]))
    error, exact = float(np.sqrt(variance)), exact_test(weights_CA[0], moments, level)
    return estimate(weights_CA[0], moments, (error, degrees_of_freedom), exact, level=level)


def estimate(
    weights_A: np.ndarray,
    moments: Means,
    error: tuple[float, float],
    exact: tuple[float, float, float] | None,
    *,
    level: float,
    critical: float | None = None,
) -> Estimate:
    """Return a contrast with its interval of coverage 1 - level, and p before any correction.

    Differences that rest on fewer than ten images also have to pass McNemar's exact test.

    Args:
        weights_A: the contrast.
        moments: of the arms.
        error: its standard error and degrees of freedom.
        exact: what `exact_test` finds at this level.
        level: chance that the interval misses.
        critical: half of the interval's width in standard errors; the t distribution's by default.
    """
    value = float(weights_A @ moments.means_A)
    standard_error, degrees = error
    margin = standard_error * (float(stdtrit(degrees, 1 - level / 2)) if critical is None else critical)
    low, high, p = value - margin, value + margin, float(2 * stdtr(degrees, -abs(value) / standard_error))
    if exact is not None:
        low, high, p = min(low, exact[0]), max(high, exact[1]), max(p, exact[2])
    least, most = float(weights_A.clip(max=0).sum()), float(weights_A.clip(min=0).sum())
    lowest, highest = (limit * moments.objective.largest if limit else 0.0 for limit in (least, most))
    return Estimate(value, standard_error, degrees, max(low, lowest), min(high, highest), p)


def exact_test(weights_A: np.ndarray, moments: Means, level: float) -> tuple[float, float, float] | None:
    """Return the interval and the p of McNemar's exact test, for differences that few images decide.

    Of the images (or groups) on which the two sides differ, each favours either side with the same chance if there is
    no difference. The interval is Clopper and Pearson's for that chance, times the images and how much they differ.

    Returns:
        Its ends at this level, and p; None where ten images or more differ, for what is no difference, and for metrics
        other than accuracy.
    """
    if moments.sums_AU is None or not moments.objective.counts_images or abs(weights_A.sum()) > 1e-9:
        return None
    used = np.flatnonzero(weights_A)  # two of many arms, as a rule
    difference_U = weights_A[used] @ moments.sums_AU[used]
    discordant = difference_U[np.abs(difference_U) > 1e-9]
    n, first = len(discordant), int((discordant > 0).sum())
    if n >= FEWEST_DISCORDANT:
        return None
    if n == 0:
        return 0.0, 0.0, 1.0
    low = betaincinv(first, n - first + 1, level / 2) if first else 0.0
    high = betaincinv(first + 1, n - first, 1 - level / 2) if first < n else 1.0
    scale = float(np.abs(discordant).sum()) / moments.images
    p = min(1.0, 2 * float(bdtr(min(first, n - first), n, 0.5)))
    return scale * (2 * low - 1), scale * (2 * high - 1), p


def _sum_of_squares(x: np.ndarray) -> float:
    return float(((x - x.mean()) ** 2).sum())
