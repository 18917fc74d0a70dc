"""The metrics of an epoch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablation.spec.objective import Objective


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch. Losses are mean cross-entropies in nats, other scores fractions; `epoch` counts from 1.

    `lr` is the head's learning rate at the epoch's first step. `train_loss`, the loss that is minimised (with label
    smoothing and class weights), and `train_accuracy` are averages over the epoch, while the network changes.
    `timestamp` is the time at which the epoch ended, in milliseconds since 1970. Mappings are by block, of those that
    learn: `relative_gradient_norm` is the norm of the epoch's last gradients over that of the weights, and
    `distance_moved` how far the weights are from where they started, over their norm there.
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
    relative_gradient_norm: dict[str, float] = field(default_factory=dict)
    distance_moved: dict[str, float] = field(default_factory=dict)

    def value(self, objective: Objective) -> float:
        """Return the metric by which epochs are chosen."""
        value: float = getattr(self, objective.val_metric)
        return value


def flat_values(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each metric of an epoch; one of a block is called `metric/block`."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{block}", of_block) for block, of_block in value.items())
        elif name not in ("epoch", "timestamp"):
            yield name, value
