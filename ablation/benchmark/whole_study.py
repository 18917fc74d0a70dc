"""A whole study: how long it takes, where the time goes, and how busy it keeps the device."""

import contextlib
import functools
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psutil
import torch

from ablation.base.device import check_device
from ablation.base.machine import describe_environment
from ablation.running import outputs, session, study, trial, worker
from ablation.running.options import RunOptions
from ablation.spec.study import StudySpec
from ablation.storage.store import Store
from ablation.tracking.trial_run import TrialRun
from ablation.training import loop
from ablation.training.feature_cache import FeatureCache

START, TRAINING, OTHER = "imports and start", "training", "everything else"
# The parts of a study, and the functions, by where they are called from, whose time belongs to each. Of a call inside
# another, only the inner one's part counts.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "reading images and weights": [(session, "load_weights"), (session, "load_split"), (worker, "set_up_workbench")],
    "features": [(FeatureCache, "source")],
    "setting trials up": [(trial, "make_training")],
    TRAINING: [(trial, "train")],
    "evaluation": [(loop, "evaluate"), (trial, "record_test"), (outputs, "similarities_to_start")],
    "checkpoints": [(trial, "save_resume_checkpoint"), (trial, "record_best")],
    "forecast of the cuts": [(study, "show_forecast")],
    "MLflow": [
        (study, "begin_summary"),
        *((TrialRun, name) for name in ("start", "log_epochs", "log_result", "log_test", "end", "complete")),
    ],
    "Optuna, and opening both stores": [
        *((session, name) for name in ("open_stores", "deliver_and_reconcile")),
        *((worker, name) for name in ("show_progress", "claim_trial", "all_ended", "find_or_create_spec")),
        *((trial, name) for name in ("ensure_held", "report_epochs", "should_prune", "end_trial")),
        (trial, "release_and_delete"),
    ],
    "report and champion": [(study, "conclude_study")],
}
SAMPLE_SECONDS = 0.25  # the driver's own average is over 1/6 of a second to a second


class Stopwatch:
    """Seconds of the thread that made it, by part; of parts inside each other, the innermost one counts."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys([START, *PARTS, OTHER], 0.0)
        self._thread = threading.get_ident()
        self._parts = [OTHER]
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Add the time since the last call to the part that runs."""
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count this context's time for a part; as a decorator, that of a function's calls."""
        if threading.get_ident() != self._thread:
            yield
            return
        self.pause()
        self._parts.append(name)
        try:
            yield
        finally:
            self.pause()
            self._parts.pop()

    def timed_generator(self, function: Callable[..., Iterator[Any]], name: str) -> Callable[..., Iterator[Any]]:
        """Return a generator function whose own work counts for a part, not that of its caller in between."""

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = function(*args, **kwargs)
            yield from iter(self.part(name)(lambda: next(items, None)), None)  # until it is None

        return generate


class Load:
    """How busy the device is from the first trial's start to the last one's end.

    On CUDA: the mean of the driver's share of time in which a kernel ran. On the CPU: this process's time on all cores,
    as a share of its threads. None elsewhere, and where the driver does not say.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.trials = 0
        self._begin = self._end = (0.0, 0.0)  # wall-clock and CPU seconds
        self._samples: list[tuple[float, float]] = []  # time, share
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Observe a trial, also as a decorator: the first begins the measurement, and the end of each may end it."""
        if self.trials == 0:
            self._begin = time.perf_counter(), time.process_time()
            if self.device.type == "cuda":
                self._thread.start()
        self.trials += 1
        try:
            yield
        finally:
            self._end = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """End the measurement."""
        self._is_done.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def seconds(self) -> float:
        """Seconds from the first trial's start to the last one's end."""
        return self._end[0] - self._begin[0]

    @property
    def share(self) -> float | None:
        """The share of these seconds in which the device worked."""
        if self.device.type == "cpu" and self.seconds > 0:
            return (self._end[1] - self._begin[1]) / self.seconds / torch.get_num_threads()
        shares = [share for at, share in self._samples if at <= self._end[0]]
        return statistics.mean(shares) if shares else None

    def _sample(self) -> None:
        with contextlib.suppress(Exception):  # a driver that does not say has errors of its library's own
            while not self._is_done.wait(SAMPLE_SECONDS):
                self._samples.append((time.perf_counter(), torch.cuda.utilization(self.device) / 100))


def whole_study(spec: StudySpec, store: Store, device_name: str) -> dict[str, Any]:
    """Run a study in this process, with its output on the standard error, and measure it.

    Ctrl-C and SIGTERM end the study, and what was measured is returned.

    Args:
        spec: the study.
        store: an empty one.
        device_name: auto, cpu, cuda, cuda:N or mps.

    Returns:
        Plain values for JSON: seconds since this process began, of each part and between the first and the last trial.

    Raises:
        InputError: the study, its data or its weights cannot be used as they are.
        StoreError: a store can no longer be used.
    """
    device = check_device(device_name)
    before = time.time() - psutil.Process().create_time()
    stopwatch, load = Stopwatch(), Load(device)
    stopwatch.seconds[START] = before
    is_whole = True
    with contextlib.ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                real = getattr(owner, name)
                timed = stopwatch.timed_generator(real, part) if part == TRAINING else stopwatch.part(part)(real)
                stack.enter_context(mock.patch.object(owner, name, timed))
        stack.enter_context(mock.patch.object(worker, "run_trial", load.trial()(vars(worker)["run_trial"])))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.callback(load.stop)
        try:
            study.run_study(spec, store, RunOptions(device_name, workers=1))
        except KeyboardInterrupt:
            if load.trials == 0:
                raise
            is_whole = False
    stopwatch.pause()
    return {
        "study": spec.name,
        "environment": describe_environment(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "is_whole": is_whole,
        "trainings": load.trials,
        "seconds": sum(stopwatch.seconds.values()),
        "seconds_of_parts": stopwatch.seconds,
        "seconds_between_trials": load.seconds,
        "device_share": load.share,
    }
