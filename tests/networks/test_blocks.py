from typing import Any

import pytest
import torch
import torchvision

from ablation.base.generators import generator
from ablation.networks.blocks import build_blocks, expected_tensors, feature_shape, initialise_blocks
from ablation.spec.architectures import block_names

# By hand, from Simonyan and Zisserman's table: out * in * 9 + out for each 3x3 convolution.
CONV_PARAMETERS = [
    64 * 3 * 9 + 64, 64 * 64 * 9 + 64,
    128 * 64 * 9 + 128, 128 * 128 * 9 + 128,
    256 * 128 * 9 + 256, 256 * 256 * 9 + 256, 256 * 256 * 9 + 256,
    512 * 256 * 9 + 512, 512 * 512 * 9 + 512, 512 * 512 * 9 + 512,
    512 * 512 * 9 + 512, 512 * 512 * 9 + 512, 512 * 512 * 9 + 512,
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Sequential:
    """The convolutional layers of torchvision's VGG-16, with random weights."""
    features: torch.nn.Sequential = torchvision.models.vgg16(weights=None).features
    return features


@pytest.mark.parametrize(
    ("cut", "shape", "convolutions", "torchvision_layers"),
    [
        ("block1", (64, 16, 16), 2, 5), ("block2", (128, 8, 8), 4, 10), ("block3", (256, 4, 4), 7, 17),
        ("block4", (512, 2, 2), 10, 24), ("block5", (512, 1, 1), 13, 31),
        ("conv1_1", (64, 32, 32), 1, 2), ("conv2_2", (128, 16, 16), 4, 9), ("conv3_2", (256, 8, 8), 6, 14),
        ("conv5_3", (512, 2, 2), 13, 30),
    ],
)  # fmt: skip
def test_truncation(
    cut: str, shape: tuple[int, int, int], convolutions: int, torchvision_layers: int, theirs: torch.nn.Sequential
) -> None:
    """Shapes and sizes are as computed by hand, and the output is that of torchvision's own layers."""
    weights = {f"features.{k}": v.numpy() for k, v in theirs.state_dict().items()}
    blocks = build_blocks("vgg16", cut)
    initialise_blocks(blocks, "vgg16", weights, generator(0))
    images = torch.randn(2, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        ours, expected = blocks(images), theirs[:torchvision_layers](images)
    assert tuple(ours.shape[1:]) == shape == feature_shape("vgg16", cut, 32)
    assert sum(p.numel() for p in blocks.parameters()) == sum(CONV_PARAMETERS[:convolutions])
    assert torch.equal(ours, expected)


def features_of(network: Any, images: torch.Tensor) -> torch.Tensor:
    """What torchvision's own forward pass gives to its classifier, before any pooling."""
    found: list[torch.Tensor] = []
    pools = [module for name, module in network.named_children() if name == "avgpool"]
    hook = pools[0].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0])) if pools else None
    network(images)
    if hook is None:
        return torch.nn.functional.relu(network.features(images))  # DenseNet pools in a function
    hook.remove()
    return found[0]


@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "efficientnet_b0",
     "efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny", "regnet_x_400mf", "regnet_y_400mf"],
)  # fmt: skip
def test_all_blocks_compute_what_torchvisions_network_does(name: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    for module in network.modules():  # statistics as of a trained network
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    last = block_names(name)[-1]
    tensors = {k: v.numpy() for k, v in network.state_dict().items() if k in expected_tensors(name, last)}
    blocks = build_blocks(name, last)
    initialise_blocks(blocks, name, tensors, generator(0))
    images = torch.randn(2, 3, 64, 64, generator=generator(1))
    with torch.no_grad():
        ours, theirs = blocks.eval()(images), features_of(network, images)
    assert tuple(ours.shape[1:]) == feature_shape(name, last, 64)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_blocks_and_layers_have_their_names() -> None:
    blocks = build_blocks("vgg16", "conv2_1")
    assert [name for name, _ in blocks.named_children()] == ["block1", "block2"]
    assert [name for name, _ in blocks.block1.named_children()] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert [name for name, _ in blocks.block2.named_children()] == ["conv2_1", "relu2_1"]
    blocks = build_blocks("resnet18", "unit2_1")
    names = [[name for name, _ in block.named_children()] for block in blocks]
    assert names == [["conv1_1", "bn1_1", "relu1_1", "pool1"], ["unit2_1"]]


def test_random_start_is_he_normal_and_does_not_depend_on_the_cut() -> None:
    deep, shallow = build_blocks("vgg16", "block3"), build_blocks("vgg16", "block2")
    for blocks in (deep, shallow):
        initialise_blocks(blocks, "vgg16", None, generator(5))
    assert torch.equal(deep.block2.conv2_2.weight, shallow.block2.conv2_2.weight)
    weight = deep.block3.conv3_1.weight  # of 128 channels to 256
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-3
    assert not deep.block3.conv3_1.bias.any()


def test_layers_without_weights_start_at_random() -> None:
    full = build_blocks("vgg16_narrow", "block1")
    initialise_blocks(full, "vgg16_narrow", None, generator(1))
    tensors = {"features.0.weight": torch.ones(8, 3, 3, 3).numpy(), "features.0.bias": torch.ones(8).numpy()}
    partly = build_blocks("vgg16_narrow", "block1")
    initialise_blocks(partly, "vgg16_narrow", tensors, generator(1))
    assert (partly.block1.conv1_1.weight == 1).all()
    assert torch.equal(partly.block1.conv1_2.weight, full.block1.conv1_2.weight)
