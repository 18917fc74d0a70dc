"""The training loop and the evaluation of one trial.

Legend: N images, C channels, H and W pixels, K classes.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ablation.data import Images, augment, normalise, shuffled_batches
from ablation.models import TransferModel
from ablation.seeding import generator, seed_globally
from ablation.spec import Augmentation

EVALUATION_PIXELS = 512 * 32 * 32  # of a batch without gradients; has no influence on the result
CALIBRATION_IMAGES = 1000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Diverged(Exception):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch gave. Losses are mean cross-entropies in nats, accuracies fractions; `epoch` counts from 1.

    `lr` is the head's learning rate at the epoch's first step; `train_loss` and `train_accuracy` are averages over the
    epoch, while the network changed. `timestamp` is the time of day in milliseconds at which the epoch ended.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_second: float
    timestamp: int


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the channels, for pixels scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass
class Training:
    """A training in progress: everything that a checkpoint holds."""

    model: TransferModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    devices: list[tuple[int, str]] = field(default_factory=list)  # (first epoch, kind); several if it went on elsewhere
    history: list[EpochMetrics] = field(default_factory=list)
    best_tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best(self) -> EpochMetrics:
        """The epoch with the highest validation accuracy; the first of equals."""
        return max(self.history, key=lambda metrics: metrics.val_accuracy)

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of what is not frozen, and the constants that standardise the features."""
        return trained_tensors(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only, so that a checkpoint is read without running code."""
        return {
            "trained": self.trained_tensors(),
            "best": self.best_tensors,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "devices": self.devices,
            "history": [asdict(metrics) for metrics in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        load_tensors(self.model, state["trained"])
        self.best_tensors = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.devices = state["devices"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]


def trained_tensors(model: TransferModel) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that training may change, and of those that standardise the features, by name."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: t.detach().clone() for name, t in model.state_dict().items() if name not in frozen}


def load_tensors(model: TransferModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model; those that are not named stay as they are.

    Raises:
        RuntimeError: a name or a shape does not belong to the model.
    """
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise RuntimeError(f"the model has no tensor {unexpected[0]}")


def make_optimizer(name: str, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer over the groups of `apply_strategy`."""
    for group in groups:
        group["lr"] = group["peak_lr"]
    fused = device.type == "cuda"
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=fused)


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step (from 0): 1, or half a cosine from 1 towards 0."""
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))


def train(
    training: Training,
    train_images: Images,
    val_images: Images,
    normalisation: Normalisation,
    *,
    epochs: int,
    batch_size: int,
    schedule: str,
    augmentation: Augmentation,
    label_smoothing: float,
    max_grad_norm: float,
    head_warmup_epochs: int,
    precision: str,
    seed: int,
) -> Iterator[EpochMetrics]:
    """Train from the epoch after the training's history to the last, yielding each epoch's metrics.

    Every random number of an epoch depends on (seed, epoch) alone: the order, the augmentation, and what layers such as
    dropout draw from the global generators. So a continued training does what an uninterrupted one does, and no
    generator's state needs to be kept.

    Raises:
        Diverged: the loss of an epoch is not finite.
        torch.OutOfMemoryError: the device's memory does not suffice.
    """
    model, optimizer, scaler = training.model, training.optimizer, training.scaler
    device = train_images.labels_N.device
    learning = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad]
    steps_per_epoch = math.ceil(len(train_images) / batch_size)

    for epoch in range(len(training.history) + 1, epochs + 1):
        started = time.perf_counter()
        seed_globally(seed, "epoch", epoch)
        model.train()
        for parameter in learning:
            parameter.requires_grad_(epoch > head_warmup_epochs)
        order, noise = generator(seed, "order", epoch), generator(seed, "augmentation", epoch)
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.int64)
        first_step = (epoch - 1) * steps_per_epoch
        for step, batch in enumerate(shuffled_batches(train_images, batch_size, order), start=first_step):
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor(schedule, step, epochs * steps_per_epoch)
            inputs_NCHW = normalise(
                augment(batch.images_NCHW, augmentation, noise), normalisation.mean, normalisation.std
            )
            with _autocast(device, precision):
                logits_NK = model(inputs_NCHW)
            loss = cross_entropy(logits_NK.float(), batch.labels_N, label_smoothing=label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            loss_sum += loss.detach() * len(batch)  # stays on the device: reading it here would stall a GPU
            correct += (logits_NK.argmax(1) == batch.labels_N).sum()
        train_loss, train_accuracy = loss_sum.item() / len(train_images), correct.item() / len(train_images)
        seconds = time.perf_counter() - started

        if not math.isfinite(train_loss):
            raise Diverged(f"the training loss became {train_loss} in epoch {epoch}")
        val_loss, val_accuracy = evaluate(model, val_images, normalisation, precision)
        if not math.isfinite(val_loss):
            raise Diverged(f"the validation loss became {val_loss} in epoch {epoch}")
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=_head_peak_lr(optimizer) * lr_factor(schedule, first_step, epochs * steps_per_epoch),
            images_per_second=len(train_images) / seconds,
            timestamp=time.time_ns() // 1_000_000,
        )
        for parameter in learning:
            parameter.requires_grad_(True)  # whatever the caller saves now, warm-up or not, includes them
        training.history.append(metrics)
        if training.best is metrics:
            training.best_tensors = training.trained_tensors()
        yield metrics


