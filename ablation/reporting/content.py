"""The parts of a report, and the texts that several of its sections share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablation.analysis.results import RunResult
from ablation.analysis.statistics import Estimate
from ablation.base.text import Table
from ablation.reporting.figures import Picture

INTERVAL = "95 % interval"  # over seeds and images, of one mean
SIMULTANEOUS = "simultaneous 95 % interval"  # the same, of all differences together
ACCURACY_COLUMNS = ["test accuracy", "standard deviation", INTERVAL, "val. accuracy", "n (seeds)"]


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
    """A figure by its picture's name; `alt` describes it to readers who cannot see it."""

    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """A long table that the page shows on demand."""

    table: Table


@dataclass(frozen=True)
class HeatMap:
    """A table of numbers behind a first column of names; `shades` are from 0 to 1, one for each number."""

    table: Table
    shades: list[list[float]]


Block = Paragraph | Answer | Items | Code | Figure | Folded | HeatMap | Table


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `key` is its anchor."""

    key: str
    title: str
    blocks: list[Block]


CAPTIONS = {  # figure -> (text alternative, caption)
    "arms": (
        "Test accuracy of each arm",
        "Test accuracy of each arm. Points: means over n seeds; strokes: single seeds; lines: 95 % interval over "
        "seeds and images.",
    ),
    "effects": (
        "Marginal mean of each level, and the differences of levels, with intervals",
        "Left: the mean test accuracy of the arms that have a level, with its 95 % interval. Right: differences of "
        "these means, with simultaneous 95 % intervals; filled circles mark the differences that were shown.",
    ),
    "differences": (
        "Mean of each arm, and the differences of arms, with intervals",
        "Left: the mean test accuracy of each arm, with its 95 % interval. Right: differences of these means, with "
        "simultaneous 95 % intervals; filled circles mark the differences that were shown.",
    ),
    "interaction": (
        "Test accuracy at each level of the first factor, a line for each level of the second",
        "Parallel lines would mean that the factors do not interact.",
    ),
    "curves_accuracy": (
        "Training and validation accuracy of each arm against epochs",
        "Accuracy by epoch: mean over the confirmation runs, with the range from the lowest to the highest; for an arm "
        "without confirmation runs, its best trial. Training accuracy is an average over the epoch, during which the "
        "network changes.",
    ),
    "curves_loss": (
        "Training and validation loss of each arm against epochs",
        "Loss (mean cross-entropy in nats) by epoch, drawn in the same way.",
    ),
    "costs": (
        "Test accuracy against the number of trained parameters and against training time",
        "Test accuracy against the number of trained parameters, and against the mean training time of a run.",
    ),
    "tuning": (
        "Validation accuracy of every trial and the best so far, for each arm",
        "All finished trials in order, and the best so far. Where the line still rises near its end, more trials might "
        "find better configurations.",
    ),
    "best_of": (
        "Expected best validation accuracy of k trials against k, for each arm",
        "The best validation accuracy that k of an arm's trials would have found: mean over all choices of k, and the "
        "band from the 10th to the 90th percentile. A curve that still rises at its end says that more trials would "
        "find better configurations; it takes trials as drawn at random.",
    ),
    "importances": (
        "Share of each searched parameter in the variation of validation accuracy, for each arm",
        "Share of the variation of an arm's validation accuracies that each parameter explains (functional ANOVA over "
        "a random forest). With few trials, this is only a hint.",
    ),
    "confusion": (
        "Confusion matrix of the winning arm",
        "The winning arm: fraction of each true class (row) that is classified as each class (column), mean over n "
        "seeds.",
    ),
    "confusion_arms": (
        "Confusion matrices of all arms",
        "The same for every arm; darker means a larger fraction.",
    ),
}


def figure_block(name: str, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the figure with its caption as a list of one; an empty list if it was not drawn."""
    if name not in pictures:
        return []
    alt, caption = CAPTIONS[name]
    return [Figure(name, alt, caption)]


def run_name(run: RunResult) -> str:
    """Return a run's name, such as 'block3 trial #2' or 'block3 confirmation run #0'."""
    return f"{run.spec.arm} {'trial' if run.spec.confirms is None else 'confirmation run'} #{run.number}"


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
