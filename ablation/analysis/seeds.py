"""Contrasts over the seeds of one tuning, given the configurations that it chose.

A confirmation run is right or wrong about each test image: y[arm, seed, image] = accuracy(arm) + seed effect + image
effect(arm) + residual. Seeds are the runs' own; the images are the same for all arms, so that an image's difficulty
for all of them cancels out of a difference. Both are samples: another seed, or other images, would give other results.

Legend: A arms, B simulated studies, C contrasts, S seeds (may differ between arms), N test images, G groups of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ablation.analysis.simultaneous import SEED, at_level, chunks, covariance_root, from_normal_scale, normal_scale
from ablation.analysis.statistics import (
    Estimate,
    Means,
    carrying_units,
    estimate,
    exact_test,
    group_sums,
    image_covariance,
    image_step,
    variances,
)
from ablation.base.errors import InputError
from ablation.spec.objective import ACCURACY, Objective


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
        """Whether there are two seeds and two images."""
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

    def errors(self, weights_CA: np.ndarray, variance_BA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the variance of each contrast, and its degrees of freedom (Satterthwaite, 1946), both B x C.

        The seeds' part is the sum of w² s² / S; the images' part is the variance over images of the contrast's mean
        over seeds, less the residual's share of it, which s² contains already; 0 if that is negative. Degrees of
        freedom are S - 1 for each arm's part, N - 1 for the images' and for an arm whose variance is its smallest
        plausible one, which the images tell (G - 1 with groups). The variance is at least that of a single image in N
        on which the arms differ, since N images on which they do not differ cannot show that they never do; this is
        the weight that Agresti and Min (2005) give to such images. Where images count unequally, `carrying_units` take
        the place of N.

        Args:
            weights_CA: the contrasts.
            variance_BA: B times the variances over seeds of the arms.
        """
        N, units_C = self.units, carrying_units(weights_CA, self)
        by_seed_BA = variance_BA / self.seeds_A
        images_C = np.maximum(variances(weights_CA, self.images_AA), 0.0)
        variance_BC = by_seed_BA @ (weights_CA**2).T + images_C
        degrees_BA = np.where(variance_BA <= self.least_A, N - 1, self.seeds_A - 1)
        spread_BC = (by_seed_BA**2 / degrees_BA) @ (weights_CA**4).T + images_C**2 / (units_C - 1)
        least_C = self.least_variance(weights_CA)
        degrees_BC = np.where(variance_BC < least_C, units_C - 1, variance_BC**2 / spread_BC)
        return np.maximum(variance_BC, least_C), degrees_BC

    def alone(self, weights_CA: np.ndarray, level: float) -> Estimate:
        """Return a contrast with its own t interval."""
        ((variance,),), ((degrees,),) = self.errors(weights_CA, self.variance_A[None])
        exact, errors_1 = exact_test(weights_CA[0], self, level), (float(np.sqrt(variance)), float(degrees))
        return at_level(estimate(weights_CA[0], self, errors_1, exact, level=level), level)

    def spread(self, weights_CA: np.ndarray, deviate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return errors, degrees of freedom, margins and statistics by the t distribution."""
        (variance_C,), (degrees_C,) = self.errors(weights_CA, self.variance_A[None])
        errors_C = np.sqrt(variance_C)
        statistics_C = normal_scale((weights_CA @ self.means_A / errors_C) ** 2, degrees_C)
        return errors_C, degrees_C, from_normal_scale(deviate, degrees_C), statistics_C

    def signed_statistics(self, weights_CA: np.ndarray, draws: int) -> Iterator[np.ndarray]:
        """Yield statistics whose variances and degrees of freedom are estimated anew in each simulated study."""
        (variance_C,), _ = self.errors(weights_CA, self.variance_A[None])
        simulated_C = (weights_CA**2) @ (self.variance_A / self.seeds_A)
        simulated_C += ((weights_CA @ covariance_root(self.images_AA)) ** 2).sum(axis=1)
        scale_C = variance_C / simulated_C  # so that each contrast's simulated variance is the one that it is given
        for error_BA, variance_BA in self.simulated(draws, len(weights_CA)):
            variance_BC, degrees_BC = self.errors(weights_CA, variance_BA)
            errors_BC = error_BA @ weights_CA.T
            yield np.copysign(normal_scale(errors_BC**2 * scale_C / variance_BC, degrees_BC), errors_BC)

    def simulated_errors(self, draws: int) -> Iterator[np.ndarray]:
        """Yield errors that have the t distribution of each arm's degrees of freedom."""
        for error_BA, variance_BA in self.simulated(draws):
            yield error_BA * np.sqrt(self.variance_A / variance_BA)

    def simulated(self, draws: int, contrasts: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield errors of the arms' means and estimates of their variances over seeds, both B x A, a chunk at a time.

        Args:
            draws: simulated studies.
            contrasts: how many statistics of each study are computed.
        """
        random = np.random.default_rng(SEED)
        root_AA = covariance_root(self.images_AA)
        A, degrees_A = len(self.arms), self.seeds_A - 1
        for B in chunks(draws, contrasts):
            of_seeds_BA = random.standard_normal((B, A)) * np.sqrt(self.variance_A / self.seeds_A)
            of_images_BA = random.standard_normal((B, A)) @ root_AA.T
            drawn_BA = self.variance_A * random.chisquare(degrees_A, (B, A)) / degrees_A
            yield of_seeds_BA + of_images_BA, np.maximum(drawn_BA, self.least_A)


def seed_moments(
    correct: Mapping[str, np.ndarray], groups_N: np.ndarray | None = None, objective: Objective = ACCURACY
) -> Moments:
    """Return the moments of arms over seeds.

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
    of_seeds, residuals = [], []
    for y_SN, mean, image_mean_N in zip(correct.values(), means_A, image_means_AN, strict=True):
        S = len(y_SN)
        # The two-way table without replication. Correct counts 1, so the mean is the mean of squares, too.
        seed_squares = N * _sum_of_squares(y_SN.mean(axis=1))
        all_squares = S * N * mean * (1 - mean) if objective.counts_images else _sum_of_squares(y_SN)
        residual_squares = all_squares - seed_squares - S * _sum_of_squares(image_mean_N)
        of_seeds.append(seed_squares / N / (S - 1) if S > 1 else np.nan)
        if groups_N is None:
            residuals.append(max(residual_squares, 0.0) / max((S - 1) * (N - 1), 1) / N)
        else:
            rest_SN = y_SN - y_SN.mean(axis=1, keepdims=True) - image_mean_N + mean
            residuals.append(float(image_covariance(rest_SN, groups_N).trace()) / max(S - 1, 1))
    residual_A = np.array(residuals)
    centred_AN = image_means_AN - means_A[:, None]
    sums_AU = group_sums(image_means_AN if objective.counts_images else centred_AN, groups_N)
    moments = Moments(
        arms=tuple(correct),
        means_A=means_A,
        sums_AU=sums_AU,
        images=N,
        units=sums_AU.shape[1],
        seeds_A=seeds_A,
        variance_A=np.array(of_seeds),
        residual_A=residual_A,
        images_AA=image_covariance(centred_AN, groups_N) - np.diag(residual_A / seeds_A),
        objective=objective,
        step=image_step(correct, objective),
    )
    return replace(moments, variance_A=np.maximum(moments.variance_A, moments.least_A))


def _sum_of_squares(x: np.ndarray) -> float:
    return float(((x - x.mean()) ** 2).sum())
