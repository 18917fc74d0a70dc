"""The training loop: epochs of steps, each epoch followed by an evaluation.

Legend: N images, B images of a batch, K classes.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ablation.base.device import autocast
from ablation.base.seeds import generator, seed_globally
from ablation.data.images import Normalisation
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import TransferModel, calibrate
from ablation.spec.metrics import EpochMetrics
from ablation.spec.parameters import ClassWeights
from ablation.training.compiler import compiled_forward
from ablation.training.evaluation import evaluate
from ablation.training.sources import FrozenPart, Source, frozen_part, in_batches

CALIBRATION_IMAGES = 1000


class Diverged(Exception):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training, whatever its network and images; `Hyperparameters` names their sources."""

    epochs: int
    """Passes over the training images in total; a resumed training counts those before it."""
    batch_size: int
    """Images per step."""
    seed: int
    """Determines the order of the images, their augmentation, and the random numbers of layers such as dropout."""
    precision: str
    """What the layers compute in: 'float32', 'bfloat16' or 'float16'."""
    optimizer: str = "sgd"
    """'sgd' (Nesterov momentum 0.9) or 'adamw'."""
    schedule: str = "cosine"
    """Learning rate over all steps: 'cosine' or 'constant'."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    class_weights: ClassWeights = "none"
    """'balanced' gives every class the same weight in the training loss."""
    max_grad_norm: float = 5.0
    """Longer gradients are scaled down to this norm."""
    head_warmup_epochs: int = 0
    """First epochs, in which only the head learns."""
    compile: str = "none"
    """A mode of `torch.compile`, or 'none'."""


@dataclass
class Training:
    """A training in progress: what a checkpoint holds, and the network's frozen part."""

    model: TransferModel
    frozen: FrozenPart
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    devices: list[tuple[int, str]] = field(default_factory=list)  # (first epoch, kind) of each device that it ran on
    history: list[EpochMetrics] = field(default_factory=list)
    best_tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best(self) -> EpochMetrics:
        """The epoch with the highest validation accuracy; among equals, the first."""
        return max(self.history, key=lambda metrics: metrics.val_accuracy)

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """Return `trained_tensors` of the network."""
        return trained_tensors(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values only, which are read without running code."""
        return {
            "trained": self.trained_tensors(),
            "best": self.best_tensors,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "devices": self.devices,
            "history": [asdict(metrics) for metrics in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        load_tensors(self.model, state["trained"])
        self.best_tensors = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.devices = state["devices"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]


def begin_training(
    model: TransferModel,
    learning: Learning,
    settings: TrainingSettings,
    normalisation: Normalisation,
    read_images: Callable[[FrozenPart], Source] | None = None,
) -> Training:
    """Freeze the blocks that the strategy freezes, standardise the features, and make the optimizer.

    Args:
        model: the initialised network, on its device.
        learning: which parts of the network learn, and how fast.
        settings: the settings of the training.
        normalisation: the preprocessing before the first layer.
        read_images: returns the source of the training images behind a frozen part; up to 1,000 of them give the
            constants that standardise the features (see `calibrate`). Without it, the features are not standardised.
    """
    device = model.feature_mean_D.device
    frozen = frozen_part(model, learning.frozen_blocks(len(model.blocks)), normalisation, settings.precision)
    if read_images is not None:
        source = read_images(frozen)
        sample = source.subset(calibration_sample(len(source.labels_N)))
        head_alone = settings.head_warmup_epochs > 0
        calibrate(model, sample.in_order(), sample.start, settings.precision, head_alone=head_alone)
    optimizer = make_optimizer(settings.optimizer, apply_strategy(model, learning), device)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    return Training(model, frozen, optimizer, scaler)


def trained_tensors(model: TransferModel) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that training may change, and of those that standardise the features, by name.

    A frozen block's batch-norm statistics are as frozen as its parameters.
    """
    frozen = {
        f"blocks.{name}.{inside}"
        for name, block in list(model.blocks.named_children())[: model.frozen_blocks]
        for inside in block.state_dict()
    }
    return {name: t.detach().clone() for name, t in model.state_dict().items() if name not in frozen}


def set_training_mode(model: TransferModel, *, head_alone: bool) -> None:
    """Put learning blocks into training mode, others into evaluation mode: frozen batch norms keep their statistics."""
    model.train()
    for number, block in enumerate(model.blocks):
        block.train(number >= model.frozen_blocks and not head_alone)


def load_tensors(model: TransferModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model by name; its other tensors stay unchanged.

    Raises:
        RuntimeError: the model has no tensor of a name or shape.
    """
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"the model has no tensor {unknown[0]}")


def make_optimizer(name: str, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer for the parameter groups of `apply_strategy`."""
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
    training: Training, train_source: Source, val_source: Source, settings: TrainingSettings
) -> Iterator[EpochMetrics]:
    """Train from the epoch after the training's history to the last, yielding each epoch's metrics.

    Every random number of an epoch depends on (seed, epoch) alone: the order, the augmentation, and the numbers that
    layers such as dropout draw from the global generators. So a resumed training repeats an uninterrupted one, and no
    generator's state needs to be stored.

    Raises:
        Diverged: the loss of an epoch is not finite.
        torch.OutOfMemoryError: the device's memory does not suffice.
    """
    model, optimizer, scaler = training.model, training.optimizer, training.scaler
    labels_N, device = train_source.labels_N, train_source.labels_N.device
    start, forward = train_source.start, compiled_forward(settings.compile)
    learning = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad]
    steps_per_epoch = len(in_batches(torch.arange(len(labels_N)), settings.batch_size))
    total_steps = settings.epochs * steps_per_epoch
    weights_K = balanced_weights(labels_N, model.num_classes) if settings.class_weights == "balanced" else None

    for epoch in range(len(training.history) + 1, settings.epochs + 1):
        started = time.perf_counter()
        seed_globally(settings.seed, "epoch", epoch)
        head_alone = epoch <= settings.head_warmup_epochs
        for parameter in learning:
            parameter.requires_grad_(not head_alone)
        set_training_mode(model, head_alone=head_alone)
        order_N = torch.randperm(len(labels_N), generator=generator(settings.seed, "order", epoch))
        noise = generator(settings.seed, "augmentation", epoch)
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.int64)
        first_step = (epoch - 1) * steps_per_epoch
        batches = train_source.shuffled(order_N, settings.batch_size, noise)
        for step, (inputs, labels_B) in enumerate(batches, start=first_step):
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor(settings.schedule, step, total_steps)
            with autocast(device, settings.precision):
                logits_BK = forward(model, inputs, start)
            loss = weighted_loss(logits_BK.float(), labels_B, weights_K, settings.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            loss_sum += loss.detach() * len(labels_B)  # stays on the device: reading the number here would stall a GPU
            correct += (logits_BK.argmax(1) == labels_B).sum()
        train_loss, train_accuracy = loss_sum.item() / len(labels_N), correct.item() / len(labels_N)
        seconds = time.perf_counter() - started

        if not math.isfinite(train_loss):
            raise Diverged(f"the training loss became {train_loss} in epoch {epoch}")
        validation = evaluate(model, val_source, settings.precision)
        if not math.isfinite(validation.loss):
            raise Diverged(f"the validation loss became {validation.loss} in epoch {epoch}")
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            val_balanced_accuracy=validation.balanced_accuracy,
            val_macro_f1=validation.macro_f1,
            lr=_head_peak_lr(optimizer) * lr_factor(settings.schedule, first_step, total_steps),
            images_per_second=len(labels_N) / seconds,
            timestamp=time.time_ns() // 1_000_000,
        )
        for parameter in learning:
            parameter.requires_grad_(True)  # so that a checkpoint that the caller saves now includes them
        training.history.append(metrics)
        if training.best is metrics:
            training.best_tensors = training.trained_tensors()
        yield metrics


