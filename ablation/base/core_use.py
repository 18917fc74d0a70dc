"""The use of the cores between two moments: by this process, by others; and whether others keep it from training."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ablation.base.cores import allowed_cores, control_groups, core_share

SAMPLE_SECONDS = 2.0  # between two readings of a `BusyCores`
EVIDENCE_SECONDS = 6.0  # for which cores were busy before it says so
BUSY_BELOW, FREE_FROM = 0.8, 0.9  # share of the cores: less is busy, and no longer so from the other on
IDLE_SHARE = 0.1  # of the cores' time; where more is idle, nobody waits for a core
THROTTLED_SHARE = 0.1  # of a second, for which a quota stopped threads


@dataclass(frozen=True)
class CoreTimes:
    """Counters of one moment, in seconds; only differences mean something.

    Attributes:
        wall: the clock.
        own: that processes of this study have computed.
        idle: that the cores on which this process may run were idle, together.
        throttled: for which a quota stopped this process's threads.
    """

    wall: float
    own: float
    idle: float
    throttled: float


@dataclass(frozen=True)
class CoreUse:
    """The average use of the cores between two moments.

    Attributes:
        own: number of cores that processes of this study kept busy.
        others: number of cores that others kept busy, of those on which this process may run; virtual machines on the
            same hardware count, too.
        idle_share: of these cores' time, 0 to 1.
        throttled: number of threads that a quota stopped.
    """

    own: float
    others: float
    idle_share: float
    throttled: float


def read_core_times(pids: Iterable[int] = ()) -> CoreTimes:
    """Return the counters of now; `own` is that of some processes, by default of this one and its ended children."""
    cores = allowed_cores()
    idle = sum(
        times.idle + getattr(times, "iowait", 0.0)
        for number, times in enumerate(psutil.cpu_times(percpu=True))
        if number in cores
    )
    own = 0.0
    for pid in tuple(pids) or (os.getpid(),):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            own += sum(psutil.Process(pid).cpu_times()[:4])  # user, system, and those of ended children
    return CoreTimes(time.perf_counter(), own, idle, sum(map(_throttled_seconds, control_groups())))


def _throttled_seconds(group: Path) -> float:
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        return int(counts.get("throttled_usec", 0)) / 1e6 + int(counts.get("throttled_time", 0)) / 1e9  # version 2, 1
    return 0.0


def core_use(before: CoreTimes, after: CoreTimes) -> CoreUse:
    """Return the average use of the cores between two readings."""
    seconds, cores = after.wall - before.wall, len(allowed_cores())
    own = max(0.0, after.own - before.own) / seconds  # a process that has ended is missing
    idle = (after.idle - before.idle) / seconds
    others = max(0.0, cores - idle - own)
    return CoreUse(own, others, idle / cores, (after.throttled - before.throttled) / seconds)


def children_pids() -> list[int]:
    """Return the process ids of this process's children."""
    return [child.pid for child in psutil.Process().children()]


class BusyCores:
    """Says that others keep processes from the cores on which they train, after some seconds of evidence."""

    def __init__(self, subject: str, pids: Callable[[], Iterable[int]] = tuple):
        """Watch some processes, by default this one.

        Args:
            subject: the processes and their verb, such as "this process gets".
            pids: returns their process ids.
        """
        self.subject, self.pids = subject, pids
        self.readings: deque[CoreTimes] = deque()
        self.text = ""

    def pause(self) -> None:
        """Forget what has been seen: the processes no longer train."""
        self.readings, self.text = deque(), ""  # not cleared: another thread may be reading it

    def update(self) -> str:
        """Read the counters, if it is time to; return what there is to say, or "".

        A process that computes without using all its cores is told from one that cannot have them by the time for
        which cores are idle: where there is hardly any, threads wait for cores.
        """
        readings = self.readings
        if readings and time.perf_counter() < readings[-1].wall + SAMPLE_SECONDS:
            return self.text
        readings.append(read_core_times(self.pids()))
        if readings[-1].wall - readings[0].wall >= EVIDENCE_SECONDS:
            use, cores = core_use(readings.popleft(), readings[-1]), core_share()
            is_crowded = use.idle_share < IDLE_SHARE or use.throttled > THROTTLED_SHARE
            is_short = use.own < (FREE_FROM if self.text else BUSY_BELOW) * cores
            self.text = f"cores busy: {self.subject} {use.own:.1f} of {cores:.3g}" if is_crowded and is_short else ""
        return self.text
