"""The supervisor: starts several workers on one study, shows their output, starts those again that die."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ablation.base.command_line import REFUSED, WORKER_VARIABLE, with_options
from ablation.base.core_use import BusyCores, children_pids
from ablation.base.cores import worker_variables
from ablation.base.device import check_device, slice_variable
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.interrupts import CTRL_C, RESUME_ME, doing_at_the_end, grace_left
from ablation.base.text import plural
from ablation.running.options import workers_on
from ablation.running.session import Session, show_progress
from ablation.running.study_view import StudyView, is_progress


def supervise_workers(session: Session, devices: list[str]) -> None:
    """Run one worker per device on the study until no trial is left, and show their output.

    Raises:
        StoreError: the workers died again and again.
        InputError: a worker refused its input.
    """
    trains_on_cpu = check_device(devices[0]).type == "cpu"
    cores = BusyCores("the workers get", children_pids) if trains_on_cpu else None
    with StudyView(session.spec, cores) as view:

        def progress() -> Progress:
            with suppress(StoreAway):
                show_progress(session, view)
            is_known = view.ended_before is not None
            return Progress(view.trials - view.ended if is_known else 1, view.epochs)

        # The workers have ended before this process has to.
        command = [sys.executable, "-m", "ablation.study", *sys.argv[1:]]
        command = with_options(command, "--grace", f"{0.8 * grace_left():g}")
        try:
            run_workers(command, devices, view.show_worker_line, progress)
        finally:
            with suppress(StoreAway, StoreError):  # they must not hide why the workers ended
                show_progress(session, view)


POLL_SECONDS = 1  # between two queries for the trials that are left, at least
SHARE_OF_POLLS = 0.05  # of the time, at most: the queries are two per Optuna study
DEATHS_IN_A_ROW = 5  # of each worker, without an epoch of any worker in between: more are no accident
FIRST_PAUSE = 1.0  # seconds before a worker that died starts again; twice as long after each further death
LONGEST_PAUSE = 60.0  # between two queries, and of a worker that keeps dying while others train
LAST_LINES = 15  # of a failed worker's output, shown with its error


@dataclass(frozen=True)
class Progress:
    """How far a study is, whichever worker did the work."""

    trials_left: int
    epochs: int


@dataclass
class Worker:
    """A worker process and the last lines of its output."""

    number: int
    device: str
    process: subprocess.Popen[str]
    lines: list[str]
    has_trained: bool = False
    """Whether it has ended an epoch or a trial."""
    is_heard_out: bool = False
    """Whether all its output has been passed on."""


Output = queue.Queue[tuple[Worker, str | None]]  # lines of the workers; None where one's output ends


class WorkerDeaths:
    """Counts the deaths of each worker since the study's last progress; pauses grow until the worker itself trains."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._counts: Counter[int] = Counter()
        self._pauses: dict[int, float] = {}

    def note_progress(self, progress: Progress) -> None:
        """Begin to count anew if there was any progress."""
        if progress != self._progress:
            self._progress = progress
            self._counts.clear()

    def pause_after(self, worker: Worker, others: Sequence[Worker]) -> float:
        """Count a death; return the seconds until the worker may start again.

        Args:
            worker: that died.
            others: that run or start again; one that has not died so often may be in the middle of a long epoch.

        Raises:
            StoreError: it has died too often, and so have the others.
        """
        self._counts[worker.number] += 1
        count = self._counts[worker.number]
        if min(self._counts[each.number] for each in [worker, *others]) >= DEATHS_IN_A_ROW:
            row = f"{count} times in a row without progress"
            raise StoreError(f"worker {worker.number} {_end(worker)}, {row}: {_reason(worker)}")
        last = 0 if worker.has_trained else self._pauses.get(worker.number, 0)
        self._pauses[worker.number] = min(2 * last, LONGEST_PAUSE) or FIRST_PAUSE
        return self._pauses[worker.number]


