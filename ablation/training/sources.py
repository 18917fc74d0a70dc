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
    Draws,
    Images,
    Normalisation,
    augment,
    copy_to,
    draw,
    evaluation_batch_size,
    gather_rows,
    normalise,
)
from ablation.networks.code_digest import module_description
from ablation.networks.transfer_model import TransferModel
from ablation.spec.parameters import Augmentation


@dataclass(frozen=True)
class Point:
    """A place in a network: the activations after its first `layers` layers, pooled and flattened if it has a pool."""

    layers: int
    pool: nn.Module | None


@dataclass(frozen=True)
class FrozenPart:
    """The leading layers of a network that a training does not change; without layers, the normalisation alone.

    Attributes:
        blocks: number of the network's frozen blocks.
        layers: the modules of these blocks, in order.
        pool: the network's pool if all blocks are frozen: the rest of the network then needs pooled features only.
        normalisation: the preprocessing before the first layer.
        precision: what the layers compute in.
    """

    blocks: int
    layers: list[nn.Module]
    pool: nn.Module | None
    normalisation: Normalisation
    precision: str

    @cached_property
    def layer_digests(self) -> list[str]:
        """The digest of each layer, with its tensors."""
        return [layer_digest(layer) for layer in self.layers]

    @property
    def end(self) -> Point:
        """Where the rest of the network begins."""
        return Point(len(self.layers), self.pool)

    def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the input of the rest of the network for uint8 images: activations NCHW, or pooled features ND."""
        return run_layers(normalise(images_NCHW, self.normalisation), self.layers, [self.end], self.precision)[0]


def frozen_part(model: TransferModel, blocks: int, normalisation: Normalisation, precision: str) -> FrozenPart:
    """Return the first `blocks` blocks of a network, put into evaluation mode; all blocks come with the pool."""
    layers = [layer.eval() for block in list(model.blocks)[:blocks] for layer in block.children()]
    return FrozenPart(blocks, layers, model.pool if blocks == len(model.blocks) else None, normalisation, precision)


@torch.no_grad()
def run_layers(
    activations: torch.Tensor, layers: Sequence[nn.Module], points: Sequence[Point], precision: str, first: int = 0
) -> list[torch.Tensor]:
    """Return the features at points of a network, which are in the order of its layers.

    Args:
        activations: NCHW, the input of layer number `first`.
        layers: all layers of the network, from the first.
        points: none of them before `first`.
        precision: what the layers compute in.
        first: number of the layer that gets the activations, from 0.
    """
    images = len(activations)
    if images == 1:  # for one image, the CPU's convolutions add up in another order than for several
        activations = torch.cat([activations, activations])
    outputs = []
    with autocast(activations.device, precision):
        for number in range(first, points[-1].layers + 1):
            for point in points:
                if point.layers == number:
                    pooled = activations if point.pool is None else point.pool(activations).flatten(1)
                    outputs.append(pooled[:images])
            if number < points[-1].layers:
                activations = layers[number](activations)
    return outputs


def batch_places(images: int, batch_size: int) -> list[slice]:
    """Return the places of each batch in an epoch; a single image that is left over joins the last batch.

    Batch norm learns nothing from one image, and cannot be computed for one image of 1x1 pixels.
    """
    starts = list(range(0, images, batch_size))
    if batch_size > 1 and len(starts) > 1 and images - starts[-1] == 1:
        del starts[-1]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], images], strict=True)]


@dataclass(frozen=True)
class EpochOrder:
    """What is random in reading an epoch.

    Attributes:
        order_N: numbers of the images in the order in which they are read; where the source's rows are.
        draws: of the augmentation, on the training's device.
    """

    order_N: torch.Tensor
    draws: Draws

    def copy_(self, other: "EpochOrder") -> None:
        """Take the numbers of another epoch over, in the same memory."""
        self.order_N.copy_(other.order_N)
        for own, new in ((self.draws.flip_N, other.draws.flip_N), (self.draws.shift_2N, other.draws.shift_2N)):
            if own is not None and new is not None:
                own.copy_(new)


def draw_epoch(source: "Source", order_N: torch.Tensor, batch_size: int, noise: torch.Generator) -> EpochOrder:
    """Return an order of a source's images with the random numbers of their augmentation."""
    sizes = [places.stop - places.start for places in batch_places(len(order_N), batch_size)]
    draws = draw(source.augmentation, sizes, noise)
    return EpochOrder(order_N.to(source.device), draws.to(source.labels_N.device))


