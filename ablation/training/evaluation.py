"""Evaluation: loss, accuracy, balanced accuracy, macro F1, and predictions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ablation.base.device import autocast
from ablation.training.sources import Source


def balanced_accuracy_and_macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> tuple[float, float]:
    """Return the mean recall over classes (balanced accuracy) and the mean F1 score (macro F1); both are fractions.

    As in scikit-learn, a class without images has no recall, and a class that has no images and is never predicted has
    no F1 score; the means leave them out.

    Args:
        labels_N: true classes, numbers from 0.
        predicted_N: predicted classes.
        classes: number of classes.
    """
    true_K, predicted_K, right_K = (
        np.bincount(numbers, minlength=classes)
        for numbers in (labels_N, predicted_N, labels_N[labels_N == predicted_N])
    )
    recall_K = right_K[true_K > 0] / true_K[true_K > 0]
    sizes_K = true_K + predicted_K
    f1_K = 2 * right_K[sizes_K > 0] / sizes_K[sizes_K > 0]
    return float(recall_K.mean()), float(f1_K.mean())


@dataclass(frozen=True)
class Evaluation:
    """A network's metrics on images: mean cross-entropy in nats (unweighted, not smoothed), and three fractions."""

    loss: float
    accuracy: float
    balanced_accuracy: float
    macro_f1: float


@torch.no_grad()
def evaluate(model: nn.Module, source: Source, precision: str) -> Evaluation:
    """Evaluate a network on all images."""
    loss_sum = torch.zeros((), device=source.labels_N.device)
    predictions = []
    begin = classes = 0
    for logits_BK in _logits(model, source, precision):
        labels_B = source.labels_N[begin : begin + len(logits_BK)]
        loss_sum += cross_entropy(logits_BK, labels_B, reduction="sum")
        predictions.append(logits_BK.argmax(1))
        begin, classes = begin + len(logits_BK), logits_BK.shape[1]
    labels_N, predicted_N = source.labels_N.cpu().numpy(), torch.cat(predictions).cpu().numpy()
    return Evaluation(
        loss_sum.item() / begin,
        float((predicted_N == labels_N).mean()),
        *balanced_accuracy_and_macro_f1(labels_N, predicted_N, classes),
    )


@torch.no_grad()
def predict(model: nn.Module, source: Source) -> torch.Tensor:
    """Return the logits NK of all images, computed in float32 whatever the training's precision."""
    return torch.cat(list(_logits(model, source, "float32")))


def _logits(model: nn.Module, source: Source, precision: str) -> Iterator[torch.Tensor]:
    """Yield float32 logits BK of all images in order."""
    model.eval()
    for inputs in source.in_order():
        with autocast(source.labels_N.device, precision):
            logits_BK = model(inputs, source.start)
        yield logits_BK.float()
