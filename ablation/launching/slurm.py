"""SLURM: workers are the tasks of a job array, submitted by `sbatch` as a script that people can read and submit."""

import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ablation.base.errors import InputError
from ablation.base.files import write_atomically
from ablation.base.text import one_line, plural
from ablation.launching.programs import NoAnswer, call
from ablation.launching.request import EngineWorker, Launch, refuse_options

OWN = (
    "array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "chdir", "wrap", "ntasks", "nodes",
    "wait",
)  # fmt: skip
# Signals to the script, which it passes on: by name, or by Linux's number.
SIGNAL = re.compile(r"R?B:((SIG)?(INT|TERM|HUP|USR1|USR2|XCPU)|1|2|10|12|15|24)(@\d+)?", re.ASCII | re.IGNORECASE)
SIGNAL_AHEAD = 30  # seconds between the end of a worker's grace period and the time limit: SLURM's clock is coarse
OTHER_CLUSTER = "set SLURM_CLUSTERS instead, for --status and --cancel, too"
TEMPLATE = Path(__file__).with_name("slurm_array.sh")


def compose(launch: Launch) -> str:
    """Return the script of the job array.

    Raises:
        InputError: an option or a variable would lose workers or their output, or a path contains a sign that SLURM
            would replace.
    """
    options = _options(launch)
    if (sign := re.search(r"[^\w./+=:,@-]", str(launch.folder))) is not None:  # to SLURM or to the shell it means more
        raise InputError(f"--store: {launch.folder}: SLURM cannot write to a path that contains {sign[0]!r}")
    directives = [f"#SBATCH --{name}{f'={shlex.quote(value)}' if value else ''}" for name, value in options.items()]
    return TEMPLATE.read_text(encoding="utf-8").format(
        study=launch.study,
        label=launch.label,
        folder=launch.folder,
        script=script_path(launch),
        working_folder=shlex.quote(str(launch.working_folder)),
        directives="\n".join(directives),
        command=shlex.join(launch.command),
    )


def _options(launch: Launch) -> dict[str, str]:
    """Return the options of `sbatch`: the launch's own, then the user's."""
    others = {name: value for name, value in launch.options.items() if name != "signal"}
    refuse_options(others, (*OWN, "signal"), "slurm")  # an abbreviation of `signal` would escape the check below
    if {"cluster", "clusters"} & launch.options.keys():
        raise InputError(f"--engine-option: clusters: {OTHER_CLUSTER}")
    if "SBATCH_CLUSTERS" in os.environ:
        raise InputError(f"SBATCH_CLUSTERS: {OTHER_CLUSTER}")
    own = {
        "job-name": launch.label,
        "array": f"1-{launch.workers or 1}",
        "output": f"{launch.folder}/%A_%a.log",
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR2@{math.ceil(launch.grace) + SIGNAL_AHEAD}",
    }
    options = {**own, **launch.options}
    if not SIGNAL.fullmatch(options["signal"]):
        raise InputError(f"--engine-option: signal must be such as B:USR1@120, got {options['signal']!r}")
    return options


def script_path(launch: Launch) -> Path:
    """Return where the script is written when it is submitted."""
    return launch.folder / f"{launch.label}.sh"


def submit(launch: Launch) -> str:
    """Write the script to the store and submit it; a script that SLURM refuses is deleted again.

    Raises:
        NoAnswer: `sbatch` does not answer; the script stays, because the job may be queued.
        InputError: `sbatch` is missing or refuses; contains what it said.
    """
    script, text = script_path(launch), compose(launch)
    call("sbatch", "--version")  # nothing is written where SLURM is not
    before = script.read_bytes() if script.exists() else None
    write_atomically(script, text.encode(errors="surrogateescape"))
    # On the command line, too: in the script, they yield to the variables SBATCH_*.
    options = [f"--{name}={value}" if value else f"--{name}" for name, value in _options(launch).items()]
    try:
        said = call("sbatch", "--parsable", *options, str(script))
        if not (jobs := re.findall(r"^(\d+)(?:;\S*)?\s*$", said, re.MULTILINE)):  # a site may say more
            raise InputError(f"sbatch: submitted no job; it said {one_line(said.strip())!r}")
    except NoAnswer as error:
        raise NoAnswer(f"{error}; the job may be queued all the same: --status shows it") from None
    except InputError:
        if before is None:
            script.unlink()
        else:
            write_atomically(script, before)
        raise
    count = plural(launch.workers or 1, "worker")
    return f"{count} submitted to SLURM as job {jobs[-1]}; output: {launch.folder}/{jobs[-1]}_*.log"


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
    # With SLURM_CLUSTERS, other lines name the clusters.
    return [_worker(*line.split("|", 5)) for line in lines if "|" in line]


def _worker(task: str, state: str, nodes: str, start: str, submission: str, reason: str) -> EngineWorker:
    waits = state == "PENDING"
    shown = f"{state.lower()} ({reason})" if waits and reason != "None" else state.lower()
    return EngineWorker(task, shown, nodes or "-", submission if waits else start)
