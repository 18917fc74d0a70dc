"""Tables of text: how far a study is, and what the report is made of."""

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
    """Return the finished trial with the highest validation accuracy, the first of equals; no confirmation run."""
    finished = [trial for trial in trials if trial.value is not None and trial.confirms is None]
    return max(finished, key=lambda trial: trial.value or 0.0, default=None)


def format_value(value: Any) -> str:
    """Return a parameter's value in at most four significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_params(params: dict[str, Any]) -> str:
    """Return parameters as `name value` pairs."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in sorted(params.items()))


def count_arms(count: int) -> str:
    """Return '1 arm' or '5 arms'."""
    return f"{count} arm" if count == 1 else f"{count} arms"


def count_states(trials: Sequence["TrialRecord"]) -> str:
    """Return how many trials are in which state, such as '7 finished, 1 failed'."""
    counts: Counter[str] = Counter(trial.state for trial in trials)
    order = ("finished", "pruned", "failed", "running", "interrupted")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state]) or "none"


def total_runs(trials: Sequence["TrialRecord"], trials_per_arm: int, seeds: int) -> int:
    """Return how many trials and confirmation runs an arm has or will have; its budget may have been larger once."""
    tuned = [trial for trial in trials if trial.confirms is None]
    best = best_of(trials)
    is_tuned = len(tuned) >= trials_per_arm and all(trial.has_ended for trial in tuned)
    if is_tuned and best is None:
        seeds = 0  # there is nothing to confirm
    current = [trial for trial in trials if best is not None and trial.confirms == best.number]
    superseded = len(trials) - len(tuned) - len(current)
    return max(trials_per_arm, len(tuned)) + max(seeds, len(current)) + superseded


def status_table(study: str, trials: dict[str, list["TrialRecord"]], trials_per_arm: int, seeds: int) -> Table:
    """Make the table of `--status`: the arms' trials by state, with the reasons of those that failed."""
    rows, notes = [], []
    for name, found in trials.items():
        best = best_of(found)
        tuned = [trial for trial in found if trial.confirms is None]
        confirmations = [trial for trial in found if trial.confirms is not None]
        rows.append(
            [
                name,
                count_states(tuned),
                *(["-", "-"] if best is None else [f"{best.value:.4f}", best.run_id]),
                count_states(confirmations),
            ]
        )
        for trial in found:
            if trial.state == "failed":
                kind = "" if trial.confirms is None else "confirmation "
                notes.append(f"{name} {kind}#{trial.number} {trial.state}: {trial.reason}")
    ended = sum(trial.has_ended for found in trials.values() for trial in found)
    total = sum(total_runs(found, trials_per_arm, seeds) for found in trials.values())
    budget = max([trials_per_arm, *(sum(t.confirms is None for t in found) for found in trials.values())])
    per_arm = f"{budget} trial{'s' * (budget != 1)}"
    per_arm += f" and {seeds} confirmation run{'s' * (seeds != 1)}" if seeds else ""
    title = f"{study}: {ended} of {total} runs ended ({per_arm} per arm)"
    columns = ["arm", "trials", "best val. accuracy", "its MLflow run", "confirmation runs"]
    return Table(title, columns, rows, notes)