def _head_peak_lr(optimizer: torch.optim.Optimizer) -> float:
    peak: float = next(group["peak_lr"] for group in optimizer.param_groups if group["name"] == "head")
    return peak


def calibration_sample(images: int) -> torch.Tensor:
    """Return the numbers of up to 1,000 of `images` images, evenly spaced, so that every class is among them."""
    return torch.linspace(0, images - 1, min(images, CALIBRATION_IMAGES)).long()


def weighted_loss(
    logits_BK: torch.Tensor, labels_B: torch.Tensor, weights_K: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy of a batch, weighted by class if there are weights.

    torch's own weighted mean divides by the weights of the batch's images: weights would have less effect in smaller
    batches, and none on a single image.
    """
    if weights_K is None:
        return cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing)
    total = cross_entropy(logits_BK, labels_B, weights_K, label_smoothing=label_smoothing, reduction="sum")
    return total / len(labels_B)


def balanced_weights(labels_N: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the weight of each class in the loss, float32 K: images / (classes x images of the class).

    Every class then has the same share of the loss, and the mean weight of an image is 1 (King and Zeng, 2001,
    "Logistic Regression in Rare Events Data").
    """
    images_K = torch.bincount(labels_N.cpu(), minlength=classes).clamp(min=1)  # a class without images has no effect
    return (len(labels_N) / (classes * images_K)).to(labels_N.device, torch.float32)
