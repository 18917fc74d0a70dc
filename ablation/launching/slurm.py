"""SLURM: workers are the tasks of a job array, submitted by `sbatch` as a script that people can read and submit."""

import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ablation.base.errors import InputError
from ablation.base.files import write_atomically
from ablation.base.text import plural
from ablation.launching.programs import call
from ablation.launching.request import EngineWorker, Launch, refuse_options

OWN = ("array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "chdir", "wrap", "ntasks", "nodes")
SIGNAL_AHEAD = 30  # seconds between the end of a worker's grace period and the time limit: SLURM's clock is coarse
TEMPLATE = Path(__file__).with_name("slurm_array.sh")


def compose(launch: Launch) -> str:
    """Return the script of the job array.

    Raises:
        InputError: an option belongs to the launch itself, or a path contains a sign that SLURM would replace.
    """
    refuse_options(launch.options, OWN, "slurm")
    if (sign := re.search(r"[^\w./+=:,@-]", str(launch.folder))) is not None:  # to SLURM or to the shell it means more
        raise InputError(f"--store: {launch.folder}: SLURM cannot write to a path that contains {sign[0]!r}")
    options = dict(launch.options)
    signal = options.pop("signal", f"B:USR2@{math.ceil(launch.grace) + SIGNAL_AHEAD}")
    directives = [f"#SBATCH --{name}{f'={shlex.quote(value)}' if value else ''}" for name, value in options.items()]
    return TEMPLATE.read_text(encoding="utf-8").format(
        study=launch.study,
        label=launch.label,
        workers=launch.workers or 1,
        folder=launch.folder,
        script=script_path(launch),
        working_folder=shlex.quote(str(launch.working_folder)),
        signal=signal,
        directives="".join(f"{line}\n" for line in directives),
        command=shlex.join(launch.command),
    )


def script_path(launch: Launch) -> Path:
    """Return where the script is written when it is submitted."""
    return launch.folder / f"{launch.label}.sh"


def submit(launch: Launch) -> str:
    """Write the script to the store and submit it; a script that SLURM refuses is deleted again.

    Raises:
        InputError: `sbatch` is missing or refuses; contains what it said.
    """
    script, text = script_path(launch), compose(launch)
    call("sbatch", "--version")  # nothing is written where SLURM is not
    before = script.read_bytes() if script.exists() else None
    write_atomically(script, text.encode(errors="surrogateescape"))
    try:
        job = call("sbatch", "--parsable", str(script)).strip().partition(";")[0]
    except InputError:
        if before is None:
            script.unlink()
        else:
            write_atomically(script, before)
        raise
    return (
        f"{plural(launch.workers or 1, 'worker')} submitted to SLURM as job {job}; output: {launch.folder}/{job}_*.log"
    )


def cancel(label: str, options: Mapping[str, str]) -> list[str]:
    """End the queued and the running tasks of all arrays of a study."""
    del options
    call("scancel", f"--user={os.getuid()}", f"--name={label}")
    return []


def workers(label: str, options: Mapping[str, str]) -> list[EngineWorker]:
    """Return the tasks that run or wait, in the order of their numbers; a waiting one with SLURM's reason."""
    del options
    fields = "%i|%T|%N|%S|%V|%r"  # id, state, nodes, start, submission, reason
    lines = call("squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--name={label}",
                 f"--format={fields}", "--sort=i").splitlines()  # fmt: skip
    return [_worker(*line.split("|", 5)) for line in lines]


def _worker(task: str, state: str, nodes: str, start: str, submission: str, reason: str) -> EngineWorker:
    waits = state == "PENDING"
    shown = f"{state.lower()} ({reason})" if waits and reason != "None" else state.lower()
    return EngineWorker(task, shown, nodes or "-", submission if waits else start)
