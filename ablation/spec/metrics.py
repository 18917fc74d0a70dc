"""The metrics of an epoch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch gave. Losses are mean cross-entropies in nats, other scores fractions; `epoch` counts from 1.

    `lr` is the head's learning rate at the epoch's first step; `train_loss`, which is what is minimised (label
    smoothing and class weights included), and `train_accuracy` are averages over the epoch, while the network changed.
    `timestamp` is the time of day in milliseconds at which the epoch ended.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_second: float
    timestamp: int
    val_balanced_accuracy: float = math.nan  # in a checkpoint of an older version
    val_macro_f1: float = math.nan
