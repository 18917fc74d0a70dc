"""The time left, on the log of a study whose runs take known times."""

from dataclasses import replace

import numpy as np
import pytest

from ablation.running.time_left import TimeLeft
from ablation.search.studies import TrialRecord

SECONDS = {"slow": 30.0, "quick": 3.0}
TRIALS, SEEDS = 4, 3
LEVELS = {"slow": {"strategy": "fine_tune_all"}, "quick": {"strategy": "feature_extraction"}}

# arm -> tenths of a second of its two trials, then of its three confirmation runs: those of a demo on idle cores.
DEMO = {
    "block1,feature_extraction": ([2, 1], [2, 2, 2]),
    "block1,fine_tune_all": ([5, 5], [5, 6, 5]),
    "block2,feature_extraction": ([2, 2], [2, 2, 2]),
    "block2,fine_tune_all": ([7, 7], [7, 8, 7]),
    "block3,feature_extraction": ([2, 2], [2, 2, 2]),
    "block3,fine_tune_all": ([8, 8], [9, 9, 9]),
    "block4,feature_extraction": ([2, 2], [2, 2, 2]),
    "block4,fine_tune_all": ([12, 10], [11, 11, 11]),
    "block5,feature_extraction": ([2, 2], [2, 2, 2]),
    "block5,fine_tune_all": ([12, 11], [12, 13, 11]),
}


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
    records: dict[str, list[TrialRecord]] = {arm: [] for arm, *_ in runs}
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
    left = TimeLeft(LEVELS, TRIALS, SEEDS)
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


def test_arms_that_did_not_run_yet_cost_what_their_levels_do() -> None:
    """The last arm is the costliest; the mean of all arms would be a third less. A new cut may cost anything."""
    runs, now = [], 0.0
    for is_confirmation, budget in ((False, 2), (True, 3)):
        for number in range(budget):
            for arm, durations in DEMO.items():
                seconds = durations[is_confirmation][number] / 10
                runs.append((arm, number, is_confirmation, now, now + seconds))
                now += seconds
    left = TimeLeft({arm: dict(zip(("cut", "strategy"), arm.split(","), strict=True)) for arm in DEMO}, 2, 3)
    errors = []
    left.update(at(0.0, runs), 0.0)
    for arm, *_, end in runs[:8]:
        left.update(at(end, runs), end)
        assert left.text(end) == "", arm
    for *_, end in runs[8:-1]:
        left.update(at(end, runs), end)
        ends = left.seconds(end)
        assert ends is not None
        assert ends[0] <= now - end <= ends[1]
        errors.append(abs(sum(ends) / 2 / (now - end) - 1))
    assert len(errors) == 41
    assert max(errors) < 0.2
    assert float(np.median(errors)) < 0.05


def test_runs_of_an_earlier_command_give_no_rate_but_costs() -> None:
    runs = log()
    left = TimeLeft(LEVELS, TRIALS, SEEDS)
    half = runs[7][4]
    left.update(at(half, runs), 0.0)
    assert left.text(0.0) == ""
    now = runs[9][4]
    left.update(at(now, runs), now - half)
    ends = left.seconds(now - half)
    assert ends is not None
    assert sum(ends) / 2 == pytest.approx(runs[-1][4] - now, rel=0.2)


def test_a_level_of_which_nothing_is_left_need_not_be_known() -> None:
    """A resumed run's time is unknown, and its arm may never run again."""
    arms = {"resumed": {"lr_decay": 0.5}, "first": {"lr_decay": 1.0}, "second": {"lr_decay": 1.0}}
    left = TimeLeft(arms, 1, 0)
    interrupted = TrialRecord("resumed", 0, None, "interrupted", None, {}, 0, "", "", 9000.0)
    ended = replace(interrupted, state="finished", value=0.5)
    first = TrialRecord("first", 0, None, "finished", 0.5, {}, 0, "", "", 60.0)
    left.update({"resumed": [interrupted], "first": [], "second": []}, 0.0)
    left.update({"resumed": [ended], "first": [], "second": []}, 30.0)
    assert left.text(30.0) == ""
    left.update({"resumed": [ended], "first": [first], "second": []}, 90.0)
    ends = left.seconds(90.0)
    assert ends is not None
    assert ends[0] < 90.0 < ends[1]


