"""The cores that a process may use, by made-up control groups; and what the commands set before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ablation.base import cores
from ablation.base.cores import (
    BRIEFLY,
    control_groups,
    core_share,
    cpu_quota,
    prepare_threads,
    thread_variables,
    usable_cores,
    worker_variables,
)

VERSION_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
DISK = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores without control groups, on which nothing has been set."""
    monkeypatch.setattr(cores, "ROOT", tmp_path)
    monkeypatch.setattr(cores, "allowed_cores", lambda: set(range(8)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(cores, "chosen", {})
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


def machine(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> None:
    """Write a machine: the process's groups, what is mounted, and files below /sys/fs/cgroup."""
    texts = {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join(mounts) + "\n"}
    for name, text in (texts | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("groups", "mount", "files", "quota"),
    [
        ("0::/a/b\n", VERSION_2, {"a/b/cpu.max": "150000 100000\n", "a/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", VERSION_2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/a/b\n", VERSION_2, {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "10000 20000\n"}, 0.5),
        ("0::/a/b\n", VERSION_2, {"a/b/cpu.max": "max 100000\n", "a/c/cpu.max": "1000 100000\n"}, None),
        ("0::/\n", VERSION_2, {"cpu.max": "400000 100000\n"}, 4.0),  # a container with a namespace of its own
        # A container without one: the group's path is the machine's, and only the group itself is mounted.
        ("0::/docker/7\n", VERSION_2.replace(" / /", " /docker/7 /"), {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/../x\n", VERSION_2, {"cpu.max": "200000 100000\n"}, 2.0),  # a group outside of what is visible
        ("0::/a\n", VERSION_2, {}, None),  # the root has no quota, and `a` no such controller
        ("0::/a\n", VERSION_2, {"a/cpu.max": "nonsense\n"}, None),
        (
            "4:memory:/a\n3:cpu,cpuacct:/a/b\n0::/\n",
            VERSION_1,
            {
                "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        ("3:cpu,cpuacct:/\n", VERSION_1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, None),
    ],
)
def test_the_smallest_quota_of_the_groups_around_a_process(
    groups: str, mount: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    machine(tmp_path, groups, [DISK, MEMORY, mount], files)
    assert cpu_quota() == quota
    assert core_share() == (8 if quota is None else quota)
    assert usable_cores() == {None: 8, 0.5: 1, 1.5: 2, 2.5: 3}.get(quota, quota)


def test_groups_from_the_innermost_outwards(tmp_path: Path) -> None:
    machine(tmp_path, "5:cpu,cpuacct:/v1\n0::/a/b\n", [DISK, MEMORY, VERSION_1, VERSION_2], {})
    at = tmp_path / "sys/fs/cgroup"
    assert list(control_groups()) == [at / "cpu,cpuacct/v1", at / "cpu,cpuacct", at / "a/b", at / "a", at]


def test_a_system_without_control_groups() -> None:
    assert cpu_quota() is None
    assert usable_cores() == 8
    assert thread_variables({}) == BRIEFLY  # torch's number of threads stays


@pytest.mark.parametrize(
    ("quota", "physical", "threads"),
    [("150000", 8, "2"), ("50000", 8, "1"), ("600000", 4, "4"), ("800000", 8, None), ("900000", 8, None)],
)
def test_a_quota_limits_the_threads(
    quota: str, physical: int, threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    machine(tmp_path, "0::/\n", [VERSION_2], {"cpu.max": f"{quota} 100000"})
    assert thread_variables({}).get("OMP_NUM_THREADS") == threads


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n", [VERSION_2], {"cpu.max": "200000 100000"})
    assert BRIEFLY == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    assert thread_variables({}) == BRIEFLY | {"OMP_NUM_THREADS": "2"}
    assert thread_variables({"OMP_NUM_THREADS": "7"}) == BRIEFLY
    for waiting in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        assert thread_variables({waiting: "1"}) == {"OMP_NUM_THREADS": "2"}


def test_nothing_is_set_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    prepare_threads()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(
    ("quota", "workers", "threads"),
    [("max", 2, "4"), ("max", 3, "2"), ("max", 9, "1"), ("600000", 2, "3"), ("350000", 2, "2"), ("100000", 4, "1")],
)
def test_workers_share_the_cores(
    quota: str, workers: int, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where this process has set its own number of threads, by a quota; but not the user's number."""
    machine(tmp_path, "0::/\n", [VERSION_2], {"cpu.max": f"{quota} 100000"})
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_threads()
    assert worker_variables(workers) == {"OMP_NUM_THREADS": threads}
    cores.chosen.clear()
    os.environ["OMP_NUM_THREADS"] = "5"
    assert worker_variables(workers) == {}


SHOW = """
import os, sys
import click
from ablation.base.command_line import run_command

@click.command()
def show():
    assert "torch" not in sys.modules
    before = dict(os.environ)
    import torch
    assert before == dict(os.environ)
    print(os.environ.get("OMP_WAIT_POLICY"), torch.get_num_threads())

sys.exit(run_command(show))
"""


def test_a_command_has_the_variables_before_it_imports_torch() -> None:
    """With the number of threads that torch chooses by itself on this machine."""
    codes = (SHOW, "import torch; print('PASSIVE', torch.get_num_threads())")
    command, by_itself = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in codes
    )
    assert command == by_itself
