"""What tuning chose, and whether its budget and its ranges were wide enough.

Legend: T trials.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from scipy.special import gammaln

from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult, goal_of
from ablation.spec.parameters import Choices, Range
from ablation.spec.study import StudySpec

OUTER = 0.1  # share of a range, at either end, in which a chosen value suggests a wider range
FEWEST_VALUES = 5  # two of which are ends; with fewer, most choices would be an end
BAND = (0.1, 0.9)  # quantiles around the expected best of k trials


def searched_params(spec: StudySpec, run: RunResult) -> dict[str, Any]:
    """Return the values that the search chose for a run, without parameters that have no effect on it."""
    trial = run.spec
    names = [name for name in spec.search.entries() if trial.reuse.applies(name)]
    return {name: getattr(trial, name) for name in names if getattr(trial, name) is not None}


@dataclass(frozen=True)
class Edge:
    """A chosen value at an end of what was searched, or in the last tenth of its range.

    Attributes:
        arm: its arm's name.
        parameter: its name.
        value: the chosen value.
        limit: the end that it is close to.
        is_upper: whether that is the upper one.
    """

    arm: str
    parameter: str
    value: Any
    limit: Any
    is_upper: bool


def edges(result: StudyResult) -> list[Edge]:
    """Return the chosen values that lie at an end of their range, or in its last tenth, of every arm and repeat.

    A tenth of a logarithmic range is one of its logarithm. Choices, whole numbers and steps have ends where they are
    five values or more.
    """
    found = []
    for arm, chosen in _chosen(result.arms):
        for parameter, value in searched_params(result.spec, chosen).items():
            ends = _ends(result.spec.search.get(parameter))
            if ends is None or isinstance(value, str):
                continue
            low, high, is_log, outer = ends
            place = (log(value / low) / log(high / low)) if is_log else (value - low) / (high - low)
            if place <= outer or place >= 1 - outer:
                is_upper = place >= 0.5
                found.append(Edge(arm.arm.name, parameter, value, high if is_upper else low, is_upper))
    return found


def _chosen(arms: Sequence[ArmResult]) -> Iterator[tuple[ArmResult, RunResult]]:
    """Yield each arm with each of its chosen trials."""
    for arm in arms:
        yield from ((arm, chosen) for chosen in arm.chosen)


def _ends(searched: Any) -> tuple[Any, Any, bool, float] | None:
    """Return the ends of a search, whether it is logarithmic, and the outer share; None where values have no order."""
    if isinstance(searched, Range) and searched.count >= FEWEST_VALUES:
        return searched.low, searched.largest, searched.log, OUTER
    if isinstance(searched, Choices):
        numbers = [choice for choice in searched.choices if isinstance(choice, int | float)]
        if len(numbers) == len(searched.choices) >= FEWEST_VALUES:
            return min(numbers), max(numbers), False, 0.0
    return None


@dataclass(frozen=True)
class BestOf:
    """The best validation value that k of an arm's trials would have found, for each k from 1 to T.

    Attributes:
        expected_T: its mean over all choices of k trials.
        low_T: its quantile 0.1.
        high_T: its quantile 0.9.
    """

    expected_T: np.ndarray
    low_T: np.ndarray
    high_T: np.ndarray

    @property
    def last_gain(self) -> float | None:
        """What the last trial is expected to have added; None with one trial."""
        return abs(float(self.expected_T[-1] - self.expected_T[-2])) if len(self.expected_T) > 1 else None


def best_of(trials: Sequence[RunResult]) -> BestOf | None:
    """Return the best of k finished trials (Dodge et al., 2019; the unbiased form of Tang et al., 2020).

    Of the T values in order, x_i is the largest of k drawn without replacement in C(i - 1, k - 1) of C(T, k) draws.

    Returns:
        None without finished trials.
    """
    sign = goal_of(trials).sign
    values = sorted(run.goodness for run in trials if run.val_value is not None)
    T = len(values)
    if T == 0:
        return None
    expected, bands = [], []
    i_T = np.arange(1, T + 1)
    for k in range(1, T + 1):
        # P(best of k <= x_i) = C(i, k) / C(T, k)
        log_share_T = gammaln(i_T + 1) - gammaln(np.maximum(i_T - k, 0) + 1) - gammaln(T + 1) + gammaln(T - k + 1)
        share_T = np.where(i_T < k, 0.0, np.exp(log_share_T))
        expected.append(float(np.diff(share_T, prepend=0.0) @ np.array(values)))
        bands.append([values[min(int(np.searchsorted(share_T, q - 1e-9)), T - 1)] for q in BAND])
    ends_2T = np.sort(sign * np.array(bands).T, axis=0)
    return BestOf(sign * np.array(expected), *ends_2T)


@dataclass(frozen=True)
class TunedMinusConfirmed:
    """The tuned trials' validation value minus the mean of their confirmation runs, over tunings.

    `standard_error` is None with one tuning; `tunings` is their number, without repeats that of the confirmed arms.
    """

    mean: float
    standard_error: float | None
    tunings: int


def tuned_minus_confirmed(arms: Sequence[ArmResult]) -> TunedMinusConfirmed | None:
    """Return how much the best of many trials gained by luck, the mean over tunings; None without confirmation runs."""
    gains = []
    for arm, chosen in _chosen(arms):
        of_repeat = [run for run in arm.confirmations if run.spec.repeat == chosen.spec.repeat]
        confirmed = [run.val_value for run in of_repeat if run.val_value is not None]
        if chosen.val_value is not None and confirmed:
            gains.append(chosen.val_value - float(np.mean(confirmed)))
    if not gains:
        return None
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None
    return TunedMinusConfirmed(float(np.mean(gains)), error, len(gains))
