"""The view of a running study in the terminal."""

import math
import os
import re
import time
from collections.abc import Sequence

from rich.console import ConsoleRenderable, Group, RenderHook
from rich.control import Control
from rich.live import Live
from rich.text import Text

from ablation.base.command_line import WORKER_VARIABLE
from ablation.base.core_use import BusyCores
from ablation.base.interrupts import pause_text, set_view
from ablation.base.terminal import console, is_live, say
from ablation.base.text import format_duration, visible
from ablation.running.time_left import Runs, SeedsLeft, TimeLeft
from ablation.search.status import best_record, superseded_runs
from ablation.search.studies import TrialRecord
from ablation.spec.arms import arms
from ablation.spec.metrics import EpochMetrics
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec

PLAIN_SECONDS = 5  # between two lines about epochs of one trial
WORKER_SECONDS = 1  # the same in a worker, whose supervisor shows the latest
BARS = "▁▂▃▄▅▆▇█"
MOST_DOTS = 60  # characters of the axis of values
FEWEST_DOTS = 8
SHARE_OF_ESTIMATES = 0.05  # of the time, at most, for estimating the time left
PHASES = ("tuning", "confirmation", "report")


class StudyView:
    """Shows a study's phase and time left, the running trials of all workers, and each arm's trials and values."""

    def __init__(self, spec: StudySpec, cores: BusyCores | None = None):
        """Show a study; `cores` watches the processes that train, and is None where they do not train on the CPU."""
        self.spec = spec
        levels = {arm.name: arm.levels for arm in arms(spec)}
        self.arms = list(levels)
        self.cores = cores
        self.trials = self.ended = self.epochs = 0  # confirmation runs included
        self.ended_before: int | None = None  # number of ended trials when this view began
        self.runs: Runs = {}
        self.left = TimeLeft(levels, spec.trials_per_arm, spec.confirm.runs)
        self.next_estimate = -math.inf  # time.monotonic() before which the time left is not estimated again
        self.seeds_left: SeedsLeft | None = None
        self.curve: list[float] = []
        self.label = self.params = self.state = ""  # of this process's trial
        self.workers: dict[int, WorkerLine] = {}
        self.began = self.trial_started = time.monotonic()
        self.last_line = 0.0
        self.waits_for = ""
        self.is_live = is_live()
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, vertical_overflow="crop")
        self.seconds_between = WORKER_SECONDS if WORKER_VARIABLE in os.environ else PLAIN_SECONDS

    def __enter__(self) -> "StudyView":
        if self.is_live:
            self.live.start()
            console.push_render_hook(CleanerAfterResize())
            set_view(is_open=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            set_view(is_open=False)
            console.pop_render_hook()
            self.live.stop()

    def _render(self) -> Group:
        return Group(*self.lines(console.width, console.height))

    def lines(self, width: int, height: int) -> list[Text]:
        """Return the view for a terminal of this size in characters; no line is wider."""
        running = self._running_lines(width)
        trains = bool(self.label or self.workers) and not self.waits_for
        note = Text(self.cores.update() if self.cores and trains else "", style="yellow")
        above = [*self._heading(width), *running, note]
        lines = [*above, *self._arm_lines(width, max(3, height - len(above) - 3))]
        for line in lines:
            line.truncate(width - 1, overflow="ellipsis")
        return lines

    def _heading(self, width: int) -> list[Text]:
        phase = self.phase()
        now = time.monotonic() - self.began
        counts = f"{self.ended}/{self.trials} runs  {format_duration(now)}"
        left = self.left.text(now)
        heading = Text.assemble((self.spec.name, "bold"), "  ")
        long = len("  ".join([self.spec.name, " > ".join(PHASES), counts, left]))
        for number, name in enumerate(PHASES if long < width else (phase,)):
            heading.append(" > " if number else "", style="dim")
            heading.append(name, style="bold cyan" if name == phase else "dim")
        heading.append(f"  {counts}")
        if left:
            heading.append(f"  {left}", style="cyan")
        length = min(width - 1, 100)
        done = math.floor(length * self.ended / self.trials) if self.trials else 0
        bar = Text.assemble(("━" * done, "green"), ("─" * (length - done), "dim"))
        return [heading, bar]

    def phase(self) -> str:
        """Return the phase that the study is in."""
        if self.trials and self.ended >= self.trials:
            return "report"
        tuned = [run for arm in self.arms for run in self.runs.get(arm, []) if run.confirms is None and run.has_ended]
        return "confirmation" if len(tuned) >= len(self.arms) * self.spec.trials_per_arm else "tuning"

    def _running_lines(self, width: int) -> list[Text]:
        texts = [f"worker {number}  {line.text()}" for number, line in sorted(self.workers.items())]
        lines = [Text(whole_items(text, width - 1)) for text in texts]
        if not lines:
            state = whole_items(f"{self.label}  {self.state}".strip(), width - 1)
            lines = [Text(pause_text() or self.waits_for or state), Text(self.params, style="dim")]
        known = {self.label, *(line.label for line in self.workers.values())}
        elsewhere = [
            run
            for arm_runs in self.runs.values()
            for run in arm_runs
            if run.state == "running" and run.name not in known and run.epochs
        ]
        return lines + [Text(f"elsewhere  {run.name}  epoch {run.epochs}/{self.spec.epochs}") for run in elsewhere[:4]]

    def _arm_lines(self, width: int, room: int) -> list[Text]:
        """Return a line per arm that fits: best value, values on an axis, trials, seeds, failures; then the legend."""
        best = {arm: best_record(self.runs.get(arm, [])) for arm in self.arms}
        values = {arm: value.value for arm, value in best.items() if value is not None and value.value is not None}
        everything = [run.value for arm in self.runs.values() for run in arm if run.value is not None]
        low, high = min(everything, default=0.0), max(everything, default=1.0)
        failed = {arm: sum(run.state == "failed" for run in self.runs.get(arm, [])) for arm in self.arms}
        names = max(map(len, [*self.arms, "arm"]))
        trials, seeds = self.spec.trials_per_arm, self.spec.confirm.runs
        cells = [("trials", trials, False), *([("seeds", seeds, True)] if seeds else [])]
        wide = sum(max(len(name), len(f"{total}/{total}")) + 2 for name, total, _ in cells)
        wide += len(f"  {max(failed.values())} failed") if any(failed.values()) else 0
        names = min(names, max(8, width - 1 - wide - 8))
        dots = min(MOST_DOTS, width - 1 - names - wide - 10)
        axis = f"{low:.3f}{f'{high:.3f}':>{dots - 5}}" if dots >= 2 * 5 + 2 else " " * dots

        def line(name: str, value: str, row: str, counts: list[str], failures: int) -> Text:
            text = f"{name[:names]:{names}}  {value:>6}" + (f"  {row}" if dots >= FEWEST_DOTS else "")
            for (column, total, _), count in zip(cells, counts, strict=True):
                text += f"  {count:>{max(len(column), len(f'{total}/{total}'))}}"
            return Text.assemble(text, (f"  {failures} failed" if failures else "", "yellow"))

        heading = line("arm", "best", axis, [column for column, *_ in cells], 0)
        heading.stylize("dim")
        lines = [heading]
        top = self.spec.goal.best(values.values()) if values else None
        most = self.seeds_left[1] if self.seeds_left else {}
        for arm in self._arms_that_fit(values, room):
            runs = self.runs.get(arm, [])
            superseded = superseded_runs(runs, self.spec.confirm.repeats)
            current = [run for run in runs if run not in superseded]
            counts = [
                f"{sum(run.has_ended and (run.confirms is not None) == confirms for run in current)}/"
                f"{most.get(arm, total) if confirms else total}"
                for _, total, confirms in cells
            ]
            value = f"{values[arm]:.4f}" if arm in values else "-"
            row = dotted(runs, low, high, dots) if dots >= FEWEST_DOTS else ""
            lines.append(line(arm, value, row, counts, failed[arm]))
            if arm in values and values[arm] == top:
                lines[-1].stylize("bold green", 0, names + 8)
        if dots >= FEWEST_DOTS:
            lines.append(Text("· trial  ● best trial" + ("  ◆ confirmation run" if seeds else ""), style="dim"))
        return lines

    def _arms_that_fit(self, values: dict[str, float], room: int) -> list[str]:
        """Return the arms in order; only the best ones if the terminal is too low for all of them."""
        goal = self.spec.goal
        best_first = sorted(self.arms, key=lambda arm: (arm in values, goal.goodness(values.get(arm))), reverse=True)
        return [arm for arm in self.arms if arm in best_first[:room]]

    def update(self, runs: dict[str, list[TrialRecord]], total: int, seeds: SeedsLeft | None = None) -> None:
        """Show the progress of the study's arms.

        Args:
            runs: arm -> its trials and confirmation runs.
            total: the number of trials and confirmation runs that the study will have, at most.
            seeds: where looks are planned.
        """
        self.runs = runs
        self.ended = sum(run.has_ended for arm_runs in runs.values() for run in arm_runs)
        self.epochs = sum(run.epochs for arm_runs in runs.values() for run in arm_runs)
        self.trials = total
        if self.ended_before is None:
            self.ended_before = self.ended
        self.seeds_left = seeds
        if (now := time.monotonic()) >= self.next_estimate:
            self.left.update(runs, now - self.began, seeds)
            took = time.monotonic() - now  # which grows with the number of runs
            self.next_estimate = now + took / SHARE_OF_ESTIMATES

    def show_waiting(self, text: str) -> None:
        """Show why nothing can be done for now."""
        if text != self.waits_for and not self.is_live:
            say(text)
        self.waits_for = visible(text)
        self.label = self.params = self.state = ""
        if self.cores:
            self.cores.pause()

    def show_computing(self, text: str) -> None:
        """Show what is computed once before the trial trains."""
        self.state = text
        if not self.is_live:
            say(f"  {text}")

    def show_worker_line(self, number: int, line: str) -> None:
        """Show a line of a worker's output."""
        worker = self.workers.setdefault(number, WorkerLine())
        is_news = worker.take(visible(line))
        if not self.is_live and is_news:
            say(f"worker {number} | {line}")

    def show_trial_start(self, spec: TrialSpec, params: str) -> None:
        """Show that a trial begins or resumes."""
        self.trial_started = self.last_line = time.monotonic()
        self.waits_for = self.state = ""
        self.curve = []
        self.label, self.params = visible(spec.name), visible(params)
        if not self.is_live:
            say(": ".join(part for part in (f"[{self.ended + 1}/{self.trials}] {spec.name}", params) if part))

    def show_epoch(self, spec: TrialSpec, metrics: EpochMetrics) -> None:
        """Show the metrics of an epoch that has ended."""
        goal = spec.goal
        self.curve.append(metrics.value(goal))
        value = f"  val. {goal.label} {metrics.value(goal):.4f}"
        rest = f"  {metrics.images_per_second:,.0f} images/s  train loss {metrics.train_loss:.4f}"
        rest += "" if goal.name == "loss" else f"  val. loss {metrics.val_loss:.4f}"
        epoch = f"epoch {metrics.epoch}/{spec.epochs}"
        text = epoch + value + rest
        self.state = f"{epoch} {sparkline(self.curve)}{value}{rest}"
        if not self.is_live and time.monotonic() - self.last_line >= self.seconds_between:
            self.last_line = time.monotonic()
            say(f"  {text}")

    def show_trial_end(self, spec: TrialSpec, state: str, value: float | None, reason: str) -> None:
        """Show that a trial has ended, or that another process has taken it over (`state` is "lost")."""
        seconds = time.monotonic() - self.trial_started
        if state != "lost":
            self.ended += 1
        result = f"val. {spec.goal.label} {value:.4f}" if value is not None else reason
        if not self.is_live:
            left = self.left.text(time.monotonic() - self.began)
            say(f"  {state}: {result} ({seconds:.1f} s{f', {left}' if left else ''})")
        elif state in ("failed", "lost"):
            self.live.console.print(Text(visible(f"{spec.name} {state}: {reason}"), style="yellow"))


def is_progress(line: str) -> bool:
    """Return whether a line of a worker's output says that an epoch or a trial has ended."""
    return re.match(r"  (epoch \d+/\d+|finished:|pruned:) ", line) is not None


class WorkerLine:
    """The latest of a worker's output: its trial, its parameters, and what it said last."""

    def __init__(self) -> None:
        self.label = self.params = self.detail = ""
        self.last_epoch = -math.inf  # time.monotonic() of the last line about an epoch that was passed on

    def take(self, line: str) -> bool:
        """Note a line; return whether a log needs it: of the lines about epochs, one every `PLAIN_SECONDS`."""
        start = re.fullmatch(r"\[\d+/\d+\] (.*?)(?:: (.*))?", line)
        if start:
            self.label, self.params = start.groups("")
            self.detail = ""
        else:
            self.detail = line.strip()
        if not line.startswith("  epoch "):
            return True
        is_news = time.monotonic() - self.last_epoch >= PLAIN_SECONDS
        if is_news:
            self.last_epoch = time.monotonic()
        return is_news

    def text(self) -> str:
        """Return the line that is shown."""
        return f"{self.label}  {self.detail or self.params}".strip()


def whole_items(text: str, width: int) -> str:
    """Return a text without the last of its items, which two spaces or a comma part, that do not fit."""
    while len(text) > width and (parted := re.match(r"(.*)(?:  |, )", text)):
        text = parted[1]
    return text


class CleanerAfterResize(RenderHook):
    """Clears the screen of a terminal that became narrower: it has wrapped the lines, and nobody knows which.

    It may have wrapped them before it said so (tmux does), so that counting rows would not do.
    """

    def __init__(self) -> None:
        self.width = console.width

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Return what is printed, behind codes that clear the screen where that is necessary."""
        is_narrower, self.width = console.width < self.width, console.width
        return [Control.clear(), Control.home(), *renderables] if is_narrower else renderables


def dotted(runs: Sequence[TrialRecord], low: float, high: float, width: int) -> str:
    """Return the values of an arm on an axis: '·' trials, '◆' confirmation runs, '●' the best trial."""
    cells = [" "] * width
    best = best_record(runs)
    for run in sorted(runs, key=lambda run: (run is best, run.confirms is not None)):
        if run.value is not None:
            position = round((run.value - low) / (high - low) * (width - 1)) if high > low else width // 2
            cells[position] = "●" if run is best else "·" if run.confirms is None else "◆"
    return "".join(cells)


def sparkline(values: list[float]) -> str:
    """Return the last 20 values as a row of bars between the smallest and the largest."""
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * 7) if high > low else 3] for value in values[-20:])
