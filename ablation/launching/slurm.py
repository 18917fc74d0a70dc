"""SLURM: workers are the tasks of a job array, submitted by `sbatch` as a script that people can read and submit."""

import math
import os
import re
import shlex
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ablation.base.errors import InputError
from ablation.base.files import write_atomically
from ablation.base.text import one_line, plural
from ablation.launching.programs import NoAnswer, call
from ablation.launching.request import EngineWorker, Launch

OWN = (
    "array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "chdir", "wrap", "ntasks", "nodes",
    "wait",
)  # fmt: skip
# Signals to the script, which it passes on: by name, or by Linux's number.
SIGNAL = re.compile(r"R?B:((SIG)?(INT|TERM|HUP|USR1|USR2|XCPU)|1|2|10|12|15|24)(@(\d+))?", re.ASCII | re.IGNORECASE)
SIGNAL_AHEAD = 30  # seconds between the end of a worker's grace period and the time limit: SLURM's clock is coarse
DEFAULT_NOTICE = 60  # seconds, of a signal that says none
LEAST_WORK = 60  # seconds between the start of a worker and its notice: SLURM counts in minutes
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
# Options of `sbatch` that may have no value: another one would take the next option, or the script, for its value.
FLAGS = (
    "contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "no-kill", "overcommit", "oversubscribe",
    "propagate", "quiet", "reboot", "share", "spread-job", "stepmgr", "use-min-nodes", "verbose",
)  # fmt: skip
CHECKSUM = "\n# The checksum of the lines above, which tells a launch whether they were changed: "
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
    text = TEMPLATE.read_text(encoding="utf-8").format(
        study=launch.study,
        label=launch.label,
        folder=launch.folder,
        script=script_path(launch),
        working_folder=shlex.quote(str(launch.working_folder)),
        directives="\n".join(directives),
        command=shlex.join(launch.command),
    )
    return _with_checksum(text)


def _with_checksum(text: str) -> str:
    return f"{text}{CHECKSUM}{zlib.crc32(text.encode(errors='surrogateescape')):08x}\n"


def _is_edited(script: bytes) -> bool:
    """Return whether a script is not as a launch wrote or printed it, with whatever options."""
    text = script.decode(errors="surrogateescape").rstrip()
    return _with_checksum(text.partition(CHECKSUM)[0]).rstrip() != text


def _options(launch: Launch) -> dict[str, str]:
    """Return the options of `sbatch`: the launch's own, then the user's."""
    for name in launch.options:  # `sbatch` takes abbreviations; one of `signal` would escape the check below
        if name != "signal" and any(each.startswith(name) for each in (*OWN, "signal")):
            raise InputError(f"--engine-option: {name} is set by the launch on slurm itself")
    if {"cluster", "clusters"} & launch.options.keys():
        raise InputError(f"--engine-option: clusters: {OTHER_CLUSTER}")
    if "SBATCH_CLUSTERS" in os.environ:
        raise InputError(f"SBATCH_CLUSTERS: {OTHER_CLUSTER}")
    if valueless := [name for name, value in launch.options.items() if not value and name not in FLAGS]:
        raise InputError(f"--engine-option: {valueless[0]} needs a value on slurm")
    own = {
        "job-name": launch.label,
        "array": f"1-{launch.workers or 1}",
        "output": f"{launch.folder}/{launch.label}_%A_%a.log",
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR2@{math.ceil(launch.grace) + SIGNAL_AHEAD}",
    }
    options = {**own, **launch.options}
    if (found := SIGNAL.fullmatch(options["signal"])) is None:
        raise InputError(f"--engine-option: signal must be such as B:USR1@120, got {options['signal']!r}")
    notice = int(found[5] or DEFAULT_NOTICE)
    if notice < launch.grace:  # SLURM would end a worker that still saves
        given = f"signal={options['signal']} gives a notice of {notice} s"
        raise InputError(f"--engine-option: {given}, less than --grace {launch.grace:g}")
    least = notice + LEAST_WORK
    for name in ("time", "time-min"):
        if 0 < (seconds := _seconds(options.get(name, ""))) <= least:  # it would be requeued for ever
            raise InputError(
                f"--engine-option: {name}={options[name]} is {seconds} s, but must be longer than {least} s: "
                "the notice before it, and a minute; hours are written HH:MM:SS"
            )
    return options


def _seconds(time: str) -> int:
    """Return a time limit: minutes[:seconds], hours:minutes:seconds or days-hours[:minutes[:seconds]]; 0 for no limit.

    What SLURM alone can read is 0, too.
    """
    if (found := TIME.fullmatch(time)) is None:
        return 0
    days, first, second, third = (int(part or 0) for part in found.groups())
    has_hours = found[1] is not None or found[4] is not None
    return 86400 * days + 3600 * first + 60 * second + third if has_hours else 60 * first + second


def script_path(launch: Launch) -> Path:
    """Return where the script is written when it is submitted."""
    return launch.folder / f"{launch.label}.sh"


def submit(launch: Launch) -> str:
    """Write the script to the store and submit it; a script that SLURM refuses is deleted again.

    Raises:
        NoAnswer: `sbatch` does not answer; the script stays, because the job may be queued.
        InputError: the script was edited, which a launch would undo, or `sbatch` is missing or refuses; contains what
            it said.
    """
    script, text = script_path(launch), compose(launch)
    call("sbatch", "--version")  # nothing is written where SLURM is not
    before = script.read_bytes() if script.exists() else None
    if before is not None and _is_edited(before):
        what = "was edited" if CHECKSUM.encode() in before else "was edited, or is of an earlier version"
        raise InputError(f"{script}: {what}: submit it by `sbatch {script}`, or move it away")
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
    return f"{count} submitted to SLURM as job {jobs[-1]}; output: {launch.folder}/{launch.label}_{jobs[-1]}_*.log"


def cancel(label: str, options: Mapping[str, str]) -> list[str]:
    """End the queued and the running tasks of all arrays of a study; suspended ones, which cannot save, resume first.

    Raises:
        InputError: a program of SLURM is missing or refuses, as `scontrol resume` does for a user who is no operator.
    """
    for worker in workers(label, options):
        if worker.state == "suspended":
            try:
                call("scontrol", "resume", worker.id)
            except InputError as error:
                raise InputError(
                    f"{error}; nothing was cancelled: task {worker.id} is suspended, and `scancel` would end it unsaved"
                ) from None
    call("scancel", f"--user={os.getuid()}", f"--name={label}")
    return []


def output(label: str, folder: Path, options: Mapping[str, str]) -> str:
    """Return where the newest output of a study's tasks is, or nothing if there is none."""
    del options
    times = {}
    for log in folder.glob(f"{label}_*.log"):
        with suppress(OSError):  # somebody deletes it
            times[log] = log.stat().st_mtime
    return f"newest output: {max(times, key=times.__getitem__)}" if times else ""


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
