"""The parts that a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.analysis.results import RunResult
from ablation.analysis.statistics import Estimate
from ablation.base.text import Table
from ablation.reporting.figures import Picture
from ablation.spec.architectures import kept_blocks
from ablation.spec.parameters import applies
from ablation.spec.study import StudySpec

SEEDS_INTERVAL = "95 % seeds interval"
BOTH_INTERVAL = "95 % seeds and images interval"
ACCURACY_COLUMNS = ["test accuracy", "standard deviation", SEEDS_INTERVAL, "val. accuracy", "n (seeds)"]


def searched_params(spec: StudySpec, run: RunResult) -> dict[str, Any]:
    """Return the values that the search chose for a run, without parameters that do not apply to it."""
    trial = run.spec
    blocks = kept_blocks(spec.backbone.name, trial.truncate_at)
    found = [name for name in spec.search.entries() if applies(name, trial.strategy, trial.freeze_depth, blocks)]
    return {name: getattr(trial, name) for name in found if getattr(trial, name) is not None}


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The sentence that stands out."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: list[str]


@dataclass(frozen=True)
class Code:
    """Something to copy into a terminal."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture by its name; `alt` says what it shows to those who cannot see it."""

    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """A long table that a page shows on demand."""

    table: Table


Block = Paragraph | Answer | Items | Code | Figure | Folded | Table


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `key` is its anchor."""

    key: str
    title: str
    blocks: list[Block]


CAPTIONS = {
    "arms": (
        "Test accuracy of each arm",
        "Test accuracy of each arm. Points: means over n seeds; strokes: single seeds; lines: 95 % seeds interval.",
    ),
    "effects": (
        "Marginal mean of each level, and the differences of levels, with intervals",
        "Left: the mean test accuracy of the arms that have a level. Right: differences of these means. Lines are the "
        "95 % seeds and images interval; a filled circle is a difference that was shown.",
    ),
    "interaction": (
        "Test accuracy at each level of the first factor, a line for each level of the second",
        "Parallel lines would mean that the factors do not interact.",
    ),
    "curves_accuracy": (
        "Training and validation accuracy of each arm against epochs",
        "Accuracy by epoch: mean over the confirmation runs, with the range from the lowest to the highest; the best "
        "trial where an arm has none. Training accuracy is an average over the epoch, while the network changed.",
    ),
    "curves_loss": (
        "Training and validation loss of each arm against epochs",
        "Loss (mean cross-entropy in nats) by epoch, drawn in the same way.",
    ),
    "costs": (
        "Test accuracy against the number of trained parameters and against training time",
        "Test accuracy against the parameters that are trained, and against the mean time that one run trained.",
    ),
    "tuning": (
        "Validation accuracy of every trial and the best so far, for each arm",
        "Every finished trial in its order, and the best so far. Where the line still rises near its end, more trials "
        "might find better configurations.",
    ),
    "importances": (
        "Share of each searched parameter in the variation of validation accuracy, for each arm",
        "How much of the variation of an arm's validation accuracies goes with each parameter (functional ANOVA over a "
        "random forest). With few trials this is a hint and no more.",
    ),
    "confusion": (
        "Confusion matrix of the winning arm",
        "The winning arm: which part of a true class (row) is taken for which class (column), mean over n seeds.",
    ),
    "confusion_arms": (
        "Confusion matrices of all arms",
        "The same for every arm; darker is more.",
    ),
}


def figure_block(name: str, pictures: Mapping[str, Picture]) -> list[Block]:
    if name not in pictures:
        return []
    alt, caption = CAPTIONS[name]
    return [Figure(name, alt, caption)]


def run_name(run: RunResult) -> str:
    return f"{run.spec.arm} {'trial' if run.spec.confirms is None else 'confirmation run'} #{run.number}"


def seeds_text(seeds: tuple[int, int]) -> str:
    return str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]} to {seeds[1]}"


def states_text(runs: Sequence[RunResult]) -> str:
    counts = {
        state: sum(run.state == state for run in runs) for state in ("finished", "pruned", "failed", "unfinished")
    }
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def optional_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def interval_text(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.4f} to {estimate.high:.4f}"
