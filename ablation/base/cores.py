"""The cores that this process may use, and the environment variables that make libraries use them well.

OpenMP, with which torch computes on the CPU, reads its variables once, when it is loaded. Hence they are set before
torch is imported. torch chooses its number of threads by the process's affinity, but does not know a container's quota.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path("/")
THREADS, WAIT_POLICY = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
SPIN_COUNT = "GOMP_SPINCOUNT"
BRIEFLY = {WAIT_POLICY: "PASSIVE", SPIN_COUNT: "1000"}  # turns of a loop, some microseconds
WAITING = {WAIT_POLICY, SPIN_COUNT, "KMP_BLOCKTIME"}  # any of them decides how threads wait

chosen: dict[str, str] = {}  # the variables that this process has set itself


def prepare_threads() -> None:
    """Set the variables that the user has not set; nothing, if torch has been loaded and it is too late."""
    if "torch" not in sys.modules:
        chosen.update(thread_variables(os.environ))
        os.environ.update(chosen)


def thread_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are to be added to an environment.

    Threads that have nothing to do spin for some microseconds, then sleep. By default, GNU's OpenMP lets them spin for
    some milliseconds: where cores are shared, on the very cores that the awaited threads need. If they slept at once,
    waking them would cost a small head up to three times its step on idle cores. On a GPU's host, threads that sleep
    leave their cores to the thread that launches kernels, which is not one of OpenMP's.

    The number of threads is set only where a quota grants fewer cores than torch would use, and also limits OpenBLAS.
    """
    variables = {} if WAITING & environment.keys() else dict(BRIEFLY)
    quota = cpu_quota()
    if quota is not None and quota < len(allowed_cores()) and THREADS not in environment:
        physical = psutil.cpu_count(logical=False) or math.inf  # torch starts no thread for a core's second half
        variables[THREADS] = str(min(math.ceil(quota), physical))
    return variables


def worker_variables(workers: int) -> dict[str, str]:
    """Return the variables of one of several workers: its share of the cores, unless the user has set a number."""
    if THREADS in os.environ and THREADS not in chosen:
        return {}
    return {THREADS: str(max(1, usable_cores() // workers))}


def usable_cores() -> int:
    """Return the number of cores that this process may use, if only for a part of the time."""
    return math.ceil(core_share())


def core_share() -> float:
    """Return the cores' worth of time that this process may use: 1.5 where a quota grants half of the second core."""
    return min(len(allowed_cores()), cpu_quota() or math.inf)


def allowed_cores() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """Return the cores' worth of time that the control groups' quotas grant, or None if there is no quota."""
    return min(filter(None, map(_quota, control_groups())), default=None)


def _quota(group: Path) -> float | None:
    with suppress(OSError, ValueError):  # no such file; "max" for no quota
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return quota / period
    with suppress(OSError, ValueError):
        quota, period = (int((group / f"cpu.cfs_{part}_us").read_text()) for part in ("quota", "period"))
        return quota / period if quota > 0 else None  # -1 for no quota
    return None


def control_groups() -> Iterator[Path]:
    """Yield the folders of the control groups that this process's CPU time counts for, from the innermost outwards.

    Both versions are looked for. A container sees its own group as the outermost.
    """
    with suppress(OSError, ValueError):  # not Linux
        groups = [line.split(":", 2) for line in (ROOT / "proc/self/cgroup").read_text().splitlines()]
        for line in (ROOT / "proc/self/mountinfo").read_text().splitlines():
            mount, filesystem = (half.split() for half in line.split(" - ", 1))
            kind, options = filesystem[0], filesystem[2].split(",")
            for number, controllers, path in groups:
                is_version_2 = kind == "cgroup2" and number == "0"
                if is_version_2 or (kind == "cgroup" and "cpu" in options and "cpu" in controllers.split(",")):
                    yield from _outwards(ROOT / mount[4].lstrip("/"), mount[3], path)


def _outwards(mounted_at: Path, mounted_group: str, group: str) -> Iterator[Path]:
    """Yield the folder of a group and those around it, up to the outermost visible one."""
    inside = Path(group).relative_to(mounted_group) if Path(group).is_relative_to(mounted_group) else Path()
    yield from (mounted_at / part for part in (inside, *inside.parents) if ".." not in part.parts)
