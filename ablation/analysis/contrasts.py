"""What a study compares, from its file alone: pairs of levels, interactions, effects at a level.

An arm's *place* is its label in each factor, such as {"truncate_at": "block3", "strategy": "fine_tune_all"}; arms are
compared that differ in one factor alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ablation.spec.arms import arms
from ablation.spec.study import StudySpec

Place = dict[str, str]
LabelPairs = dict[str, list[tuple[str, str]]]  # factor -> pairs of its levels that are compared


@dataclass(frozen=True)
class Comparison:
    """The difference between two levels of a factor: the mean over pairs of arms that differ in nothing else.

    Attributes:
        factor: its name.
        first: the label of the level that is counted as positive.
        second: that of the other.
        pairs: the names of the arms of each pair.
        at: the label of the level of another factor that all of these arms have; None where they have any.
    """

    factor: str
    first: str
    second: str
    pairs: tuple[tuple[str, str], ...]
    at: str | None = None

    @property
    def weights(self) -> dict[str, float]:
        """The contrast: arm -> weight."""
        weights = {first: 1 / len(self.pairs) for first, _ in self.pairs}
        return weights | {second: -1 / len(self.pairs) for _, second in self.pairs}


@dataclass(frozen=True)
class CrossComparison:
    """An interaction: how much the difference between two levels of a factor depends on the level of another.

    (`first` minus `first_base` at `second`) minus (the same at `second_base`); `factors` are the two.
    """

    factors: tuple[str, str]
    first: str
    first_base: str
    second: str
    second_base: str
    weights: dict[str, float]


def level_label(factor: str, level: Any) -> str:
    """Return a level's label: a number with its factor, as in the names of arms."""
    return level if isinstance(level, str) else f"{factor}={level}"


def places(spec: StudySpec) -> dict[str, Place]:
    """Return the place of each arm, by its name."""
    return {
        arm.name: {factor: level_label(factor, level) for factor, level in arm.compared_levels.items()}
        for arm in arms(spec)
    }


def pivots(spec: StudySpec, leaders: Mapping[str, str | None]) -> dict[str, str]:
    """Return the label of the level that all others of a factor are compared with, for factors that have one.

    Args:
        spec: the study.
        leaders: factor -> the level that leads in tuning, which `confirm.compare = "leader"` asks for.
    """
    levels = spec.compared_levels()
    # The level as the factor has it: a control of 0 is the level 0.0.
    named = {f: level_label(f, levels[f][levels[f].index(level)]) for f, level in spec.confirm.control.items()}
    if spec.confirm.compare == "leader":
        named = {factor: leader for factor, leader in leaders.items() if leader is not None} | named
    return named


def label_pairs(spec: StudySpec, pivot_of: Mapping[str, str]) -> LabelPairs:
    """Return the pairs of levels that the study compares: every level against the pivot, or all pairs."""
    pairs: LabelPairs = {}
    for factor, levels in spec.compared_levels().items():
        labels = [level_label(factor, level) for level in levels]
        pivot = pivot_of.get(factor)
        pairs[factor] = (
            [(label, pivot) for label in labels if label != pivot] if pivot else list(combinations(labels, 2))
        )
    return pairs


def matched_pairs(
    place_of: Mapping[str, Place], factor: str, labels: tuple[str, str], at: tuple[str, str] | None = None
) -> tuple[tuple[str, str], ...]:
    """Return the arms with the first and with the second level of a factor that differ in nothing else.

    Args:
        place_of: the arms that may be compared.
        factor: its name.
        labels: of the two levels.
        at: another factor, and the label of its level that both arms must have.
    """
    sides: list[dict[tuple[str, ...], str]] = [
        {
            other_labels(place, factor): arm
            for arm, place in place_of.items()
            if place[factor] == label and (at is None or place[at[0]] == at[1])
        }
        for label in labels
    ]
    return tuple((sides[0][others], sides[1][others]) for others in sides[0] if others in sides[1])


def level_comparisons(place_of: Mapping[str, Place], pairs: LabelPairs) -> list[Comparison]:
    """Return the comparisons of levels for which arms exist, averaged over the other factors."""
    found = [
        Comparison(factor, *labels, matched_pairs(place_of, factor, labels))
        for factor, of_factor in pairs.items()
        for labels in of_factor
    ]
    return [comparison for comparison in found if comparison.pairs]


def comparisons_at(
    place_of: Mapping[str, Place], pairs: LabelPairs, factors: Collection[tuple[str, str]]
) -> list[Comparison]:
    """Return the comparisons of a factor's levels at each level of another.

    Args:
        place_of: the arms that may be compared.
        pairs: the pairs of levels.
        factors: a factor, and the other one.
    """
    found = []
    for factor, other in factors:
        labels_of_other = dict.fromkeys(place[other] for place in place_of.values())
        found += [
            Comparison(factor, *labels, matched_pairs(place_of, factor, labels, (other, at)), at)
            for at in labels_of_other
            for labels in pairs[factor]
        ]
    return [comparison for comparison in found if comparison.pairs]


def interactions(
    place_of: Mapping[str, Place], pairs: LabelPairs
) -> tuple[list[CrossComparison], list[tuple[str, str]]]:
    """Return the interactions of each two factors, averaged over the other factors.

    Returns:
        The interactions, and for those without arms the pairs of levels, as text.
    """
    found: list[CrossComparison] = []
    missing: list[tuple[str, str]] = []
    for first_factor, second_factor in combinations(pairs, 2):
        for first_pair in pairs[first_factor]:
            for second_pair in pairs[second_factor]:
                sides = [
                    {other_labels(place_of[pair[0]], first_factor, second_factor): pair for pair in matched}
                    for matched in (
                        matched_pairs(place_of, first_factor, first_pair, (second_factor, at)) for at in second_pair
                    )
                ]
                shared = [others for others in sides[0] if others in sides[1]]
                if not shared:
                    missing.append((" and ".join(first_pair), " and ".join(second_pair)))
                    continue
                weights: dict[str, float] = {}
                for others in shared:
                    for sign, side in ((1, sides[0]), (-1, sides[1])):
                        first, base = side[others]
                        weights |= {first: sign / len(shared), base: -sign / len(shared)}
                found.append(CrossComparison((first_factor, second_factor), *first_pair, *second_pair, weights))
    return found, missing


def other_labels(place: Place, *factors: str) -> tuple[str, ...]:
    """Return the labels of a place but those of the given factors."""
    return tuple(label for name, label in place.items() if name not in factors)
