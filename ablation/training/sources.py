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
from ablation.data.augmentation import Draws, augment, draw, own_share
from ablation.data.images import Images, copy_to, evaluation_batch_size, normalise
from ablation.data.normalisation import Normalisation
from ablation.networks.code_digest import module_description
from ablation.networks.transfer_model import TransferModel
from ablation.spec.parameters import Augmentation


@dataclass(frozen=True)
class Point:
    """A place in a network: the activations after its first `layers` layers, pooled and flattened if it has a pool."""

    layers: int
    pool: nn.Module | None


@dataclass(frozen=True)
class FixedLayers:
    """Layers that do not change, in the order of their network."""

    layers: list[nn.Module]

    @cached_property
    def layer_digests(self) -> list[str]:
        """The digest of each layer, with its tensors."""
        return [layer_digest(layer) for layer in self.layers]


@dataclass(frozen=True)
class FrozenPart(FixedLayers):
    """The leading layers of a network that a training does not change; without layers, the normalisation alone.

    Attributes:
        layers: the network's frozen layers, in order.
        pool: the network's pool if all layers are frozen: the rest of the network then needs pooled features only.
        normalisation: the preprocessing before the first layer.
        precision: what the layers compute in.
    """

    pool: nn.Module | None
    normalisation: Normalisation
    precision: str

    @property
    def end(self) -> Point:
        """Where the rest of the network begins."""
        return Point(len(self.layers), self.pool)

    def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the input of the rest of the network for uint8 images: activations NCHW, or pooled features ND."""
        return run_layers(normalise(images_NCHW, self.normalisation), self.layers, [self.end], self.precision)[0]


def frozen_part(model: TransferModel, layers: int, normalisation: Normalisation, precision: str) -> FrozenPart:
    """Return the first `layers` layers of a network, put into evaluation mode; all layers come with the pool."""
    frozen = [layer.eval() for layer in model.layers[:layers]]
    return FrozenPart(frozen, model.pool if layers == len(model.layers) else None, normalisation, precision)


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
        self.draws.copy_(other.draws)


@dataclass(frozen=True)
class Batch:
    """What a step reads.

    Attributes:
        inputs: of the part of the network that is not frozen: NCHW, tokens NTD or features ND.
        labels_B: int64.
        own_share: how much of each image is its own, a scalar, where images are mixed; the rest is the next image's.
    """

    inputs: torch.Tensor
    labels_B: torch.Tensor
    own_share: torch.Tensor | None = None


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
        """The number of the network's layers that come before the inputs."""
        return len(self.frozen.layers)

    @property
    def batch_size(self) -> int:
        """The number of images per batch of `in_order`."""
        return evaluation_batch_size(self.images, self.frozen.normalisation)

    @property
    def device(self) -> torch.device:
        """Where the rows are: the training's device, or the host where they do not fit."""
        return self.images.images_NCHW.device

    def read(self, epoch: EpochOrder, places_B: slice | torch.Tensor) -> Batch:
        """Return the images at these places of an epoch, augmented."""
        images_BCHW = self.images.read(epoch.order_N[places_B])
        labels_B = self.labels_N[epoch.order_N[places_B].to(self.labels_N.device)]
        is_mixed = epoch.draws.mixed_4N is not None
        share = own_share(epoch.draws, places_B, *images_BCHW.shape[2:]).mean() if is_mixed else None
        return Batch(self.frozen(augment(images_BCHW, epoch.draws, places_B)), labels_B, share)

    def in_order(self) -> Iterator[torch.Tensor]:
        """Yield the inputs of the rest of the network in order, not augmented, in batches of `batch_size`."""
        for images_BCHW in self.images.in_order(self.batch_size):
            yield self.frozen(images_BCHW)

    def subset(self, chosen_N: torch.Tensor) -> "ImageSource":
        """Return a source of the chosen images."""
        return ImageSource(self.images.subset(chosen_N), self.frozen, self.augmentation)


@dataclass(frozen=True)
class FeatureSource:
    """Cached features of images, and of their mirror images if the augmentation flips.

    Attributes:
        features: rows N x D, or N x H x W x C (channels last, the layout of the convolutions).
        mirrored: the features of the mirrored images; None without flips.
        labels_N: the labels on the device, int64.
        start: the number of the network's layers that come before the features.
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

    def read(self, epoch: EpochOrder, places_B: slice | torch.Tensor) -> Batch:
        """Return the features at these places of an epoch; flips are those of `ImageSource`."""
        device, chosen_B = self.labels_N.device, epoch.order_N[places_B]
        rows = copy_to(_rows(self.features, chosen_B), device)
        if self.mirrored is not None:
            assert epoch.draws.flip_N is not None
            flip = epoch.draws.flip_N[places_B].view(-1, *(1,) * (rows.ndim - 1))
            rows = torch.where(flip, copy_to(_rows(self.mirrored, chosen_B), device), rows)
        return Batch(channels_first(rows), self.labels_N[chosen_B.to(device)])

    def in_order(self) -> Iterator[torch.Tensor]:
        """Yield the inputs of the rest of the network in order, in the batches of `ImageSource`."""
        for rows in torch.split(self.features, self.batch_size):
            yield channels_first(copy_to(rows, self.labels_N.device))

    def subset(self, chosen_N: torch.Tensor) -> "FeatureSource":
        """Return a source of the chosen images' features, not mirrored."""
        features, labels_N = (rows[chosen_N.to(rows.device)] for rows in (self.features, self.labels_N))
        return FeatureSource(features, None, labels_N, self.start, self.batch_size)


Source = ImageSource | FeatureSource


def _rows(features: torch.Tensor, chosen_B: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows. On a CPU, `index_select` copies whole rows, which takes a tenth to 0.8 of the time."""
    return features.index_select(0, chosen_B) if features.device.type == "cpu" else features[chosen_B]


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
