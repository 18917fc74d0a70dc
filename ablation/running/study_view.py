"""The view of a running study in the terminal."""

import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from ablation.base.core_use import BusyCores
from ablation.base.terminal import console, say
from ablation.base.text import format_duration, visible
from ablation.search.status import best_record
from ablation.search.studies import TrialRecord
from ablation.spec.trial import TrialSpec

PLAIN_SECONDS = 5  # between two lines about epochs of one trial
BARS = "▁▂▃▄▅▆▇█"


class StudyView:
    """Shows a study's progress and the time left, the running trial's curve, and the best of each arm so far."""

    def __init__(self, title: str, arms: list[str], cores: BusyCores | None = None):
        """Show a study.

        Args:
            title: its name.
            arms: their names.
            cores: watches the processes that train; None where they do not train on the CPU.
        """
        self.arms = arms
        self.cores = cores
        self.trials = self.ended = self.epochs = 0  # confirmation runs included
        self.ended_before: int | None = None  # number of ended trials when this view began
        self.best: dict[str, float] = {}
        self.curve: list[float] = []
        self.trial_text = Text("")
        self.epoch_text = Text("")
        self.workers: dict[int, str] = {}  # number of a worker -> its last line
        self.began = self.trial_started = time.monotonic()
        self.last_line = 0.0
        self.waits_for = ""
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.task = self.progress.add_task(title, total=None, left="")
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
        worker_lines = [
            Text(f"worker {number}  {line}", overflow="ellipsis", no_wrap=True)
            for number, line in sorted(self.workers.items())
        ]
        # Instead of the empty line, so that nothing moves.
        trains = bool(self.trial_text or worker_lines) and not self.waits_for
        note = Text(self.cores.update() if self.cores and trains else "", style="yellow")
        return Group(self.progress, *(worker_lines or [self.trial_text, self.epoch_text]), note, heading, table)

    def _arms_that_fit(self) -> list[str]:
        """Return the arms in order; only the best ones if the terminal is too low for all of them."""
        room = max(3, console.height - 6 - max(2, len(self.workers)))  # without the other lines and a margin
        best_first = sorted(self.arms, key=lambda arm: self.best.get(arm, -1.0), reverse=True)
        return [arm for arm in self.arms if arm in best_first[:room]]

    def update(self, trials: dict[str, list[TrialRecord]], total: int) -> None:
        """Show the progress of the study's arms.

        Args:
            trials: arm -> its trials and confirmation runs.
            total: the number of trials and confirmation runs that the study will have.
        """
        self.ended = sum(trial.has_ended for arm_trials in trials.values() for trial in arm_trials)
        self.epochs = sum(trial.epochs for arm_trials in trials.values() for trial in arm_trials)
        self.trials = total
        if self.ended_before is None:
            self.ended_before = self.ended
        for arm, arm_trials in trials.items():
            best = best_record(arm_trials)
            if best is not None and best.value is not None:
                self.best[arm] = best.value
        left = self.time_left()
        self.progress.update(
            self.task, completed=self.ended, total=self.trials, left=f"about {left} left" if left else ""
        )

    def show_waiting(self, text: str) -> None:
        """Show why nothing can be done for now."""
        self.trial_text, self.epoch_text = Text(visible(text)), Text("")
        if text != self.waits_for and not console.is_terminal:
            say(text)
        self.waits_for = text
        if self.cores:
            self.cores.pause()

    def show_computing(self, text: str) -> None:
        """Show what is computed once before the trial trains."""
        self.epoch_text = Text(text)
        if not console.is_terminal:
            say(f"  {text}")

    def show_worker_line(self, number: int, line: str) -> None:
        """Show a line of a worker's output."""
        self.workers[number] = visible(line.strip())
        if not console.is_terminal:
            say(f"worker {number} | {line}")

    def show_trial_start(self, spec: TrialSpec, params: str) -> None:
        """Show that a trial begins or resumes."""
        self.trial_started = self.last_line = time.monotonic()
        self.waits_for = ""
        self.curve = []
        self.trial_text = Text(visible(f"{_label(spec)}  {params}"))
        self.epoch_text = Text("")
        if not console.is_terminal:
            say(f"[{self.ended + 1}/{self.trials}] {_label(spec)}: {params}")

    def show_epoch(self, spec: TrialSpec, metrics: Any) -> None:
        """Show the metrics of an epoch that has ended."""
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

    def show_trial_end(self, spec: TrialSpec, state: str, value: float | None, reason: str) -> None:
        """Show that a trial has ended, or that another process has taken it over (`state` is "lost")."""
        seconds = time.monotonic() - self.trial_started
        if state != "lost":
            self.ended += 1
        result = f"val. accuracy {value:.4f}" if value is not None else reason
        if not console.is_terminal:
            left = self.time_left()
            say(f"  {state}: {result} ({seconds:.1f} s{f', about {left} left' if left else ''})")
        elif state in ("failed", "lost"):
            self.live.console.print(Text(visible(f"{_label(spec)} {state}: {reason}"), style="yellow"))

    def time_left(self) -> str:
        """Return the time for the remaining trials at the rate since the view began; "" while that is unknown."""
        remaining, ended_now = self.trials - self.ended, self.ended - (self.ended_before or 0)
        if remaining <= 0 or ended_now <= 0:
            return ""
        return format_duration(remaining * (time.monotonic() - self.began) / ended_now)


def _label(spec: TrialSpec) -> str:
    """Return the name of a trial, which is also its run's name in MLflow."""
    return f"{spec.arm} #{spec.trial}" if spec.confirms is None else f"{spec.arm} confirmation #{spec.trial}"


def sparkline(values: list[float]) -> str:
    """Return the last 60 values as a row of bars between the smallest and the largest."""
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * 7) if high > low else 3] for value in values[-60:])
