"""Planned looks: how many seeds each arm gets, by what was decided at the looks so far."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.spec.tables import Confirm


@dataclass(frozen=True)
class Decision:
    """What a look at the answer decided.

    Attributes:
        seeds: of the look.
        stopped: arms that get no further seeds from this look on.
        is_sure: whether the answer is sure, so that no arm gets further seeds.
    """

    seeds: int
    stopped: tuple[str, ...]
    is_sure: bool

    def stored(self) -> dict[str, Any]:
        """Return it as JSON can store it."""
        return {"seeds": self.seeds, "stopped": list(self.stopped), "sure": self.is_sure}


def decision_from(stored: dict[str, Any]) -> Decision:
    """Return a decision that was stored."""
    return Decision(int(stored["seeds"]), tuple(stored["stopped"]), bool(stored["sure"]))


def is_open(confirm: Confirm, decisions: Sequence[Decision]) -> bool:
    """Return whether a look is left at which something is decided; at the last one, nothing is."""
    return len(decisions) < len(confirm.looks) - 1 and not (decisions and decisions[-1].is_sure)


def current_look(confirm: Confirm, decisions: Sequence[Decision]) -> int:
    """Return the seeds up to which arms that were not stopped are confirmed for now; all without planned looks."""
    if not confirm.looks:
        return confirm.seeds
    if decisions and decisions[-1].is_sure:
        return decisions[-1].seeds
    return confirm.looks[len(decisions)]


def seeds_of_arms(confirm: Confirm, arms: Iterable[str], decisions: Sequence[Decision]) -> dict[str, int]:
    """Return arm -> the confirmation runs of each repeat that it is to have for now."""
    return dict.fromkeys(arms, current_look(confirm, decisions)) | _stopped_at(decisions)


def most_seeds_of_arms(confirm: Confirm, arms: Iterable[str], decisions: Sequence[Decision]) -> dict[str, int]:
    """Return arm -> the confirmation runs of each repeat that it has at the end, if no further look stops it."""
    most = confirm.seeds if is_open(confirm, decisions) else current_look(confirm, decisions)
    return dict.fromkeys(arms, most) | _stopped_at(decisions)


def decision_texts(confirm: Confirm, decisions: Sequence[Decision], *, has_ended: bool = False) -> list[str]:
    """Return what was decided at each look, and what comes next, as sentences; none without planned looks.

    Args:
        confirm: the study's confirmation.
        decisions: at the looks so far.
        has_ended: whether all runs of the last look have ended, so that no further look comes.
    """
    texts = []
    for decision in decisions:
        stopped = f"no further seeds for {', '.join(decision.stopped)}" if decision.stopped else "all arms continue"
        what = "the answer is sure, no further seeds" if decision.is_sure else stopped
        texts.append(f"Look at {decision.seeds} seeds: {what}.")
    if confirm.looks and not has_ended and not (decisions and decisions[-1].is_sure):
        is_last = "" if is_open(confirm, decisions) else ", the last one"
        texts.append(f"The next look is at {current_look(confirm, decisions)} seeds{is_last}.")
    return texts


def _stopped_at(decisions: Sequence[Decision]) -> dict[str, int]:
    return {arm: decision.seeds for decision in decisions for arm in decision.stopped}
