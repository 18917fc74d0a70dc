"""The programs of engines: called, and their errors shown as one line."""

import os
import re
import shutil
import subprocess

from ablation.base.errors import InputError

TIMEOUT_SECONDS = 120  # of a controller that does not answer

# Variables that stand for options, which would hide workers or their output, or wait for the job's end. KUBERC=off
# leaves out the options that a user gives every `kubectl`.
LEFT_OUT = re.compile(r"(SQUEUE|SCANCEL)_\w+|SBATCH_(WAIT|ERROR)")


class NoAnswer(InputError):
    """A program did not answer in time; it may have done what it was asked for."""


def call(*command: str, text: str = "") -> str:
    """Return what a program writes to its standard output; `text` is its standard input.

    Raises:
        NoAnswer: the program does not answer.
        InputError: it is missing or refuses; contains its errors in one line.
    """
    if shutil.which(command[0]) is None:
        raise InputError(f"{command[0]}: there is no such program here; run this where the engine's commands are")
    variables = {name: value for name, value in os.environ.items() if not LEFT_OUT.fullmatch(name)}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_SECONDS,
            env={**variables, "LC_ALL": "C.UTF-8", "KUBERC": "off"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]}: no answer in {TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        prefix = re.compile(rf"^({re.escape(command[0])}: )?(error: )?", re.IGNORECASE)
        lines = [prefix.sub("", line.strip()) for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise InputError(f"{command[0]}: {'; '.join(lines) or f'ended with status {done.returncode}'}")
    return done.stdout
