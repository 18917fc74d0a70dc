"""Contrasts over repeats of a whole study: tuning, split and seeds anew in each, the test images the same in all.

A repeat gives a value for each arm and image: the share of its confirmation runs that are right. Arms are compared
paired by repeat, so that what a repeat does to all arms cancels out of a difference. The variance of a difference is
s² / R plus that of the images. The interval has half the width sqrt(t² s² / R + z² images), with the quantiles of
Student's t distribution for R - 1 degrees of freedom and of the normal one (Cochran's combination), because
Satterthwaite's degrees of freedom are too many where three repeats agree by chance: 91 to 93 % instead of 95.

Legend: A arms, B simulated studies, C contrasts, R repeats, N test images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablation.analysis.simultaneous import (
    FEWEST_SEEDS,
    SEED,
    chunks,
    covariance_root,
    critical,
    from_normal_scale,
    simultaneous_estimates,
)
from ablation.analysis.statistics import (
    Estimate,
    Means,
    carrying_units,
    group_sums,
    image_covariance,
    image_step,
    variances,
)
from ablation.spec.objective import ACCURACY, Objective

STEPS = 8  # of Newton's method; the last changes nothing


@dataclass(frozen=True)
class RepeatMoments(Means):
    """What is known of the arms' mean accuracies from repeats of a study, for contrasts of any weights.

    Attributes:
        repeats: R.
        repeats_AA: covariance of the arms' accuracies over repeats.
        images_AA: covariance of the arms' own image effects, over N: that of the means over repeats, less the mean
            products of the repeat-by-image residuals over R. An estimate: not always positive semi-definite.
    """

    repeats: int
    repeats_AA: np.ndarray
    images_AA: np.ndarray

    @property
    def shared_variance(self) -> float:
        """What a repeat does to one arm alone, as a variance that all arms share: the arm-by-repeat mean square."""
        A = len(self.arms)
        return max(float(self.repeats_AA.trace() - self.repeats_AA.sum() / A) / (A - 1), 0.0)

    @property
    def has_variance(self) -> bool:
        """Whether there are three repeats and two images."""
        return self.units > 1 and self.repeats >= FEWEST_SEEDS

    def alone(self, weights_CA: np.ndarray, level: float) -> Estimate:
        """Return a contrast with its own interval."""
        return simultaneous_estimates(weights_CA, self, np.array([]), level)[0]

    def spread(self, weights_CA: np.ndarray, deviate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return errors, degrees of freedom of the repeats' part, margins and statistics by Cochran's combination."""
        of_repeats_C, images_C = self.variance_parts(weights_CA)
        degrees = self.repeats - 1
        degrees_C, errors_C = np.full(len(weights_CA), float(degrees)), np.sqrt(of_repeats_C + images_C)
        widths_C = np.sqrt(from_normal_scale(deviate, degrees_C) ** 2 * of_repeats_C + deviate**2 * images_C)
        statistics_C = combined_statistic((weights_CA @ self.means_A) ** 2, of_repeats_C, images_C, degrees)
        return errors_C, degrees_C, widths_C / errors_C, statistics_C

    def variance_parts(self, weights_CA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the variance of each contrast that is due to repeats, s² / R, and that due to the images, both C.

        The images' part is the variance over images of the contrast's mean over repeats, less the residual's share of
        it, which s² contains already; it is at least that of a single image in N, see `seeds.Moments.errors`. Where few
        images carry it, it is enlarged as Student's t interval is wider than the normal one (`carrying_units`).
        """
        of_repeats_C = np.maximum(variances(weights_CA, self.repeats_AA), 0.0) / self.repeats
        images_C = np.maximum(variances(weights_CA, self.images_AA), self.least_variance(weights_CA))
        if not self.objective.counts_images:
            z = critical(np.array([]))
            images_C *= (from_normal_scale(z, carrying_units(weights_CA, self) - 1.0) / z) ** 2
        return of_repeats_C, images_C

    def signed_statistics(self, weights_CA: np.ndarray, draws: int) -> Iterator[np.ndarray]:
        """Yield statistics of studies in which all arms vary alike.

        What a repeat does to one arm is drawn independently of the others, with the same variance for all arms. R
        repeats are too few to estimate how arms vary together, and a matrix of too low a rank would make contrasts look
        more alike than they are. The estimate of a single contrast's variance would be too low in just those studies in
        which the contrast looks certain, and its simulated statistic then has the light tails of the images' part: 6 to
        7 % instead of 5 % of studies declared a difference.
        """
        R, A, random = self.repeats, len(self.arms), np.random.default_rng(SEED)
        _, images_C = self.variance_parts(weights_CA)
        unit_CA = weights_CA / np.linalg.norm(weights_CA, axis=1, keepdims=True)
        image_CA = weights_CA @ covariance_root(self.images_AA)
        lengths_C = np.linalg.norm(image_CA, axis=1, keepdims=True)
        image_CA = np.divide(image_CA, lengths_C, out=unit_CA.copy(), where=lengths_C > 0)
        for B in chunks(draws, len(weights_CA)):
            repeats_BRC = random.standard_normal((B, R, A)) @ weights_CA.T * np.sqrt(self.shared_variance)
            images_BC = random.standard_normal((B, A)) @ image_CA.T * np.sqrt(images_C)
            errors_BC = repeats_BRC.mean(axis=1) + images_BC
            of_repeats_BC = repeats_BRC.var(axis=1, ddof=1) / R
            yield np.copysign(combined_statistic(errors_BC**2, of_repeats_BC, images_C, R - 1), errors_BC)

    def simulated_errors(self, draws: int) -> Iterator[np.ndarray]:
        """Yield errors whose repeats' part has the t distribution."""
        degrees, A, random = self.repeats - 1, len(self.arms), np.random.default_rng(SEED)
        root_AA, image_root_AA = map(covariance_root, (self.repeats_AA / self.repeats, self.images_AA))
        for B in chunks(draws):
            scale_B1 = np.sqrt(degrees / random.chisquare(degrees, (B, 1)))
            of_repeats_BA = random.standard_normal((B, A)) @ root_AA.T * scale_B1
            yield of_repeats_BA + random.standard_normal((B, A)) @ image_root_AA.T


@dataclass(frozen=True)
class Components:
    """Where the uncertainty of differences comes from: variances of their means, averages over several differences.

    `seeds` is None, and contained in `tuning`, where an arm has a single seed per repeat.
    """

    seeds: float | None
    tuning: float
    images: float


def repeat_moments(
    right: Mapping[str, np.ndarray], groups_N: np.ndarray | None = None, objective: Objective = ACCURACY
) -> RepeatMoments:
    """Return the moments of arms over repeats.

    Args:
        right: arm -> share of a repeat's confirmation runs that are right about each image, float64, R x N; the same
            repeats and images in the same order. Of another objective, the mean of its runs' `image_scores`.
        groups_N: as in `seeds.seed_moments`.
        objective: as there.
    """
    y_ARN = np.array(list(right.values()))
    _, R, N = y_ARN.shape
    accuracies_AR, image_means_AN = y_ARN.mean(axis=2), y_ARN.mean(axis=1)
    means_A = accuracies_AR.mean(axis=1)
    rest_ARN = y_ARN - accuracies_AR[:, :, None] - image_means_AN[:, None] + means_A[:, None, None]
    if groups_N is None:
        residual_AA = np.einsum("arn,brn->ab", rest_ARN, rest_ARN) / max((R - 1) * (N - 1), 1) / N
    else:
        residual_AA = sum(image_covariance(rest_ARN[:, r], groups_N) for r in range(R)) / max(R - 1, 1)
    centred_AR, centred_AN = accuracies_AR - means_A[:, None], image_means_AN - means_A[:, None]
    sums_AG = group_sums(image_means_AN if objective.counts_images else centred_AN, groups_N)
    return RepeatMoments(
        arms=tuple(right),
        means_A=means_A,
        sums_AU=sums_AG,
        images=N,
        units=sums_AG.shape[1],
        repeats=R,
        repeats_AA=centred_AR @ centred_AR.T / max(R - 1, 1),
        images_AA=image_covariance(centred_AN, groups_N) - residual_AA / R,
        objective=objective,
        step=image_step(right, objective),
    )


def combined_statistic(squared: np.ndarray, of_repeats: np.ndarray, of_images: np.ndarray, degrees: int) -> np.ndarray:
    """Return the normal deviate z at which an interval just reaches zero, from the square of a contrast.

    It solves t(z)² of_repeats + z² of_images = squared, with t(z) of `from_normal_scale`. Newton's method starts where
    either part alone would solve it, above the solution of an equation that is convex in z².
    """
    slope = ((8 * degrees + 3) / (8 * degrees + 1)) ** 2 / degrees
    of_repeats = np.maximum(of_repeats, 1e-18)
    u = np.minimum(np.log1p(squared / (of_repeats * degrees)) / slope, squared / of_images)
    for _ in range(STEPS):
        grown = np.expm1(slope * u)
        excess = of_repeats * degrees * grown + of_images * u - squared
        u = u - excess / (of_repeats * degrees * slope * (grown + 1) + of_images)
    statistic: np.ndarray = np.sqrt(np.maximum(u, 0.0))
    return statistic


def variance_components(
    contrasts: Sequence[Mapping[str, float]], moments: RepeatMoments, seed_variances: Mapping[str, float]
) -> Components:
    """Return where the variance of contrasts comes from, averages over them.

    Args:
        contrasts: arm -> weight.
        moments: of the arms.
        seed_variances: arm -> variance of a repeat's accuracy that is due to its seeds; NaN with one seed per repeat.
    """
    weights_CA = moments.weights(contrasts)
    of_repeats, images = (float(part_C.mean()) for part_C in moments.variance_parts(weights_CA))
    seeds = float((weights_CA**2 @ np.array([seed_variances[arm] for arm in moments.arms])).mean()) / moments.repeats
    if np.isnan(seeds):
        return Components(None, of_repeats, images)
    return Components(min(seeds, of_repeats), max(of_repeats - seeds, 0.0), images)
