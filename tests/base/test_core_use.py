"""The use of the cores, by made-up counters, and when the live view says that cores are busy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablation.base import core_use as module
from ablation.base.core_use import BusyCores, CoreTimes, children_pids, core_use, read_core_times

TWO = {0, 1}


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_cores", lambda: TWO)
    monkeypatch.setattr(module, "core_share", lambda: 2)


def test_the_use_between_two_readings_by_hand() -> None:
    """Of ten seconds of two cores, this process had nine, and one was idle: others had ten."""
    use = core_use(CoreTimes(100.0, 50.0, 30.0, 1.0), CoreTimes(110.0, 59.0, 31.0, 3.0))
    assert use.own == pytest.approx(0.9)
    assert use.others == pytest.approx(1.0)
    assert use.idle_share == pytest.approx(0.05)
    assert use.throttled == pytest.approx(0.2)


def test_counters_that_disagree_give_no_negative_use() -> None:
    """A worker that has ended takes its seconds with it; the system's counters tick in hundredths."""
    use = core_use(CoreTimes(0.0, 50.0, 0.0, 0.0), CoreTimes(1.0, 10.0, 2.01, 0.0))
    assert (use.own, use.others) == (0.0, 0.0)


class Clock:
    """Makes readings: each call of `pass_on` is a sampling interval with constant use of two cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.times = CoreTimes(0.0, 0.0, 0.0, 0.0)
        self.pids: list[tuple[int, ...]] = []
        monkeypatch.setattr(module, "read_core_times", self.read)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.times.wall)

    def read(self, pids: tuple[int, ...] = ()) -> CoreTimes:
        self.pids.append(pids)
        return self.times

    def pass_on(self, own: float, idle: float, throttled: float = 0.0) -> None:
        t = self.times
        s = module.SAMPLE_SECONDS
        self.times = CoreTimes(t.wall + s, t.own + s * own, t.idle + s * idle, t.throttled + s * throttled)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_busy_cores_are_told_after_seconds_of_evidence_until_they_are_free(clock: Clock) -> None:
    cores = BusyCores("this process gets")

    def texts(count: int, own: float, idle: float) -> list[str]:
        shown = []
        for _ in range(count):
            clock.pass_on(own, idle)
            shown.append(cores.update())
        return shown

    assert cores.update() == ""
    busy = "cores busy: this process gets 0.9 of 2"
    assert texts(4, own=0.9, idle=0.0) == ["", "", busy, busy]
    # 1.7 of 2 is not worth a note, but enough to keep one: it does not come and go.
    assert texts(4, own=1.7, idle=0.0)[-1] == "cores busy: this process gets 1.7 of 2"
    assert texts(4, own=1.9, idle=0.0)[-1] == ""
    assert texts(4, own=1.7, idle=0.0) == [""] * 4


def test_a_process_that_leaves_cores_idle_is_not_kept_from_them(clock: Clock) -> None:
    """One that computes with a single thread, or reads files."""
    cores = BusyCores("this process gets")
    cores.update()
    for _ in range(6):
        clock.pass_on(own=0.9, idle=0.5)
        assert cores.update() == ""


def test_a_quota_that_stops_threads_counts_like_others(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is idle, but the group's quota of 1.5 cores is used up: by others in the group, or not."""
    monkeypatch.setattr(module, "core_share", lambda: 1.5)
    shared, alone = BusyCores("this process gets"), BusyCores("this process gets")
    for cores, own, text in ((shared, 0.7, "cores busy: this process gets 0.7 of 1.5"), (alone, 1.45, "")):
        cores.update()
        for _ in range(4):
            clock.pass_on(own, idle=0.5, throttled=0.4)
            cores.update()
        assert cores.text == text


def test_a_pause_is_no_evidence(clock: Clock) -> None:
    cores = BusyCores("the workers get", lambda: (7, 8))
    cores.update()
    for _ in range(3):
        clock.pass_on(own=0.9, idle=0.0)
        cores.update()
    assert cores.text == "cores busy: the workers get 0.9 of 2"
    cores.pause()
    assert cores.text == ""
    clock.pass_on(own=0.9, idle=0.0)
    assert cores.update() == ""
    assert set(clock.pids) == {(7, 8)}


def test_counters_are_read_no_more_often_than_needed(clock: Clock) -> None:
    cores = BusyCores("this process gets")
    for _ in range(5):  # the view is drawn four times a second
        cores.update()
    assert len(clock.pids) == 1


def test_the_readings_of_this_process_and_of_a_child() -> None:
    before = read_core_times()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert child.pid in children_pids()
        begun = read_core_times([child.pid])
        while read_core_times([child.pid]).own < begun.own + 0.1:
            pass
    finally:
        child.kill()
        child.wait()
    after = read_core_times()
    assert after.wall > before.wall
    assert after.idle >= before.idle
    assert after.own >= before.own + 0.1  # the child has ended, and counts
    assert read_core_times([child.pid]).own == 0.0


def test_the_time_for_which_a_quota_stops_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [tmp_path / name for name in ("v2", "v1", "none")]
    for group in groups:
        group.mkdir()
    (groups[0] / "cpu.stat").write_text("usage_usec 9000000\nnr_throttled 3\nthrottled_usec 1500000\n")
    (groups[1] / "cpu.stat").write_text("nr_periods 9\nnr_throttled 3\nthrottled_time 250000000\n")  # in nanoseconds
    monkeypatch.setattr(module, "control_groups", lambda: iter(groups))
    assert read_core_times([os.getpid()]).throttled == pytest.approx(1.75)
