import pytest
import torch
import torchvision

from ablation import architecture


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_layers_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        features = torchvision.models.get_model(name).features
    convolutions = [(i, m) for i, m in enumerate(features) if isinstance(m, torch.nn.Conv2d)]
    layers = architecture.conv_layers(name)
    assert [(layer.torchvision_index, layer.in_channels, layer.out_channels) for layer in layers] == [
        (i, m.in_channels, m.out_channels) for i, m in convolutions
    ]


def test_names_of_vgg16() -> None:
    assert architecture.block_names("vgg16") == ["block1", "block2", "block3", "block4", "block5"]
    assert architecture.cut_names("vgg16")[5:] == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
        *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
    ]


@pytest.mark.parametrize(
    ("cut", "convolutions", "blocks", "pools"),
    [("block1", 2, 1, 1), ("conv1_1", 1, 1, 0), ("block3", 7, 3, 3), ("conv3_2", 6, 3, 2), ("conv3_3", 7, 3, 2)],
)
def test_what_a_cut_keeps(cut: str, convolutions: int, blocks: int, pools: int) -> None:
    assert len(architecture.kept_layers("vgg16", cut)) == convolutions
    assert architecture.kept_blocks("vgg16", cut) == blocks
    assert architecture.kept_pools("vgg16", cut) == pools
