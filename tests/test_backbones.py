import pytest
import torch
import torchvision

from ablation.backbones import build_blocks, feature_shape, initialise_blocks
from ablation.seeding import generator
from ablation.weights import IMAGENET_MEAN, IMAGENET_STD, Weights

# By hand, from Simonyan and Zisserman's table: out * in * 9 + out for each 3x3 convolution.
CONV_PARAMETERS = [
    64 * 3 * 9 + 64, 64 * 64 * 9 + 64,
    128 * 64 * 9 + 128, 128 * 128 * 9 + 128,
    256 * 128 * 9 + 256, 256 * 256 * 9 + 256, 256 * 256 * 9 + 256,
    512 * 256 * 9 + 512, 512 * 512 * 9 + 512, 512 * 512 * 9 + 512,
    512 * 512 * 9 + 512, 512 * 512 * 9 + 512, 512 * 512 * 9 + 512,
]  # fmt: skip


@pytest.mark.parametrize(
    ("cut", "shape", "convolutions", "torchvision_layers"),
    [
        ("block1", (64, 16, 16), 2, 5), ("block2", (128, 8, 8), 4, 10), ("block3", (256, 4, 4), 7, 17),
        ("block4", (512, 2, 2), 10, 24), ("block5", (512, 1, 1), 13, 31),
        ("conv1_1", (64, 32, 32), 1, 2), ("conv2_2", (128, 16, 16), 4, 9), ("conv3_2", (256, 8, 8), 6, 14),
        ("conv5_3", (512, 2, 2), 13, 30),
    ],
)  # fmt: skip
def test_truncation(cut: str, shape: tuple[int, int, int], convolutions: int, torchvision_layers: int) -> None:
    """Shapes and sizes are as computed by hand, and the output is that of torchvision's own layers."""
    theirs = torchvision.models.vgg16(weights=None).features
    weights = Weights({f"features.{k}": v.numpy() for k, v in theirs.state_dict().items()},
                      IMAGENET_MEAN, IMAGENET_STD, "")  # fmt: skip
    blocks = build_blocks("vgg16", cut)
    initialise_blocks(blocks, "vgg16", weights, generator(0))
    images = torch.randn(2, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        ours, expected = blocks(images), theirs[:torchvision_layers](images)
    assert tuple(ours.shape[1:]) == shape == feature_shape("vgg16", cut, 32)
    assert sum(p.numel() for p in blocks.parameters()) == sum(CONV_PARAMETERS[:convolutions])
    assert torch.equal(ours, expected)


def test_blocks_and_layers_have_their_names() -> None:
    blocks = build_blocks("vgg16", "conv2_1")
    assert [name for name, _ in blocks.named_children()] == ["block1", "block2"]
    assert [name for name, _ in blocks.block1.named_children()] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert [name for name, _ in blocks.block2.named_children()] == ["conv2_1", "relu2_1"]


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
    only_first = Weights(tensors, IMAGENET_MEAN, IMAGENET_STD, "")
    partly = build_blocks("vgg16_narrow", "block1")
    initialise_blocks(partly, "vgg16_narrow", only_first, generator(1))
    assert (partly.block1.conv1_1.weight == 1).all()
    assert torch.equal(partly.block1.conv1_2.weight, full.block1.conv1_2.weight)
