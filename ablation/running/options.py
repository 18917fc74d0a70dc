"""What a run of a study is given besides the study."""

from dataclasses import dataclass

from ablation.base.device import check_device, gpu_count


@dataclass(frozen=True)
class RunOptions:
    """What the command line says besides the study: nothing here changes what a trial is."""

    device_name: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    workers: int | None = None
    """Processes that share the work; None is one per GPU."""
    feature_limit: int = 10_000_000_000
    """Bytes on disk for cached features; 0 caches none."""
    system_metrics: bool = False
    """Whether the use of CPU, memory, disk, network and GPUs is logged with every run."""
    file_text: str = ""
    """The study file, which every run keeps."""


def worker_devices(options: RunOptions) -> list[str]:
    """Return the device of each worker: one worker per GPU unless a number is given, and GPUs shared in turn.

    Raises:
        InputError: this machine does not have the device.
    """
    device_name, workers = options.device_name, options.workers
    check_device(device_name)
    gpus = gpu_count() if device_name in ("auto", "cuda") else 0
    count = workers or (gpus if gpus and device_name == "auto" else 1)
    return [f"cuda:{number % gpus}" if gpus > 1 else device_name for number in range(count)]


def process_count(options: RunOptions) -> int:
    """Return how many processes will hold the images: this one, and its workers where it has several."""
    workers = len(worker_devices(options))
    return 1 if workers == 1 else 1 + workers
