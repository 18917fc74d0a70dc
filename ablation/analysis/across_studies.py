"""One question asked of several data sets or networks: each study's answer, and what holds of others like them.

Studies are taken as a sample of those that could have been made. A difference of two levels varies between them by its
own standard error and by a standard deviation tau (a random-effects model). tau is estimated by Paule and Mandel
(1982), and the mean has the interval of Hartung and Knapp (2001) on k - 1 degrees of freedom, never narrower than that
of the plain model (Röver, Knapp and Friede, 2015): with few studies, others are too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.results import StudyResult
from ablation.analysis.statistics import ALPHA, Estimate
from ablation.base.errors import InputError
from ablation.spec.objective import ACCURACY, Objective

FEWEST_STUDIES = 3  # for an interval: two say next to nothing of how much studies differ


@dataclass(frozen=True)
class MeanDifference:
    """Mean objective (test images) of `first` minus that of `second`, two levels of a factor, over several studies.

    Attributes:
        factor: its name.
        first: the label of a level.
        second: another's.
        of_studies: study -> its difference, a fraction; only those that have it with a standard error.
        mean: over studies, with its 95 % interval and a p-value corrected by Holm's method for all differences; a
            value alone below `FEWEST_STUDIES`.
        spread: tau, the standard deviation of the true differences between studies; None below `FEWEST_STUDIES`.
    """

    factor: str
    first: str
    second: str
    of_studies: dict[str, float]
    mean: Estimate
    spread: float | None
    objective: Objective = ACCURACY

    @property
    def wins(self) -> int:
        """In how many of the studies `first` is ahead."""
        return sum(self.objective.sign * value > 0 for value in self.of_studies.values())

    @property
    def losses(self) -> int:
        """In how many of the studies `second` is ahead."""
        return sum(self.objective.sign * value < 0 for value in self.of_studies.values())

    @property
    def is_shown(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.mean.is_shown


@dataclass(frozen=True)
class ArmAcross:
    """An arm over several studies: its mean objective (test images) in each that confirmed it; where it is ahead."""

    name: str
    values: dict[str, float]
    best_in: list[str]

    @property
    def mean(self) -> float:
        """The mean of its values."""
        return float(np.mean(list(self.values.values())))


def check_same_question(results: Sequence[StudyResult]) -> None:
    """Refuse studies that do not compare the same levels.

    Raises:
        InputError: names two studies, and the factor in which they differ.
    """
    first = results[0].spec
    for other in (result.spec for result in results[1:]):
        if first.objective != other.objective:
            raise InputError(
                f"{first.name} and {other.name} cannot be compared: their objectives are {first.objective} and "
                f"{other.objective}"
            )
        levels, others = first.compared_levels(), other.compared_levels()
        for factor in dict.fromkeys([*levels, *others]):
            here, there = (set(map(str, of.get(factor, []))) for of in (levels, others))
            if here != there:
                missing = ", ".join(sorted(here ^ there))
                raise InputError(
                    f"{first.name} and {other.name} cannot be compared: only one of them has {factor} = {missing}"
                )


def differences_across(analyses: Sequence[StudyAnalysis]) -> list[MeanDifference]:
    """Return the differences that at least two studies have, in the order of the first study.

    Args:
        analyses: of studies of the same question.
    """
    found: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for analysis in analyses:
        for factor in analysis.factors:
            for difference in factor.family:
                key, estimate = (factor.factor, difference.first, difference.second), difference.estimate
                if (factor.factor, difference.second, difference.first) in found:  # a study leads with the other level
                    key = (factor.factor, difference.second, difference.first)
                    estimate = Estimate(-estimate.value, estimate.standard_error)
                if estimate.standard_error:
                    found.setdefault(key, {})[analysis.result.spec.name] = estimate
    common = {key: of_studies for key, of_studies in found.items() if len(of_studies) > 1}
    means = [_mean(list(of_studies.values())) for of_studies in common.values()]
    ps = [mean.p for mean, _ in means if mean.p is not None]
    corrected = iter(multipletests(ps, method="holm")[1].tolist() if ps else [])
    return [
        MeanDifference(
            *key,
            {study: estimate.value for study, estimate in of_studies.items()},
            mean if mean.p is None else replace(mean, p=next(corrected)),
            spread,
            analyses[0].result.spec.goal,
        )
        for (key, of_studies), (mean, spread) in zip(common.items(), means, strict=True)
    ]


def arms_across(analyses: Sequence[StudyAnalysis]) -> list[ArmAcross]:
    """Return the arms that every study has confirmed, from the best mean to the worst."""
    values: dict[str, dict[str, float]] = {}
    goal = analyses[0].result.spec.goal
    for analysis in analyses:
        for arm in analysis.arms:
            if arm.test is not None:
                values.setdefault(arm.name, {})[analysis.result.spec.name] = arm.test.mean
    complete = {arm: of_studies for arm, of_studies in values.items() if len(of_studies) == len(analyses)}
    best = {
        analysis.result.spec.name: goal.best(of[analysis.result.spec.name] for of in complete.values())
        for analysis in analyses
        if complete
    }
    arms = [
        ArmAcross(name, of_studies, [study for study, value in of_studies.items() if value == best[study]])
        for name, of_studies in complete.items()
    ]
    return sorted(arms, key=lambda arm: -goal.goodness(arm.mean))


def _mean(estimates: Sequence[Estimate]) -> tuple[Estimate, float | None]:
    """Return the mean of studies' differences with its 95 % interval and p, and the spread between studies."""
    values_K = np.array([estimate.value for estimate in estimates])
    variances_K = np.array([(estimate.standard_error or 0) ** 2 for estimate in estimates])
    if len(values_K) < FEWEST_STUDIES:
        return Estimate(float(values_K.mean())), None
    pooled = combine_effects(values_K, variances_K, method_re="iterated")
    error = max(float(pooled.sd_eff_w_re), float(pooled.sd_eff_w_re_hksj))
    value, freedom = float(pooled.mean_effect_re), len(values_K) - 1
    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, freedom))
    return Estimate(value, error, freedom, value - half, value + half, p), float(pooled.tau2) ** 0.5
