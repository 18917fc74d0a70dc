"""The metrics of an epoch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch. Losses are mean cross-entropies in nats, other scores fractions; `epoch` counts from 1.

    `lr` is the head's learning rate at the epoch's first step. `train_loss`, the loss that is minimised (with label
    smoothing and class weights), and `train_accuracy` are averages over the epoch, while the network changes.
    `timestamp` is the time at which the epoch ended, in milliseconds since 1970.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_second: float
    timestamp: int
    val_balanced_accuracy: float = math.nan  # not in checkpoints of older versions
    val_macro_f1: float = math.nan
