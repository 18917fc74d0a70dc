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
# Functions by where they are called from, and the part of a study that their time belongs to. Of a call inside
# another, only the inner one's part counts.
PARTS: list[tuple[Any, str, str]] = [
    (session, "load_weights", "reading images and weights"),
    (session, "load_split", "reading images and weights"),
    (worker, "set_up_workbench", "reading images and weights"),
    (FeatureCache, "source", "features"),
    (trial, "make_training", "setting trials up"),
    (trial, "train", TRAINING),
    (loop, "evaluate", "evaluation"),
    (trial, "record_test", "evaluation"),
    (trial, "save_resume_checkpoint", "checkpoints"),
    (trial, "record_best", "checkpoints"),
    (outputs, "similarities_to_start", "evaluation"),
    (study, "show_forecast", "forecast of the cuts"),
    (study, "begin_summary", "MLflow"),
    (TrialRun, "start", "MLflow"),
    (TrialRun, "log_epochs", "MLflow"),
    (TrialRun, "log_result", "MLflow"),
    (TrialRun, "log_test", "MLflow"),
    (TrialRun, "end", "MLflow"),
    (TrialRun, "complete", "MLflow"),
    (session, "open_stores", "Optuna, and opening both stores"),
    (session, "deliver_and_reconcile", "Optuna, and opening both stores"),
    (worker, "show_progress", "Optuna, and opening both stores"),
    (worker, "claim_trial", "Optuna, and opening both stores"),
    (worker, "all_ended", "Optuna, and opening both stores"),
    (worker, "find_or_create_spec", "Optuna, and opening both stores"),
    (trial, "ensure_held", "Optuna, and opening both stores"),
    (trial, "report_epochs", "Optuna, and opening both stores"),
    (trial, "should_prune", "Optuna, and opening both stores"),
    (trial, "end_trial", "Optuna, and opening both stores"),
    (trial, "release_and_delete", "Optuna, and opening both stores"),
    (study, "conclude_study", "report and champion"),
]
SAMPLE_SECONDS = 0.25  # the driver's own average is over 1/6 of a second to a second


class Stopwatch:
    """Seconds of the thread that made it, by part; of parts inside each other, the innermost one counts."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys([START, *(part for _, _, part in PARTS), OTHER], 0.0)
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
        """Count this context's time for a part."""
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

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function whose calls count for a part."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def timed_generator(self, function: Callable[..., Iterator[Any]], name: str) -> Callable[..., Iterator[Any]]:
        """Return a generator function whose own work counts for a part, not that of its caller in between."""

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = function(*args, **kwargs)
            while True:
                with self.part(name):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item

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

    def observed(self, run_trial: Callable[..., Any]) -> Callable[..., Any]:
        """Return `run_trial`, observed: its first call begins the measurement, and the end of each may end it."""

        @functools.wraps(run_trial)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.trials == 0:
                self._begin = time.perf_counter(), time.process_time()
                if self.device.type == "cuda":
                    self._thread.start()
            self.trials += 1
            try:
                return run_trial(*args, **kwargs)
            finally:
                self._end = time.perf_counter(), time.process_time()

        return run

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
        for owner, name, part in PARTS:
            make = stopwatch.timed_generator if part == TRAINING else stopwatch.timed
            stack.enter_context(mock.patch.object(owner, name, make(getattr(owner, name), part)))
        stack.enter_context(mock.patch.object(worker, "run_trial", load.observed(vars(worker)["run_trial"])))
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
