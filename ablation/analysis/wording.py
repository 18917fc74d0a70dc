"""Numbers and names as the answer and the report write them."""

from collections.abc import Sequence

from ablation.base.text import plural


def points(difference: float) -> str:
    """Return a difference of accuracies in percentage points, with a second decimal below one point."""
    value = 100 * difference
    text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
    return text if float(text) else text.removeprefix("-")


def format_p(p: float) -> str:
    """Return a p-value as 'p < 0.001' or 'p = 0.012'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_seeds(seeds: tuple[int, int], unit: str = "seed") -> str:
    """Return a number of seeds (or other units), or the smallest and the largest where arms differ."""
    least, most = seeds
    return plural(least, unit) if least == most else f"{least} to {most} {unit}s"


def interval_points(low: float | None, high: float | None) -> str:
    """Return the ends of an interval in percentage points, both with the same decimals."""
    if low is None or high is None:
        return "-"
    decimals = 1 if max(abs(low), abs(high)) >= 0.02 else 2
    ends = [f"{100 * end:.{decimals}f}" for end in (low, high)]
    return " to ".join(end if float(end) else end.removeprefix("-") for end in ends)


def join(names: Sequence[str]) -> str:
    """Return names as 'a', 'a and b' or 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
