"""Text that people read: tables, plurals, durations, the nearest known word."""

import codecs
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# What would act on a terminal or hide in a text: control characters, line separators, marks of the writing direction,
# signs that show nothing, and the surrogates by which Python keeps bytes that are not UTF-8; not lines and tabs, nor
# the joiners and variation selectors that scripts and emojis need.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\U000e0000-\U000e007f]"
)
_SIMPLER = {"±": "+-", "−": "-", "–": "-", "×": "x", "…": "...", "→": "->", "━": "="} | dict(
    zip("─●◆·", "-o+.", strict=True)
)
_IN_ASCII = str.maketrans(_SIMPLER | dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)))
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of a cell that a spreadsheet would compute
SHOWN = "ablation.shown"  # what a stream that cannot encode a character does, see `codecs.register_error`


def visible(text: str) -> str:
    r"""Return a text in which characters that a terminal obeys, or that cannot be seen, are escapes such as \x1b."""
    return _HIDDEN.sub(lambda match: _escape(match[0]), text)


def one_line(text: str) -> str:
    """Return a text as `visible` does, in which ends of lines and tabs are escapes, too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def escape_markdown(text: str) -> str:
    """Return markdown that shows a text unchanged, in one line; `Table.markdown` escapes `|`.

    Two signs are entities, because MLflow's UI, which runs no scripts but loads pictures, ignores a backslash before
    them: the beginnings of a tag and of an entity. So is that of a formula, for GitHub.
    """
    text = visible(" ".join(text.split()))
    for character in "\\`*[]>~":
        text = text.replace(character, f"\\{character}")
    text = re.sub(r"&(?=\w+;|#)", "&amp;", text).replace("<", "&lt;").replace("$", "&#36;")
    text = re.sub(r"^(\d*)([#+=.)-])(?=[#=-]*\s)", r"\1\\\2", text)  # it would begin a heading or a list
    # An underscore inside a word has no meaning in markdown: names such as fine_tune_all stay readable.
    return "".join(
        f"\\{c}" if c == "_" and not (text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()) else c
        for i, c in enumerate(text)
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode-escape", "surrogatepass").decode()


def _show(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end].translate(_IN_ASCII)
    return "".join(c if c.isascii() else _escape(c) for c in characters), error.end


codecs.register_error(SHOWN, _show)


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
    known, word = list(known), word.casefold()
    folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(word, folded, n=3, cutoff=0.5)
    if not close:
        return f"; known: {', '.join(known)}"
    # Two swapped letters are the likeliest mistake.
    best = next((candidate for candidate in close if sorted(candidate) == sorted(word)), close[0])
    return f"; did you mean {folded[best]!r}?"


@dataclass(frozen=True)
class Table:
    """A titled table of strings, with notes below it.

    `optional`: columns that a narrow terminal leaves out, the least important first. `bold_row`: the row to stress.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    bold_row: int | None = None

    def markdown(self) -> str:
        """Return the table as markdown."""
        lines = [visible(self.title), "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {one_line(note)}" for note in self.notes), ""])

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
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def defused(cell: Any) -> Any:
    """Return a cell of a CSV file; text that a spreadsheet would compute begins with an apostrophe, None is empty."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA_STARTS):
        return "" if cell is None else cell
    try:
        float(cell)  # a class may be called -1
    except ValueError:
        return f"'{cell}"
    return cell


def format_value(value: Any) -> str:
    """Return a parameter's value; a float with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_params(params: dict[str, Any]) -> str:
    """Return parameters as `name value` pairs."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in sorted(params.items()))


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun, such as '1 arm', '5 arms' or '1,200 arms'; `nouns` is a plural without -s."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def listed(items: Sequence[str], most: int) -> str:
    """Return items with commas between them, such as 'a, b and 3 more'."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{more}"


def format_duration(seconds: float) -> str:
    """Return a duration such as '40 s', '12 min' or '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
