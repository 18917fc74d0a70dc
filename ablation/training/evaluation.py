"""Evaluation: loss, accuracy, balanced accuracy, macro F1, predictions, and what the prediction of an image costs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ablation.base.device import autocast
from ablation.training.class_metrics import balanced_accuracy_and_macro_f1
from ablation.training.sources import Source

MOST_IMAGES, MOST_OPERATIONS = 64, 4e9  # of a batch whose inference is timed, so that it takes less than a second
TIMED_BATCHES = 3


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
def predict(model: nn.Module, source: Source, precision: str) -> torch.Tensor:
    """Return the float32 logits NK of all images, computed in this precision."""
    return torch.cat(list(_logits(model, source, precision)))


def _logits(model: nn.Module, source: Source, precision: str) -> Iterator[torch.Tensor]:
    """Yield float32 logits BK of all images in order."""
    model.eval()
    for inputs in source.in_order():
        with autocast(source.labels_N.device, precision):
            logits_BK = model(inputs, source.start)
        yield logits_BK.float()


@torch.no_grad()
def inference_operations(model: nn.Module, image_size: int) -> int:
    """Return the floating-point operations of classifying one image, a multiplication and an addition each one.

    Those of convolutions, matrix products and attention, which PyTorch counts; the rest is small beside them.

    Args:
        model: from normalised images NCHW to logits.
        image_size: height and width in pixels.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a single operation, which the counter does not know
    try:
        with counter, sdpa_kernel(SDPBackend.MATH):  # a fused one, too, is not known to each version of the counter
            model(_blank_images(model, 1, image_size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
    return int(counter.get_total_flops())


@torch.no_grad()
def inference_seconds(model: nn.Module, image_size: int, precision: str, operations: int) -> float:
    """Return the seconds that classifying an image takes here, in batches of up to 64: the median of three batches.

    Args:
        model: from normalised images NCHW to logits.
        image_size: height and width in pixels.
        precision: what the layers compute in.
        operations: of one image; a batch has at most `MOST_OPERATIONS`.
    """
    model.eval()
    count = int(min(MOST_IMAGES, max(1, MOST_OPERATIONS // max(operations, 1))))
    images_NCHW = _blank_images(model, count, image_size)
    seconds = []
    for _ in range(1 + TIMED_BATCHES):
        start = time.perf_counter()
        with autocast(images_NCHW.device, precision):
            model(images_NCHW).sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) / count  # the first batch chooses algorithms


def _blank_images(model: nn.Module, count: int, size: int) -> torch.Tensor:
    device = next(model.parameters()).device
    return torch.zeros(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
