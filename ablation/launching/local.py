"""This machine: the workers of `python -m ablation.study --workers`, one per GPU or several."""

import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil

from ablation.base.command_line import with_options
from ablation.base.device import gpu_count, mig_slices
from ablation.base.errors import InputError
from ablation.launching.request import EngineWorker, Launch, refuse_unknown

LABEL_VARIABLE = "ABLATION_LAUNCH"  # in the environment of a launch's processes; no file could outlive them
OPTIONS = ("per-gpu",)


def compose(launch: Launch) -> str:
    """Return the command that is run.

    Raises:
        InputError: an option is unknown, or there is no GPU for --per-gpu.
    """
    return shlex.join(_command(launch))


def _command(launch: Launch) -> list[str]:
    refuse_unknown(launch.options, OPTIONS, "local")
    if launch.workers is not None:
        return with_options(launch.command, "--workers", str(launch.workers))
    if "per-gpu" not in launch.options:
        return launch.command
    text = launch.options["per-gpu"]
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise InputError(f"--per-gpu: must be auto or a number from 1, got {text!r}")
    return with_options(launch.command, "--workers", str(int(text) * usable_gpus()))


def usable_gpus() -> int:
    """Return the number of GPUs, or of their MIG slices, for which there are workers.

    Raises:
        InputError: there is none.
    """
    gpus = len(mig_slices()) or gpu_count()
    if gpus == 0:
        raise InputError("--per-gpu: this machine has no CUDA device that this process may use; say --workers N")
    return gpus


def submit(launch: Launch) -> str:
    """Become the process that supervises the workers, in this terminal; Ctrl-C pauses it."""
    command = _command(launch)
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, LABEL_VARIABLE: launch.label})


def cancel(label: str, options: Mapping[str, str]) -> list[str]:
    """Pause the processes of a launch: those that were started by no other of them pause their workers themselves."""
    del options
    processes = list(_processes(label))
    numbers = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.Error):
            if process.ppid() not in numbers:
                process.send_signal(signal.SIGTERM)
    return []


def output(label: str, folder: Path, options: Mapping[str, str]) -> str:
    """Return nothing: the workers wrote to their terminal."""
    del label, folder, options
    return ""


def workers(label: str, options: Mapping[str, str]) -> list[EngineWorker]:
    """Return the processes of a launch that train: those that supervise others are left out."""
    del options
    parents, found = set(), []
    for process in _processes(label):
        with suppress(psutil.Error), process.oneshot():  # it may end at any moment
            since = datetime.fromtimestamp(process.create_time()).isoformat(timespec="seconds")
            found.append(EngineWorker(str(process.pid), process.status(), platform.node(), since))
            parents.add(str(process.ppid()))
    return [worker for worker in found if worker.id not in parents]


def _processes(label: str) -> Iterator[psutil.Process]:
    """Yield this user's processes that belong to a launch and run a study; other users' cannot be looked into."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(LABEL_VARIABLE) == label and "ablation.study" in process.cmdline():
                yield process
