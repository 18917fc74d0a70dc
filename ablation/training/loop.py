"""The training loop of one trial.

Legend: N images.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch

from ablation.base.generators import generator, seed_globally
from ablation.networks.transfer_model import set_training_mode
from ablation.spec.metrics import EpochMetrics
from ablation.training.evaluation import evaluate
from ablation.training.representation import distances_moved, relative_gradient_norms
from ablation.training.schedule import average_decay, is_over, last_alike, layers_learning, lr_factor
from ablation.training.settings import TrainingSettings
from ablation.training.sources import Source, batch_places, draw_epoch
from ablation.training.state import Training, load_tensors, trained_tensors
from ablation.training.step import TrainingStep

LOSS_BECAME = "loss became"  # in the reason for which a trial that diverged ends


class Diverged(Exception):
    """The loss is no longer a finite number."""


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
    model = training.model
    head = next(group for group in training.optimizer.param_groups if group["name"] == "head")
    labels_N = train_source.labels_N
    batches = batch_places(len(labels_N), settings.batch_size)
    steps = settings.epochs * len(batches)
    step = TrainingStep(training, train_source, settings)
    may_learn = [[parameter for parameter in layer.parameters() if parameter.requires_grad] for layer in model.layers]

    while not is_over(training.history, settings):
        epoch = len(training.history) + 1
        started = time.perf_counter()
        seed_globally(settings.seed, "epoch", epoch)
        learning = layers_learning(model, settings, epoch)
        for number, parameters in enumerate(may_learn):
            for parameter in parameters:
                parameter.requires_grad_(number in learning)
        set_training_mode(model, learning)
        order_N = torch.randperm(len(labels_N), generator=generator(settings.seed, "order", epoch))
        noise = generator(settings.seed, "augmentation", epoch)
        first_step = (epoch - 1) * len(batches)
        numbers = range(first_step, first_step + len(batches))
        rates = [lr_factor(settings.schedule, number, steps) for number in numbers]
        decays = [average_decay(settings.ema, number) for number in numbers]
        step.begin_epoch(draw_epoch(train_source, order_N, settings.batch_size, noise), rates, decays, learning)
        last_step = len(batches) * last_alike(model, settings, epoch)
        for number, places in enumerate(batches, start=first_step):
            step.run(places, steps_left=last_step - number)
        train_loss, train_accuracy = step.loss_sum.item() / len(labels_N), step.correct.item() / len(labels_N)
        seconds = time.perf_counter() - started
        gradient_norms = relative_gradient_norms(model.blocks, model.head)

        if not math.isfinite(train_loss):
            raise Diverged(f"the training {LOSS_BECAME} {train_loss} in epoch {epoch}")
        with averaged(training):
            validation = evaluate(model, val_source, settings.precision)
        if not math.isfinite(validation.loss):
            raise Diverged(f"the validation {LOSS_BECAME} {validation.loss} in epoch {epoch}")
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            val_balanced_accuracy=validation.balanced_accuracy,
            val_macro_f1=validation.macro_f1,
            lr=head["peak_lr"] * rates[0],
            images_per_second=len(labels_N) / seconds,
            timestamp=time.time_ns() // 1_000_000,
            relative_gradient_norm=gradient_norms,
            distance_moved=distances_moved(model.blocks, training.start),
        )
        for parameter in chain.from_iterable(may_learn):
            parameter.requires_grad_(True)  # as they were, for another call
        training.history.append(metrics)
        if training.best is metrics:
            with averaged(training):
                training.best_tensors = trained_tensors(model)
        yield metrics


@contextmanager
def averaged(training: Training) -> Iterator[None]:
    """Put the moving averages, if there are any, in place of the tensors that learn while in this context."""
    if not training.averages:
        yield
        return
    tensors = training.model.state_dict()
    own = {name: tensors[name].clone() for name in training.averages}
    load_tensors(training.model, training.averages)
    try:
        yield
    finally:
        load_tensors(training.model, own)
