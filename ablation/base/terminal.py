"""What the terminal shows: tables, lines, progress. The only users of rich are this file and `running.study_view`."""

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable
from rich.text import Text

from ablation.base.text import Table

console = Console()


def show_table(table: Table) -> None:
    """Print a table with its notes."""
    if not console.is_terminal:
        console.file.write(table.markdown())
        return
    rich_table = RichTable(title=table.title, title_justify="left", title_style="bold")
    for column, *cells in zip(table.columns, *table.rows, strict=True):
        numeric = column.startswith(
            ("best val", "epochs", "trained", "all p", "disk", "run time", "time", "best tenth")
        )
        narrowest = max(map(len, [*column.split(), *cells]))  # at which headings make no column wider than its cells
        rich_table.add_column(textwrap.fill(column, narrowest), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        rich_table.add_row(*(Text(cell) for cell in row))
    console.print(rich_table)
    for note in table.notes:
        console.print(Text(note, style="dim"))


def say(text: str) -> None:
    """Print a line, unchanged."""
    console.print(Text(text), soft_wrap=True)


def track_progress(things: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Pass things on while showing how many have come; one line where the output is not a terminal."""
    if not console.is_terminal:
        say(f"{description} ({total})")
        return things
    return track(things, description, total, console=console, transient=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what takes a while."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        say(what)
        yield
