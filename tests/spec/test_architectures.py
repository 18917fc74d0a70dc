"""The table of blocks against torchvision's own networks."""

import functools
import re

import pytest
import torch

from ablation.networks.blocks import feature_shape, kept_parts, outline_blocks
from ablation.spec.architectures import (
    ARCHITECTURES,
    block_names,
    cut_before_pool,
    cut_names,
    kept_blocks,
    kept_units,
    smallest_image,
    unit_names,
)

# By hand, from torchvision's modules: what some blocks begin and end with.
BLOCKS = {
    "resnet50": [("conv1", "maxpool"), ("layer1.0", "layer1.2"), ("layer2.0", "layer2.3"), ("layer3.0", "layer3.5"),
                 ("layer4.0", "layer4.2")],
    "densenet121": [("features.conv0", "features.pool0"), ("features.denseblock1", "features.transition1"),
                    ("features.denseblock2", "features.transition2"), ("features.denseblock3", "features.transition3"),
                    ("features.denseblock4", "relu()")],
    "convnext_tiny": [("features.0", "features.1.2"), ("features.2", "features.3.2"), ("features.4", "features.5.8"),
                      ("features.6", "features.7.2")],
    "efficientnet_b0": [("features.0", "features.1.0"), ("features.2.0", "features.2.1"),
                        ("features.3.0", "features.3.1"), ("features.4.0", "features.5.2"),
                        ("features.6.0", "features.8")],
    "mobilenet_v3_small": [("features.0", "features.0"), ("features.1", "features.1"), ("features.2", "features.3"),
                           ("features.4", "features.8"), ("features.9", "features.12")],
    "regnet_y_400mf": [("stem", "stem"), ("trunk_output.block1.block1-0",) * 2,
                       ("trunk_output.block2.block2-0", "trunk_output.block2.block2-2"),
                       ("trunk_output.block3.block3-0", "trunk_output.block3.block3-5"),
                       ("trunk_output.block4.block4-0", "trunk_output.block4.block4-5")],
    "alexnet": [("features.0", "features.2"), ("features.3", "features.5"), ("features.6", "features.12")],
    "vgg11_bn": [("features.0", "features.3"), ("features.4", "features.7"), ("features.8", "features.14"),
                 ("features.15", "features.21"), ("features.22", "features.28")],
    "vit_b_16": [("embedding", "encoder.layers.encoder_layer_0"),
                 *((f"encoder.layers.encoder_layer_{number}",) * 2 for number in range(1, 11)),
                 ("encoder.layers.encoder_layer_11", "encoder.ln")],
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_torchvisions(name: str) -> None:
    paths: dict[int, list[str]] = {}
    for part in kept_parts(name, block_names(name)[-1]):
        paths.setdefault(part.block, []).append(part.path)
    assert [(found[0], found[-1]) for found in paths.values()] == BLOCKS[name]


TRANSFORMERS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")  # which work at one resolution
MAP_MAKERS = [name for name in ARCHITECTURES if name not in TRANSFORMERS and ":" not in name]


@pytest.mark.parametrize("name", MAP_MAKERS)
def test_a_block_is_what_works_at_one_resolution(name: str) -> None:
    """Units of a block give maps of one size, and another one than the blocks beside it; a pool may end it."""
    blocks = outline_blocks(name, block_names(name)[-1]).eval()
    assert len(blocks) == len(ARCHITECTURES[name].units)
    sides = []
    maps = torch.empty(1, 3, 256, 256, device="meta")
    for block, units in zip(blocks, unit_names(name), strict=True):
        found = []
        for module in block:
            maps = module(maps)
            found.append(maps.shape[-1])
        has_pool = found[-1] != found[0]
        assert len(set(found)) == 1 + has_pool
        assert has_pool == (cut_before_pool(name, units[-1]))
        sides.append(found[0])
    assert sides[0] > sides[2] > sides[-1] or len(sides) == 3
    assert sorted(sides, reverse=True) == sides
    stem_is_pooled = name.startswith(("res", "wide", "dense"))
    assert len(set(sides)) == len(sides) or stem_is_pooled


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_block_of_a_transformer_is_an_encoder_layer(name: str) -> None:
    """And all its images are whole patches."""
    patch = ARCHITECTURES[name].patch
    assert patch == int(name[-2:])
    side = 4 * patch
    blocks = outline_blocks(name, block_names(name)[-1], side).eval()
    tokens = torch.empty(1, 3, side, side, device="meta")
    for block in blocks:
        tokens = block(tokens)
        assert tokens.shape[1] == 1 + 4 * 4
    assert [len(units) for units in unit_names(name)] == [2] + [1] * (len(blocks) - 1)
    assert {smallest_image(name, cut) for cut in cut_names(name)} == {patch}
    assert feature_shape(name, block_names(name)[-1], patch)[1:] == (1, 1)


@pytest.mark.parametrize("name", MAP_MAKERS)
def test_smallest_images(name: str) -> None:
    layers = [layer for block in outline_blocks(name, block_names(name)[-1]).eval() for layer in block]

    @functools.cache
    def computed(side: int) -> int:
        """Return how many layers, from the first one on, can compute images of a size."""
        maps = torch.empty(1, 3, side, side, device="meta")
        for number, layer in enumerate(layers):
            try:
                maps = layer(maps)
            except RuntimeError as error:
                if re.search(r"too small|can't be greater", str(error)) is None:
                    raise
                return number
            assert maps.shape[2] == maps.shape[3] >= 1
        return len(layers)

    for cut in (*block_names(name), *(units[-1] for units in unit_names(name))):
        smallest, kept = smallest_image(name, cut), len(kept_parts(name, cut))
        assert computed(smallest) >= kept
        assert smallest == 1 or computed(smallest - 1) < kept


def test_names_of_vgg16() -> None:
    assert block_names("vgg16") == ["block1", "block2", "block3", "block4", "block5"]
    assert cut_names("vgg16")[5:] == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
        *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
    ]


def test_names_of_resnet50() -> None:
    assert cut_names("resnet50")[5:10] == ["unit1_1", "unit2_1", "unit2_2", "unit2_3", "unit3_1"]
    assert len(cut_names("resnet50")) == 5 + 1 + 3 + 4 + 6 + 3


@pytest.mark.parametrize(
    ("name", "cut", "units", "blocks", "bare"),
    [
        ("vgg16", "block1", 2, 1, False), ("vgg16", "conv1_1", 1, 1, False), ("vgg16", "block3", 7, 3, False),
        ("vgg16", "conv3_2", 6, 3, False), ("vgg16", "conv3_3", 7, 3, True),
        ("resnet50", "unit1_1", 1, 1, True), ("resnet50", "block1", 1, 1, False), ("resnet50", "unit2_3", 4, 2, False),
        ("resnet50", "block2", 4, 2, False), ("resnet50", "unit5_1", 15, 5, False),
    ],
)  # fmt: skip
def test_what_a_cut_keeps(name: str, cut: str, units: int, blocks: int, bare: bool) -> None:
    assert kept_units(name, cut) == units
    assert kept_blocks(name, cut) == blocks
    assert cut_before_pool(name, cut) == bare
