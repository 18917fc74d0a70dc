"""A truncated backbone with a new head.

Legend: N images, C channels, H and W pixels, D features, K classes.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ablation.base.device import autocast
from ablation.base.seeds import generator
from ablation.networks.blocks import build_blocks, feature_shape, initialise_blocks
from ablation.networks.weights import Weights
from ablation.spec.architectures import is_custom
from ablation.spec.parameters import HeadPool


class TransferModel(nn.Module):
    """`blocks`, an average pool, and `head`: one hidden layer, then one logit per class.

    Between pool and head, the features are standardised by the constants `feature_mean_D` and `feature_std_D`, so that
    one range of learning rates suits every cut and all weights (see `calibrate`).
    """

    feature_mean_D: torch.Tensor
    feature_std_D: torch.Tensor
    classes: list[str]
    """Names of the K logits; set on a model that was loaded from a run."""
    frozen_blocks: int
    """Number of leading blocks that training does not change."""
    is_custom: bool
    """Whether its blocks are a user's code."""
    image_size: int
    """Height and width in pixels of its images; set on a model that was loaded from a run."""
    input_mean: list[float]
    """Mean that is subtracted from RGB pixels scaled to 0..1; set on a model that was loaded from a run."""
    input_std: list[float]
    """Standard deviation by which they are then divided; set on a model that was loaded from a run."""

    def __init__(self, blocks: nn.Sequential, pool: nn.Module, features: int, head_width: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.frozen_blocks = 0
        self.is_custom = False
        self.blocks = blocks
        self.pool = pool
        self.register_buffer("feature_mean_D", torch.zeros(features))
        self.register_buffer("feature_std_D", torch.ones(features))
        self.head = nn.Sequential(nn.Linear(features, head_width), nn.ReLU(), nn.Linear(head_width, num_classes))

    def forward(self, images_NCHW: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return logits NK for normalised images NCHW, or for the output of the first `start` blocks."""
        features_ND = self.pooled(images_NCHW, start)
        logits_NK: torch.Tensor = self.head((features_ND - self.feature_mean_D) / self.feature_std_D)
        return logits_NK

    def pooled(self, activations: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return the pooled features ND, not yet standardised, for the output of the first `start` blocks.

        That output is NCHW; after all blocks, it is the pooled features ND themselves.
        """
        blocks = list(self.blocks)
        if start == len(blocks):
            return activations
        for block in blocks[start:]:
            activations = block(activations)
        pooled_ND: torch.Tensor = self.pool(activations).flatten(1)
        return pooled_ND


def build_model(
    backbone: str, truncate_at: str, head_width: int, head_pool: HeadPool, num_classes: int, image_size: int
) -> TransferModel:
    """Build the network of a trial on the CPU; `initialise` sets its parameters."""
    channels, side, _ = feature_shape(backbone, truncate_at, image_size)
    pooled_side = side if head_pool == "flatten" else min(head_pool, side)
    blocks = build_blocks(backbone, truncate_at)
    model = TransferModel(blocks, build_pool(side, head_pool), channels * pooled_side**2, head_width, num_classes)
    model.is_custom = is_custom(backbone)
    return model


def build_pool(side: int, head_pool: HeadPool) -> nn.Module:
    """Build the average pool between activations of `side` x `side` pixels and the head."""
    if head_pool == "flatten":
        return nn.Identity()
    pooled_side = min(head_pool, side)
    # The same windows as adaptive pooling, whose backward pass is not deterministic on CUDA. For an odd side they
    # overlap by one pixel.
    return nn.AvgPool2d(kernel_size=math.ceil(side / pooled_side), stride=side // pooled_side)


def initialise(model: TransferModel, backbone: str, weights: Weights | None, seed: int) -> None:
    """Set all parameters: the blocks from the weights (None: at random), the head at random.

    The head starts as torch's Linear does (uniform within 1 / sqrt(inputs)). Blocks and head each have a generator.
    """
    tensors = None if weights is None else weights.tensors
    initialise_blocks(model.blocks, backbone, tensors, generator(seed, "backbone"))
    head_generator = generator(seed, "head")
    with torch.no_grad():
        for linear in (module for module in model.head if isinstance(module, nn.Linear)):
            bound = 1 / math.sqrt(linear.in_features)
            linear.weight.uniform_(-bound, bound, generator=head_generator)
            linear.bias.uniform_(-bound, bound, generator=head_generator)


@torch.no_grad()
def calibrate(
    model: TransferModel, batches: Iterable[torch.Tensor], start: int, precision: str, *, head_alone: bool = False
) -> None:
    """Set the constants that standardise the features: their mean and standard deviation over images.

    Features of different cuts, and of networks trained on pixels of 0..255, differ in scale by a factor of a thousand,
    and after a ReLU none has mean zero, so that no learning rate would suit two of them unscaled. Data-dependent
    scaling is from Kraehenbuehl et al. (2016). The smallest standard deviation is set to a tenth of the average one, so
    that a feature which hardly varies on these images is not enlarged.

    Batch norms that learn standardise over each batch here, as they will in the first epoch.

    Args:
        model: the network before training.
        batches: the output of its first `start` blocks for the images; normalised images NCHW if `start` is 0.
        start: see above.
        precision: the precision of the training.
        head_alone: whether only the head learns in the first epoch.
    """
    model.eval()
    learning = [] if head_alone else [module for block in list(model.blocks)[start:] for module in block.modules()]
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
