"""Where a network changes while it trains: gradients and distances of its blocks, and its features' similarity.

Legend: N images, D and E features.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from statistics import fmean

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from ablation.networks.transfer_model import TransferModel
from ablation.spec.metrics import EpochMetrics
from ablation.training.closed_form import exact
from ablation.training.sources import Point, Source, run_layers
from ablation.training.state import Training, load_tensors

SIMILARITY_IMAGES = 1000


class ChannelMeans(nn.Module):
    """The mean of each channel: of activations NCHW over pixels, of a vision transformer's NTD over tokens."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return means NC of activations."""
        return activations.mean((2, 3)) if activations.ndim == 4 else activations.mean(1)


@torch.no_grad()
def similarities_to_start(training: Training, source: Source, precision: str) -> dict[str, float]:
    """Return how similar each block's features are to those before the training, from 0 to 1: linear CKA.

    Blocks before the first that learns are left out: they are 1.

    Args:
        training: ended; its network gets the tensors of the best epoch, which are the ones compared.
        source: of images, of which the first 1,000 count.
        precision: what the layers compute in.
    """
    points = _changed_blocks(training.model) if training.start else {}
    if not points:
        return {}
    sample = source.subset(torch.arange(min(SIMILARITY_IMAGES, len(source.labels_N))))
    features = []
    for tensors in (training.start, training.best_tensors):
        load_tensors(training.model, tensors)
        training.model.eval()  # after the tensors: some of timm's layers keep what they computed of the last ones
        batches = [
            run_layers(rows, training.model.layers, list(points.values()), precision, first=sample.start)
            for rows in sample.in_order()
        ]
        features.append([torch.cat(of_block).float() for of_block in zip(*batches, strict=True)])
    return {name: float(linear_cka(*pair)) for name, *pair in zip(points, *features, strict=True)}


def _changed_blocks(model: TransferModel) -> dict[str, Point]:
    """Return the end of each block whose features a training changes, by name."""
    ends = model.block_ends.items()
    return {name: Point(end, ChannelMeans()) for name, end in ends if end > model.learning_layers.start}


def linear_cka(first_ND: torch.Tensor, second_NE: torch.Tensor) -> torch.Tensor:
    """Return the similarity of two networks' features of the same images, from 0 to 1; float64.

    Linear centred kernel alignment (Kornblith et al., 2019), which neither a rotation nor a common factor changes. 0 if
    either network's features are the same for all images: those of a dead network have nothing in common with others.

    Args:
        first_ND: features of N images, of one network.
        second_NE: those of another, or of the same network at another time.
    """
    first_NN, second_NN = (_centred_gram(exact(features.flatten(1))) for features in (first_ND, second_NE))
    norm = ((first_NN**2).sum() * (second_NN**2).sum()).sqrt()
    return torch.where(norm == 0, 0.0, (first_NN * second_NN).sum() / norm)


def _centred_gram(features_ND: torch.Tensor) -> torch.Tensor:
    centred_ND = features_ND - features_ND.mean(0)
    return centred_ND @ centred_ND.T


@torch.no_grad()
def relative_gradient_norms(blocks: nn.Sequential, head: nn.Module) -> dict[str, float]:
    """Return the norm of each block's gradients over that of its weights, for blocks of which something learns now.

    Lee et al. (2023, "Surgical fine-tuning improves adaptation to distribution shifts") choose what to fine-tune by it.
    Gradients are those in `grad`; parameters of a block without any count as gradients of zero. NaN for all blocks if
    a gradient anywhere is not finite: clipping has then made zeros and NaN of the others (float16 skips such a step).
    """
    norms = {}
    for name, block in blocks.named_children():
        gradients = [p.grad for p in block.parameters() if p.requires_grad and p.grad is not None]
        if gradients:
            norms[name] = _ratio(gradients, list(block.parameters()))
    of_head = get_total_norm([p.grad for p in head.parameters() if p.grad is not None])
    is_finite = isfinite(float(of_head)) and all(map(isfinite, norms.values()))
    return {name: float(norm) if is_finite else nan for name, norm in norms.items()}


def mean_gradient_norms(history: Sequence[EpochMetrics]) -> dict[str, float]:
    """Return the mean of each block's relative gradient norms over the epochs with finite ones; NaN if there are none.

    Blocks are those that learned in the last epoch; one that began to learn later had a norm of zero before.
    """
    means = {}
    for block in history[-1].relative_gradient_norm:
        norms = [epoch.relative_gradient_norm.get(block, 0.0) for epoch in history]
        means[block] = fmean([norm for norm in norms if isfinite(norm)] or [nan])
    return means


@torch.no_grad()
def distances_moved(blocks: nn.Sequential, start: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return how far each block's weights are from where they started, over their norm there.

    Blocks without a parameter in `start` are left out: they have not moved.

    Args:
        blocks: of the network, as it is now.
        start: tensors before the training by their names in the network, which are those in `blocks` behind "blocks.".
    """
    distances = {}
    for name, block in blocks.named_children():
        now = {f"blocks.{name}.{inside}": parameter for inside, parameter in block.named_parameters()}
        moved = [parameter - start[path] for path, parameter in now.items() if path in start]
        if moved:
            distances[name] = _ratio(moved, [start.get(path, parameter) for path, parameter in now.items()])
    return {name: float(distance) for name, distance in distances.items()}


def _ratio(changes: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of the changes over that of the weights; 0 if all weights are 0."""
    norm = get_total_norm(weights)
    return torch.where(norm == 0, 0.0, get_total_norm(changes) / norm)
