"""What runs on Ray's nodes: a worker's actor, and the check whether a node can run the study."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import ray

from ablation.base.command_line import REFUSED, with_options
from ablation.base.interrupts import WITH_PARENT

FIRST_PAUSE = 2.0  # seconds before a worker that died starts again; twice as long after each further death
DEATHS_IN_A_ROW = 5  # of a worker that lived less than `ACCIDENT_SECONDS`: more are no accident
NO_WEIGHTS = "warning: backbone.weights: "  # of the check, about a download that fails: no worker could begin
ACCIDENT_SECONDS = 3600  # longer than a study that has trained everything, and still cannot end well, takes to fail


class WorkerActor:
    """A worker's actor: starts the worker as its child, and again if it dies; Ray moves it away from a lost node."""

    def __init__(self, command: list[str], folder: Path, variables: Mapping[str, str]) -> None:
        self._handle = ray.get_runtime_context().current_actor
        self._since = datetime.now().isoformat(timespec="seconds")
        self._cancelled = threading.Event()
        self._starting = threading.Lock()  # a worker that starts while `cancel` is called must not be missed
        self._command, self._folder, self._variables = command, folder, variables
        self._child = self._start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        # The worker pauses when this pipe is closed: by `cancel`, or because this process has died.
        variables = {**os.environ, **self._variables, WITH_PARENT: "1"}
        return subprocess.Popen(self._command, cwd=self._folder, stdin=subprocess.PIPE, env=variables)

    def _watch(self) -> None:
        try:
            deaths, started = 0, time.monotonic()
            while self._child.wait() not in (0, REFUSED):
                deaths = deaths + 1 if time.monotonic() - started < ACCIDENT_SECONDS else 1
                if deaths == DEATHS_IN_A_ROW or self._cancelled.wait(FIRST_PAUSE * 2 ** (deaths - 1)):
                    break
                with self._starting:
                    if self._cancelled.is_set():
                        break
                    self._child, started = self._start(), time.monotonic()
        finally:
            ray.kill(self._handle)  # what it had of the cluster is free again

    def cancel(self) -> None:
        """Let the worker save and end; return at once."""
        with self._starting:
            self._cancelled.set()
            assert self._child.stdin is not None
            self._child.stdin.close()

    def describe(self) -> tuple[str, str]:
        """Return the host and the time of the start."""
        return socket.gethostname(), self._since


def why_not(command: list[str], folder: Path, variables: Mapping[str, str]) -> str:
    """Return why a worker could not run here, or nothing."""
    try:
        done = subprocess.run(with_options(command, "--check"), cwd=folder, env={**os.environ, **variables},
                              encoding="utf-8", errors="replace", capture_output=True)  # fmt: skip
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if done.returncode == 0:
        lines = [line for line in done.stdout.splitlines() if line.startswith(NO_WEIGHTS)]
        return lines[0].removeprefix("warning: ") if lines else ""
    lines = done.stderr.strip().splitlines() or [f"the check ended with status {done.returncode}"]
    return lines[-1].removeprefix("error: ")
