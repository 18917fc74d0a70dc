"""The training loop and the evaluation of one trial.

Legend: N images, B images of a batch, K classes.
"""

import math
import time
from collections.abc import Iterator

import torch

from ablation.base.seeds import generator, seed_globally
from ablation.spec.metrics import EpochMetrics
from ablation.training.begin import Training, TrainingSettings, set_training_mode
from ablation.training.evaluation import evaluate
from ablation.training.sources import Source, batch_places, draw_epoch
from ablation.training.step import TrainingStep


class Diverged(Exception):
    """The loss is no longer a finite number."""


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
    model, optimizer = training.model, training.optimizer
    labels_N = train_source.labels_N
    batches = batch_places(len(labels_N), settings.batch_size)
    steps = settings.epochs * len(batches)
    step = TrainingStep(training, train_source, settings)
    learning = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad]

    for epoch in range(len(training.history) + 1, settings.epochs + 1):
        started = time.perf_counter()
        seed_globally(settings.seed, "epoch", epoch)
        head_alone = epoch <= settings.head_warmup_epochs
        for parameter in learning:
            parameter.requires_grad_(not head_alone)
        set_training_mode(model, head_alone=head_alone)
        order_N = torch.randperm(len(labels_N), generator=generator(settings.seed, "order", epoch))
        noise = generator(settings.seed, "augmentation", epoch)
        first_step = (epoch - 1) * len(batches)
        rates = [lr_factor(settings.schedule, number, steps) for number in range(first_step, first_step + len(batches))]
        step.begin_epoch(draw_epoch(train_source, order_N, settings.batch_size, noise), rates, head_alone=head_alone)
        for number, places in enumerate(batches, start=first_step):
            step.run(places, steps_left=steps - number)
        train_loss, train_accuracy = step.loss_sum.item() / len(labels_N), step.correct.item() / len(labels_N)
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
            lr=_head_peak_lr(optimizer) * rates[0],
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
