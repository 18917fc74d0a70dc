"""The names of each backbone's blocks and units, as plain data: a study file is checked without torch.

A *block* contains the layers of one resolution and the pool at its end. A *unit* is the smallest part at which a
network can be cut: in VGG and AlexNet a convolution with the layers up to the next one (`conv3_2`, the second of the
third block, as Simonyan and Zisserman, 2014, name it), elsewhere a stem, a residual or dense block, or whatever else
torchvision stacks (`unit3_2`). `networks.blocks` finds them in torchvision's networks.

Vision transformers work at one resolution: each encoder layer is a block, so that `block6` keeps six layers. The
embedding of the patches is the first unit of the first block, and the last norm belongs to the last layer.
"""

from dataclasses import dataclass

TIMM = "timm:"  # before the name of one of timm's networks


@dataclass(frozen=True)
class Architecture:
    """A backbone's units, block by block.

    Attributes:
        units: the number of units of each block.
        unit: the units' name, 'conv' or 'unit', which their numbers follow.
        pools: the number of leading blocks that end in a pool, which a cut after the block's last unit leaves out.
        smallest: height and width in pixels of the smallest image that passes the layers up to the first block's pool,
            then up to the end of each block.
        has_batch_norm: whether the backbone has batch norm.
        patch: height and width in pixels of the patches into which images are divided, None for none.
        extra_tokens: the number of tokens beside those of the patches, such as the class token; None for a backbone
            whose blocks make maps.
        has_norms: whether it has normalisation layers of any kind; True where that is not known here.
    """

    units: tuple[int, ...]
    unit: str
    pools: int
    smallest: tuple[int, ...]
    has_batch_norm: bool
    patch: int | None = None
    extra_tokens: int | None = None
    has_norms: bool = True


def _vgg(*units: int, batch_norm: bool = False) -> Architecture:
    """Return a VGG network: each block ends in a pool that halves height and width, rounding down."""
    return Architecture(units, "conv", 5, (1, 2, 4, 8, 16, 32), batch_norm, has_norms=batch_norm)


def _resnet(*units: int) -> Architecture:
    """Return a network whose strides round up, so that any image is large enough, with a pool after its stem."""
    return Architecture(units, "unit", 1, (1,) * 6, True)


def _strided(*units: int) -> Architecture:
    """Return a network whose blocks begin with a stride of two that rounds up."""
    return Architecture(units, "unit", 0, (1,) * 6, True)


def _vision_transformer(layers: int, patch: int) -> Architecture:
    """Return a vision transformer with a class token."""
    return Architecture((2, *(1,) * (layers - 1)), "unit", 0, (patch,) * (layers + 1), False, patch, extra_tokens=1)


# Configurations A, B, D and E of Simonyan and Zisserman (2014), with and without batch norm; `vgg16_narrow` is VGG-16
# with an eighth of the channels: the demo's network, small enough for a CPU.
_VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

