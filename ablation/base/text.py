"""Text that people read: tables, plurals, durations, the nearest known word."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none; user names and passwords are hidden."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"://[^/@\s]+@", "://***@", line)


def require_known(value: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}{nearest(value, known)}")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' with the closest known word, else '; known: ...'."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if not close:
        return f"; known: {', '.join(known)}"
    best = next((candidate for candidate in close if sorted(candidate) == sorted(word)), close[0])  # letters swapped
    return f"; did you mean {best!r}?"


@dataclass(frozen=True)
class Table:
    """A titled table of strings, with notes below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table as markdown."""
        lines = [self.title, "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def format_value(value: Any) -> str:
    """Return a parameter's value in at most four significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_params(params: dict[str, Any]) -> str:
    """Return parameters as `name value` pairs."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in sorted(params.items()))


def count_arms(count: int) -> str:
    """Return '1 arm' or '5 arms'."""
    return f"{count} arm" if count == 1 else f"{count} arms"


def format_duration(seconds: float) -> str:
    """Return a duration such as '40 s', '12 min' or '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
