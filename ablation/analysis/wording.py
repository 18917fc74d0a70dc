"""Numbers and names as the answer and the report write them."""

from collections.abc import Sequence

from ablation.base.text import plural
from ablation.spec.objective import ACCURACY, Objective


def points(difference: float, objective: Objective = ACCURACY) -> str:
    """Return a difference in percentage points, with a second decimal below one point; of losses in nats.

    The unit, `objective.unit`, is left out. Nats have three decimals, and a fourth below 0.01.
    """
    value = objective.per_unit * difference
    least, decimals = (1, 1) if objective.unit == "points" else (0.01, 3)
    text = f"{value:.{decimals if abs(value) >= least else decimals + 1}f}"
    return text if float(text) else text.removeprefix("-")


def format_p(p: float) -> str:
    """Return a p-value as 'p < 0.001' or 'p = 0.012'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_seeds(seeds: tuple[int, int], unit: str = "seed") -> str:
    """Return a number of seeds (or other units), or the smallest and the largest where arms differ."""
    least, most = seeds
    return plural(least, unit) if least == most else f"{least} to {most} {unit}s"


def interval_points(low: float | None, high: float | None, objective: Objective = ACCURACY) -> str:
    """Return the ends of an interval of a difference as `points` does, both with the same decimals."""
    if low is None or high is None:
        return "-"
    decimals = (1 if objective.unit == "points" else 3) + (max(abs(low), abs(high)) < 0.02)
    ends = [f"{objective.per_unit * end:.{decimals}f}" for end in (low, high)]
    return " to ".join(end if float(end) else end.removeprefix("-") for end in ends)


def value_words(label: str, value: float, objective: Objective) -> str:
    """Return a metric's label and value, such as 'test accuracy 0.9123' or 'test loss 0.4312 (lower is better)'."""
    return f"{label} {objective.label} {value:.4f}{'' if objective.higher_is_better else ' (lower is better)'}"


def unit_words(objective: Objective) -> str:
    """Return the unit of differences, for a loss with what is better: 'points' or 'nats (lower is better)'."""
    return objective.unit if objective.higher_is_better else f"{objective.unit} (lower is better)"


def axis_title(kind: str, objective: Objective) -> str:
    """Return the title of an axis, such as 'test accuracy (fraction)' or 'test loss (nats, lower is better)'."""
    unit = "fraction" if objective.unit == "points" else f"{objective.unit}, lower is better"
    return f"{kind} {objective.label} ({unit})"


def join(names: Sequence[str]) -> str:
    """Return names as 'a', 'a and b' or 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