@dataclass(frozen=True)
class ImageSource:
    """Images, whose features are computed by the frozen part whenever they are read."""

    images: Images
    frozen: FrozenPart
    augmentation: Augmentation

    @property
    def labels_N(self) -> torch.Tensor:
        """The labels on the device, int64."""
        return self.images.labels_N

    @property
    def start(self) -> int:
        """The number of the network's blocks that come before the inputs."""
        return self.frozen.blocks

    @property
    def batch_size(self) -> int:
        """The number of images per batch of `in_order`."""
        return evaluation_batch_size(self.images, self.frozen.normalisation)

    @property
    def device(self) -> torch.device:
        """Where the rows are: the training's device, or the host where they do not fit."""
        return self.images.images_NCHW.device

    def read(self, epoch: EpochOrder, places_B: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs of the rest of the network, labels) at these places of an epoch, augmented."""
        device = self.labels_N.device
        images_BCHW = gather_rows(self.images.images_NCHW, epoch.order_N[places_B], device)
        labels_B = self.labels_N[epoch.order_N[places_B].to(device)]
        return self.frozen(augment(images_BCHW, epoch.draws, places_B)), labels_B

    def in_order(self) -> Iterator[torch.Tensor]:
        """Yield the inputs of the rest of the network in order, not augmented, in batches of `batch_size`."""
        for images_BCHW in torch.split(self.images.images_NCHW, self.batch_size):
            yield self.frozen(copy_to(images_BCHW, self.labels_N.device))

    def subset(self, chosen_N: torch.Tensor) -> "ImageSource":
        """Return a source of the chosen images."""
        images = Images(self.images.images_NCHW[chosen_N], self.labels_N[chosen_N.to(self.labels_N.device)])
        return ImageSource(images, self.frozen, self.augmentation)


@dataclass(frozen=True)
class FeatureSource:
    """Cached features of images, and of their mirror images if the augmentation flips.

    Attributes:
        features: rows N x D, or N x H x W x C (channels last, the layout of the convolutions).
        mirrored: the features of the mirrored images; None without flips.
        labels_N: the labels on the device, int64.
        start: the number of the network's blocks that come before the features.
        batch_size: images per batch of `in_order`, as in `ImageSource`.
    """

    features: torch.Tensor
    mirrored: torch.Tensor | None
    labels_N: torch.Tensor
    start: int
    batch_size: int

    @property
    def augmentation(self) -> Augmentation:
        """What can be done to stored features: to read those of the mirror images."""
        return "none" if self.mirrored is None else "flip"

    @property
    def device(self) -> torch.device:
        """Where the rows are: the training's device, or the host where they do not fit."""
        return self.features.device

    def read(self, epoch: EpochOrder, places_B: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs of the rest of the network, labels) at these places; flips are those of `ImageSource`."""
        device = self.labels_N.device
        rows = gather_rows(self.features, epoch.order_N[places_B], device)
        if self.mirrored is not None:
            assert epoch.draws.flip_N is not None
            flip = epoch.draws.flip_N[places_B].view(-1, *(1,) * (rows.ndim - 1))
            rows = torch.where(flip, gather_rows(self.mirrored, epoch.order_N[places_B], device), rows)
        return channels_first(rows), self.labels_N[epoch.order_N[places_B].to(device)]

    def in_order(self) -> Iterator[torch.Tensor]:
        """Yield the inputs of the rest of the network in order, in the batches of `ImageSource`."""
        for rows in torch.split(self.features, self.batch_size):
            yield channels_first(copy_to(rows, self.labels_N.device))

    def subset(self, chosen_N: torch.Tensor) -> "FeatureSource":
        """Return a source of the chosen images' features, not mirrored."""
        features, labels_N = (rows[chosen_N.to(rows.device)] for rows in (self.features, self.labels_N))
        return FeatureSource(features, None, labels_N, self.start, self.batch_size)


Source = ImageSource | FeatureSource


def channels_first(rows: torch.Tensor) -> torch.Tensor:
    """Return NHWC rows as NCHW (a view), and rows ND unchanged."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


def layer_digest(layer: nn.Module) -> str:
    """Return the SHA-256 of a layer's description and code, with its tensors."""
    digest = hashlib.sha256(f"{layer}\0{module_description(layer)}".encode())
    for name, tensor in layer.state_dict().items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
