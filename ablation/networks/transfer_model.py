"""A truncated backbone with a new head.

Legend: N images, C channels, H and W pixels, D features, K classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ablation.base.device import autocast
from ablation.base.generators import generator
from ablation.networks.blocks import build_blocks, feature_shape, initialise_blocks, kept_parts
from ablation.networks.vision_transformers import TokenPool
from ablation.networks.weights import Weights
from ablation.spec.architectures import ARCHITECTURES
from ablation.spec.parameters import HeadNorm, HeadPool


@dataclass(frozen=True)
class Head:
    """The new layers between the activations at a cut and the logits.

    Attributes:
        width: hidden units; 0 is a single linear layer, a linear probe.
        pool: height and width to which maps are average-pooled, at most; 'flatten' keeps them.
        norm: the normalisation of the features before the first linear layer.
        dropout: the probability with which training drops each input of the last linear layer. That is where VGG has
            its dropout, behind hidden units (Simonyan and Zisserman, 2014), and EfficientNet, behind pooled features.
    """

    width: int
    pool: HeadPool = 2
    norm: HeadNorm = "none"
    dropout: float = 0.0

    def layers(self, features: int, num_classes: int) -> nn.Sequential:
        """Build the layers behind the pool, for so many features."""
        layers: list[nn.Module] = []
        if self.norm != "none":
            layers.append(nn.BatchNorm1d(features) if self.norm == "batch" else nn.LayerNorm(features))
        if self.width > 0:
            layers += [nn.Linear(features, self.width), nn.ReLU()]
        if self.dropout > 0:
            layers.append(nn.Dropout(self.dropout))
        return nn.Sequential(*layers, nn.Linear(self.width or features, num_classes))


class TransferModel(nn.Module):
    """`blocks`, an average pool, and `head`: by default one hidden layer, then one logit per class.

    Between pool and head, the features are standardised by the constants `feature_mean_D` and `feature_std_D`, so that
    one range of learning rates suits every cut and all weights (see `calibrate`).
    """

    feature_mean_D: torch.Tensor
    feature_std_D: torch.Tensor
    classes: list[str]
    """Names of the K logits; set on a model that was loaded from a run."""
    backbone: str
    """The name of the backbone that its layers are of."""
    truncate_at: str
    """The last block or unit that is kept."""
    learning_layers: range
    """The layers that learn, all by default; a training changes no layer before or after them."""
    keeps_statistics: bool
    """Whether the blocks' batch norms keep their statistics while they learn."""
    frozen_tensors: frozenset[str]
    """Names of the parameters and buffers that training does not change."""
    image_size: int
    """Height and width in pixels of its images; set on a model that was loaded from a run."""
    input_mean: list[float]
    """Mean that is subtracted from RGB pixels scaled to 0..1; set on a model that was loaded from a run."""
    input_std: list[float]
    """Standard deviation by which they are then divided; set on a model that was loaded from a run."""

    def __init__(self, blocks: nn.Sequential, pool: nn.Module, features: int, head: Head, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.blocks = blocks
        self.learning_layers = range(len(self.layers))
        self.keeps_statistics = False
        self.frozen_tensors = frozenset()
        self.pool = pool
        self.register_buffer("feature_mean_D", torch.zeros(features))
        self.register_buffer("feature_std_D", torch.ones(features))
        self.head = head.layers(features, num_classes)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of all blocks, in order."""
        return [layer for block in self.blocks for layer in block.children()]

    @property
    def block_ends(self) -> dict[str, int]:
        """The number of layers up to the end of each block, by its name."""
        names, blocks = zip(*self.blocks.named_children(), strict=True)
        return dict(zip(names, accumulate(len(list(block.children())) for block in blocks), strict=True))

    def layers_up_to(self, units: int) -> int:
        """Return the number of layers of so many leading units of the backbone, with the pool behind the last one."""
        return sum(part.units <= units for part in kept_parts(self.backbone, self.truncate_at))

    def forward(self, images_NCHW: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return logits NK for normalised images NCHW, or for the output of the first `start` layers."""
        features_ND = self.pooled(images_NCHW, start)
        logits_NK: torch.Tensor = self.head((features_ND - self.feature_mean_D) / self.feature_std_D)
        return logits_NK

    def pooled(self, activations: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return the pooled features ND, not yet standardised, for the output of the first `start` layers.

        That output is NCHW (tokens NTD of a vision transformer); after all layers, it is the pooled features ND.
        """
        layers = self.layers
        if start == len(layers):
            return activations
        for layer in layers[start:]:
            activations = layer(activations)
        pooled_ND: torch.Tensor = self.pool(activations).flatten(1)
        return pooled_ND


def build_model(backbone: str, truncate_at: str, head: Head, num_classes: int, image_size: int) -> TransferModel:
    """Build the network of a trial on the CPU; `initialise` sets its parameters."""
    blocks = build_blocks(backbone, truncate_at, image_size)
    pool = build_pool(backbone, truncate_at, image_size, head.pool)
    features = feature_count(backbone, truncate_at, image_size, head.pool)
    model = TransferModel(blocks, pool, features, head, num_classes)
    model.backbone, model.truncate_at = backbone, truncate_at
    return model


def feature_count(backbone: str, truncate_at: str, image_size: int, head_pool: HeadPool) -> int:
    """Return the number of features of an image at a cut, after the pool; before it, they are those of "flatten"."""
    channels, side, _ = feature_shape(backbone, truncate_at, image_size)
    pooled_side = side if head_pool == "flatten" else min(head_pool, side)
    return channels * (pooled_side**2 + (ARCHITECTURES[backbone].extra_tokens or 0))


def build_pool(backbone: str, truncate_at: str, image_size: int, head_pool: HeadPool) -> nn.Module:
    """Build the average pool between the activations at a cut and the head."""
    _, side, _ = feature_shape(backbone, truncate_at, image_size)
    pool: nn.Module = nn.Identity()
    if head_pool != "flatten":
        pooled_side = min(head_pool, side)
        # The same windows as adaptive pooling, whose backward pass is not deterministic on CUDA. For an odd side they
        # overlap by one pixel.
        pool = nn.AvgPool2d(kernel_size=math.ceil(side / pooled_side), stride=side // pooled_side)
    extra_tokens = ARCHITECTURES[backbone].extra_tokens
    return pool if extra_tokens is None else TokenPool(pool, side, extra_tokens)


def initialise(model: TransferModel, weights: Weights | None, seed: int) -> None:
    """Set all parameters: the blocks from the weights (None: at random), the head's linear layers at random.

    They start as torch's Linear does (uniform within 1 / sqrt(inputs)). Blocks and head each have a generator.
    """
    tensors = None if weights is None else weights.tensors
    initialise_blocks(model.blocks, model.backbone, tensors, generator(seed, "backbone"))
    head_generator = generator(seed, "head")
    with torch.no_grad():
        for linear in (module for module in model.head if isinstance(module, nn.Linear)):
            bound = 1 / math.sqrt(linear.in_features)
            linear.weight.uniform_(-bound, bound, generator=head_generator)
            linear.bias.uniform_(-bound, bound, generator=head_generator)


def set_training_mode(model: TransferModel, learning: range) -> None:
    """Put the head and the layers that learn into training mode, all others into evaluation mode.

    Frozen batch norms keep their statistics, and so do all of them where `keeps_statistics` says so.
    """
    model.train()
    for number, layer in enumerate(model.layers):
        layer.train(number in learning)
    for module in model.blocks.modules() if model.keeps_statistics else ():
        if isinstance(module, _BatchNorm):
            module.eval()


@torch.no_grad()
def calibrate(model: TransferModel, batches: Iterable[torch.Tensor], start: int, precision: str) -> None:
    """Set the constants that standardise the features: their mean and standard deviation over images.

    Features of different cuts, and of networks trained on pixels of 0..255, differ in scale by a factor of a thousand,
    and after a ReLU none has mean zero, so that no learning rate would suit two of them unscaled. Data-dependent
    scaling is from Kraehenbuehl et al. (2016). The smallest standard deviation is set to a tenth of the average one, so
    that a feature which hardly varies on these images is not enlarged.

    Batch norms that learn standardise over each batch here, as they will in the first epoch.

    Args:
        model: the network before training, in the training mode of its first epoch; left in evaluation mode.
        batches: the output of its first `start` layers for the images; normalised images NCHW if `start` is 0.
        start: see above.
        precision: the precision of the training.
    """
    learning = [module for layer in model.layers[start:] for module in layer.modules() if module.training]
    model.eval()
    momenta = {module: module.momentum for module in learning if isinstance(module, _BatchNorm)}
    counts = [module.num_batches_tracked for module in momenta if module.num_batches_tracked is not None]
    counts_before = [count.clone() for count in counts]
    for module in momenta:
        module.train().momentum = 0.0  # keeps their running statistics unchanged
    pooled = []
    with autocast(model.feature_mean_D.device, precision):
        for activations in batches:
            # Batch norm needs two images or more.
            several = activations if len(activations) > 1 else torch.cat([activations] * 2)
            pooled.append(model.pooled(several, start).float()[: len(activations)])
    for module, momentum in momenta.items():
        module.momentum = momentum
    for count, before in zip(counts, counts_before, strict=True):  # running statistics without momentum depend on it
        count.copy_(before)
    features_ND = torch.cat(pooled)
    std_D = features_ND.std(0, correction=0)
    smallest = 0.1 * std_D.mean()
    model.feature_mean_D.copy_(features_ND.mean(0))
    model.feature_std_D.copy_(std_D.clamp(min=smallest) if smallest > 0 else torch.ones_like(std_D))
