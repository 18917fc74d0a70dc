"""Short measurements of time and memory: each kind of training runs for a moment on this machine.

The measurements run a study's own code (network, optimizer, training loop, evaluation) on random images with random
weights, so that nothing has to be downloaded.

Legend: N images, C channels, H and W pixels, D features.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import psutil
import torch

from ablation.base.core_use import core_use, read_core_times
from ablation.base.device import exact_float32, free_memory, is_out_of_memory
from ablation.base.machine import available_memory
from ablation.base.text import first_line
from ablation.data.images import Images, evaluation_batch_size
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, TransferModel, build_model, calibrate, initialise
from ablation.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from ablation.spec.parameters import Augmentation, HeadPool
from ablation.spec.reuse import Reuse, unit_at_end
from ablation.training.evaluation import evaluate, predict
from ablation.training.loop import Diverged, train
from ablation.training.settings import TrainingSettings
from ablation.training.sources import FeatureSource, FrozenPart, ImageSource, Source, frozen_part
from ablation.training.state import Training, begin_training
from ablation.training.step import EAGER_STEPS

SECONDS = 0.3  # for which a measurement is repeated
EPOCH_SECONDS = 0.05  # approximate length of one measurement of training, which has at least a batch
ENDLESS = 10**6  # epochs, of which a measurement takes the first few
SAMPLING_SECONDS = 0.01  # between two samples of the process's memory
LR = 1e-4  # small, so that random networks do not diverge

Subject = TypeVar("Subject")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Kind:
    """The properties that decide how long an epoch takes; trainings with equal ones are measured once.

    The strategy counts only by its `frozen_units`, the leading units that do not learn, and by what of the others does.
    `reads_features` says whether the features of the frozen units are cached.
    """

    truncate_at: str
    frozen_units: int
    reads_features: bool
    head_width: int
    head_pool: HeadPool
    batch_size: int
    augmentation: Augmentation
    optimizer: str
    learn: str = "all"

    def reuse(self, backbone: str) -> Reuse:
        """Return what such a training reuses; fine_tune_top stands for every strategy."""
        depth = unit_at_end(backbone, self.frozen_units) if self.frozen_units else 0
        return Reuse(backbone, self.truncate_at, "fine_tune_top", depth, self.learn)


@dataclass(frozen=True)
class Conditions:
    """What all trainings of a study share.

    Attributes:
        backbone: its name.
        classes: their number.
        image_size: height and width in pixels of the images that the network gets.
        side: height and width in pixels of the images in memory.
        train_images: their number, without those for validation.
        val_images: their number.
        test_images: their number.
        precision: 'float32', 'bfloat16' or 'float16', which the device computes in.
        device: the device that trains.
    """

    backbone: str
    classes: int
    image_size: int
    side: int
    train_images: int
    val_images: int
    test_images: int
    precision: str
    device: torch.device

    @property
    def normalisation(self) -> Normalisation:
        """The preprocessing of images before the first layer."""
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD, self.image_size)


@dataclass(frozen=True)
class Speed:
    """Seconds that a training takes: to begin, and per image to train, to validate, and to test in float32."""

    begin: float
    train: float
    evaluate: float
    test: float


@dataclass(frozen=True)
class Failure:
    """Why a training cannot run here."""

    reason: str


@dataclass(frozen=True)
class Probe:
    """The measurements.

    Attributes:
        speeds: of every kind of training.
        frozen: (cut, units) of every frozen part -> seconds per image, in the study's precision and in float32.
        seconds: duration of all measurements.
        busy_cores: number of this process's cores that others kept busy meanwhile.
        peak_bytes: most memory in use during the measurements: on the GPU, else by the process.
        free_bytes: free memory before the measurements: of the GPU, else of the machine or the container.
    """

    speeds: dict[Kind, Speed | Failure]
    frozen: dict[tuple[str, int], tuple[float, float] | Failure]
    seconds: float
    busy_cores: float
    peak_bytes: int
    free_bytes: int


def probe(kinds: Iterable[Kind], frozen_parts: Iterable[tuple[str, int]], conditions: Conditions) -> Probe:
    """Measure each kind of training and each frozen part once. A failure, such as out of memory, is a `Failure`."""
    device = conditions.device
    started = time.perf_counter()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    before = read_core_times()
    with peak_memory(device) as peak:
        speeds = {kind: _or_failure(_training_speed, kind, conditions) for kind in dict.fromkeys(kinds)}
        frozen = {part: _or_failure(measure_frozen, part, conditions) for part in dict.fromkeys(frozen_parts)}
    seconds = time.perf_counter() - started
    return Probe(speeds, frozen, seconds, core_use(before, read_core_times()).others, peak[0], free)


def _training_speed(kind: Kind, conditions: Conditions) -> Speed:
    """Measure a training, without CUDA graphs where their memory is too much, as a study runs it then."""
    try:
        return measure_training(kind, conditions)
    except (RuntimeError, MemoryError) as error:
        if conditions.device.type != "cuda" or not is_out_of_memory(error):
            raise
    free_memory(conditions.device)  # after the except block, see `_or_failure`
    return measure_training(kind, conditions, may_capture=False)


def _or_failure(
    measure: Callable[[Subject, Conditions], Result], subject: Subject, conditions: Conditions
) -> Result | Failure:
    try:
        return measure(subject, conditions)
    except (RuntimeError, MemoryError, Diverged) as error:  # torch.OutOfMemoryError is a RuntimeError
        failure = Failure(first_line(error))
    free_memory(conditions.device)  # after the except block: before its end, the traceback holds the tensors
    return failure


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yield a list whose only item is, after the block, the peak memory in bytes: of the GPU, else of the process.

    The process's resident memory is sampled a hundred times a second, which works on every system.
    """
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    process, is_over = psutil.Process(), threading.Event()

    def sample() -> None:
        while True:
            peak[0] = max(peak[0], process.memory_info().rss)
            if is_over.wait(SAMPLING_SECONDS):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def measure_training(kind: Kind, conditions: Conditions, *, may_capture: bool = True) -> Speed:
    """Begin a training of a kind, train for a moment, and evaluate; return how long each takes.

    Args:
        kind: of the training.
        conditions: what all trainings of the study share.
        may_capture: whether its steps may be captured in a CUDA graph, which takes memory of its own.

    Raises:
        RuntimeError: it cannot run here; torch.OutOfMemoryError or MemoryError: there is not enough memory.
        Diverged: the loss is not finite.
    """
    started = time.perf_counter()
    training = _begin_training(kind, conditions)
    training.may_capture = may_capture
    begin = time.perf_counter() - started
    evaluated = _source(training.frozen, kind, _evaluation_images(conditions), conditions)
    calibrate(training.model, evaluated.in_order(), evaluated.start, conditions.precision)
    train_seconds = _train_seconds(training, kind, conditions)
    images = len(evaluated.labels_N)
    seconds = _least_seconds(lambda: evaluate(training.model, evaluated, conditions.precision)) / images
    if conditions.precision == "float32":
        return Speed(begin, train_seconds, seconds, seconds)
    tested = _source(replace(training.frozen, precision="float32"), kind, images, conditions)
    with exact_float32():
        test_seconds = _least_seconds(lambda: predict(training.model, tested, "float32").cpu()) / images
    return Speed(begin, train_seconds, seconds, test_seconds)


