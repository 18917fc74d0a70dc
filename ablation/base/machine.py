"""This machine: its free memory, and the environment that a run records."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from ablation import __version__
from ablation.base.command_line import JOB_VARIABLE
from ablation.base.cores import control_groups

CHECKOUT = Path(__file__).resolve().parents[2]  # unless this is an installed copy
PACKAGES = ("torchvision", "optuna", "mlflow", "numpy")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return versions, the device's name, the platform and, in a checkout, the commit ('-dirty': with changes)."""
    # torch.__version__ names the build, such as +cpu; the package's metadata may not.
    environment = {"ablation": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            environment[package] = version(package)
    if device.type == "cuda":
        environment["device"] = torch.cuda.get_device_name(device)
        environment["cuda"] = str(torch.version.cuda)
    else:
        environment["device"] = _processor() if device.type == "cpu" else device.type
    environment["platform"] = platform.platform()
    if (commit := _commit()) is not None:
        environment["commit"] = commit
    return environment


def describe_process() -> dict[str, str]:
    """Return this process's host and number and, where a launch placed it, the engine's id of its job."""
    job = os.environ.get(JOB_VARIABLE)
    return {"host": platform.node(), "process": str(os.getpid()), **({} if job is None else {"job": job})}


def available_memory() -> int:
    """Return the free memory in bytes; what control groups (version 2), such as a container's, leave of it."""
    free: int = psutil.virtual_memory().available
    for group in control_groups():
        with suppress(OSError, ValueError):  # no limit
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Cached files count as used, but Linux drops them when a program needs memory.
            droppable = sum(int(counts.get(kind, 0)) for kind in ("active_file", "inactive_file", "slab_reclaimable"))
            free = min(free, limit - used + droppable)
    return free


def _processor() -> str:
    with suppress(OSError):
        if model := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return model[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout with this package; None for an installed copy, or without git."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--exclude=*", "--abbrev=64", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # such as a repository of another user
        return None
