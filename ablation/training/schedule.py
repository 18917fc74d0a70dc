"""What changes in the course of a training: the learning rate, the layers that learn, the average of the weights."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from ablation.networks.transfer_model import TransferModel
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import OBJECTIVES, Objective
from ablation.training.settings import TrainingSettings


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step (from 0): 1, or half a cosine from 1 towards 0."""
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))


def average_decay(ema: float, step: int) -> float:
    """Return the share of the old average in the new one after a step (from 0): at most `ema`, less in the beginning.

    Otherwise the random head of the start would stay in the average for long (TensorFlow's ExponentialMovingAverage).
    """
    return min(ema, (1 + step) / (10 + step))


def layers_learning(model: TransferModel, settings: TrainingSettings, epoch: int) -> range:
    """Return the layers that learn in an epoch (from 1), beside the head.

    Only the head learns in the first `head_warmup_epochs` epochs. With `unfreeze_every`, it is alone for so many epochs
    if no warm-up is set; then one more block learns, from the top, and after as many epochs the next.
    """
    all_layers = model.learning_layers
    first = settings.head_warmup_epochs or settings.unfreeze_every
    if epoch <= first:
        return range(all_layers.stop, all_layers.stop)
    if settings.unfreeze_every == 0:
        return all_layers
    wanted = math.ceil((epoch - first) / settings.unfreeze_every)
    blocks = pairwise([0, *model.block_ends.values()])
    begins = [start for start, end in blocks if start < all_layers.stop and end > all_layers.start]  # that learn
    return range(max(all_layers.start, begins[-wanted] if wanted < len(begins) else 0), all_layers.stop)


def last_alike(model: TransferModel, settings: TrainingSettings, epoch: int) -> int:
    """Return the last epoch up to which the layers that learn stay those of this epoch."""
    epochs = range(1, settings.epochs + 1)  # layers only join, so that their number tells
    learning = len(layers_learning(model, settings, epoch))
    return bisect_right(epochs, learning, key=lambda each: len(layers_learning(model, settings, each)))


def best_epoch(history: Sequence[EpochMetrics], objective: Objective) -> EpochMetrics:
    """Return the epoch with the best validation value of the objective; among equals, the first."""
    return max(history, key=lambda metrics: objective.goodness(metrics.value(objective)))


def is_over(history: Sequence[EpochMetrics], settings: TrainingSettings) -> bool:
    """Return whether a training has all its epochs, or none of the last `patience` was better than those before."""
    if len(history) >= settings.epochs or not history or settings.patience == 0:
        return len(history) >= settings.epochs
    return len(history) - best_epoch(history, OBJECTIVES[settings.objective]).epoch >= settings.patience
