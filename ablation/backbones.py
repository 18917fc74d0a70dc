"""torchvision's networks as an ordered list of named blocks, cut where the study says.

Legend: N images, C channels, H and W pixels.
"""

import math
from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.vgg import make_layers

from ablation import architecture
from ablation.weights import Weights


def build_blocks(backbone: str, truncate_at: str) -> nn.Sequential:
    """Build the kept part of a backbone, its parameters allocated but not yet set.

    Returns:
        A Sequential of blocks `block1`, ...; each a Sequential of torchvision's own modules, named `conv1_1`,
        `relu1_1`, ..., `pool1`. A cut at a block keeps its max-pool, one at a layer ends after its ReLU.
    """
    configuration = [entry for widths in architecture.VGG_CHANNELS[backbone] for entry in (*widths, "M")]
    with torch.device("meta"):
        modules = list(make_layers(configuration, batch_norm=False))
    blocks: OrderedDict[str, OrderedDict[str, nn.Module]] = OrderedDict()
    for layer in architecture.kept_layers(backbone, truncate_at):
        block = blocks.setdefault(layer.block, OrderedDict())
        block[layer.name] = modules[layer.torchvision_index]
        block[layer.name.replace("conv", "relu")] = modules[layer.torchvision_index + 1]
        last = layer
    for number, block in enumerate(blocks.values(), start=1):
        if number <= architecture.kept_pools(backbone, truncate_at):
            block[f"pool{number}"] = nn.MaxPool2d(kernel_size=2, stride=2)
    assert last.name in blocks[last.block]
    kept: OrderedDict[str, nn.Module] = OrderedDict((name, nn.Sequential(block)) for name, block in blocks.items())
    return nn.Sequential(kept).to_empty(device="cpu")


def feature_shape(backbone: str, truncate_at: str, image_size: int) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the features of one image."""
    side = image_size >> architecture.kept_pools(backbone, truncate_at)
    return architecture.kept_layers(backbone, truncate_at)[-1].out_channels, side, side


def initialise_blocks(
    blocks: nn.Sequential, backbone: str, weights: Weights | None, generator: torch.Generator
) -> None:
    """Set every parameter of the blocks: from the weights where they have the layer, else at random.

    Random layers start normal with variance 2 / (9 x input channels), bias zero (He et al., 2015, fan-in), which keeps
    the scale of the activations from layer to layer (torchvision's fan-out shrinks them wherever a network widens).
    They draw from the generator whether they need to or not, so that a layer's start does not depend on which others
    have weights.
    """
    convolutions = {name: module for name, module in blocks.named_modules() if isinstance(module, nn.Conv2d)}
    layers = {layer.name: layer for layer in architecture.conv_layers(backbone)}
    with torch.no_grad():
        for path, convolution in convolutions.items():
            assert convolution.bias is not None
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * convolution.in_channels)), generator=generator)
            nn.init.zeros_(convolution.bias)
            key = f"features.{layers[path.split('.')[-1]].torchvision_index}"
            if weights is not None and f"{key}.weight" in weights.tensors:
                convolution.weight.copy_(torch.from_numpy(weights.tensors[f"{key}.weight"]))
            if weights is not None and f"{key}.bias" in weights.tensors:
                convolution.bias.copy_(torch.from_numpy(weights.tensors[f"{key}.bias"]))