def measure_frozen(part: tuple[str, int], conditions: Conditions) -> tuple[float, float]:
    """Return the seconds per image for the first units of a cut, in the study's precision and in float32.

    Raises:
        RuntimeError: they cannot run here; torch.OutOfMemoryError or MemoryError: there is not enough memory.
    """
    cut, units = part
    model = _make_model(cut, 1, 1, conditions)
    frozen = frozen_part(model, model.layers_up_to(units), conditions.normalisation, conditions.precision)
    images = _random_images(_evaluation_images(conditions), conditions).images_NCHW
    seconds = _least_seconds(lambda: frozen(images).cpu()) / len(images)
    if conditions.precision == "float32":
        return seconds, seconds
    with exact_float32():
        return seconds, _least_seconds(lambda: replace(frozen, precision="float32")(images).cpu()) / len(images)


def _begin_training(kind: Kind, conditions: Conditions) -> Training:
    model = _make_model(kind.truncate_at, kind.head_width, kind.head_pool, conditions)
    reuse = kind.reuse(conditions.backbone)
    learning = Learning(reuse.strategy, LR, reuse.freeze_depth, weight_decay=LR, learn=reuse.learn)
    return begin_training(model, learning, _settings(kind, conditions, epochs=1), conditions.normalisation)


def _settings(kind: Kind, conditions: Conditions, epochs: int) -> TrainingSettings:
    return TrainingSettings(
        epochs, kind.batch_size, 0, conditions.precision, optimizer=kind.optimizer, schedule="constant"
    )


