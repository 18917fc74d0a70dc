"""Workers that are killed at a chosen step, forked by `tests.victim_process`."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.studies import REPOSITORY


class Victims:
    """The process of `victim_process.py`, which forks workers that can be killed at a chosen step."""

    def __init__(self, study_file: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.victim_process", str(study_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip
        self.ended: dict[int, int] = {}
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def _order(self, **order: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(
        self,
        folder: Path,
        arguments: Sequence[object],
        *,
        kill_at: int | str | None = None,
        environment: dict[str, str] | None = None,
        only_open: bool = False,
    ) -> int:
        """Start `python -m ablation.study ARGUMENTS` in a folder; return its process id."""
        pid: int = self._order(
            arguments=[str(argument) for argument in arguments], folder=str(folder), kill_at=kill_at,
            environment=environment or {}, steps=str(folder / "steps"), only_open=only_open,
        )  # fmt: skip
        return pid

    def wait(self, pid: int) -> int:
        """Return a worker's exit status, negative for a signal."""
        if pid not in self.ended:
            self.ended[pid] = self._order(wait=pid)
        return self.ended[pid]

    def has_ended(self, pid: int) -> bool:
        """Return whether a worker has ended, by itself or killed."""
        if pid in self.ended:
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # a zombie, not waited for

    def run(self, folder: Path, arguments: Sequence[object], *, kill_at: int | str | None = None) -> int:
        return self.wait(self.start(folder, arguments, kill_at=kill_at))

    @staticmethod
    def steps(folder: Path) -> list[str]:
        """Return the names of the steps of the last run that was not killed."""
        return (folder / "steps").read_text().splitlines()

    def check_ends(self, pids: Sequence[int], folder: Path) -> None:
        """Wait for workers, all of which must end with status 0."""
        statuses = [self.wait(pid) for pid in pids]
        assert statuses == [0] * len(pids), f"{statuses}\n{self.output(folder)[-5000:]}"

    @staticmethod
    def output(folder: Path) -> str:
        """Return what all runs in a folder have printed."""
        return (folder / "steps.out").read_text() + Victims.errors(folder)

    @staticmethod
    def errors(folder: Path) -> str:
        """Return what all runs in a folder have written to standard error."""
        return (folder / "steps.err").read_text()


def finish_with_a_kill(
    victims: Victims, folder: Path, arguments: Sequence[object], *, workers: int, environment: dict[str, str]
) -> None:
    """Let several workers finish a study; one is killed in the middle of its first trial and replaced."""

    def start(kill_at: str | None = None) -> int:
        return victims.start(folder, arguments, environment=environment, kill_at=kill_at)

    victim = start(kill_at="evaluate")
    others = [start() for _ in range(workers - 1)]
    assert victims.wait(victim) == -signal.SIGKILL
    others.append(start())
    victims.check_ends(others, folder)