def _head_peak_lr(optimizer: torch.optim.Optimizer) -> float:
    peak: float = next(group["peak_lr"] for group in optimizer.param_groups if group["name"] == "head")
    return peak


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")


def evaluation_batch_size(images: Images) -> int:
    """Return how many images are evaluated at once: 512 of 32x32 pixels, fewer of larger ones."""
    return max(1, EVALUATION_PIXELS // images.images_NCHW[0, 0].numel())


def normalised_batches(images: Images, normalisation: Normalisation) -> Iterator[torch.Tensor]:
    """Yield all images in order, normalised (float32 NCHW), in batches of `evaluation_batch_size`."""
    for batch_NCHW in torch.split(images.images_NCHW, evaluation_batch_size(images)):
        yield normalise(batch_NCHW, normalisation.mean, normalisation.std)


def calibration_sample(images: Images) -> Images:
    """Return up to 1,000 images, evenly spaced, so that every class is among them however the images are ordered."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), CALIBRATION_IMAGES)).long()
    return Images(images.images_NCHW[chosen], images.labels_N[chosen])


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, normalisation: Normalisation, precision: str) -> tuple[float, float]:
    """Return the mean cross-entropy (nats, without label smoothing) and the accuracy over all images."""
    device = images.labels_N.device
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    labels = torch.split(images.labels_N, evaluation_batch_size(images))
    for logits_NK, labels_N in zip(_logits(model, images, normalisation, precision), labels, strict=True):
        loss_sum += cross_entropy(logits_NK, labels_N, reduction="sum")
        correct += (logits_NK.argmax(1) == labels_N).sum()
    return loss_sum.item() / len(images), correct.item() / len(images)


@torch.no_grad()
def predict(model: nn.Module, images: Images, normalisation: Normalisation) -> torch.Tensor:
    """Return the logits NK of all images, in float32 whatever the training's precision, so that any device agrees."""
    return torch.cat(list(_logits(model, images, normalisation, "float32")))


def _logits(model: nn.Module, images: Images, normalisation: Normalisation, precision: str) -> Iterator[torch.Tensor]:
    """Yield float32 logits NK of all images in order, in batches of `evaluation_batch_size`."""
    model.eval()
    for inputs_NCHW in normalised_batches(images, normalisation):
        with _autocast(images.labels_N.device, precision):
            logits_NK = model(inputs_NCHW)
        yield logits_NK.float()
