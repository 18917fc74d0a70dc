import pytest
import torch
from torch import nn

from ablation.base.generators import generator
from ablation.networks.transfer_model import Head, build_model, calibrate, initialise, set_training_mode
from ablation.spec.parameters import HeadNorm


@pytest.mark.parametrize(
    ("cut", "pool", "image_size", "features"),
    [
        ("block3", 1, 32, 256), ("block3", 2, 32, 256 * 4), ("block3", "flatten", 32, 256 * 16),
        ("block5", 2, 32, 512), ("block5", 2, 64, 512 * 4), ("block3", 2, 40, 256 * 4), ("conv2_1", 2, 32, 128 * 4),
    ],
)  # fmt: skip
def test_head(cut: str, pool: int | str, image_size: int, features: int) -> None:
    model = build_model("vgg16", cut, Head(7, pool), 4, image_size)
    initialise(model, None, seed=0)
    assert [tuple(p.shape) for p in model.head.parameters()] == [(7, features), (7,), (4, 7), (4,)]
    images = torch.randn(3, 3, image_size, image_size, generator=generator(0))
    assert model(images).shape == (3, 4)
    with torch.no_grad():
        maps = model.blocks(images)
    if pool != "flatten":
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, min(pool, maps.shape[-1]))
    assert torch.allclose(model.pooled(images), maps.flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [0, 7])
@pytest.mark.parametrize(("norm", "kind"), [("none", None), ("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_layers_of_the_head(width: int, norm: HeadNorm, kind: type[nn.Module] | None, dropout: float) -> None:
    """A norm of the features first; dropout before the last layer; without hidden units one linear layer."""
    model = build_model("vgg16_narrow", "block3", Head(width, 2, norm, dropout), 4, 32)
    expected = [kind] if kind else []
    expected += [nn.Linear, nn.ReLU] if width else []
    expected += [nn.Dropout] if dropout else []
    assert [type(layer) for layer in model.head] == [*expected, nn.Linear]
    linear = [layer for layer in model.head if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == ([(128, 7), (7, 4)] if width else [(128, 4)])
    assert [layer.p for layer in model.head if isinstance(layer, nn.Dropout)] == ([dropout] if dropout else [])
    initialise(model, None, seed=0)
    images = torch.randn(5, 3, 32, 32, generator=generator(0))
    with torch.no_grad():  # a batch norm's first statistics are mean 0 and variance 1, and its epsilon is 1e-5
        features = model.eval().pooled(images)
        hidden = nn.functional.layer_norm(features, (128,)) if norm == "layer" else features
        for layer in linear[:-1]:
            hidden = layer(hidden).relu()
        assert torch.allclose(model(images), linear[-1](hidden), rtol=1e-4, atol=1e-6)


def test_names_in_checkpoints_of_a_plain_head_stay() -> None:
    model = build_model("vgg16_narrow", "block1", Head(7), 4, 32)
    assert [name for name in model.state_dict() if not name.startswith("blocks.")] == [
        "feature_mean_D", "feature_std_D", "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias",
    ]  # fmt: skip


def test_start_depends_on_the_seed_alone() -> None:
    one, same, other = (build_model("vgg16_narrow", "block2", Head(8, 2), 5, 32) for _ in range(3))
    for model, seed in ((one, 3), (same, 3), (other, 4)):
        torch.rand(seed)  # what was drawn elsewhere has no influence
        initialise(model, None, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head[0].weight, other.head[0].weight)
    bound = one.head[0].in_features ** -0.5
    assert one.head[0].weight.abs().max() <= bound
    assert one.head[0].weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_calibration_standardises_the_features() -> None:
    model = build_model("vgg16_narrow", "block2", Head(8, 2), 5, 32)
    initialise(model, None, 0)
    with torch.no_grad():
        model.blocks.block2.conv2_2.weight[0] = 0  # a feature that never varies
        model.blocks.block2.conv2_2.weight[1] *= 1000  # and one that varies a lot
    images = torch.randn(300, 3, 32, 32, generator=generator(0))
    calibrate(model, images.split(70), 0, "float32")
    with torch.no_grad():
        inputs = (model.pooled(images) - model.feature_mean_D) / model.feature_std_D
    assert inputs.mean(0).abs().max() < 1e-3
    std = inputs.std(0, correction=0)
    assert std[4:8].tolist() == pytest.approx([1] * 4, rel=1e-3)  # channel 1, pooled to 2x2
    assert (std <= 1.001).all()
    assert torch.isfinite(inputs).all()
    with torch.no_grad():
        assert torch.allclose(model(images), model.head(inputs), atol=1e-4)


@pytest.mark.parametrize("head_alone", [False, True])
def test_batch_norm_is_calibrated_as_it_will_be_used(head_alone: bool) -> None:
    """It standardises over the batch where it learns in the first epoch; its own statistics stay as they are."""
    model = build_model("resnet18", "block2", Head(8, 2), 5, 32)
    initialise(model, None, 0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if not key.startswith("feature_")}
    images = 3 + 2 * torch.randn(100, 3, 32, 32, generator=generator(0))
    set_training_mode(model, range(0) if head_alone else model.learning_layers)
    calibrate(model, [images], 0, "float32")
    model.eval() if head_alone else model.train()
    tracked = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {module.momentum for module in tracked} == {0.1}
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor), key
    with torch.no_grad():
        inputs = (model.pooled(images) - model.feature_mean_D) / model.feature_std_D
    assert inputs.mean(0).abs().max() < 1e-3


def test_calibration_of_features_that_never_vary() -> None:
    model = build_model("vgg16_narrow", "block1", Head(8, 2), 5, 32)
    initialise(model, None, 0)
    calibrate(model, [torch.zeros(4, 3, 32, 32)], 0, "float32")
    assert (model.feature_std_D == 1).all()
