"""The measurements: trainings, trials, studies."""

import contextlib
import io
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from ablation.analysis.results import read_results
from ablation.analysis.runs import RunResult
from ablation.base.device import select_precision
from ablation.base.errors import StoreError
from ablation.benchmark import SMALL_TRIALS
from ablation.benchmark.plain_loop import plain_accuracy, plain_epoch, plain_loader
from ablation.benchmark.subject import BATCH_SIZE, Measured, Subject, few_images_limit, first_images, network
from ablation.data.images import Images
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import TransferModel, calibrate
from ablation.running.options import RunOptions
from ablation.running.study import run_study
from ablation.search.studies import open_storage, study_arms
from ablation.spec.architectures import is_faster_in_bfloat16
from ablation.spec.parameters import StrategyName
from ablation.spec.study import StudySpec
from ablation.spec.tables import Backbone
from ablation.storage.store import Store, find_store
from ablation.tracking.trial_run import TrialRun
from ablation.training.loop import train
from ablation.training.settings import TrainingSettings
from ablation.training.sources import ImageSource, frozen_part
from ablation.training.state import begin_training, calibration_sample

if sys.platform != "win32":
    import resource

TRIALS, EPOCHS = 10, 10  # of the feature extraction study
CUTS = ("block1", "block2", "block3", "block4", "block5")
MINUTE = 65  # seconds: a trial of a minute or more

START_UP_STUDY = """\
question       = "How fast does a study start?"
trials_per_arm = 1
epochs         = 1

[backbone]
name = "vgg16"

[fixed]
strategy    = "feature_extraction"
truncate_at = "block1"
"""
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}  # environment of a command whose lines are timed


def our_epochs(
    subject: Subject, cut: str, strategy: StrategyName, images: Images, precision: str, batch_size: int = BATCH_SIZE
) -> Iterator[float]:
    """Train without end as a trial does; yield the images per second of each epoch, without its evaluation."""
    model = network(subject, cut).to(memory_format=torch.channels_last)
    learning = Learning(strategy, lr=1e-4, freeze_depth=len(model.blocks) - 1, backbone_lr_scale=0.1)
    settings = TrainingSettings(10**6, batch_size, 0, precision, schedule="constant")
    training = begin_training(model, learning, settings, subject.normalisation)
    few = subject.val_images.subset(torch.arange(2))
    source, val_source = (ImageSource(part, training.frozen, "none") for part in (images, few))
    for metrics in train(training, source, val_source, settings):
        yield metrics.images_per_second


def default_precision(device: torch.device) -> str:
    """Return the precision that a study computes in by default."""
    return select_precision("auto", device, is_faster_in_bfloat16=is_faster_in_bfloat16("vgg16"))


def feature_extraction(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure a study of ten trials of ten epochs, from start to report, beside a plain loop for the same trials.

    The plain loop is timed for the first trial only, and training without cached features for single epochs.
    """
    content = {
        "trials_per_arm": TRIALS,
        "epochs": EPOCHS,
        "fixed": {"strategy": "feature_extraction", "truncate_at": "block3", "batch_size": BATCH_SIZE},
        "search": {
            "lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "head_width": {"choices": [128, 256, 512]},
        },
    }
    warm_up = content | {"trials_per_arm": 1, "epochs": 1}
    run_study_silently(subject, folder / "warm-up", warm_up, few_images_limit(subject))
    seconds = []
    for repeat in range(subject.repeats):
        started = time.perf_counter()
        store = run_study_silently(subject, folder / f"extraction-{repeat}", content)
        seconds.append(time.perf_counter() - started)
    trials = finished_trials(store)
    first = trials[0]

    train_loader = plain_loader(subject.train_images, subject.normalisation, shuffle=True)
    val_loader = plain_loader(subject.val_images, subject.normalisation, shuffle=False)
    model = network(subject, "block3", first.spec.head_width, seed=first.spec.seed)
    standardise(subject, model)
    model.blocks.requires_grad_(False)
    optimizer = torch.optim.SGD(
        model.head.parameters(), lr=first.spec.lr, momentum=0.9, nesterov=True, weight_decay=first.spec.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    accuracies = []
    started = time.perf_counter()
    for _ in range(EPOCHS):
        plain_epoch(model, optimizer, train_loader, subject.device)
        scheduler.step()
        accuracies.append(plain_accuracy(model, val_loader, subject.device))
    plain = time.perf_counter() - started
    images, precision = first_images(subject, 1000, 20_000), default_precision(subject.device)
    uncached = our_epochs(subject, "block3", "feature_extraction", images, precision)
    next(uncached)
    return {
        "study_seconds": seconds,
        "plain_seconds_of_one_trial": plain,
        "ratio": TRIALS * plain / statistics.median(seconds),
        "our_accuracy": first.val_accuracy,
        "plain_accuracy": max(accuracies),
        "validation_images": len(subject.val_images),
        "training_seconds_of_a_trial": [trial.training_seconds for trial in trials],
        "images_per_second_without_stored_features": [next(uncached) for _ in range(subject.repeats)],
    }


def fine_tuning(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure the images per second of fine-tuning everything, of this package and of the plain loop in turns.

    This package computes in a study's default precision, the plain loop in float32. On the CPU both take batches of
    64; on CUDA this package takes its fastest batch size.
    """
    is_cuda = subject.device.type == "cuda"
    cut = "block5" if is_cuda else "block3"
    images, precision = first_images(subject, 640, 20_000), default_precision(subject.device)
    loader = plain_loader(images, subject.normalisation, shuffle=True)
    model = network(subject, cut)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    candidates = {}
    for batch_size in (64, 256, 1024) if is_cuda else (BATCH_SIZE,):
        epochs = our_epochs(subject, cut, "fine_tune_all", images, precision, batch_size)
        next(epochs)
        candidates[batch_size] = (next(epochs), epochs)
    best = max(candidates, key=lambda batch_size: candidates[batch_size][0])
    ours = candidates[best][1]
    plain_epoch(model, optimizer, loader, subject.device)
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(subject.repeats):
        rates["ours"].append(next(ours))
        rates["plain"].append(len(images) / plain_epoch(model, optimizer, loader, subject.device))
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["plain"])
    return {"cut": cut, "precision": precision, "our_batch_size": best, **rates, "ratio": ratio}