def run_workers(  # noqa: C901 - one loop
    command: Sequence[str],
    devices: Sequence[str],
    say: Callable[[int, str], None],
    look: Callable[[], Progress],
) -> None:
    """Run one worker per entry of `devices` until all end; a worker that dies is started again after a pause.

    A worker pauses when its standard input is closed: by this process, or because this process died. A worker that is
    paused alone is not started again; if all are, this process pauses, too.

    Args:
        command: the command that starts a worker; the option `--device DEVICE` is added to it.
        devices: the workers' devices.
        say: called with a worker's number (from 1) and each line of its output.
        look: called every second, or less often if it takes long; returns the study's progress.

    Raises:
        StoreError: the workers died again and again without progress; contains the last lines of one.
        InputError: a worker refused its input, for example because the images do not fit into the GPU's memory.
    """
    output: Output = queue.Queue()

    def start(number: int, device: str) -> None:
        fixed = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        fixed[WORKER_VARIABLE] = str(workers_on(device, devices))
        process = subprocess.Popen(
            with_options(command, "--device", device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=os.environ | worker_variables(len(devices)) | slice_variable(number) | fixed,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which pauses the workers
        )
        worker = Worker(number, device, process, [])
        workers.append(worker)
        threading.Thread(target=_listen, args=(worker, output), daemon=True).start()

    workers: list[Worker] = []
    refused: list[Worker] = []
    paused: list[Worker] = []
    dead: list[tuple[float, Worker]] = []  # time.monotonic() at which each is to start again
    deaths = WorkerDeaths()

    def kill_all() -> None:
        for worker in workers:
            worker.process.kill()

    with doing_at_the_end(kill_all):
        try:
            for number, device in enumerate(devices, start=1):
                start(number, device)
            progress, next_look = look(), 0.0  # of time.monotonic()
            while workers or (dead and progress.trials_left > 0):
                _pass_on(output, say)
                ended = [worker for worker in workers if worker.process.poll() is not None]
                if ended or time.monotonic() >= next_look:
                    began = time.monotonic()
                    progress = look()
                    deaths.note_progress(progress)
                    now = time.monotonic()
                    next_look = now + min((now - began) / SHARE_OF_POLLS, LONGEST_PAUSE)
                for worker in ended:
                    _hear_out(worker, output, say)
                    workers.remove(worker)
                    status = worker.process.returncode
                    if status == REFUSED:
                        refused.append(worker)
                    elif status in (RESUME_ME, CTRL_C):
                        paused.append(worker)
                    elif status != 0 and progress.trials_left > 0:
                        pause = deaths.pause_after(worker, [*workers, *(waiting for _, waiting in dead)])
                        say(worker.number, f"{_end(worker)}; starts again in {plural(round(pause), 'second')}")
                        dead.append((time.monotonic() + pause, worker))
                due = [(moment, worker) for moment, worker in dead if moment <= time.monotonic()]
                for entry in due:
                    dead.remove(entry)
                    start(entry[1].number, entry[1].device)
        finally:
            for worker in workers:
                _close(worker)
            for worker in workers:
                _wait_or_kill(worker)
                _hear_out(worker, output, say)
        if (refused or paused) and look().trials_left > 0:
            if refused:
                raise InputError(f"worker {refused[0].number} {_end(refused[0])}: {_reason(refused[0])}")
            is_ctrl_c = paused[0].process.returncode == CTRL_C
            signal.raise_signal(signal.SIGINT if is_ctrl_c else signal.SIGTERM)


def _end(worker: Worker) -> str:
    status = worker.process.returncode
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was killed by {name}{', which may mean that memory ran out' if name == 'SIGKILL' else ''}"


def _reason(worker: Worker) -> str:
    """Return a worker's error, else the last lines of its output."""
    lines = [line.strip() for line in worker.lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else " | ".join(lines)


def _listen(worker: Worker, output: Output) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        output.put((worker, line.rstrip("\n")))
    output.put((worker, None))


def _hear_out(worker: Worker, output: Output, say: Callable[[int, str], None]) -> None:
    """Pass on the rest of the output of a worker that has ended; what it started may hold it open for ever."""
    until = time.monotonic() + POLL_SECONDS
    while not worker.is_heard_out and time.monotonic() < until:
        _pass_on(output, say)


def _pass_on(output: Output, say: Callable[[int, str], None]) -> None:
    """Pass on the workers' output for up to a second, or until one ends."""
    until = time.monotonic() + POLL_SECONDS
    while (seconds := until - time.monotonic()) > 0:
        try:
            worker, line = output.get(timeout=seconds)
        except queue.Empty:
            return
        if line is None:
            worker.is_heard_out = True
            with suppress(subprocess.TimeoutExpired):  # it closes its output a moment before it ends
                worker.process.wait(max(0, until - time.monotonic()))
            return
        worker.lines.append(line)
        del worker.lines[:-LAST_LINES]
        worker.has_trained |= is_progress(line)
        say(worker.number, line)


def _close(worker: Worker) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.close()


def _wait_or_kill(worker: Worker) -> None:
    try:
        worker.process.wait(grace_left())
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()
