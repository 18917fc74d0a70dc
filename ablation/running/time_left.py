"""The time that a running study still needs, from how long its runs took so far."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ablation.base.text import format_duration
from ablation.search.status import best_record
from ablation.search.studies import TrialRecord

Runs = Mapping[str, Sequence[TrialRecord]]  # arm -> its trials and confirmation runs


class TimeLeft:
    """Estimates the time left from the runs that ended since it began, whichever worker did them."""

    def __init__(self, trials_per_arm: int, seeds: int):
        """Estimate for a study's budget: trials and confirmation runs per arm."""
        self.trials_per_arm = trials_per_arm
        self.seeds = seeds
        self._before: set[tuple[str, int, bool]] | None = None  # the runs that had ended when this began
        self._range: tuple[float, float] | None = None
        self._updated = 0.0

    def update(self, runs: Runs, seconds: float) -> None:
        """Note how far the study is, and the seconds since this view of it began."""
        ended = {_key(run) for arm_runs in runs.values() for run in arm_runs if run.has_ended}
        if self._before is None:
            self._before = ended
        self._updated = seconds
        new = [run for arm_runs in runs.values() for run in arm_runs if _key(run) in ended - self._before]
        if not new or seconds <= 0:
            return
        running = [run for arm_runs in runs.values() for run in arm_runs if run.state == "running"]
        done = sum(min(run.seconds or 0.0, seconds) for run in [*new, *running])
        parallel = done / seconds  # seconds of runs per second: several workers, less what is lost between runs
        left, spread, longest = self._work_left(runs)
        left -= sum(min(run.seconds or 0.0, self._cost(runs, run.arm, run.confirms is not None)) for run in running)
        if parallel > 0:
            left += longest * max(0.0, parallel - 1) / 2  # at the end, some workers wait for the last runs of others
            self._range = (max(0.0, (left - spread) / parallel), max(0.0, (left + spread) / parallel))

    def seconds(self, now: float) -> tuple[float, float] | None:
        """Return the shortest and the longest likely time left, at a time in seconds; None while it is unknown."""
        if self._range is None:
            return None
        low, high = (max(0.0, end - (now - self._updated)) for end in self._range)
        return low, high

    def text(self, now: float) -> str:
        """Return the time left such as 'about 12 to 15 min left'; "" while it is unknown."""
        ends = self.seconds(now)
        if ends is None or ends[1] <= 0:
            return ""
        low, high = format_duration(ends[0]), format_duration(ends[1])
        same_unit = low.split()[-1] == high.split()[-1] and " h " not in low + high
        if low == high:
            return f"about {high} left"
        return f"{low.split()[0] if same_unit else low} to {high} left"

    def _work_left(self, runs: Runs) -> tuple[float, float, float]:
        """Return the seconds of all runs that have not ended, a 95 % margin of them, and those of the longest."""
        left = variance = longest = 0.0
        deviation = _relative_deviation(runs)
        for arm, arm_runs in runs.items():
            for is_confirmation, budget in ((False, self.trials_per_arm), (True, self.seeds)):
                ended = [run for run in _kind(arm_runs, is_confirmation) if run.has_ended]
                count = max(0, budget - len(ended))
                cost = self._cost(runs, arm, is_confirmation)
                left += count * cost
                longest = max(longest, cost if count else 0.0)
                variance += (count + count**2 / max(1, len(ended))) * (deviation * cost) ** 2
        return left, 1.96 * math.sqrt(variance), longest

    def _cost(self, runs: Runs, arm: str, is_confirmation: bool) -> float:
        """Return the likely seconds of a run: the mean of its kind in its arm, or what is nearest to it.

        A confirmation run trains the best trial's configuration again; an arm without any run costs what others do.
        """
        same = _times(_kind(runs[arm], is_confirmation))
        more = 0.0
        if not same and is_confirmation:
            same = _unconfirmed_times(runs[arm])
            more = _more_for_confirmation(runs)
        others = [run for arm_runs in runs.values() for run in arm_runs]
        return max(0.0, more + float(np.mean(same or _times(others) or [0.0])))


def _key(run: TrialRecord) -> tuple[str, int, bool]:
    return run.arm, run.number, run.confirms is not None


def _kind(runs: Sequence[TrialRecord], is_confirmation: bool) -> list[TrialRecord]:
    return [run for run in runs if (run.confirms is not None) == is_confirmation]


def _times(runs: Sequence[TrialRecord]) -> list[float]:
    return [run.seconds for run in runs if run.has_ended and run.seconds is not None]


def _unconfirmed_times(runs: Sequence[TrialRecord]) -> list[float]:
    """Return the seconds of the best trial, whose configuration is confirmed; those of all trials without one."""
    best = best_record(runs)
    return _times([best] if best is not None else _kind(runs, False))


def _more_for_confirmation(runs: Runs) -> float:
    """Return how many seconds longer than the same trial a confirmation run takes, which tests its model, too."""
    pairs = [(_times(_kind(arm_runs, True)), _unconfirmed_times(arm_runs)) for arm_runs in runs.values()]
    differences = [float(np.mean(confirmed) - np.mean(trials)) for confirmed, trials in pairs if confirmed and trials]
    return max(0.0, float(np.median(differences))) if differences else 0.0


def _relative_deviation(runs: Runs) -> float:
    """Return the standard deviation of a run's time relative to the mean of its arm; 0.3 while none can be computed."""
    squares, degrees = 0.0, 0
    for arm_runs in runs.values():
        times_R = np.array(_times(_kind(arm_runs, False)))
        if times_R.size > 1 and times_R.mean() > 0:
            squares += float((((times_R - times_R.mean()) / times_R.mean()) ** 2).sum())
            degrees += times_R.size - 1
    return math.sqrt(squares / degrees) if degrees else 0.3
