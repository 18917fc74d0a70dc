"""Numbers and names as the answer and the report write them."""

import re
from collections.abc import Sequence

from ablation.base.text import plural
from ablation.spec.objective import ACCURACY, Objective

ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
DEMO_NOTE = "(demo: a narrow VGG-16 from the digits 0-4 to the digits 5-9)"  # part of what a stored demo is
DEMO_WORDS = "(demo: a narrow VGG-16, pretrained on the digits 0 to 4, for images of the digits 5 to 9)"


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
    return f"p {p_cell(p)}" if p < 0.001 else f"p = {p_cell(p)}"


def p_cell(p: float | None, none: str = "-") -> str:
    """Return a p-value as a table has it, '< 0.001' or '0.012', or what stands for none."""
    if p is None:
        return none
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def chance_words(share: float) -> str:
    """Return a chance as '> 99 %' or '12 %'."""
    return "> 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def format_seeds(seeds: tuple[int, int], unit: str = "seed") -> str:
    """Return a number of seeds (or other units), or the smallest and the largest where arms differ."""
    least, most = seeds
    return plural(least, unit) if least == most else f"{least} to {most} {unit}s"


def interval_points(low: float | None, high: float | None, objective: Objective = ACCURACY) -> str:
    """Return the ends of an interval of a difference as `points` does, both with the same decimals.

    For an end that would read as 0 but is not, both have up to five decimals: an interval that contains 0 says
    something else than one that ends at 0.
    """
    if low is None or high is None:
        return "-"
    decimals = (1 if objective.unit == "points" else 3) + (max(abs(low), abs(high)) < 0.02)
    while decimals < 5 and any(end and not round(objective.per_unit * end, decimals) for end in (low, high)):
        decimals += 1
    ends = [f"{objective.per_unit * end:.{decimals}f}" for end in (low, high)]
    return " to ".join(end if float(end) else end.removeprefix("-") for end in ends)


def value_words(label: str, value: float, objective: Objective) -> str:
    """Return a metric's label and value, such as 'test accuracy 0.9123' or 'test loss 0.4312 (lower is better)'."""
    return f"{label} {objective.label} {value:.4f}{'' if objective.higher_is_better else ' (lower is better)'}"


def margin_words(margin: float, objective: Objective) -> str:
    """Return an equivalence margin, a fraction or nats, with its unit: '1 point', '2 points' or '0.05 nats'."""
    amount = f"{objective.per_unit * margin:g}"
    return f"{amount} {objective.unit.removesuffix('s') if amount == '1' else objective.unit}"


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


def ordinal(number: int) -> str:
    """Return 'second' for a look's number 2, '21st' for 21; the first one has no name."""
    if number - 2 < len(ORDINALS):
        return ORDINALS[number - 2]
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def percent(level: float) -> str:
    """Return a level such as '5 %', '1.25 %' or '0.0015 %'."""
    return f"{100 * level:.3g} %"


def shown_question(question: str) -> str:
    """Return a study's question as people read it: that of a demo asks of the images that it really has."""
    if not question.endswith(DEMO_NOTE):
        return question
    asked = re.sub(r"CIFAR-?10\b", "handwritten digits", question.removesuffix(DEMO_NOTE), flags=re.IGNORECASE)
    return f"{asked}{DEMO_WORDS}"