ARCHITECTURES: dict[str, Architecture] = {
    **{name: _vgg(*units) for name, units in _VGG.items()},
    **{f"{name}_bn": _vgg(*units, batch_norm=True) for name, units in _VGG.items()},
    "vgg16_narrow": _vgg(*_VGG["vgg16"]),
    "vgg16_narrow_bn": _vgg(*_VGG["vgg16"], batch_norm=True),
    "alexnet": Architecture((1, 1, 3), "conv", 3, (7, 15, 31, 63), False, has_norms=False),
    "resnet18": _resnet(1, 2, 2, 2, 2),
    "resnet34": _resnet(1, 3, 4, 6, 3),
    "resnet50": _resnet(1, 3, 4, 6, 3),
    "resnet101": _resnet(1, 3, 4, 23, 3),
    "resnet152": _resnet(1, 3, 8, 36, 3),
    "resnext50_32x4d": _resnet(1, 3, 4, 6, 3),
    "resnext101_32x8d": _resnet(1, 3, 4, 23, 3),
    "resnext101_64x4d": _resnet(1, 3, 4, 23, 3),
    "wide_resnet50_2": _resnet(1, 3, 4, 6, 3),
    "wide_resnet101_2": _resnet(1, 3, 4, 23, 3),
    **{
        name: Architecture((1,) * 5, "unit", 4, (1, 1, 5, 13, 29, 29), True)
        for name in ("densenet121", "densenet161", "densenet169", "densenet201")
    },
    "efficientnet_b0": _strided(2, 2, 2, 6, 6),
    "efficientnet_b1": _strided(3, 3, 3, 8, 8),
    "efficientnet_b2": _strided(3, 3, 3, 8, 8),
    "efficientnet_b3": _strided(3, 3, 3, 10, 9),
    "efficientnet_b4": _strided(3, 4, 4, 12, 11),
    "efficientnet_b5": _strided(4, 5, 5, 14, 13),
    "efficientnet_b6": _strided(4, 6, 6, 16, 15),
    "efficientnet_b7": _strided(5, 7, 7, 20, 18),
    "efficientnet_v2_s": _strided(3, 4, 4, 15, 16),
    "efficientnet_v2_m": _strided(4, 5, 5, 21, 24),
    "efficientnet_v2_l": _strided(5, 7, 7, 29, 33),
    "mobilenet_v2": _strided(2, 2, 3, 7, 5),
    "mobilenet_v3_small": _strided(1, 1, 2, 5, 4),
    "mobilenet_v3_large": _strided(2, 2, 3, 6, 4),
    "convnext_tiny": Architecture((3, 3, 9, 3), "unit", 0, (4, 4, 8, 16, 32), False),
    **{
        name: Architecture((3, 3, 27, 3), "unit", 0, (4, 4, 8, 16, 32), False)
        for name in ("convnext_small", "convnext_base", "convnext_large")
    },
    "regnet_x_400mf": _strided(1, 1, 2, 7, 12),
    "regnet_x_800mf": _strided(1, 1, 3, 7, 5),
    "regnet_x_1_6gf": _strided(1, 2, 4, 10, 2),
    "regnet_x_3_2gf": _strided(1, 2, 6, 15, 2),
    "regnet_x_8gf": _strided(1, 2, 5, 15, 1),
    "regnet_x_16gf": _strided(1, 2, 6, 13, 1),
    "regnet_x_32gf": _strided(1, 2, 7, 13, 1),
    "regnet_y_400mf": _strided(1, 1, 3, 6, 6),
    "regnet_y_800mf": _strided(1, 1, 3, 8, 2),
    "regnet_y_1_6gf": _strided(1, 2, 6, 17, 2),
    "regnet_y_3_2gf": _strided(1, 2, 5, 13, 1),
    "regnet_y_8gf": _strided(1, 2, 4, 10, 1),
    "regnet_y_16gf": _strided(1, 2, 4, 11, 1),
    "regnet_y_32gf": _strided(1, 2, 5, 12, 1),
    "regnet_y_128gf": _strided(1, 2, 7, 17, 1),
    "vit_b_16": _vision_transformer(12, 16),
    "vit_b_32": _vision_transformer(12, 32),
    "vit_l_16": _vision_transformer(24, 16),
    "vit_l_32": _vision_transformer(24, 32),
    "vit_h_14": _vision_transformer(32, 14),
}


def add_custom_architecture(name: str, blocks: int, has_batch_norm: bool, extra_tokens: int | None = None) -> None:
    """Add a custom backbone with a number of blocks of one unit each (see `networks.custom_backbone`).

    The size that its images need is not known here; `check_custom_blocks` tests the study's size.
    """
    smallest = (1,) * (blocks + 1)
    ARCHITECTURES[name] = Architecture((1,) * blocks, "unit", 0, smallest, has_batch_norm, extra_tokens=extra_tokens)


