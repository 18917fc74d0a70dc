"""How a network changes while it trains: gradients and distances of its blocks, and its features' similarity.

Nothing here waits for the device: results are tensors of no dimension on it.

Legend: N images, D and E features.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from ablation.training.closed_form import exact


def linear_cka(first_ND: torch.Tensor, second_NE: torch.Tensor) -> torch.Tensor:
    """Return the similarity of two networks' features of the same images, from 0 to 1; float64.

    Linear centred kernel alignment (Kornblith et al., 2019), which neither a rotation nor a common factor changes. NaN
    if either network's features are the same for all images.

    Args:
        first_ND: features of N images, of one network.
        second_NE: those of another, or of the same network at another time.
    """
    first_NN, second_NN = (_centred_gram(exact(features.flatten(1))) for features in (first_ND, second_NE))
    return (first_NN * second_NN).sum() / ((first_NN**2).sum() * (second_NN**2).sum()).sqrt()


def _centred_gram(features_ND: torch.Tensor) -> torch.Tensor:
    centred_ND = features_ND - features_ND.mean(0)
    return centred_ND @ centred_ND.T


@torch.no_grad()
def relative_gradient_norms(blocks: nn.Sequential) -> dict[str, torch.Tensor]:
    """Return the norm of each block's gradients over that of its weights; 0 for a frozen block.

    Lee et al. (2023, "Surgical fine-tuning improves adaptation to distribution shifts") choose what to fine-tune by it.
    Gradients are those in `grad`; parameters without any count as gradients of zero.
    """
    norms = {}
    for name, block in blocks.named_children():
        gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
        norms[name] = _ratio(gradients, list(block.parameters()))
    return norms


@torch.no_grad()
def learning_weights(blocks: nn.Sequential) -> dict[str, torch.Tensor]:
    """Return copies of the parameters of the blocks that learn, by name, for `distances_moved`."""
    return {name: p.detach().clone() for name, p in blocks.named_parameters() if p.requires_grad}


@torch.no_grad()
def distances_moved(blocks: nn.Sequential, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return how far each block's weights are from where they started, over their norm there; 0 for a frozen block.

    Args:
        blocks: of the network, as it is now.
        start: what `learning_weights` returned before the training; other parameters have not moved.
    """
    distances = {}
    for name, block in blocks.named_children():
        now = {f"{name}.{inside}": parameter for inside, parameter in block.named_parameters()}
        moved = [parameter - start[path] for path, parameter in now.items() if path in start]
        distances[name] = _ratio(moved, [start.get(path, parameter) for path, parameter in now.items()])
    return distances


def _ratio(changes: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of the changes over that of the weights; 0 without changes, or if all weights are 0."""
    if not changes:
        return torch.zeros((), device=weights[0].device if weights else None)
    norm = get_total_norm(weights)
    return torch.where(norm > 0, get_total_norm(changes) / norm, 0.0)