def training_steps(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure every cut and strategy without cached features: images per second, and share of the device's ceiling."""
    precision = "bfloat16" if subject.device.type == "cuda" else "float32"
    ceiling = Measured([ceiling_flops(subject.device, getattr(torch, precision)) for _ in range(subject.repeats)])
    is_cuda = subject.device.type == "cuda"
    rows = []
    for cut in CUTS:
        for strategy in ("feature_extraction", "fine_tune_top", "fine_tune_all"):
            if cut == "block1" and strategy == "fine_tune_top":
                continue  # nothing below block1 can be frozen
            for batch_size in (64, 256, 1024) if is_cuda else (BATCH_SIZE,):
                if is_cuda:
                    torch.cuda.reset_peak_memory_stats(subject.device)
                images = first_images(subject, 256, 20_000)
                epochs = our_epochs(subject, cut, strategy, images, precision, batch_size)
                next(epochs)
                rates = Measured([next(epochs) for _ in range(subject.repeats)])
                rows.append({
                    "cut": cut,
                    "strategy": strategy,
                    "batch_size": batch_size,
                    "images_per_second": rates.values,
                    "share_of_ceiling": rates.median * flops_of_an_image(subject, cut, strategy) / ceiling.median,
                    "peak_memory_bytes": torch.cuda.max_memory_allocated(subject.device) if is_cuda else None,
                })  # fmt: skip
    return {"precision": precision, "ceiling_flops": ceiling.values, "rows": rows}


def ceiling_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a large matrix product or convolution, the faster of both."""
    side, batch = (8192, 256) if device.type == "cuda" else (2048, 16)
    channels, pixels = 256, 32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    images = torch.randn(batch, channels, pixels, pixels, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return max(
        _flops(lambda: torch.matmul(a, b), 2 * side**3, device),
        _flops(lambda: conv2d(images, kernel, padding=1), 2 * batch * (3 * channels * pixels) ** 2, device),
    )


def _flops(work: Callable[[], object], operations: int, device: torch.device) -> float:
    """Return the operations per second of some work."""
    repeats = 20 if device.type == "cuda" else 3
    work()
    _synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronise(device)
    return repeats * operations / (time.perf_counter() - started)


def flops_of_an_image(subject: Subject, cut: str, strategy: Any) -> float:
    """Return the floating point operations of one image in a training step, forward and backward."""
    model = network(subject, cut)
    depth = len(model.blocks) - 1
    apply_strategy(model, Learning(strategy, lr=1.0, freeze_depth=depth))
    size = subject.train_images.images_NCHW.shape[-1]
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(8, 3, size, size, device=subject.device)).sum().backward()
    return float(counter.get_total_flops()) / 8


def small_trials(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure the seconds from one trial to the next with hardly any training: in a new store, and in a full one."""
    content = {
        "trials_per_arm": SMALL_TRIALS,
        "epochs": 1,
        "fixed": {"strategy": "feature_extraction", "truncate_at": "block1", "head_width": 16},
        "search": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}, "sampler": "random"},
    }
    store = run_study_silently(subject, folder / "small", content, few_images_limit(subject))
    memory = resident_bytes()
    run_study_silently(subject, folder / "small", content | {"trials_per_arm": fill}, few_images_limit(subject))
    starts = trial_starts(store)
    cycles = [after - before for before, after in pairwise(starts)]
    del cycles[SMALL_TRIALS - 1]  # the pause between the two studies
    training = sum(trial.training_seconds or 0.0 for trial in finished_trials(store)) / fill
    return {
        "trials": fill,
        "first_seconds": cycles[1 : SMALL_TRIALS - 1],
        "last_seconds": cycles[-SMALL_TRIALS:],
        "of_which_training": training,
        "memory_growth_bytes": resident_bytes() - memory,
    }


