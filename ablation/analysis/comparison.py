"""Levels and their differences, interactions: all tested together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ablation.analysis.contrasts import (
    Comparison,
    CrossComparison,
    LabelPairs,
    Place,
    comparisons_at,
    interactions,
    label_pairs,
    level_comparisons,
    level_label,
    other_labels,
    pivots,
    places,
)
from ablation.analysis.estimator import OVER_SEEDS, Correct, Estimator
from ablation.analysis.power import REPEAT_SIZES, SIZES, smallest_differences, smallest_over_repeats
from ablation.analysis.repeats import RepeatMoments
from ablation.analysis.results import StudyResult
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.statistics import Estimate
from ablation.spec.arms import differing_parameters
from ablation.spec.objective import ACCURACY, Objective


@dataclass(frozen=True)
class LevelMean:
    """The mean objective (test images) of the arms that have a level, each with the same weight, over seeds and images.

    `estimate` is None where none of them is confirmed; `missing` are those that are not, `arms` the number of the rest.
    """

    label: str
    estimate: Estimate | None
    arms: int
    seeds: tuple[int, int]
    missing: list[str]


@dataclass(frozen=True)
class Difference:
    """Mean of the objective (test images) of `first` minus that of `second`, two levels of a factor.

    Attributes:
        first: the label of a level.
        second: another's.
        estimate: the difference with its simultaneous interval and corrected p; a value alone where it is not tested.
        seeds: the smallest and the largest number of seeds of the compared arms.
        arms: how many arms of each side are compared.
        at: the label of the level of another factor that all these arms have; None for an average.
        unit: what is counted in `seeds`: seeds, or tunings of pooled studies.
        objective: what is compared.
    """

    first: str
    second: str
    estimate: Estimate
    seeds: tuple[int, int]
    arms: int
    at: str | None = None
    unit: str = "seed"
    objective: Objective = ACCURACY

    @property
    def is_tested(self) -> bool:
        """Whether there are seeds enough for a test."""
        return self.estimate.p is not None

    @property
    def lacks_seeds(self) -> bool:
        """Whether an arm has too few seeds for a test; what has enough is untested on a single image or group alone."""
        return self.seeds[0] < FEWEST_SEEDS

    @property
    def is_shown(self) -> bool:
        """Whether the simultaneous interval excludes zero."""
        return self.estimate.is_shown

    @property
    def loser(self) -> str:
        """The label of the level that is not better."""
        return self.second if self.gain > 0 else self.first

    @property
    def gain(self) -> float:
        """How much better the first is; negative where it is worse."""
        return self.objective.sign * self.estimate.value

    @property
    def bound(self) -> float:
        """The largest difference, in either direction, that the interval allows, as a fraction."""
        assert self.estimate.low is not None
        assert self.estimate.high is not None
        return max(-self.estimate.low, self.estimate.high)

    def equivalence(self, margin: float) -> str:
        """Return 'equivalent', 'not equivalent' or 'undecided', for a margin as a fraction.

        Equivalent: two one-sided tests (Schuirmann, 1987), each at 2.5 % for all differences together, so that the
        interval lies within the margin. Not equivalent: the interval lies outside of it.
        """
        if self.estimate.low is None or self.estimate.high is None:
            return "undecided"
        if self.bound < margin:
            return "equivalent"
        is_outside = self.estimate.low > margin or self.estimate.high < -margin
        return "not equivalent" if is_outside else "undecided"


@dataclass(frozen=True)
class FactorAnalysis:
    """A factor's levels and their differences; of a study with [[arms]], the arms are the levels of a factor `arm`.

    Attributes:
        factor: its name.
        control: the label of the level that a control is declared to be; None without one.
        pivot: the label of the level that the others are compared with; None where all pairs are compared.
        levels: in the study's order.
        family: the differences; pairs that cannot be compared are left out.
        not_compared: the reason for each of these pairs.
        partial: the differences over fewer combinations than the study has, and their combinations.
        ahead: the label of the level with the best mean on the test images, over the combinations of the other factors
            that all levels have, or over all where there are none; where another is shown to be better, because they
            were compared over other combinations, the one of `least_beaten`.
        confounded: the pairs of [[arms]] in the family that differ in several parameters, and these parameters.
        by_level: other factor -> the differences at each of its levels, where an interaction with it is shown.
        objective: what is compared.
    """

    factor: str
    control: str | None
    pivot: str | None
    levels: list[LevelMean]
    family: list[Difference]
    not_compared: list[str]
    partial: list[str]
    ahead: str | None
    confounded: dict[tuple[str, str], list[str]]
    by_level: dict[str, list[Difference]] = field(default_factory=dict)
    objective: Objective = ACCURACY

    @property
    def at_levels(self) -> list[Difference]:
        """The differences in `by_level`, of all other factors."""
        return [difference for differences in self.by_level.values() for difference in differences]


@dataclass(frozen=True)
class Interaction:
    """How much the difference between two levels of one factor depends on the level of the other.

    (`first` minus `first_base` at `second`) minus (the same at `second_base`), of the objective on the test images.
    """

    factors: tuple[str, str]
    first: str
    first_base: str
    second: str
    second_base: str
    estimate: Estimate
    seeds: tuple[int, int]

    @property
    def is_shown(self) -> bool:
        """Whether the simultaneous interval excludes zero."""
        return self.estimate.is_shown


@dataclass(frozen=True)
class Comparisons:
    """All that is compared in a study.

    Attributes:
        factors: one by one.
        interactions: of each two factors.
        interaction_missing: a line for each interaction that lacks an arm.
        contrasts: arm -> weight of all differences and interactions that are tested together.
        typical: factor -> the number of its difference of median precision among them.
        correct: the confirmed arms.
        estimator: of all of them.
    """

    factors: list[FactorAnalysis]
    interactions: list[Interaction]
    interaction_missing: list[str]
    contrasts: list[dict[str, float]]
    typical: dict[str, int]
    correct: Correct
    estimator: Estimator

    @property
    def tested_together(self) -> int:
        """How many differences and interactions are tested together."""
        return len(self.contrasts)


def compare(result: StudyResult, correct: Correct, estimator: Estimator = OVER_SEEDS) -> Comparisons:
    """Return the differences between levels, and interactions, of a study.

    Differences of all factors and interactions are one family, so that the chance of any false declaration is 5 %.
    Where an interaction is shown, averages over the other factor say little; the differences at each of its levels
    are then tested, all together, as a second family.

    Args:
        result: the study.
        correct: its confirmed arms.
        estimator: of the differences.
    """
    all_places, usable = places(result.spec), estimator.usable(correct)
    tested, confirmed = ({arm: all_places[arm] for arm in of_arms} for of_arms in (usable, correct))
    pivot_of, pairs = compared_pairs(result)
    comparisons = level_comparisons(tested, pairs)
    crossed, missing = interactions(tested, pairs)
    contrasts = [c.weights for c in comparisons] + [c.weights for c in crossed]
    estimates = estimator.simultaneous(contrasts, usable)
    of_levels, of_interactions = estimates[: len(comparisons)], estimates[len(comparisons) :]
    found = {(c.factor, c.first, c.second): (c, estimate) for c, estimate in zip(comparisons, of_levels, strict=True)}
    for c in level_comparisons(confirmed, pairs):
        if (c.factor, c.first, c.second) not in found:  # too few seeds: a value and no more
            value = estimator.contrast(c.weights, correct).value
            found[c.factor, c.first, c.second] = (c, Estimate(value))
    crossings = [_interaction(c, estimate, correct) for c, estimate in zip(crossed, of_interactions, strict=True)]
    by_level = _at_levels(tested, pairs, [i.factors for i in crossings if i.is_shown], usable, estimator)
    is_single = not usable and any(len(y_SN) >= FEWEST_SEEDS for y_SN in correct.values())
    too_few = f"an arm lacks {FEWEST_SEEDS} {estimator.unit}s"
    lacking = "nothing is tested on a single image or group" if is_single else too_few
    factors = []
    for factor, labels in pairs.items():
        of_factor = {of_pair: found.get((factor, *of_pair)) for of_pair in labels}
        analysis = _analyse_factor(result, factor, pivot_of.get(factor), of_factor, correct, estimator)
        factors.append(replace(analysis, by_level=by_level.get(factor, {})))
    return Comparisons(
        factors=factors,
        interactions=crossings,
        interaction_missing=[f"{first} with {second}: {lacking}" for first, second in missing],
        contrasts=contrasts,
        typical=_typical(comparisons, estimates),
        correct=correct,
        estimator=estimator,
    )


def _typical(comparisons: list[Comparison], estimates: list[Estimate]) -> dict[str, int]:
    """Return factor -> the number of its difference of median precision."""
    typical = {}
    for factor in dict.fromkeys(c.factor for c in comparisons):
        numbers = [number for number, c in enumerate(comparisons) if c.factor == factor]
        ranked = sorted(numbers, key=lambda number: estimates[number].standard_error or 0.0)
        typical[factor] = ranked[len(ranked) // 2]
    return typical


def findable_differences(compared: Comparisons) -> dict[str, list[float]]:
    """Return factor -> the smallest true difference that studies of each size would find at the same level, fractions.

    The sizes are `power.SIZES`, or `power.REPEAT_SIZES` where the repeat is the unit. Of a factor's differences, the
    one of median precision stands for all.
    """
    if not compared.typical:
        return {}
    used = {arm for weights in compared.contrasts for arm in weights}
    moments = compared.estimator.moments({arm: y_SN for arm, y_SN in compared.correct.items() if arm in used})
    weights_CA = moments.weights(compared.contrasts)
    wanted, level = list(compared.typical.values()), compared.estimator.level
    if isinstance(moments, RepeatMoments):
        sizes = [
            smallest_over_repeats(weights_CA, replace(moments, repeats=size * moments.repeats), wanted, level)
            for size in REPEAT_SIZES.values()
        ]
    else:
        sizes = [smallest_differences(weights_CA, moments.resized(*size), wanted, level) for size in SIZES.values()]
    return {factor: [size[n] for size in sizes] for n, factor in enumerate(compared.typical)}


def _at_levels(
    tested: Mapping[str, Place],
    pairs: LabelPairs,
    shown: Iterable[tuple[str, str]],
    usable: Correct,
    estimator: Estimator,
) -> dict[str, dict[str, list[Difference]]]:
    """Return factor -> other factor -> the differences at each level of the other, where an interaction is shown."""
    both = [order for factors in dict.fromkeys(shown) for order in (factors, factors[::-1])]
    of_each = {order: comparisons_at(tested, pairs, [order]) for order in both}
    estimates = iter(estimator.simultaneous([c.weights for each in of_each.values() for c in each], usable))
    by_level: dict[str, dict[str, list[Difference]]] = {}
    for (factor, other), each in of_each.items():
        differences = [_difference(c, next(estimates), usable, estimator) for c in each]
        by_level.setdefault(factor, {})[other] = differences
    return by_level


def _difference(comparison: Comparison, estimate: Estimate, correct: Correct, estimator: Estimator) -> Difference:
    return Difference(
        first=comparison.first,
        second=comparison.second,
        estimate=estimate,
        seeds=_seeds(correct, list(comparison.weights)),
        arms=len(comparison.pairs),
        at=comparison.at,
        unit=estimator.unit,
        objective=estimator.objective,
    )


def _interaction(crossed: CrossComparison, estimate: Estimate, correct: Correct) -> Interaction:
    labels = (crossed.first, crossed.first_base, crossed.second, crossed.second_base)
    return Interaction(crossed.factors, *labels, estimate, _seeds(correct, list(crossed.weights)))


def _analyse_factor(
    result: StudyResult,
    factor: str,
    pivot: str | None,
    found: Mapping[tuple[str, str], tuple[Comparison, Estimate] | None],
    correct: Correct,
    estimator: Estimator,
) -> FactorAnalysis:
    """Return the analysis of a factor.

    Args:
        result: the study.
        factor: its name.
        pivot: the label that others are compared with; None for all pairs.
        found: each pair of labels that is compared, None where no arms differ in nothing else.
        correct: the study's confirmed arms.
        estimator: of the differences.
    """
    levels = result.spec.compared_levels()[factor]
    combinations = len(result.arms) // len(levels)
    family, not_compared, partial = [], [], []
    for (first, second), compared in found.items():
        if compared is None:
            not_compared.append(f"{first} and {second}: no combination of the other factors is confirmed for both")
            continue
        comparison, estimate = compared
        count = len(comparison.pairs)
        if count < combinations:
            where = "; ".join(f"{a} against {b}" for a, b in comparison.pairs)
            partial.append(f"{first} and {second}: over {count} of {combinations} combinations ({where})")
        family.append(_difference(comparison, estimate, correct, estimator))
    means = {name: estimator.objective.sign * float(y_SN.mean()) for name, y_SN in correct.items()}
    ahead = _leading(result, factor, means)
    if any(difference.is_shown and difference.loser == ahead for difference in family):
        ahead = least_beaten(family)  # levels that no combination has in common: the best mean is of easier ones
    return FactorAnalysis(
        factor=factor,
        control=pivot if factor in result.spec.confirm.control else None,
        pivot=pivot,
        levels=[_level_mean(result, factor, level_label(factor, level), correct, estimator) for level in levels],
        family=family,
        not_compared=not_compared,
        partial=partial,
        ahead=ahead,
        confounded=_confounded(result, family) if result.spec.arms else {},
        objective=estimator.objective,
    )


def least_beaten(differences: Sequence[Difference]) -> str:
    """Return the label that no difference puts below another, or the first that fewest do."""
    losses = dict.fromkeys((label for d in differences for label in (d.first, d.second)), 0)
    for difference in differences:
        losses[difference.loser] += 1
    return min(losses, key=lambda label: losses[label])


def compared_pairs(result: StudyResult) -> tuple[dict[str, str], LabelPairs]:
    """Return the levels that others of their factor are compared with, by factor, and the pairs that are compared."""
    spec = result.spec
    pivot_of = pivots(spec, {factor: tuning_leader(result, factor) for factor in spec.compared_levels()})
    return pivot_of, label_pairs(spec, pivot_of)


def tuning_leader(result: StudyResult, factor: str) -> str | None:
    """Return the label of the level with the best validation value of the tuned trials, the mean over its arms.

    No confirmation run plays a part, so that comparisons with this level are free of the luck that chose it.
    """
    return _leading(result, factor, {arm.arm.name: arm.best.goodness for arm in result.arms if arm.best is not None})


def _leading(result: StudyResult, factor: str, values: Mapping[str, float]) -> str | None:
    """Return the label of a factor with the highest mean of its arms' values, the first of equals.

    The mean is over the combinations of the other factors that all labels have, or over all where there are none.
    """
    by_label: dict[str, dict[tuple[str, ...], float]] = {}  # label -> combination of the other factors -> value
    for arm, place in places(result.spec).items():
        if arm in values:
            by_label.setdefault(place[factor], {})[other_labels(place, factor)] = values[arm]
    shared = set.intersection(*map(set, by_label.values())) if by_label else set()

    def mean(label: str) -> float:
        return float(np.mean([value for others, value in by_label[label].items() if others in shared or not shared]))

    return max(by_label, key=mean, default=None)


def _confounded(result: StudyResult, family: list[Difference]) -> dict[tuple[str, str], list[str]]:
    """Return the pairs of [[arms]] that differ in several parameters, and these parameters."""
    by_name = {arm.arm.name: arm.arm for arm in result.arms}
    parameters = {
        (pair.first, pair.second): differing_parameters(result.spec, by_name[pair.first], by_name[pair.second])
        for pair in family
    }
    return {pair: names for pair, names in parameters.items() if len(names) > 1}


def _level_mean(result: StudyResult, factor: str, label: str, correct: Correct, estimator: Estimator) -> LevelMean:
    arms = [arm for arm, place in places(result.spec).items() if place[factor] == label]
    names = [arm for arm in arms if arm in correct]
    estimate = estimator.contrast({name: 1 / len(names) for name in names}, correct) if names else None
    return LevelMean(label, estimate, len(names), _seeds(correct, names), [arm for arm in arms if arm not in correct])


def _seeds(correct: Correct, names: Sequence[str]) -> tuple[int, int]:
    counts = [len(correct[name]) for name in names] or [0]
    return min(counts), max(counts)
