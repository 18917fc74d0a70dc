"""The supervisor: starts several workers on one study, shows their output, replaces those that are killed."""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ablation.base.command_line import REFUSED
from ablation.base.core_use import BusyCores, children_pids
from ablation.base.cores import worker_variables
from ablation.base.device import check_device
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.running.session import Session, show_progress
from ablation.running.study_view import StudyView
from ablation.spec.arms import arms


def supervise_workers(session: Session, devices: list[str]) -> None:
    """Run one worker per device on the study until no trial is left, and show their output.

    Raises:
        StoreError: a worker failed, or was killed again and again, and trials are left.
        InputError: a worker refused its input.
    """
    trains_on_cpu = check_device(devices[0]).type == "cpu"
    cores = BusyCores("the workers get", children_pids) if trains_on_cpu else None
    with StudyView(session.spec.name, [arm.name for arm in arms(session.spec)], cores) as progress:

        def trials_left() -> int:
            with suppress(StoreAway):
                show_progress(session, progress)
            return progress.trials - progress.ended

        command = [sys.executable, "-m", "ablation.study", *sys.argv[1:], "--as-worker"]
        run_workers(command, devices, progress.show_worker_line, trials_left)


POLL_SECONDS = 1  # between two queries for the trials that are left
KILLS_IN_A_ROW = 3  # per worker, without a trial that ended in between: more are no accident
LAST_LINES = 15  # of a failed worker's output, shown with its error
STOP_SECONDS = 60  # for a worker to save its trial


@dataclass
class Worker:
    """A worker process and the last lines of its output."""

    number: int
    device: str
    process: subprocess.Popen[str]
    lines: list[str]


def run_workers(
    command: Sequence[str],
    devices: Sequence[str],
    say: Callable[[int, str], None],
    count_trials_left: Callable[[], int],
) -> None:
    """Run one worker per entry of `devices` until all end; a worker that is killed is replaced.

    A worker stops when its standard input is closed: by this process, or because this process died.

    Args:
        command: the command that starts a worker; `--device DEVICE` is added to it.
        devices: the workers' devices.
        say: called with a worker's number (from 1) and each line of its output.
        count_trials_left: called every second; returns the number of trials that are left.

    Raises:
        StoreError: a worker failed, or was killed again and again, and trials are left; contains its last lines.
        InputError: a worker refused its input, for example because the images do not fit into the GPU's memory.
    """
    output: queue.Queue[tuple[Worker, str]] = queue.Queue()

    def start(number: int, device: str) -> Worker:
        process = subprocess.Popen(
            [*command, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=_environment(len(devices)),
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which stops the workers
        )
        worker = Worker(number, device, process, [])
        threading.Thread(target=_listen, args=(worker, output), daemon=True).start()
        return worker

    workers: list[Worker] = []
    failed: list[Worker] = []
    kills = 0
    try:
        for number, device in enumerate(devices, start=1):
            workers.append(start(number, device))
        left = count_trials_left()
        while workers:
            _pass_on(output, say)
            left_before, left = left, count_trials_left()
            kills = 0 if left < left_before else kills
            for worker in [worker for worker in workers if worker.process.poll() is not None]:
                workers.remove(worker)
                status = worker.process.returncode
                if status < 0 and kills < KILLS_IN_A_ROW * len(devices):
                    kills += 1
                    say(worker.number, f"was killed by signal {-status}; another takes its place")
                    workers.append(start(worker.number, worker.device))
                elif status != 0:
                    failed.append(worker)
    finally:
        for worker in workers:
            _close(worker)
        for worker in workers:
            _wait_or_kill(worker)
        _pass_on(output, say)
    if failed and count_trials_left() > 0:
        worker = failed[0]
        status = worker.process.returncode
        end = f"was killed by signal {-status} again and again" if status < 0 else f"ended with status {status}"
        last_lines = " | ".join(line.strip() for line in worker.lines)
        kind = InputError if status == REFUSED else StoreError
        raise kind(f"worker {worker.number} {end}: {last_lines}")


def _environment(workers: int) -> dict[str, str]:
    """Return the environment of one of several workers."""
    return os.environ | worker_variables(workers) | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def _listen(worker: Worker, output: queue.Queue[tuple[Worker, str]]) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        output.put((worker, line.rstrip("\n")))


def _pass_on(output: queue.Queue[tuple[Worker, str]], say: Callable[[int, str], None]) -> None:
    """Pass on the workers' output for up to a second."""
    until = time.monotonic() + POLL_SECONDS
    while (seconds := until - time.monotonic()) > 0:
        try:
            worker, line = output.get(timeout=seconds)
        except queue.Empty:
            return
        worker.lines.append(line)
        del worker.lines[:-LAST_LINES]
        say(worker.number, line)


def _close(worker: Worker) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.close()


def _wait_or_kill(worker: Worker) -> None:
    try:
        worker.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()
