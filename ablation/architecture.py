"""What the blocks and layers of each backbone are called, as plain data: a study file is checked without torch.

A *block* of a VGG network is the run of 3x3 convolutions between two max-pools, the pool at its end included; `conv3_2`
is the second convolution of the third block (the names of Simonyan and Zisserman, 2014).
"""

from dataclasses import dataclass

# Output channels of every convolution, block by block: configurations A, B, D and E of Simonyan and Zisserman (2014).
# `vgg16_narrow` is VGG-16 with an eighth of the channels: the demo's network, small enough for a CPU.
VGG_CHANNELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
    "vgg16_narrow": ((8,) * 2, (16,) * 2, (32,) * 3, (64,) * 3, (64,) * 3),
}


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of a backbone: its name and block here, and its module's number in torchvision's `features`."""

    name: str
    block: str
    torchvision_index: int
    in_channels: int
    out_channels: int


def conv_layers(backbone: str) -> list[ConvLayer]:
    """Return the backbone's convolutions in order, from the input on."""
    layers: list[ConvLayer] = []
    index, channels = 0, 3
    for block_number, widths in enumerate(VGG_CHANNELS[backbone], start=1):
        for conv_number, width in enumerate(widths, start=1):
            name = f"conv{block_number}_{conv_number}"
            layers.append(ConvLayer(name, f"block{block_number}", index, channels, width))
            channels = width
            index += 2  # the convolution and its ReLU
        index += 1  # the block's max-pool
    return layers


def block_names(backbone: str) -> list[str]:
    """Return the names of the backbone's blocks, from the input on."""
    return [f"block{number}" for number in range(1, len(VGG_CHANNELS[backbone]) + 1)]


def cut_names(backbone: str) -> list[str]:
    """Return every valid `truncate_at`: the blocks, then the single convolutions."""
    return block_names(backbone) + [layer.name for layer in conv_layers(backbone)]


def kept_layers(backbone: str, truncate_at: str) -> list[ConvLayer]:
    """Return the convolutions up to and including the block or layer `truncate_at`."""
    layers = conv_layers(backbone)
    last = max(i for i, layer in enumerate(layers) if truncate_at in (layer.block, layer.name))
    return layers[: last + 1]


def kept_blocks(backbone: str, truncate_at: str) -> int:
    """Return how many blocks are kept; one that is cut inside counts."""
    return block_names(backbone).index(kept_layers(backbone, truncate_at)[-1].block) + 1


def kept_pools(backbone: str, truncate_at: str) -> int:
    """Return how many max-pools are kept; each halves height and width, rounding down."""
    blocks = kept_blocks(backbone, truncate_at)
    return blocks if truncate_at in block_names(backbone) else blocks - 1
