"""The arms of a study, and which of them gets the next trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.spec.study import StudySpec


@dataclass(frozen=True)
class Arm:
    """One combination of factor levels; `levels` is empty in a study without factors.

    The name consists of the levels; a number stands with its factor: `block3,fine_tune_all`, `freeze_depth=2`.
    """

    name: str
    levels: dict[str, Any]


def arms(spec: StudySpec) -> list[Arm]:
    """Return the study's arms in the order of `StudySpec.combinations`; without factors, one arm named 'all'."""
    return [Arm(_name(levels), levels) for levels in spec.combinations()]


def _name(levels: dict[str, Any]) -> str:
    parts = [level if isinstance(level, str) else f"{factor}={level}" for factor, level in levels.items()]
    return ",".join(parts) or "all"


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
    """Return the published results for an arm: those all of whose levels are the arm's."""
    return [p.model_dump() for p in spec.published if p.arm.items() <= arm.levels.items()]