def tracking_overhead(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure the time of MLflow's calls in a trial of a minute. The faster the training, the more epochs they log."""
    images, precision = first_images(subject, 256, 20_000), default_precision(subject.device)
    epochs = our_epochs(subject, "block3", "fine_tune_all", images, precision)
    next(epochs)
    rate = next(epochs)
    content = {
        "trials_per_arm": 1,
        "epochs": math.ceil(MINUTE * rate / len(subject.train_images)),
        "fixed": {"strategy": "fine_tune_all", "truncate_at": "block3", "lr": 1e-3},
    }
    durations: list[float] = []
    with timed(TrialRun, "_do", durations), timed(TrialRun, "complete", durations):
        store = run_study_silently(subject, folder / "tracking", content)
    (trial,) = finished_trials(store)
    return {
        "trial_seconds": trial.training_seconds,
        "epochs": content["epochs"],
        "calls": len(durations),
        "tracking_seconds": sum(durations),
    }


def start_up(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure the seconds from the command to its first trial, imports included, in a new store and an existing one."""
    study = folder / "start.toml"
    study.write_text(START_UP_STUDY)
    settings = [f"backbone.weights={subject.weights_file}", f"data.source={subject.data.source}"]
    settings += [f"data.root={subject.data.root}"] if subject.data.root else []
    settings += [f"data.limit={few_images_limit(subject)}"]
    command = [sys.executable, "-m", "ablation.study", str(study), "--device", subject.device.type]
    command += [argument for setting in settings for argument in ("--set", setting)]
    start_seconds: dict[str, list[float]] = {"new_store": [], "old_store": []}
    for repeat in range(subject.repeats):
        for trials, name in ((1, "new_store"), (2, "old_store")):
            arguments = [*command, "--store", str(folder / f"start-{repeat}"), "--trials", str(trials)]
            started = time.perf_counter()
            seconds, line = None, ""
            with subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | UNBUFFERED
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if seconds is None and line.startswith("["):
                        seconds = time.perf_counter() - started
            if process.returncode != 0 or seconds is None:
                raise StoreError(f"a study of the benchmark ended with status {process.returncode}: {line.strip()}")
            start_seconds[name].append(seconds)
    return dict(start_seconds)


def standardise(subject: Subject, model: TransferModel) -> None:
    """Set the constants that standardise the features, as a trial does."""
    source = ImageSource(subject.train_images, frozen_part(model, 0, subject.normalisation, "float32"), "none")
    calibrate(model, source.subset(calibration_sample(len(subject.train_images))).in_order(), 0, "float32")


def run_study_silently(subject: Subject, folder: Path, content: dict[str, Any], limit: int | None = None) -> Store:
    """Run a study as the command line does, in a store of its own and without output.

    Args:
        subject: its images, weights and device.
        folder: of the store.
        content: of the study, without its data and backbone.
        limit: `data.limit` where it is not the subject's.

    Returns:
        the store.
    """
    spec = StudySpec(
        name="bench",
        question="How fast?",
        backbone=Backbone(name="vgg16", weights=subject.weights_file),
        data=subject.data.model_copy(update={"limit": limit or subject.data.limit}),
        **content,
    )
    store = find_store(str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        run_study(spec, store, RunOptions(str(subject.device), workers=1))
    return store


def finished_trials(store: Store) -> list[RunResult]:
    """Return the trials of the benchmark's study in a store, in the order of their numbers."""
    return [trial for arm in read_results(store, "bench").arms for trial in arm.trials]


def trial_starts(store: Store) -> list[float]:
    """Return the start of each trial in seconds since the epoch, sorted."""
    storage = open_storage(store)
    assert storage is not None
    trials = [trial for arm in study_arms(storage, "bench").tuning.values() for trial in arm.trials]
    return sorted(trial.datetime_start.timestamp() for trial in trials if trial.datetime_start)


@contextlib.contextmanager
def timed(owner: Any, name: str, durations: list[float]) -> Iterator[None]:
    """Append the seconds of each call of the method `owner.name` to `durations`."""
    real: Callable[..., Any] = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            durations.append(time.perf_counter() - started)

    with mock.patch.object(owner, name, method):
        yield


def process_peak_bytes() -> int:
    """Return the peak of this process's memory in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return this process's memory in bytes."""
    return int(psutil.Process().memory_info().rss)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
