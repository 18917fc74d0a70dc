"""From the factors of a study to its arms, their budgets, and what is left to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.spec.study import StudySpec


@dataclass(frozen=True)
class Arm:
    """One combination of factor levels; `levels` is empty in a study without factors.

    The name is made of the levels, a number with its factor: `block3,fine_tune_all`, `freeze_depth=2`.
    """

    name: str
    levels: dict[str, Any]


def arms(spec: StudySpec) -> list[Arm]:
    """Return the study's arms in the order of `StudySpec.combinations`; without factors, one arm called 'all'."""
    return [Arm(_name(levels), levels) for levels in spec.combinations()]


def _name(levels: dict[str, Any]) -> str:
    parts = [level if isinstance(level, str) else f"{factor}={level}" for factor, level in levels.items()]
    return ",".join(parts) or "all"


def next_arm(arms: Sequence[Arm], used: Mapping[str, int], budget: int) -> Arm | None:
    """Return the arm that gets the next trial, or None when every arm has its budget.

    Arms take turns: the one with the fewest trials is next, so that a study stopped half-way has spent evenly.

    Args:
        arms: the study's arms, in order.
        used: trials that count against the budget, by the arm's name.
        budget: trials per arm, a total.
    """
    open_arms = [arm for arm in arms if used[arm.name] < budget]
    return min(open_arms, key=lambda arm: used[arm.name], default=None)


def published_for(spec: StudySpec, arm: Arm) -> list[dict[str, Any]]:
    """Return the published figures that belong to an arm: those whose levels it all has."""
    return [p.model_dump() for p in spec.published if p.arm.items() <= arm.levels.items()]
