"""How sure a metric or a difference is: what estimates over seeds (`seeds.py`) and over repeats (`repeats.py`) share.

Where images belong to groups, such as those of a patient, groups are what is sampled: images of a group may be easy or
hard together. The images' part of a variance then comes from sums over groups, and G groups take the place of N images
in degrees of freedom, in the smallest plausible variance and in the exact test.

Of a metric that is no share of right answers, an image's value is the run's metric plus the image's influence on it
(see `image_scores`), so that its mean over images is the metric and its variance over images, over N, is that of the
metric (Hampel, 1974; the infinitesimal jackknife). Images then count unequally: an image of a rare class may weigh as
much as ten others. Degrees of freedom of the images' part are the number of images that carry it, as in Bell and
McCaffrey (2002), which also takes the place of the exact test.

Legend: A arms, B simulated studies, C contrasts, N test images, G groups of them, U units: groups, or else images.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import bdtr, betaincinv, stdtr, stdtrit  # scipy.stats takes longer to import

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
class Means(ABC):
    """The arms' mean accuracies, or other metrics, and how sure contrasts of them are.

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

    @property
    @abstractmethod
    def has_variance(self) -> bool:
        """Whether there is enough of them to estimate how much they vary."""

    @abstractmethod
    def alone(self, weights_CA: np.ndarray, level: float) -> Estimate:
        """Return the only contrast of these with an interval that misses with this chance, and its p-value."""

    @abstractmethod
    def spread(self, weights_CA: np.ndarray, deviate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return how sure each contrast is.

        Returns:
            Standard errors; degrees of freedom; half of the width, in standard errors, of the intervals of a deviate on
            the normal scale; and the contrasts' own statistics on this scale. All of them C.
        """

    @abstractmethod
    def signed_statistics(self, weights_CA: np.ndarray, draws: int) -> Iterator[np.ndarray]:
        """Yield each contrast's statistic in simulated studies without differences, B x C, on the normal scale."""

    @abstractmethod
    def simulated_errors(self, draws: int) -> Iterator[np.ndarray]:
        """Yield errors of the means in simulated studies, B x A."""


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
