"""Output to the terminal: tables, lines, progress. Only this file and `running.study_view` use rich."""

import atexit
import gc
import os
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import track
from rich.table import Table as RichTable
from rich.text import Text

from ablation.base.interrupts import uninterrupted
from ablation.base.text import Table, one_line, visible

console = Console()
error_console = Console(stderr=True)

GAP = 2  # characters between two columns


def is_live(on: Console | None = None) -> bool:
    """Return whether lines may be drawn over: not in a pipe, in CI, in a notebook, or where no colours are wanted."""
    on = on or console
    wants_plain = os.environ.get("CI") or os.environ.get("NO_COLOR")
    return on.is_terminal and not on.is_dumb_terminal and not on.is_jupyter and not wants_plain


def show_table(table: Table) -> None:
    """Print a table with its notes.

    On a terminal, numbers, names and ids stay whole and texts wrap at words. Where there is too little room, optional
    columns are left out; where even the others do not fit, each row is a list.
    """
    if not console.is_terminal:
        console.file.write(table.markdown())
        return
    if table.title:
        console.print(Text(textwrap.fill(visible(table.title), console.width, **WORDS), style="bold"))
    fitting = columns_that_fit(table, console.width)
    if fitting is None:
        _show_rows(table)
    else:
        console.print(_rich_table(table, *fitting))
    hidden = [name for index, name in enumerate(table.columns) if fitting and index not in fitting[0]]
    for note in [*([f"No room for: {', '.join(hidden)}."] if hidden else []), *table.notes]:
        console.print(Text(textwrap.fill(one_line(note), console.width, **WORDS), style="dim"), soft_wrap=True)


WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def columns_that_fit(table: Table, width: int) -> tuple[list[int], list[int]] | None:
    """Return the indices of the columns for a terminal, and their widths there; None if too many remain."""
    numeric = table.numeric_columns()
    least, most = [], []
    for index, (heading, *cells) in enumerate(zip(table.columns, *table.rows, strict=True)):
        words = [word for cell in cells for word in ([cell] if index in numeric else cell.split(" "))]
        least.append(max(map(cell_len, [*heading.split(), *map(one_line, words)])))
        most.append(max([least[-1], *(cell_len(one_line(cell)) for cell in cells)]))
    shown = list(range(len(table.columns)))
    for name in [None, *table.optional]:
        shown = [index for index in shown if table.columns[index] != name]
        spare = width - sum(least[index] for index in shown) - GAP * (len(shown) - 1)
        if spare < 0:
            continue
        widths = []
        for index in shown:
            more = min(spare, most[index] - least[index])
            widths.append(least[index] + more)
            spare -= more
        return shown, widths
    return None


def _rich_table(table: Table, shown: list[int], widths: list[int]) -> RichTable:
    rich_table = RichTable(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True
    )
    numeric = table.numeric_columns()
    for index, width in zip(shown, widths, strict=True):
        heading = textwrap.fill(one_line(table.columns[index]), width, **WORDS)
        justify: JustifyMethod = "right" if index in numeric else "left"
        rich_table.add_column(Text(heading), justify=justify, width=width, no_wrap=False)
    for number, row in enumerate(table.rows):
        cells = (Text(one_line(row[index])) for index in shown)
        rich_table.add_row(*cells, style="bold" if number == table.bold_row else "")
    return rich_table


def _show_rows(table: Table) -> None:
    """Print each row as a line for each cell, those after the first below it."""
    indent = max(map(cell_len, map(one_line, table.columns[1:])), default=0) + 2 + GAP
    for number, row in enumerate(table.rows):
        style = "bold" if number == table.bold_row else ""
        console.print(Text(one_line(f"{table.columns[0]} {row[0]}"), style=style), soft_wrap=True)
        for heading, cell in zip(table.columns[1:], row[1:], strict=True):
            start = f"  {one_line(heading)}"
            start += " " * (indent - cell_len(start))
            console.print(Text(_hanging(one_line(cell), start), style), soft_wrap=True)


def say(text: str) -> None:
    """Print a line, unchanged but for what a terminal would obey."""
    console.print(Text(visible(text)), soft_wrap=True)


def say_prose(text: str, start: str = "") -> None:
    """Print a sentence after `start`, such as a bullet; a terminal wraps it at words, below its own beginning."""
    say(_hanging(visible(text), start) if console.is_terminal else start + text)


def _hanging(text: str, start: str) -> str:
    """Return a text in lines as wide as the terminal, all but the first below the end of `start`."""
    if not text:
        return start.rstrip()
    indent = cell_len(start)
    width = max(console.width, indent + 20)
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * indent, **WORDS)


def track_progress(things: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Return the things, with a progress bar while they are consumed; one line if the output is not a terminal."""
    if not is_live():
        say(f"{description} ({total})")
        return things
    return track(things, escape(visible(description)), total, console=console, transient=True)


@contextmanager
def loading(libraries: str) -> Iterator[None]:
    """Show in a terminal that libraries are imported in this context, which takes seconds.

    It is shown on the standard error, because a program may read the output. An interrupt waits for the end: inside an
    import, it could abort the process. No search for garbage looks at what the imports make, now or later: the commands
    of a study spent 0.8 s on it.
    """
    with uninterrupted():
        gc.disable()
        try:
            with error_console.status(f"Loading {libraries}") if is_live(error_console) else nullcontext():
                yield
        finally:
            gc.freeze()
            atexit.register(gc.unfreeze)  # else some libraries list at the end all that is left
            gc.enable()


def waiting(text: str) -> AbstractContextManager[object]:
    """Return a context in which a text is shown, for what takes a while; it is a line if the output is no terminal."""
    if is_live():
        return console.status(Text(visible(text)))
    say(text)
    return nullcontext()
