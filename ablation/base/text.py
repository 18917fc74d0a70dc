"""Text that people read: tables, plurals, durations, the nearest known word."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, else the name of its class; user names and passwords are hidden."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"://[^/@\s]+@", "://***@", line)


def require_known(value: str, known: Iterable[str], what: str) -> str:
    """Return `value` if it is among the known ones.

    Raises:
        ValueError: it is unknown; the text names the nearest known one.
    """
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
    # Two swapped letters are the likeliest mistake.
    best = next((candidate for candidate in close if sorted(candidate) == sorted(word)), close[0])
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

    def numeric_columns(self) -> set[int]:
        """Return the indices of the columns to align at the right: those with numbers only; '-' is an empty cell."""
        columns = list(zip(*self.rows, strict=True))
        filled = [[cell for cell in column if cell != "-"] for column in columns]
        return {index for index, cells in enumerate(filled) if cells and all(map(_is_number, cells))}


# A sign, a number, and more after a character that ends a word: '< 0.001', '-8.8', '1,200 MB', '5 to 12 min'. The id
# '3f0a' and the file '1.jpg' do not match.
_NUMBER = re.compile(r"[<>]? ?[+\-\u2212]?\d[\d,.]*+(e[+-]?\d+)?(\W.*)?")
_WORD = re.compile(r"[^\W\d_]{4,}")  # longer than a unit, as in '7 finished, 1 failed'


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and _WORD.search(cell) is None


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def format_value(value: Any) -> str:
    """Return a parameter's value; a float with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_params(params: dict[str, Any]) -> str:
    """Return parameters as `name value` pairs."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in sorted(params.items()))


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as '1 arm', '5 arms' or '1,200 arms'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration such as '40 s', '12 min' or '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
