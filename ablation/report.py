"""From finished trials to the table that answers the study's question."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation.search import TrialRecord


@dataclass(frozen=True)
class Table:
    """A titled table of strings, with notes below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table as markdown."""
        lines = [self.title, "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def best_of(trials: Sequence["TrialRecord"]) -> "TrialRecord | None":
    """Return the finished trial with the highest validation accuracy; the first of equals."""
    finished = [trial for trial in trials if trial.value is not None]
    return max(finished, key=lambda trial: trial.value or 0.0, default=None)


def standard_error(accuracy: float, images: int) -> float:
    """Return an accuracy's standard error from the images alone (Agresti and Coull, 1998: two more of each kind)."""
    p = (accuracy * images + 2) / (images + 4)
    return math.sqrt(p * (1 - p) / (images + 4))


def format_value(value: Any) -> str:
    """Return a parameter's value in at most four significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_params(params: dict[str, Any]) -> str:
    """Return parameters as `name value` pairs."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in sorted(params.items()))


def count_states(trials: Sequence["TrialRecord"]) -> str:
    """Return how many trials are in which state, such as '7 finished, 1 failed'."""
    counts: Counter[str] = Counter(trial.state for trial in trials)
    order = ("finished", "pruned", "failed", "running", "interrupted")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state]) or "none"


def result_table(
    question: str,
    arms: dict[str, dict[str, Any]],
    trials: dict[str, list["TrialRecord"]],
    published: dict[str, list[dict[str, Any]]],
    trials_per_arm: int,
    val_images: int,
) -> Table:
    """Make the study's table: an arm per row, in the file's order.

    Args:
        question: the study's.
        arms: arm -> its factor levels.
        trials: arm -> its trials.
        published: arm -> published figures.
        trials_per_arm: the budget.
        val_images: how many images each validation accuracy was measured on.
    """
    factors = list(next(iter(arms.values())))
    with_published = any(published.values())
    columns = [*factors, "best val. accuracy", "its parameters", "trials", "epochs trained"]
    columns += ["published"] if with_published else []
    rows = []
    for name, levels in arms.items():
        best = best_of(trials[name])
        rows.append(
            [
                *(str(level) for level in levels.values()),
                "-" if best is None else f"{best.value:.4f}",
                "-" if best is None else format_params(best.params),
                count_states(trials[name]),
                str(sum(trial.epochs for trial in trials[name])),
                *([_published(published[name])] if with_published else []),
            ]
        )
    values = [best.value for name in arms if (best := best_of(trials[name])) is not None and best.value is not None]
    unfinished = [trial.state for found in trials.values() for trial in found if not trial.has_ended]
    notes = [f"Best val. accuracy: best epoch of the best of up to {trials_per_arm} trials, n = {val_images} images."]
    if unfinished:
        notes.insert(0, f"Not complete: {len(unfinished)} trials are {' or '.join(sorted(set(unfinished)))}.")
    if values:
        error = max(standard_error(value, val_images) for value in values)
        notes.append(
            f"Its standard error from the images alone is up to {error:.4f}; the best of several trials is biased "
            "upwards, and one seed proves nothing. The test images have not been looked at."
        )
    if with_published:
        notes.append(
            "Published figures stand beside our validation accuracy here, because no confirmation run has measured "
            "test accuracy; they were measured on other images, so compare their order, not their digits."
        )
    return Table(question, columns, rows, notes)


def _published(entries: list[dict[str, Any]]) -> str:
    texts = []
    for entry in entries:
        figures = {k: v for k, v in entry.items() if k not in ("arm", "source") and v is not None}
        texts.append(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    return "; ".join(texts) or "-"


def status_table(study: str, trials: dict[str, list["TrialRecord"]], trials_per_arm: int) -> Table:
    """Make the table of `--status`: the arms' trials by state, with the reasons of those that failed."""
    rows, notes = [], []
    for name, found in trials.items():
        best = best_of(found)
        rows.append([name, count_states(found), *(["-", "-"] if best is None else [f"{best.value:.4f}", best.run_id])])
        notes += [f"{name} #{t.number} {t.state}: {t.reason}" for t in found if t.state == "failed"]
    ended = sum(trial.has_ended for found in trials.values() for trial in found)
    total = sum(max(trials_per_arm, len(found)) for found in trials.values())  # the budget may have been larger
    title = f"{study}: {ended} of {total} trials ended ({trials_per_arm} per arm)"
    return Table(title, ["arm", "trials", "best val. accuracy", "its MLflow run"], rows, notes)
