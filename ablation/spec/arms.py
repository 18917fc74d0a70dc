"""The arms of a study, and which of them gets the next trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.spec.parameters import Hyperparameters, levels_name
from ablation.spec.study import StudySpec


@dataclass(frozen=True)
class Arm:
    """One combination of factor levels, or one of [[arms]].

    Attributes:
        name: consists of the levels; a number stands with its factor: `block3,fine_tune_all`, `freeze_depth=2`. One of
            [[arms]] may have a name of its own.
        levels: factor -> level, empty in a study without factors; of [[arms]], the parameters that the arm sets.
        is_listed: whether it is one of [[arms]].
    """

    name: str
    levels: dict[str, Any]
    is_listed: bool = False

    @property
    def compared_levels(self) -> dict[str, Any]:
        """The arm's place in what the report compares: factor -> level, or 'arm' -> name for one of [[arms]]."""
        return {"arm": self.name} if self.is_listed else self.levels


def arms(spec: StudySpec) -> list[Arm]:
    """Return the study's arms in the order of `StudySpec.combinations`; without factors, one arm named 'all'."""
    if spec.arms:
        return [Arm(arm.label, arm.entries(), is_listed=True) for arm in spec.arms]
    return [Arm(levels_name(levels) or "all", levels) for levels in spec.combinations()]


def differing_parameters(spec: StudySpec, first: Arm, second: Arm) -> list[str]:
    """Return the factors, or the parameters that [[arms]] set, whose values differ between two arms.

    A parameter without effect in one of them, such as `learn` under feature extraction, is no difference of its own.
    """
    return [
        name
        for name in Hyperparameters.model_fields
        if name in (*first.levels, *second.levels)  # what neither sets is the same in both
        and spec.possible(name, first.levels) != spec.possible(name, second.levels)
        and all(any(reuse.applies(name) for reuse in spec.reuses(arm.levels)) for arm in (first, second))
    ]


def next_arm(arms: Sequence[Arm], used: Mapping[str, int], budget: int) -> Arm | None:
    """Return the arm that gets the next trial, or None if no arm has budget left.

    The arm with the fewest trials is next, so that a study stopped halfway has spent its budget evenly.

    Args:
        arms: the study's arms, in order.
        used: number of trials that count against the budget, by arm name.
        budget: total number of trials per arm.
    """
    open_arms = [arm for arm in arms if used[arm.name] < budget]
    return min(open_arms, key=lambda arm: used[arm.name], default=None)


def published_for(spec: StudySpec, arm: Arm) -> list[dict[str, Any]]:
    """Return the published results for an arm: those all of whose levels the arm has."""
    return [
        published.model_dump()
        for published in spec.published
        if all(spec.possible(factor, arm.levels) == [level] for factor, level in published.arm.items())
    ]
