"""What a training reads: images, or cached features of the frozen part.

Legend: N images, B images of a batch, C channels, H and W pixels, D features.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ablation.base.device import autocast
from ablation.data.images import (
    Images,
    Normalisation,
    augment,
    copy_to,
    draw_flips,
    evaluation_batch_size,
    gather_rows,
    normalise,
)
from ablation.networks.code_digest import module_description
from ablation.networks.transfer_model import TransferModel
from ablation.spec.parameters import Augmentation


@dataclass(frozen=True)
class Point:
    """A place in a network: behind so many of its layers, as the activations are, or pooled and flattened."""

    layers: int
    pool: nn.Module | None


@dataclass(frozen=True)
class FrozenPart:
    """The leading layers of a network that a training leaves as they are; with none of them, the normalisation alone.

    Attributes:
        blocks: how many whole blocks of the network they are.
        layers: their modules, in order.
        pool: the network's pool where all blocks are frozen: then the pooled features are all that is needed of them.
        normalisation: of the images that go in.
        precision: what they compute in.
    """

    blocks: int
    layers: list[nn.Module]
    pool: nn.Module | None
    normalisation: Normalisation
    precision: str

    @cached_property
    def layer_digests(self) -> list[str]:
        """What each layer is, its tensors included."""
        return [layer_digest(layer) for layer in self.layers]

    @property
    def end(self) -> Point:
        """Where the rest of the network begins."""
        return Point(len(self.layers), self.pool)

    def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return what the rest of the network gets for uint8 images: activations NCHW, or pooled features ND."""
        return run_layers(normalise(images_NCHW, self.normalisation), self.layers, [self.end], self.precision)[0]


def frozen_part(model: TransferModel, blocks: int, normalisation: Normalisation, precision: str) -> FrozenPart:
    """Return the first `blocks` blocks of a network, put into evaluation mode, with its pool where they are all."""
    layers = [layer.eval() for block in list(model.blocks)[:blocks] for layer in block.children()]
    return FrozenPart(blocks, layers, model.pool if blocks == len(model.blocks) else None, normalisation, precision)


@torch.no_grad()
def run_layers(
    activations: torch.Tensor, layers: Sequence[nn.Module], points: Sequence[Point], precision: str, first: int = 0
) -> list[torch.Tensor]:
    """Return what comes out at points of a network, which are in its order.

    Args:
        activations: NCHW, what the layer with the number `first` gets.
        layers: all of the network, from its first.
        points: none before `first`.
        precision: what is computed in.
        first: how many layers are behind the activations.
    """
    images = len(activations)
    if images == 1:  # for one image, the CPU's convolutions add up in another order than for several
        activations = torch.cat([activations, activations])
    found = []
    with autocast(activations.device, precision):
        for number in range(first, points[-1].layers + 1):
            for point in points:
                if point.layers == number:
                    pooled = activations if point.pool is None else point.pool(activations).flatten(1)
                    found.append(pooled[:images])
            if number < points[-1].layers:
                activations = layers[number](activations)
    return found


def in_batches(order_N: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Split an order into batches; a single image that is left over joins the last one.

    Batch norm learns nothing from one image, and cannot be computed for one at a resolution of 1x1.
    """
    batches = list(torch.split(order_N, batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@dataclass(frozen=True)
class ImageSource:
    """Images, of which the frozen part is computed whenever they are read."""

    images: Images
    frozen: FrozenPart
    augmentation: Augmentation

    @property
    def labels_N(self) -> torch.Tensor:
        """The labels, on the device."""
        return self.images.labels_N

    @property
    def start(self) -> int:
        """How many of the network's blocks are behind what is read."""
        return self.frozen.blocks

    @property
    def batch_size(self) -> int:
        """How many images `in_order` reads at once."""
        return evaluation_batch_size(self.images, self.frozen.normalisation)

    def shuffled(
        self, order_N: torch.Tensor, batch_size: int, noise: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs of the rest of the network, labels) in an order, augmented."""
        for chosen_B in in_batches(order_N, batch_size):
            images_BCHW = gather_rows(self.images.images_NCHW, chosen_B, self.labels_N.device)
            yield (
                self.frozen(augment(images_BCHW, self.augmentation, noise)),
                gather_rows(self.labels_N, chosen_B, self.labels_N.device),
            )

    def in_order(self) -> Iterator[torch.Tensor]:
        """Yield the inputs of the rest of the network as they are, in batches of `batch_size`."""
        for images_BCHW in torch.split(self.images.images_NCHW, self.batch_size):
            yield self.frozen(copy_to(images_BCHW, self.labels_N.device))

    def subset(self, chosen_N: torch.Tensor) -> "ImageSource":
        """Return the chosen images."""
        chosen = Images(self.images.images_NCHW[chosen_N], self.labels_N[chosen_N.to(self.labels_N.device)])
        return ImageSource(chosen, self.frozen, self.augmentation)


@dataclass(frozen=True)
class FeatureSource:
    """What the frozen part has computed of images, and of their mirror images where flips are wanted.

    Attributes:
        features: rows N x D, or N x H x W x C (channels last, as convolutions want them).
        mirrored: the same of the mirrored images; None where nothing is flipped.
        labels_N: on the device.
        start: how many of the network's blocks are behind them.
        batch_size: of `in_order`, the same as for the images.
    """

    features: torch.Tensor
    mirrored: torch.Tensor | None
    labels_N: torch.Tensor
    start: int
    batch_size: int

    def shuffled(
        self, order_N: torch.Tensor, batch_size: int, noise: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs of the rest of the network, labels) in an order; flips are those of `ImageSource`."""
        device = self.labels_N.device
        for chosen_B in in_batches(order_N, batch_size):
            rows = gather_rows(self.features, chosen_B, device)
            if self.mirrored is not None:
                flip_B = draw_flips(len(chosen_B), noise, device)
                flip = flip_B.view(-1, *(1,) * (rows.ndim - 1))
                rows = torch.where(flip, gather_rows(self.mirrored, chosen_B, device), rows)
            yield channels_first(rows), gather_rows(self.labels_N, chosen_B, device)

    def in_order(self) -> Iterator[torch.Tensor]:
        """Yield the inputs of the rest of the network in order, in the batches of `ImageSource`."""
        for rows in torch.split(self.features, self.batch_size):
            yield channels_first(copy_to(rows, self.labels_N.device))

    def subset(self, chosen_N: torch.Tensor) -> "FeatureSource":
        """Return the chosen images' features, not mirrored."""
        features, labels_N = (rows[chosen_N.to(rows.device)] for rows in (self.features, self.labels_N))
        return FeatureSource(features, None, labels_N, self.start, self.batch_size)


Source = ImageSource | FeatureSource


def channels_first(rows: torch.Tensor) -> torch.Tensor:
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


def layer_digest(layer: nn.Module) -> str:
    digest = hashlib.sha256(f"{layer}\0{module_description(layer)}".encode())
    for name, tensor in layer.state_dict().items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
