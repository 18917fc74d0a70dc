"""How contrasts are estimated: over seeds or over repeats, alone, tested together, or compared with the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ablation.analysis.best_arms import FromBest, compared_with_best
from ablation.analysis.repeats import RepeatMoments, repeat_moments
from ablation.analysis.seeds import Moments, seed_moments
from ablation.analysis.simultaneous import DRAWS, FEWEST_SEEDS, largest_statistics, simultaneous_estimates
from ablation.analysis.statistics import ALPHA, Estimate
from ablation.spec.objective import ACCURACY, Objective

# Confirmed arm -> whether each run is right about each image, bool, S x N; of repeats, the share of its runs, R x N.
# Of another objective than accuracy: what each image contributes to it, float64, see `image_scores`.
Correct = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Estimator:
    """How contrasts are estimated.

    Attributes:
        unit: what is repeated, a row of `Correct`: a seed of one tuning, or the tuning itself.
        groups_N: what each test image belongs to, as numbers from 0; None for images that are independent.
        objective: what is estimated.
        level: chance of any false declaration among contrasts that are tested together.
    """

    unit: Literal["seed", "tuning"] = "seed"
    groups_N: np.ndarray | None = None
    objective: Objective = ACCURACY
    level: float = ALPHA

    def moments(self, correct: Correct) -> Moments | RepeatMoments:
        """Return the moments of arms."""
        of_unit = seed_moments if self.unit == "seed" else repeat_moments
        return of_unit(correct, self.groups_N, self.objective)

    def usable(self, correct: Correct) -> dict[str, np.ndarray]:
        """Return the arms that have seeds (or repeats) and images, or groups of them, enough to be tested."""
        if self.groups_N is not None and self.groups_N.max() == 0:  # a single group
            return {}
        return {arm: y_SN for arm, y_SN in correct.items() if len(y_SN) >= FEWEST_SEEDS and y_SN.shape[1] > 1}

    def contrast(self, weights: Mapping[str, float], correct: Correct) -> Estimate:
        """Return a weighted sum of the arms' means of the objective with its own 95 % interval.

        It has no interval if an arm has one seed only, or if there are fewer than three repeats, or one image or group.

        Args:
            weights: arm -> weight; arms with weight 0 are ignored. {"a": 1, "b": -1} is a minus b.
            correct: the arms, and others.
        """
        return self._alone(weights, correct, ALPHA)

    def simultaneous(
        self, contrasts: Sequence[Mapping[str, float]], correct: Correct, draws: int = DRAWS
    ) -> list[Estimate]:
        """Return contrasts with simultaneous 95 % intervals, and p-values that are corrected for their number.

        At another level than 5 %, as at one look of several, intervals miss with that chance, and p-values are
        multiplied so that 0.05 remains the limit. The chance that any of the intervals misses, and that any p-value of
        a true null hypothesis is below 0.05, is 5 %.
        Studies are simulated in which no contrast differs from 0 and variances and covariances, shared images included,
        are those estimated; each gets its own variance estimates. The largest statistic of each study is what the
        statistics found are compared with.

        Args:
            contrasts: arm -> weight, of usable arms.
            correct: the arms, and others.
            draws: simulated studies; (draws + 1) / 20 must be whole.
        """
        if len(contrasts) < 2:
            return [self._alone(weights, correct, self.level) for weights in contrasts]
        used = {arm for weights in contrasts for arm, weight in weights.items() if weight}
        moments = self.moments({arm: y_SN for arm, y_SN in correct.items() if arm in used})
        weights_CA = moments.weights(contrasts)
        return simultaneous_estimates(weights_CA, moments, largest_statistics(weights_CA, moments, draws), self.level)

    def chances_of_best(self, correct: Correct, draws: int = DRAWS) -> dict[str, float]:
        """Return, for each usable arm, the share of simulated studies in which its mean is the best.

        Each study draws the arms' means from their estimates. Empty below two usable arms.
        """
        usable = self.usable(correct)
        if len(usable) < 2:
            return {}
        moments, counts_A = self.moments(usable), np.zeros(len(usable), int)
        for error_BA in moments.simulated_errors(draws):
            counts_A += np.bincount((moments.goodness_A + error_BA).argmax(axis=1), minlength=len(usable))
        return dict(zip(moments.arms, (counts_A / draws).tolist(), strict=True))

    def from_best(self, correct: Correct, draws: int = DRAWS) -> dict[str, FromBest]:
        """Return how far each usable arm is from the best other one; empty below two of them."""
        usable = self.usable(correct)
        return compared_with_best(self.moments(usable), draws, self.level) if len(usable) > 1 else {}

    def _alone(self, weights: Mapping[str, float], correct: Correct, level: float) -> Estimate:
        moments = self.moments({arm: correct[arm] for arm, weight in weights.items() if weight})
        weights_CA = moments.weights([weights])
        if not moments.has_variance:
            return Estimate(float(weights_CA[0] @ moments.means_A))
        return moments.alone(weights_CA, level)


OVER_SEEDS = Estimator()