@pytest.mark.parametrize("jump", [3600.0, 1.8e9, -3600.0])
def test_a_clock_that_jumps_changes_little(jump: float) -> None:
    """By an hour, or from 1970: in the middle of the third run, and for good."""
    runs = log()
    _, _, _, begin, end = runs[2]
    left = TimeLeft(LEVELS, TRIALS, SEEDS)
    checked = 0
    for now in sorted({0.0, *(end for *_, end in runs)}):
        seen = at(now, runs)
        for place, record in enumerate(seen[runs[2][0]]):
            if record.number == runs[2][1] and now >= end:
                seen[runs[2][0]][place] = replace(record, seconds=max(0.0, end - begin + jump))
        left.update(seen, now)
        ends = left.seconds(now)
        if end <= now < 0.9 * runs[-1][-1]:
            assert ends is not None
            assert sum(ends) / 2 == pytest.approx(runs[-1][-1] - now, rel=0.25)
            assert ends[1] < 2 * (runs[-1][-1] - now) + 60
            checked += 1
    assert checked >= 8


@pytest.mark.parametrize("when", ["resumed by this command", "resumed by an earlier command"])
def test_the_night_for_which_a_run_waited_is_not_its_time(when: str) -> None:
    runs, night = log(), 12 * 3600.0
    pause = runs[4][3] + 1 if when == "resumed by this command" else runs[8][4]  # the first run of five, or the ninth
    left = TimeLeft(LEVELS, TRIALS, SEEDS)
    for now in (pause, *(end for *_, end in runs if end > pause)):
        seen = at(now, runs)
        record = seen[runs[4][0]][2]
        assert record.number == runs[4][1] == 2
        state = "interrupted" if now == pause and not record.has_ended else record.state
        seen[runs[4][0]][2] = replace(record, state=state, seconds=(record.seconds or 0.0) + night)  # type: ignore[arg-type]
        left.update(seen, now - pause)
        ends = left.seconds(now - pause)
        if runs[5][4] < now < 0.9 * runs[-1][-1] and now > pause:
            assert ends is not None
            assert ends[1] < 3 * (runs[-1][-1] - now)


def test_planned_looks_may_end_a_study_early() -> None:
    """Of two arms one has been stopped at its seed; the other gets one or three more, of 60 s each."""

    def runs(arm: str, seeds: int) -> list[TrialRecord]:
        trial = TrialRecord(arm, 0, None, "finished", 0.5, {}, 0, "", "", 60.0)
        return [trial, *(TrialRecord(arm, n, 0, "finished", 0.5, {}, 0, "", "", 60.0) for n in range(seeds))]

    left = TimeLeft(LEVELS, 1, 4)
    before = {"slow": runs("slow", 0), "quick": runs("quick", 1)}
    now = {"slow": runs("slow", 1), "quick": runs("quick", 1)}
    seeds = ({"slow": 2, "quick": 1}, {"slow": 4, "quick": 1})
    left.update(before, 0.0, seeds)
    left.update(now, 60.0, seeds)
    ends = left.seconds(60.0)
    assert ends is not None
    assert ends[0] < 60.0
    assert 3 * 60.0 < ends[1] < 6 * 60.0
    left.update(now, 60.0, ({"slow": 1, "quick": 1}, {"slow": 1, "quick": 1}))
    assert left.seconds(60.0) == (0.0, 0.0)


def test_the_text_counts_down_and_ends() -> None:
    left = TimeLeft({"slow": {"lr_decay": 1.0}, "quick": {"lr_decay": 1.0}}, 1, 0)
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
