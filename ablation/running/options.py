"""The options of a run: everything that the command line sets besides the study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ablation.base.device import check_device, gpu_count, mig_slices
from ablation.base.retries import DELIVERY_PATIENCE


@dataclass(frozen=True)
class RunOptions:
    """Options of the command line besides the study; none of them changes what a trial is."""

    device_name: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    workers: int | None = None
    """Number of processes that share the work; None is one per GPU."""
    feature_limit: int = 10_000_000_000
    """Bytes on disk for cached features; 0 caches none."""
    system_metrics: bool = False
    """Whether every run logs the use of CPU, memory, disk, network and GPUs."""
    patience: float | None = None
    """Seconds to wait for a server that is away; None is as `base/retries.py` says, see `wait_out`."""
    file_text: str = ""
    """The text of the study file, which every run keeps."""
    repair: bool = False
    """Whether what one of the two databases lost is restored, or trained again."""
    redo: bool = False
    """Whether runs that somebody has deleted in MLflow are restored."""

    @property
    def delivery_patience(self) -> float:
        """Seconds to wait for a server once there may be results to deliver."""
        return DELIVERY_PATIENCE if self.patience is None else self.patience


def worker_devices(options: RunOptions) -> list[str]:
    """Return the device of each worker; several workers share the GPUs in turn.

    Raises:
        InputError: this machine does not have the device.
    """
    device_name = options.device_name
    check_device(device_name)
    gpus = gpu_count() if device_name in ("auto", "cuda") else 0
    workers = options.workers or max(1, gpus, len(mig_slices()) if gpus else 0)
    return [f"cuda:{number % gpus}" if gpus > 1 else device_name for number in range(workers)]


def workers_on(device: str, devices: Sequence[str]) -> int:
    """Return how many of the workers with these devices share one of them, or a MIG slice of it."""
    return math.ceil(devices.count(device) / max(1, len(mig_slices())))
