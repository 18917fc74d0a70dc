"""System metrics: the use of processor, memory, disk, network and GPUs while a trial trains."""

import logging
import math
import os
import time
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from ablation.base.errors import InputError
from ablation.base.text import first_line

logger = logging.getLogger(__name__)

INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"  # seconds
SAMPLES = "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING"


def check_system_metrics() -> None:
    """Refuse values of MLflow's variables for system metrics that MLflow could not use.

    Raises:
        InputError: names the variable.
    """
    variables: tuple[tuple[str, type[float]], ...] = ((INTERVAL, float), (SAMPLES, int))
    for name, number_type in variables:
        text = os.environ.get(name) or "1"
        try:
            is_valid = 0 < number_type(text) < math.inf
        except ValueError:
            is_valid = False
        if not is_valid:
            kind = "whole number" if number_type is int else "number"
            raise InputError(f"{name}: must be a {kind} above 0, got {text!r}")


class SystemMonitor(SystemMetricsMonitor):
    """MLflow's monitor of processor, memory, disk, network and GPUs; it keeps its points until `pop_points` is called.

    MLflow's own monitor asks the store for the run after every sample, from its thread. It ends for good where it gets
    no answer, and drops the samples since its last write: all of a short trial's. This one's thread never writes.
    """

    def __init__(self, tracking_uri: str):
        """Prepare to measure every second and keep the mean of 10 seconds, unless MLflow's variables say otherwise."""
        super().__init__("", tracking_uri=tracking_uri)  # type: ignore[no-untyped-call]
        if not any(map(os.environ.get, (INTERVAL, SAMPLES))):  # else MLflow's defaults are 10 seconds and 1 sample
            self.sampling_interval, self.samples_before_logging = 1, 10
        self._points: list[dict[str, Any]] = []

    def monitor(self) -> None:
        """Measure until `finish` is called, and then once more; this is the thread's function."""
        try:
            self._measure()
        except Exception as error:  # of the system or a driver; the training must not fail with its metrics
            logger.warning("system metrics end here: they cannot be read (%s)", first_line(error))

    def _measure(self) -> None:
        self.collect_metrics()  # type: ignore[no-untyped-call]
        self._forget()  # the first reading of the processor's load means nothing
        samples = 0
        is_last = False
        while not is_last:
            is_last = self._shutdown_event.wait(self.sampling_interval)
            self.collect_metrics()  # type: ignore[no-untyped-call]
            samples += 1
            if is_last or samples % self.samples_before_logging == 0:
                self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        for monitor in self.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Keep a point: the means of some samples."""
        prefix = f"system/{self.node_id}/" if self.node_id else "system/"
        values = {prefix + name: value for name, value in metrics.items()}
        self._points.append({"timestamp": int(time.time() * 1000), "values": values})
        self._forget()

    def pop_points(self) -> list[dict[str, Any]]:
        """Return the points since the last call, the oldest first."""
        points = self._points[:]
        del self._points[: len(points)]  # the thread may have added one
        return points
