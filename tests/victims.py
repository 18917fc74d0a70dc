"""Workers that are killed at a chosen step, forked by `tests.victim_process`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
        stop_at: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        only_open: bool = False,
        user: tuple[int, int, int] | None = None,
        clock: Sequence[float] = (),
    ) -> int:
        """Start `python -m ablation.study ARGUMENTS` in a folder; return its process id.

        It may be another `user`: an id, a group, and a umask. Its `clock` may be wrong by some seconds, which change.
        """
        pid: int = self._order(
            arguments=[str(argument) for argument in arguments], folder=str(folder), kill_at=kill_at,
            stop_at=list(stop_at), environment=environment or {}, steps=str(folder / "steps"), only_open=only_open,
            user=user, clock=list(clock),
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

    def copies_before(self, numbers: Sequence[int], folder: Path, arguments: Sequence[object]) -> Iterator[Path]:
        """Run a study whose store is the folder's `s`; yield a copy of the store right before each of some steps.

        A copy is what SIGKILL would leave there, as the worker is stopped with all its threads. At the last step it is
        killed, and what that leaves is compared with the copy.

        Args:
            numbers: of the steps, ascending.
            folder: with its `s`; has the copies, by the step's number.
            arguments: of the study.
        """
        pid = self.start(folder, arguments, stop_at=numbers)
        for number in numbers:
            assert self._order(wait=pid) == "stopped", f"step {number}"
            copy = shutil.copytree(folder / "s", folder / str(number), symlinks=True)
            if number == numbers[-1]:
                os.kill(pid, signal.SIGKILL)
                assert self.wait(pid) == -signal.SIGKILL
                assert bytes_of(folder / "s") == bytes_of(copy)
            else:
                os.kill(pid, signal.SIGCONT)
            yield copy

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


class Victim:
    """A worker of `Victims`, used as a `subprocess.Popen` is."""

    def __init__(self, victims: Victims, pid: int):
        self.victims = victims
        self.pid = pid

    def poll(self) -> int | None:
        return self.wait() if self.victims.has_ended(self.pid) else None

    def wait(self) -> int:
        return self.victims.wait(self.pid)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def bytes_of(folder: Path) -> dict[str, bytes | None]:
    """Return all that a folder holds: path -> content, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


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
