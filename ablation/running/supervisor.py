"""Several processes that work on one study: started, listened to, and replaced when they are killed."""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.running.session import Session, show_progress
from ablation.running.study_view import StudyView
from ablation.spec.arms import arms


def supervise_workers(session: Session, devices: list[str]) -> None:
    """Let several processes work on the study, and show what they do."""
    with StudyView(session.spec.name, [arm.name for arm in arms(session.spec)]) as progress:

        def trials_left() -> int:
            with suppress(StoreAway):
                show_progress(session, progress)
            return progress.trials - progress.ended

        command = [sys.executable, "-m", "ablation.study", *sys.argv[1:], "--as-worker"]
        run_workers(command, devices, progress.worker_says, trials_left)


LOOK_SECONDS = 1  # between two looks at the study
KILLS_IN_A_ROW = 3  # per worker and without a trial that ended: then it is no accident
LAST_LINES = 15  # of a worker that failed, shown with its error
STOP_SECONDS = 60  # for a worker to save where it is


@dataclass
class Worker:
    """A process and what it said last."""

    number: int
    device: str
    process: subprocess.Popen[str]
    lines: list[str]


def run_workers(
    command: Sequence[str], devices: Sequence[str], say: Callable[[int, str], None], look: Callable[[], int]
) -> None:
    """Run one worker per entry of `devices` until they end; one that is killed is replaced.

    A worker stops when its standard input is closed, by us or by our death.

    Args:
        command: what starts a worker; its device is added as `--device DEVICE`.
        devices: the workers' devices.
        say: called with a worker's number (from 1) and each line that it says.
        look: called every second; returns how many trials are left.

    Raises:
        StoreError: a worker failed, or was killed again and again, and trials are left; has its last lines.
        InputError: a worker refused its input, as the GPU's memory for the images.
    """
    said: queue.Queue[tuple[Worker, str]] = queue.Queue()

    def start(number: int, device: str) -> Worker:
        process = subprocess.Popen(
            [*command, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=_environment(len(devices)),
            start_new_session=True,  # Ctrl-C is ours; we pass it on
        )
        worker = Worker(number, device, process, [])
        threading.Thread(target=_listen, args=(worker, said), daemon=True).start()
        return worker

    workers: list[Worker] = []
    failed: list[Worker] = []
    kills = 0
    try:
        for number, device in enumerate(devices, start=1):
            workers.append(start(number, device))
        left = look()
        while workers:
            _pass_on(said, say)
            now_left = look()
            left, kills = now_left, 0 if now_left < left else kills
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
        _pass_on(said, say)
    if failed and look() > 0:
        worker = failed[0]
        status = worker.process.returncode
        how = f"was killed by signal {-status} again and again" if status < 0 else f"ended with status {status}"
        last = " | ".join(line.strip() for line in worker.lines)
        kind = InputError if status == 2 else StoreError
        raise kind(f"worker {worker.number} {how}: {last}")


def _environment(workers: int) -> dict[str, str]:
    """Return the environment of a worker: it gets its share of the processor's cores, unless the user has chosen."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // workers)),
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def _listen(worker: Worker, said: queue.Queue[tuple[Worker, str]]) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        said.put((worker, line.rstrip("\n")))


def _pass_on(said: queue.Queue[tuple[Worker, str]], say: Callable[[int, str], None]) -> None:
    """Pass on what the workers say, for a second."""
    until = time.monotonic() + LOOK_SECONDS
    while (seconds := until - time.monotonic()) > 0:
        try:
            worker, line = said.get(timeout=seconds)
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