def block_names(backbone: str) -> list[str]:
    """Return the names of the backbone's blocks, starting at the input."""
    return [f"block{number}" for number in range(1, len(ARCHITECTURES[backbone].units) + 1)]


def unit_names(backbone: str) -> list[tuple[str, ...]]:
    """Return the names of the units of each block, starting at the input."""
    architecture = ARCHITECTURES[backbone]
    return [
        tuple(f"{architecture.unit}{block}_{number}" for number in range(1, units + 1))
        for block, units in enumerate(architecture.units, start=1)
    ]


def cut_names(backbone: str) -> list[str]:
    """Return every valid `truncate_at`: the blocks, then the units."""
    return block_names(backbone) + [name for names in unit_names(backbone) for name in names]


def kept_units(backbone: str, truncate_at: str) -> int:
    """Return the number of units that a cut keeps."""
    blocks = zip(block_names(backbone), unit_names(backbone), strict=True)
    names = [(block, unit) for block, units in blocks for unit in units]
    return max(number for number, name in enumerate(names, start=1) if truncate_at in name)


def kept_blocks(backbone: str, truncate_at: str) -> int:
    """Return the number of blocks that a cut keeps; a block that is cut inside counts."""
    if truncate_at in block_names(backbone):
        return block_names(backbone).index(truncate_at) + 1
    return next(block for block, names in enumerate(unit_names(backbone), start=1) if truncate_at in names)


def cut_before_pool(backbone: str, truncate_at: str) -> bool:
    """Return whether a cut, at the last unit of a block, leaves out the pool at the block's end."""
    return any(truncate_at == units[-1] for units in unit_names(backbone)[: ARCHITECTURES[backbone].pools])


def smallest_image(backbone: str, truncate_at: str) -> int:
    """Return height and width in pixels of the smallest image that passes all layers up to a cut."""
    architecture, blocks = ARCHITECTURES[backbone], kept_blocks(backbone, truncate_at)
    is_before_pool = truncate_at not in block_names(backbone) and blocks <= architecture.pools
    return architecture.smallest[blocks - 1 if is_before_pool else blocks]


def image_size_fault(image_size: int, backbone: str, cut: str) -> str:
    """Return why images are too small for a cut, or a vision transformer cannot divide them into patches; else ''."""
    needed, patch = smallest_image(backbone, cut), ARCHITECTURES[backbone].patch
    if image_size < needed:
        return f"{image_size} is too small for {cut}, which needs {needed}"
    if patch is not None and image_size % patch:
        return f"{image_size} is no multiple of the {patch} pixels of a patch of {backbone}"
    return ""


def is_faster_in_bfloat16(backbone: str) -> bool:
    """Return whether a CPU with instructions for bfloat16 trains a backbone faster in it than in float32.

    Measured on two cores of an AMD EPYC with AVX512-BF16 (images of 32x32 pixels, batches of 64): VGG, ResNet and
    DenseNet train 1.3 to 1.7 times as fast, ConvNeXt 8 times; RegNet and the demo's small network no faster;
    EfficientNet and MobileNet 0.4 times, because of their depthwise convolutions. Others were not measured.
    """
    measured = ("vgg", "resnet", "densenet", "convnext")
    return backbone.startswith(measured) and not backbone.startswith("vgg16_narrow") and not is_custom(backbone)


def is_custom(backbone: str) -> bool:
    """Return whether a backbone is made by code outside torchvision: a user's function, or timm.

    Its blocks are known, and its name is complete, once `networks` has loaded it.
    """
    return "@" in backbone


def is_timm(backbone: str) -> bool:
    """Return whether a backbone's name is that of one of timm's networks."""
    return backbone.startswith(TIMM)


def function_name(backbone: str) -> str:
    """Return the name by which a study file names a custom backbone: the function's, or timm's network."""
    return backbone.partition("@")[0]
