"""The time that a running study still needs, from how long its runs took so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median_low
from typing import Any

import numpy as np

from ablation.base.text import format_duration
from ablation.search.status import best_record
from ablation.search.studies import TrialRecord

Runs = Mapping[str, Sequence[TrialRecord]]  # arm -> its trials and confirmation runs

CONFIRMATION_FACTOR = 1.1  # a run's time over its trial's before one was seen: 1.08 on average over ten demos
SYSTEMATIC_ERROR = 0.1  # standard error of the estimate, relative, however many runs have ended
SHRINKAGE = 0.3  # of the effects of levels; an effect seen in three arms keeps nine tenths
LONGEST = 10  # times its arm's median per epoch that a run is believed to have taken
# Arm -> its confirmation runs: up to the next planned look, and up to the last.
SeedsLeft = tuple[Mapping[str, int], Mapping[str, int]]


class TimeLeft:
    """Estimates the time left from the runs that ended since it began, whichever worker did them."""

    def __init__(self, levels: Mapping[str, Mapping[str, Any]], trials_per_arm: int, seeds: int):
        """Estimate for a study's arms with their levels, and its budget: trials and confirmation runs per arm."""
        self.levels = levels
        self.trials_per_arm = trials_per_arm
        self.seeds = seeds
        self._before: set[tuple[str, int, bool]] | None = None  # the runs that had ended when this began
        # By run, in seconds of `update`: when it had not begun yet, and when it was seen to have ended.
        self._unseen: dict[tuple[str, int, bool], float] = {}
        self._ends: dict[tuple[str, int, bool], float] = {}
        self._resumed: set[tuple[str, int, bool]] = set()  # the runs that were interrupted when this began
        self._range: tuple[float, float] | None = None
        self._updated = 0.0

    def update(self, runs: Runs, seconds: float, seeds: SeedsLeft | None = None) -> None:
        """Note how far the study is, the seconds since this view of it began, and the seeds where looks are planned."""
        fewest, most = seeds or ({}, {})
        ended = {_key(run) for arm_runs in runs.values() for run in arm_runs if run.has_ended}
        runs = self._believed(runs, seconds)
        if self._before is None:
            self._before = ended
        self._updated = seconds
        new_keys = ended - self._before
        new = [run for arm_runs in runs.values() for run in arm_runs if _key(run) in new_keys]
        if not new or seconds <= 0 or not self._knows_all_levels(runs):
            return
        running = [run for arm_runs in runs.values() for run in arm_runs if run.state == "running"]
        done = sum(min(run.seconds or 0.0, seconds) for run in [*new, *running])
        parallel = done / seconds  # seconds of runs per second: several workers, less what is lost between runs
        costs = self._costs(runs)
        left, spread, longest = self._work_left(runs, costs, most)
        least, least_spread, _ = self._work_left(runs, costs, fewest)
        begun = sum(min(run.seconds or 0.0, costs[run.arm, run.confirms is not None]) for run in running)
        if parallel > 0:
            waits = longest * max(0.0, parallel - 1) / 2  # at the end, some workers wait for the last runs of others
            low, high = least - least_spread, left + spread
            self._range = (max(0.0, (low + waits - begun) / parallel), max(0.0, (high + waits - begun) / parallel))

    def seconds(self, now: float) -> tuple[float, float] | None:
        """Return the shortest and the longest likely time left, at a time in seconds; None while it is unknown."""
        if self._range is None:
            return None
        low, high = (max(0.0, end - (now - self._updated)) for end in self._range)
        return low, high

    def text(self, now: float) -> str:
        """Return the time left such as '12 to 15 min left'; "" while it is unknown."""
        ends = self.seconds(now)
        if ends is None or ends[1] <= 0:
            return ""
        low, high = format_duration(ends[0]), format_duration(ends[1])
        same_unit = low.split()[-1] == high.split()[-1] and " h " not in low + high
        if low == high:
            return f"about {high} left"
        return f"{low.split()[0] if same_unit else low} to {high} left"

    def _believed(self, runs: Runs, seconds: float) -> Runs:
        """Return runs with the seconds that they can have taken; None where that is not known.

        Theirs are from the clock of the day, which may be set meanwhile, and hold the time for which a run waited to be
        resumed. What begins while this view is there is limited by this process's own clock.
        """
        believed = {}
        for arm, arm_runs in runs.items():
            for run in arm_runs:
                self._unseen.setdefault(_key(run), -math.inf if self._before is None else self._updated)
                if run.has_ended:
                    self._ends.setdefault(_key(run), seconds)
                elif self._before is None and run.state == "interrupted":
                    self._resumed.add(_key(run))
            usual = median_low([run.seconds / max(1, run.epochs) for run in arm_runs if run.seconds] or [math.inf])
            known = [(run, self._believed_seconds(run, seconds, usual)) for run in arm_runs]
            believed[arm] = [run if time == run.seconds else replace(run, seconds=time) for run, time in known]
        return believed

    def _believed_seconds(self, run: TrialRecord, now: float, usual: float) -> float | None:
        """Return the seconds that a run can have taken; `usual` are those of an epoch in its arm."""
        key = _key(run)
        most = self._ends.get(key, now) - self._unseen[key]
        if run.seconds is None:
            return None
        if math.isfinite(most):
            is_back = run.has_ended and run.seconds == 0  # the clock was set back meanwhile
            return most if is_back else min(run.seconds, most)
        is_plausible = key not in self._resumed and run.seconds <= LONGEST * usual * max(1, run.epochs)
        return run.seconds if is_plausible else None

    def _work_left(
        self, runs: Runs, costs: Mapping[tuple[str, bool], float], seeds: Mapping[str, int]
    ) -> tuple[float, float, float]:
        """Return the seconds of all runs that have not ended, a 95 % margin of them, and those of the longest."""
        left = variance = longest = 0.0
        deviation = _relative_deviation(runs)
        for arm, arm_runs in runs.items():
            for is_confirmation, budget in ((False, self.trials_per_arm), (True, seeds.get(arm, self.seeds))):
                ended = [run for run in _kind(arm_runs, is_confirmation) if run.has_ended]
                count = max(0, budget - len(ended))
                cost = costs[arm, is_confirmation]
                left += count * cost
                longest = max(longest, cost if count else 0.0)
                variance += (count + count**2 / max(1, len(ended))) * (deviation * cost) ** 2
        return left, 1.96 * math.sqrt(variance + (SYSTEMATIC_ERROR * left) ** 2), longest

    def _costs(self, runs: Runs) -> dict[tuple[str, bool], float]:
        """Return (arm, is a confirmation run) -> its likely seconds: the mean of its kind in its arm, or the nearest.

        A confirmation run trains the best trial's configuration again; an arm without any run costs what its levels do
        in others.
        """
        more = _more_for_confirmation(runs)
        by_levels = self._costs_by_levels(runs)
        costs = {}
        for arm, arm_runs in runs.items():
            trials = _times(_kind(arm_runs, False))
            costs[arm, False] = float(np.mean(trials)) if trials else by_levels[arm]
            confirmed, tuned = _times(_kind(arm_runs, True)), _unconfirmed_times(arm_runs)
            if confirmed:
                costs[arm, True] = float(np.mean(confirmed))
            else:
                trial = float(np.mean(tuned)) if tuned else by_levels[arm]
                costs[arm, True] = trial * CONFIRMATION_FACTOR if more is None else trial + more
        return costs

    def _knows_all_levels(self, runs: Runs) -> bool:
        """Return whether every level that still trains has run: it may cost a hundred times what others do."""
        levels = {arm: {(name, repr(level)) for name, level in self.levels[arm].items()} for arm in runs}
        budget = self.trials_per_arm + self.seeds
        waiting = [levels[arm] for arm in runs if sum(run.has_ended for run in runs[arm]) < budget]
        known = [levels[arm] for arm in runs if _times(runs[arm])]
        return bool(known) and set().union(*waiting) <= set().union(*known)

    def _costs_by_levels(self, runs: Runs) -> dict[str, float]:
        """Return arm -> seconds of a trial, the product of its levels' effects, fitted to the arms with known times.

        The logarithms are a ridge regression on indicators of the levels.
        """
        known = {arm: math.log(max(1e-3, float(np.mean(times)))) for arm in runs if (times := _times(runs[arm]))}
        places = {arm: {(name, repr(level)) for name, level in self.levels[arm].items()} for arm in runs}
        columns = sorted(set().union(*places.values()))
        indicators_AL = np.array([[column in places[arm] for column in columns] for arm in runs], dtype=float)
        is_known_A = np.array([arm in known for arm in runs])
        x_KL, mean = indicators_AL[is_known_A], float(np.mean(list(known.values())))
        y_K = np.array([known[arm] - mean for arm in runs if arm in known])
        effects_L = np.linalg.solve(x_KL.T @ x_KL + SHRINKAGE * np.eye(len(columns)), x_KL.T @ y_K)
        return dict(zip(runs, np.exp(mean + indicators_AL @ effects_L).tolist(), strict=True))


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


def _more_for_confirmation(runs: Runs) -> float | None:
    """Return how many seconds longer than the same trial a confirmation run takes, which tests its model, too.

    None while it is not known.
    """
    pairs = [(_times(_kind(arm_runs, True)), _unconfirmed_times(arm_runs)) for arm_runs in runs.values()]
    differences = [float(np.mean(confirmed) - np.mean(trials)) for confirmed, trials in pairs if confirmed and trials]
    return max(0.0, float(np.median(differences))) if differences else None


def _relative_deviation(runs: Runs) -> float:
    """Return the standard deviation of a run's time relative to the mean of its arm; 0.3 while none can be computed."""
    squares, degrees = 0.0, 0
    for arm_runs in runs.values():
        times_R = np.array(_times(_kind(arm_runs, False)))
        if times_R.size > 1 and times_R.mean() > 0:
            squares += float((((times_R - times_R.mean()) / times_R.mean()) ** 2).sum())
            degrees += times_R.size - 1
    return math.sqrt(squares / degrees) if degrees else 0.3
