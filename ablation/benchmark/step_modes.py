"""The training step on CUDA: launched kernel by kernel, captured in a graph, and in each mode of torch.compile."""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from ablation.base.device import free_memory
from ablation.base.errors import InputError
from ablation.benchmark.subject import HEAD_WIDTH, Subject
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from ablation.spec.study import StudySpec
from ablation.training.compiler import check_compiler, release_compiled
from ablation.training.loop import train
from ablation.training.settings import TrainingSettings
from ablation.training.sources import FeatureSource, ImageSource, Source
from ablation.training.state import begin_training

IMAGES = 20 * 1024  # full batches only: a last smaller one would be compiled, too
BATCH_SIZES = (64, 256, 1024)
COMPILE_MODES = tuple(mode for mode in get_args(StudySpec.model_fields["compile"].annotation) if mode != "none")
MODES = ("eager", "captured", *COMPILE_MODES)


class Work(NamedTuple):
    """What is trained: the blocks up to a cut and a head, or the head alone on cached features."""

    cut: str
    is_head: bool

    def __str__(self) -> str:
        return f"head on features of {self.cut}" if self.is_head else f"fine_tune_all, {self.cut}"


WORK = (Work("block3", is_head=True), Work("block3", is_head=False), Work("block5", is_head=False))


def step_modes(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Measure the step in every mode on CUDA; elsewhere nothing, because there are no graphs."""
    rows = mode_rows(subject.device, subject.repeats) if subject.device.type == "cuda" else []
    return {"rows": list(rows)}


def mode_rows(device: torch.device, repeats: int, deadline: float = math.inf) -> Iterator[dict[str, Any]]:
    """Yield the images per second of every mode, work and batch size, the quickest modes to measure first.

    A mode of torch.compile that does not work here is left out, which the standard error says.

    Args:
        device: the device that trains.
        repeats: number of epochs that are measured, after one in which kernels are compiled or captured.
        deadline: the time (`time.monotonic`) after which no measurement begins.
    """
    for mode in MODES:
        if mode in COMPILE_MODES:
            try:
                check_compiler(mode, device)
            except InputError as error:
                print(f"not measured: {mode}: {error}", file=sys.stderr, flush=True)
                continue
        for work in WORK:
            for batch_size in BATCH_SIZES:
                if time.monotonic() >= deadline:
                    return
                started = time.perf_counter()
                epochs = endless_epochs(device, work, batch_size, mode)
                next(epochs)
                first = time.perf_counter() - started
                rates = [next(epochs) for _ in range(repeats)]
                yield {
                    "mode": mode,
                    "work": str(work),
                    "batch_size": batch_size,
                    "images_per_second": rates,
                    "seconds_of_the_first_epoch": first,
                }
                del epochs
                release_compiled()
                free_memory(device)


def endless_epochs(device: torch.device, work: Work, batch_size: int, mode: str) -> Iterator[float]:
    """Train VGG-16 with random weights on random images or features; yield the images per second of each epoch."""
    model = build_model("vgg16", work.cut, Head(HEAD_WIDTH), 10, 32)
    initialise(model, None, 0)
    model = model.to(device).to(memory_format=torch.channels_last)
    compile_mode = mode if mode in COMPILE_MODES else "none"
    precision = "bfloat16" if device.type == "cuda" else "float32"
    settings = TrainingSettings(10**6, batch_size, 0, precision, schedule="constant", compile=compile_mode)
    learning = Learning("feature_extraction" if work.is_head else "fine_tune_all", lr=1e-4)
    training = begin_training(model, learning, settings, Normalisation(IMAGENET_MEAN, IMAGENET_STD))
    training.may_capture = mode != "eager"
    labels_N = torch.randint(10, (IMAGES,), device=device)
    source: Source
    if work.is_head:
        features = torch.randn(IMAGES, model.feature_mean_D.numel(), device=device)
        source = FeatureSource(features.to(getattr(torch, precision)), None, labels_N, len(model.layers), 512)
    else:
        pixels = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
        source = ImageSource(Images(pixels, labels_N), training.frozen, "none")
    few = source.subset(torch.arange(2, device=device))
    for metrics in train(training, source, few, settings):
        yield metrics.images_per_second
