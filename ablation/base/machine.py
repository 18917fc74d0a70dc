"""This machine: its memory, and what a run records about it."""

import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from ablation import __version__

CONTROL_GROUP = Path("/sys/fs/cgroup")
PACKAGES = ("torchvision", "optuna", "mlflow", "numpy")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return versions, the device's name, the platform and, in a checkout, the commit ('-dirty': with changes)."""
    # torch itself says which build it is, such as +cpu; its package's metadata may not.
    found = {"ablation": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    else:
        found["device"] = _processor() if device.type == "cpu" else device.type
    found["platform"] = platform.platform()
    if (commit := _commit()) is not None:
        found["commit"] = commit
    return found


def available_memory() -> int:
    """Return how many bytes of memory are free, in a container (control groups of version 2) of what it may use."""
    free: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no control group of Linux, or one without a limit
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
        # Files and the like, which are dropped for programs.
        droppable = sum(int(statistics.get(kind, 0)) for kind in ("active_file", "inactive_file", "slab_reclaimable"))
        free = min(free, limit - used + droppable)
    return free


def _processor() -> str:
    with suppress(OSError):
        if model := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return model[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout that this package is in; None for an installed copy, or without git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    described = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:  # a repository of another user, say
            return None
        described.append(done.stdout.strip())
    commit, changes = described
    return f"{commit}-dirty" if changes else commit
