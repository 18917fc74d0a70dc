"""The time left, on the log of a study whose runs take known times."""

import pytest

from ablation.running.time_left import TimeLeft
from ablation.search.studies import TrialRecord

SECONDS = {"slow": 30.0, "quick": 3.0}
TRIALS, SEEDS = 4, 3


def log(parallel: int = 1) -> list[tuple[str, int, bool, float, float]]:
    """Return the runs of a study as (arm, number, is a confirmation, begin, end); trials vary by a tenth."""
    order = [(arm, number, False) for number in range(TRIALS) for arm in SECONDS]
    order += [(arm, number, True) for number in range(SEEDS) for arm in SECONDS]
    free = [0.0] * parallel
    runs = []
    for place, (arm, number, is_confirmation) in enumerate(order):
        worker = free.index(min(free))
        seconds = SECONDS[arm] * (1.1 if place % 3 == 0 else 0.95) + (0.5 if is_confirmation else 0.0)
        runs.append((arm, number, is_confirmation, free[worker], free[worker] + seconds))
        free[worker] += seconds
    return runs


def at(now: float, runs: list[tuple[str, int, bool, float, float]]) -> dict[str, list[TrialRecord]]:
    """Return the records of the runs that have begun."""
    records: dict[str, list[TrialRecord]] = {arm: [] for arm in SECONDS}
    for arm, number, confirms, begin, end in runs:
        if begin <= now:
            state = "finished" if end <= now else "running"
            value = 0.9 if end <= now else None
            records[arm].append(
                TrialRecord(arm, number, 0 if confirms else None, state, value, {}, 0, "", "", min(now, end) - begin)  # type: ignore[arg-type]
            )
    return records


@pytest.mark.parametrize("parallel", [1, 2])
def test_it_is_right_within_a_fifth_after_the_first_tenth(parallel: int) -> None:
    """A mean over all runs would be wrong by more: it forgets which arms are slow."""
    runs = log(parallel)
    total = max(end for *_, end in runs)
    left = TimeLeft(TRIALS, SEEDS)
    moments = sorted({0.0, *(end for *_, end in runs)})
    checked = 0
    for now in moments:
        left.update(at(now, runs), now)
        # Of the slow arm nothing is known before its first run has ended; the last runs are not shared evenly.
        if 0.25 * total < now < (0.95 if parallel == 1 else 0.75) * total:
            ends = left.seconds(now)
            assert ends is not None
            assert sum(ends) / 2 == pytest.approx(total - now, rel=0.2)
            checked += 1
    assert checked >= 8


def test_runs_of_an_earlier_command_give_no_rate_but_costs() -> None:
    runs = log()
    left = TimeLeft(TRIALS, SEEDS)
    half = runs[7][4]
    left.update(at(half, runs), 0.0)
    assert left.text(0.0) == ""
    now = runs[9][4]
    left.update(at(now, runs), now - half)
    ends = left.seconds(now - half)
    assert ends is not None
    assert sum(ends) / 2 == pytest.approx(runs[-1][4] - now, rel=0.2)


def test_the_text_counts_down_and_ends() -> None:
    left = TimeLeft(1, 0)
    times = [TrialRecord("slow", 0, None, "finished", 0.5, {}, 0, "", "", 60.0)]
    left.update({"slow": [], "quick": []}, 0.0)
    left.update({"slow": times, "quick": []}, 60.0)
    ends = left.seconds(60.0)
    assert ends is not None
    assert ends[0] < 60.0 < ends[1]
    assert sum(ends) / 2 == pytest.approx(60.0)
    later = left.seconds(80.0)
    assert later is not None
    assert later == pytest.approx((max(0.0, ends[0] - 20), ends[1] - 20))
    assert left.text(60.0) == "0 to 143 s left" or " to " in left.text(60.0)
    left.update({"slow": times, "quick": [TrialRecord("quick", 0, None, "finished", 0.5, {}, 0, "", "", 60.0)]}, 120.0)
    assert left.text(120.0) == ""
