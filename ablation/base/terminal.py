"""Output to the terminal: tables, lines, progress. Only this file and `running.study_view` use rich."""

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import track
from rich.table import Table as RichTable
from rich.text import Text

from ablation.base.text import Table, one_line, visible

console = Console()


def show_table(table: Table) -> None:
    """Print a table with its notes."""
    if not console.is_terminal:
        console.file.write(table.markdown())
        return
    rich_table = RichTable(title=Text(visible(table.title)), title_justify="left", title_style="bold")
    numeric = table.numeric_columns()
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    for index, (heading, *cells) in enumerate(zip(map(one_line, table.columns), *rows, strict=True)):
        width = max(map(len, [*heading.split(), *cells]))  # a longer heading is wrapped
        justify: JustifyMethod = "right" if index in numeric else "left"
        rich_table.add_column(Text(textwrap.fill(heading, width)), justify=justify, overflow="fold")
    for row in rows:
        rich_table.add_row(*(Text(cell) for cell in row))
    console.print(rich_table)
    for note in table.notes:
        console.print(Text(one_line(note), style="dim"))


def say(text: str) -> None:
    """Print a line, unchanged but for what a terminal would obey."""
    console.print(Text(visible(text)), soft_wrap=True)


def track_progress(things: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Return the things, with a progress bar while they are consumed; one line if the output is not a terminal."""
    if not console.is_terminal:
        say(f"{description} ({total})")
        return things
    return track(things, escape(visible(description)), total, console=console, transient=True)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a text while the body runs, which takes a while."""
    if console.is_terminal:
        with console.status(Text(visible(text))):
            yield
    else:
        say(text)
        yield