def _make_model(cut: str, head_width: int, head_pool: HeadPool, conditions: Conditions) -> TransferModel:
    head = Head(head_width, head_pool)
    model = build_model(conditions.backbone, cut, head, conditions.classes, conditions.image_size)
    initialise(model, None, seed=0)
    return model.to(conditions.device).to(memory_format=torch.channels_last)


def _source(frozen: FrozenPart, kind: Kind, images: int, conditions: Conditions) -> Source:
    """Return a source of random images, or of random features where the kind reads features."""
    if not kind.reads_features:
        return ImageSource(_random_images(images, conditions), frozen, kind.augmentation)
    two = _random_images(2, conditions)
    sample = frozen(two.images_NCHW)
    shape = sample.permute(0, 2, 3, 1).shape[1:] if sample.ndim == 4 else sample.shape[1:]
    # Random numbers rather than the layers' output: with random weights, activations can overflow.
    rows = torch.randn(images, *shape, dtype=sample.dtype, device=sample.device)
    mirrored = rows.clone() if kind.augmentation == "flip" else None
    batch_size = evaluation_batch_size(two, frozen.normalisation)
    return FeatureSource(rows, mirrored, _random_labels(images, conditions), len(frozen.layers), batch_size)


def _random_images(images: int, conditions: Conditions) -> Images:
    shape = (images, 3, conditions.side, conditions.side)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=conditions.device)
    return Images(pixels, _random_labels(images, conditions))


def _random_labels(images: int, conditions: Conditions) -> torch.Tensor:
    return torch.randint(conditions.classes, (images,), device=conditions.device)


def _evaluation_images(conditions: Conditions) -> int:
    """Return the images of one evaluation batch, the work without gradients that needs the most memory."""
    at_once = evaluation_batch_size(_random_images(1, conditions), conditions.normalisation)
    return min(at_once, max(conditions.val_images, conditions.test_images))


def _train_seconds(training: Training, kind: Kind, conditions: Conditions) -> float:
    """Return the seconds per image of an epoch; a first batch is trained without being measured.

    On CUDA, the epoch is one whose steps are captured in a graph, if they can be, as most of a study's are.
    """
    one = _source(training.frozen, kind, 1, conditions)
    settings = _settings(kind, conditions, epochs=ENDLESS)

    def train_on(images: int) -> float:
        source = _source(training.frozen, kind, images, conditions)
        count = _epochs_to_a_captured_one(conditions.device, images // kind.batch_size)
        *_, last = islice(train(training, source, one, settings), count)
        return 1 / last.images_per_second

    images = min(kind.batch_size, conditions.train_images)
    train_on(images)
    while (seconds := images * train_on(images)) < EPOCH_SECONDS / 2 and images < conditions.train_images:
        batches = math.ceil(images / seconds * EPOCH_SECONDS / kind.batch_size)
        images = min(batches * kind.batch_size, conditions.train_images)
    return seconds / images if seconds >= SECONDS else _least(lambda: train_on(images))


def _epochs_to_a_captured_one(device: torch.device, whole_batches: int) -> int:
    """Return the number of epochs up to the first that replays a graph for all whole batches; 1 without graphs."""
    return 2 + EAGER_STEPS // max(1, whole_batches) if device.type == "cuda" else 1


def _least_seconds(step: Callable[[], object]) -> float:
    def timed() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    return _least(timed)


def _least(measure: Callable[[], float]) -> float:
    """Return the smallest of the measurements made within SECONDS: the one that other processes disturbed least."""
    until = time.perf_counter() + SECONDS
    least = measure()
    while time.perf_counter() < until:
        least = min(least, measure())
    return least
