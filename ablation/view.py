"""What the person sees in the terminal: a live view, or plain lines where the output is not a terminal."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table as RichTable
from rich.text import Text

from ablation.report import Table
from ablation.spec import TrialSpec

PLAIN_SECONDS = 5  # between two lines about epochs of one trial
BARS = "▁▂▃▄▅▆▇█"

console = Console()


def show_table(table: Table) -> None:
    """Print a table with its notes."""
    if not console.is_terminal:
        console.file.write(table.markdown())
        return
    rich_table = RichTable(title=table.title, title_justify="left", title_style="bold")
    for column in table.columns:
        numeric = column.startswith(("best val", "epochs", "trained", "all p", "disk"))
        rich_table.add_column(column, justify="right" if numeric else "left", overflow="fold")
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


class StudyView:
    """Follows a study: its progress with the time left, the running trial's curve, the best of each arm so far."""

    def __init__(self, title: str, arms: list[str], trials: int, ended: int, best: dict[str, float]):
        self.arms, self.trials, self.ended = arms, trials, ended
        self.best = best
        self.times: list[float] = []
        self.curve: list[float] = []
        self.trial_text = Text("")
        self.epoch_text = Text("")
        self.trial_started = time.monotonic()
        self.last_line = 0.0
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("trials"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.task = self.progress.add_task(title, total=trials, completed=ended, left="")
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> "StudyView":
        if console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self.live.stop()

    def _render(self) -> Group:
        table = RichTable(box=None, padding=(0, 2, 0, 0), show_header=False)
        top = max(self.best.values(), default=0.0)
        for arm in self._arms_that_fit():
            value = self.best.get(arm)
            style = "bold green" if value is not None and value == top else ""
            bar = "" if value is None else "━" * round(30 * value)
            table.add_row(
                Text(arm, style=style), Text("-" if value is None else f"{value:.4f}", style=style), Text(bar)
            )
        heading = Text("best validation accuracy so far", style="dim")
        return Group(self.progress, self.trial_text, self.epoch_text, Text(""), heading, table)

    def _arms_that_fit(self) -> list[str]:
        """Return the arms in order; where the terminal is too low for all of them, the best ones."""
        room = max(3, console.height - 8)  # lines for the progress, the running trial and a margin
        best_first = sorted(self.arms, key=lambda arm: self.best.get(arm, -1.0), reverse=True)
        return [arm for arm in self.arms if arm in best_first[:room]]

    def trial_started_now(self, spec: TrialSpec, params: str) -> None:
        """A trial begins, or goes on."""
        self.trial_started = self.last_line = time.monotonic()
        self.curve = []
        self.trial_text = Text(f"{spec.arm} #{spec.trial}  {params}")
        self.epoch_text = Text("")
        if not console.is_terminal:
            say(f"[{self.ended + 1}/{self.trials}] {spec.arm} #{spec.trial}: {params}")

    def epoch(self, spec: TrialSpec, metrics: Any) -> None:
        """An epoch has ended; `metrics` is its EpochMetrics."""
        self.curve.append(metrics.val_accuracy)
        text = (
            f"epoch {metrics.epoch}/{spec.epochs}  train loss {metrics.train_loss:.4f}  "
            f"val. loss {metrics.val_loss:.4f}  val. accuracy {metrics.val_accuracy:.4f}  "
            f"{metrics.images_per_second:,.0f} images/s"
        )
        if console.is_terminal:
            self.epoch_text = Text(f"{sparkline(self.curve)}  {text}")
        elif time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            say(f"  {text}")

    def trial_ended(self, spec: TrialSpec, state: str, value: float | None, reason: str) -> None:
        """A trial has ended."""
        self.ended += 1
        seconds = time.monotonic() - self.trial_started
        self.times.append(seconds)
        if value is not None:
            self.best[spec.arm] = max(value, self.best.get(spec.arm, 0.0))
        left = self.time_left()
        self.progress.update(self.task, completed=self.ended, left=f"about {left} left" if left else "")
        result = f"val. accuracy {value:.4f}" if value is not None else reason
        if not console.is_terminal:
            say(f"  {state}: {result} ({seconds:.1f} s{f', about {left} left' if left else ''})")
        elif state == "failed":
            self.live.console.print(Text(f"{spec.arm} #{spec.trial} failed: {reason}", style="yellow"))

    def time_left(self) -> str:
        """Return the time that the remaining trials will take, at this session's mean time per trial."""
        remaining = self.trials - self.ended
        if remaining <= 0:
            return ""
        return format_duration(remaining * sum(self.times) / len(self.times))


def sparkline(values: list[float]) -> str:
    """Return values as a row of bars between their smallest and largest."""
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * 7) if high > low else 3] for value in values[-60:])


def format_duration(seconds: float) -> str:
    """Return a duration such as '40 s', '12 min' or '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
