"""The parts of a report, and the texts that several of its sections share."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ablation.analysis.results import StudyResult
from ablation.analysis.runs import RunResult
from ablation.analysis.statistics import Estimate
from ablation.base.text import Table
from ablation.reporting.charts import MOST_DOTS, Picture
from ablation.spec.objective import Objective

INTERVAL = "95 % interval"  # over seeds and images, of one mean
SIMULTANEOUS = "simultaneous 95 % interval"  # the same, of all differences together


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The answer, which the page emphasises: a line per factor."""

    lines: list[str]


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: list[str]


@dataclass(frozen=True)
class Code:
    """A command to copy into a terminal."""

    text: str


@dataclass(frozen=True)
class Figure:
    """Plots side by side: the name of each picture with its text alternative."""

    alts: dict[str, str]
    caption: str


@dataclass(frozen=True)
class Tile:
    """A small image.

    Attributes:
        address: the image, as a data address.
        alt: its text alternative.
        lines: stand below it.
        key: its anchor; empty without one.
        classes: the true and the predicted one of a mistake.
    """

    address: str
    alt: str
    lines: list[str] = field(default_factory=list)
    key: str = ""
    classes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Gallery:
    """Rows of small images, each row under its title; `picture` names the file with all of them, `alt` describes it."""

    picture: str
    alt: str
    rows: list[tuple[str, list[Tile]]]
    caption: str


@dataclass(frozen=True)
class Sheet:
    """One large picture: the name of its file, its data address, its text alternative and its caption."""

    picture: str
    address: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """A long table that the page shows on demand."""

    table: Table


@dataclass(frozen=True)
class RichTable:
    """A table with shaded or linked cells.

    `shades` are from 0 to 1, one for each cell but the first of a row; or there are none. `links` are addresses by row
    and column.
    """

    table: Table
    shades: list[list[float]] = field(default_factory=list)
    links: dict[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Details:
    """Blocks that the page shows on demand."""

    title: str
    blocks: list["Block"]


@dataclass(frozen=True)
class Beside:
    """Blocks in a wide column and a narrow one; below each other where there is no room."""

    wide: list["Block"]
    narrow: list["Block"]


Block = Paragraph | Answer | Items | Code | Figure | Gallery | Sheet | Folded | RichTable | Details | Beside | Table


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `key` is its anchor; readers seldom need one that `is_folded`."""

    key: str
    title: str
    blocks: list[Block]
    is_folded: bool = False


CAPTIONS = {  # kind of plot -> what it shows; {metric} is the objective
    "arms": "Test {metric} of each arm. Points: means; strokes: single seeds, some of which may "
    "coincide; lines: 95 % intervals of the means.",
    "means": "The mean test {metric} of the arms that have a level, with its 95 % interval.",
    "differences": "Differences of mean test {metric}, with simultaneous 95 % intervals; filled circles mark the "
    "differences that were shown (p < 0.05).",
    "interaction": "Test {metric} of each combination, with its 95 % interval. Parallel lines would mean that the "
    "factors do not interact.",
    "curves": "Validation {metric} by epoch: the mean over the confirmation runs; for an arm without any, its best "
    "trial.",
    "panels": "{panels}, and loss (mean cross-entropy in nats), by epoch, of every confirmation run; of an arm without "
    "any, its best trial. Training values are averages over the epoch, during which the network changes.",
    "costs": "Test {metric} against the number of trained parameters, the mean training time of a run, and the time to "
    "classify an image; lines: 95 % interval.",
    "search": f"The validation {{metric}} of every finished trial (of more than {MOST_DOTS:,}, the best) against each "
    "searched parameter.",
    "tuning": "All finished trials in order, the best so far, and what as many trials in random order are expected to "
    "find (dashed; grey: 10th to 90th percentile). Where the lines still rise near their end, more trials might find "
    "better configurations.",
}


def behind_column(objective: Objective) -> str:
    """Return the heading of an arm's distance from the best other one."""
    return f"from the best other ({objective.unit})"


def metric_columns(objective: Objective) -> list[str]:
    """Return the headings of an arm's objective: on the test images, with its interval, and on validation."""
    return [f"test {objective.label}", "standard deviation", INTERVAL, f"val. {objective.label}", "n (seeds)"]


def figure_block(kind: str, pictures: Mapping[str, Picture], objective: Objective) -> list[Block]:
    """Return the plots of a kind with their caption as a list of one; an empty list if none was drawn."""
    of_kind = {name: picture for name, picture in pictures.items() if f"{name}_".startswith(f"{kind}_")}
    if not of_kind:
        return []
    panels = "Accuracy" if objective.name in ("accuracy", "loss") else f"Accuracy, {objective.label}"
    caption = CAPTIONS[kind].format(metric=objective.label, panels=panels)
    notes = dict.fromkeys(picture.note for picture in of_kind.values() if picture.note)
    return [Figure({name: picture.alt for name, picture in of_kind.items()}, " ".join([caption, *notes]))]


def study_command(result: StudyResult, *words: str) -> str:
    """Return a command on a study, or on pooled ones: `python -m` with these words, the names, and the store."""
    store = ["--store", result.store] if result.store else []
    names = [study.spec.name for study in result.studies or [result]]
    return shlex.join(["python", "-m", *words, *names, *store])


def run_name(run: RunResult) -> str:
    """Return a run's name, such as 'block3 trial #2' or 'block3 confirmation run #0'."""
    return f"{run.spec.arm} {run.label}"


def seeds_text(seeds: tuple[int, int]) -> str:
    """Return the lowest and highest number of seeds per arm as '3' or '2 to 3'."""
    return str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]} to {seeds[1]}"


def states_text(runs: Sequence[RunResult]) -> str:
    """Return the number of runs in each state, such as '7 finished, 1 failed'; 'none' without runs."""
    counts = {
        state: sum(run.state == state for run in runs) for state in ("finished", "pruned", "failed", "unfinished")
    }
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def optional_number(value: float | None) -> str:
    """Return a number with four decimals; '-' for None."""
    return "-" if value is None else f"{value:.4f}"


def interval_text(estimate: Estimate | None) -> str:
    """Return an estimate's interval as '0.8913 to 0.9037'; '-' if it has none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.4f} to {estimate.high:.4f}"
