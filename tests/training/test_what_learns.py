"""What learns, at which rate: to the bit what is frozen, and by a step's formula what is not; cached, and resumed."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ablation.base.generators import generator, seed_globally
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, TransferModel, build_model, initialise, set_training_mode
from ablation.training.checkpoint import load_resume_checkpoint, save_resume_checkpoint
from ablation.training.feature_cache import FeatureCache
from ablation.training.loop import train
from ablation.training.sources import FeatureSource, ImageSource, Source
from ablation.training.state import Training, TrainingSettings, begin_training, trained_tensors
from tests.training.test_feature_cache import cache as cache_in
from tests.training.test_feature_cache import some_images
from tests.training.test_loop import CPU, NORMALISATION, WAYS, figures

TRAIN, VAL = some_images(48, 1), some_images(20, 2)


def begin(
    learning: Learning, cache: FeatureCache, head: Head, settings: TrainingSettings, backbone: str = "vgg16_narrow_bn"
) -> Training:
    model = build_model(backbone, "block3", head, 3, 32)
    initialise(model, None, 0)
    model = model.to(memory_format=torch.channels_last)
    return begin_training(model, learning, settings, NORMALISATION, lambda frozen: cache.source(TRAIN, frozen, "none"))


def no_cache(folder: Path) -> FeatureCache:
    return cache_in(folder, limit=0)


ONE_STEP = TrainingSettings(
    epochs=1, batch_size=48, seed=0, precision="float32", schedule="constant", max_grad_norm=1e9
)
SEVERAL = TrainingSettings(epochs=3, batch_size=16, seed=5, precision="float32")

# What of a narrow VGG-16 with batch norm learns, up to its third block: (settings, parameter -> its peak rate or None).
TOP = {"strategy": "fine_tune_top", "lr": 0.4, "backbone_lr_scale": 0.5, "weight_decay": 0.0}
ALL = TOP | {"strategy": "fine_tune_all"}


def is_norm(name: str) -> bool:
    return ".bn" in name


def block_of(name: str) -> int:
    return int(name.split(".")[1].removeprefix("block"))


def unit_of(name: str) -> tuple[int, int]:
    """Return (block, number in it) of a parameter such as blocks.block3.conv3_2.weight."""
    block, number = name.split(".")[2].lstrip("convb").removeprefix("n").split("_")
    return int(block), int(number)


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "all": (ALL, lambda name: 0.2),
    "norms": (ALL | {"learn": "norms"}, lambda name: 0.2 if is_norm(name) else None),
    "biases": (ALL | {"learn": "biases"}, lambda name: 0.2 if name.endswith("bias") else None),
    "block1": (ALL | {"learn": "block1"}, lambda name: 0.2 if block_of(name) == 1 else None),
    "block2": (ALL | {"learn": "block2"}, lambda name: 0.2 if block_of(name) == 2 else None),
    "block3": (ALL | {"learn": "block3"}, lambda name: 0.2 if block_of(name) == 3 else None),
    "unit": (TOP | {"freeze_depth": "conv2_1"}, lambda name: 0.2 if unit_of(name) > (2, 1) else None),
    "unit at a block's end": (TOP | {"freeze_depth": "conv2_2"}, lambda name: 0.2 if block_of(name) > 2 else None),
    "norms above a unit": (
        TOP | {"freeze_depth": "conv3_1", "learn": "norms"},
        lambda name: 0.2 if unit_of(name) > (3, 1) and is_norm(name) else None,
    ),
    "decay": (ALL | {"lr_decay": 0.1}, lambda name: {1: 0.002, 2: 0.02, 3: 0.2}[block_of(name)]),
    "decay above a unit": (
        TOP | {"freeze_depth": "conv2_1", "lr_decay": 0.5},
        lambda name: {2: 0.1, 3: 0.2}[block_of(name)] if unit_of(name) > (2, 1) else None,
    ),
    "decay of biases": (
        ALL | {"learn": "biases", "lr_decay": 0.5},
        lambda name: {1: 0.05, 2: 0.1, 3: 0.2}[block_of(name)] if name.endswith("bias") else None,
    ),
    "from scratch": (
        ALL | {"strategy": "from_scratch", "backbone_lr_scale": None, "learn": "block2"},
        lambda name: 0.4 if block_of(name) == 2 else None,
    ),
}


def gradients(model: TransferModel, frozen: Any, order_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter of a network for all images at once, in the modes that it is in."""
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs = frozen(TRAIN.images_NCHW[order_N])
    cross_entropy(model(inputs, len(frozen.layers)), TRAIN.labels_N[order_N]).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_a_step_changes_what_learns_by_its_rate(case: str, tmp_path: Path) -> None:
    """Nesterov's first step is -lr (1 + momentum) gradient; all else, statistics included, is equal to the bit."""
    of, rate_of = CASES[case]
    training = begin(Learning(**of), no_cache(tmp_path), Head(8), ONE_STEP)
    model = training.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = ImageSource(TRAIN, training.frozen, "none")

    textbook = copy.deepcopy(model)
    textbook.train()
    for name, module in textbook.blocks.named_modules():
        if name.count(".") == 1:
            learns = any(rate_of(f"blocks.{name}.{inside}") is not None for inside, _ in module.named_parameters())
            module.train(learns and of.get("learn") != "biases")
    seed_globally(0, "epoch", 1)
    order_N = torch.randperm(48, generator=generator(0, "order", 1))
    gradient = gradients(textbook, training.frozen, order_N)

    list(train(training, source, source, ONE_STEP))
    learning_blocks = set()
    for name, parameter in model.named_parameters():
        rate = 0.4 if name.startswith("head.") else rate_of(name)
        if rate is None:
            assert torch.equal(parameter, before[name]), name
        else:
            expected = before[name] - rate * 1.9 * gradient[name]
            assert torch.allclose(parameter, expected, rtol=1e-3, atol=1e-6), name
            assert not torch.equal(parameter, before[name]) or not gradient[name].any(), name
            learning_blocks.add(name.split(".")[1])
    names = [name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    for name in names:
        learns = rate_of(name.replace(name.rpartition(".")[2], "weight")) is not None
        assert torch.equal(model.state_dict()[name], before[name]) != learns, name
    unchanged = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    trained = trained_tensors(model)
    assert not (trained.keys() & unchanged) - {"feature_mean_D", "feature_std_D"} - _dead(gradient)


def _dead(gradient: dict[str, torch.Tensor]) -> set[str]:
    """Return the parameters whose gradient is zero, or so small that the step is lost in rounding."""
    return {name for name, g in gradient.items() if g.abs().max() < 1e-7}


HEADS = {
    "probe": Head(0),
    "probe with norm and dropout": Head(0, norm="layer", dropout=0.5),
    "batch norm": Head(8, norm="batch"),
    "dropout": Head(8, dropout=0.5),
    "batch norm and dropout": Head(8, norm="batch", dropout=0.3),
}
RESUMED = [
    *((CASES[case][0], Head(8)) for case in ("norms", "biases", "block2", "unit", "decay above a unit")),
    *((TOP | {"strategy": "feature_extraction", "backbone_lr_scale": None}, head) for head in HEADS.values()),
    (CASES["decay"][0], HEADS["batch norm and dropout"]),
]


def figures_of(training: Training) -> list[dict[str, Any]]:
    return figures([asdict(metrics) for metrics in training.history])


def sources(training: Training, cache: FeatureCache) -> tuple[Source, Source]:
    return cache.source(TRAIN, training.frozen, "none"), cache.source(VAL, training.frozen, "none")


@pytest.mark.parametrize(("learning", "head"), RESUMED)
def test_resumed_and_with_cached_features_it_is_the_same_to_the_bit(
    learning: dict[str, Any], head: Head, tmp_path: Path
) -> None:
    settings = replace(SEVERAL, optimizer="adamw")
    whole = begin(Learning(**learning), no_cache(tmp_path), head, settings)
    list(train(whole, *sources(whole, no_cache(tmp_path)), settings))
    assert len({epoch["train_loss"] for epoch in figures_of(whole)}) == 3

    cached = begin(Learning(**learning), cache_in(tmp_path / "c"), head, settings)
    train_source, val_source = sources(cached, cache_in(tmp_path / "c"))
    assert isinstance(train_source, FeatureSource) == bool(cached.frozen.layers)
    epochs = train(cached, train_source, val_source, settings)
    next(epochs)
    path = save_resume_checkpoint(tmp_path, 1, cached.state_dict())
    resumed = begin(Learning(**learning), cache_in(tmp_path / "c"), head, settings)
    torch.rand(7)  # what else is drawn in the process has no influence
    resumed.load_state_dict(load_resume_checkpoint(path, CPU))
    list(train(resumed, *sources(resumed, cache_in(tmp_path / "c")), settings))

    list(epochs)
    for other in (cached, resumed):
        assert figures_of(other) == figures_of(whole)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], tensor), name
        assert other.best_tensors.keys() == whole.best_tensors.keys()


@pytest.mark.parametrize("backbone", ["vgg16_narrow_bn", "resnet18"])
@pytest.mark.parametrize("way", WAYS)
def test_with_cached_features_each_way_is_the_same_to_the_bit(way: str, backbone: str, tmp_path: Path) -> None:
    settings = replace(SEVERAL, epochs=4, **WAYS[way])
    learning = Learning(**(TOP | {"freeze_depth": 1, "lr": 0.02, "lr_decay": 0.5}))
    trainings = []
    for cache in (no_cache(tmp_path), cache_in(tmp_path)):
        training = begin(learning, cache, Head(8), settings, backbone)
        train_source, val_source = sources(training, cache)
        assert isinstance(train_source, FeatureSource) == bool(trainings)
        list(train(training, train_source, val_source, settings))
        trainings.append(training)
    computed, cached = trainings
    assert figures_of(cached) == figures_of(computed)
    assert len(figures_of(cached)) >= 2
    for name, tensor in computed.best_tensors.items():
        assert torch.equal(cached.best_tensors[name], tensor), name


@pytest.mark.parametrize("case", CASES)
def test_features_are_standardised_as_the_first_epoch_sees_them(case: str, tmp_path: Path) -> None:
    """Batch norms that learn standardise over the batch; those that are frozen, or keep their statistics, do not."""
    training = begin(Learning(**CASES[case][0]), no_cache(tmp_path), Head(8), ONE_STEP)
    model = training.model
    set_training_mode(model, model.learning_layers)
    with torch.no_grad():
        pooled = model.pooled(training.frozen(TRAIN.images_NCHW), len(training.frozen.layers))
    inputs = (pooled - model.feature_mean_D) / model.feature_std_D
    assert inputs.mean(0).abs().max() < 1e-3
    assert inputs.std(0, correction=0).median() == pytest.approx(1, abs=1e-3)


def test_features_are_cached_before_the_first_layer_that_learns(tmp_path: Path) -> None:
    """In layers: 7 and 7 of the first blocks, three for each convolution of the narrow VGG-16 with batch norm."""
    for learning, layers in (
        (ALL, 0), (ALL | {"learn": "block1"}, 0), (ALL | {"learn": "block2"}, 7), (ALL | {"learn": "block3"}, 14),
        (TOP | {"freeze_depth": "conv2_1"}, 10), (TOP | {"freeze_depth": "conv1_2"}, 7),
        (TOP | {"freeze_depth": "conv3_3"}, 24),
    ):  # fmt: skip
        training = begin(Learning(**learning), no_cache(tmp_path), Head(8), ONE_STEP)
        assert len(training.frozen.layers) == layers
        assert (training.frozen.pool is not None) == (layers == 24)


def test_layers_after_the_block_that_learns_drop_nothing() -> None:
    """ConvNeXt drops whole branches in training: only in the blocks that learn."""
    model = build_model("convnext_tiny", "block3", Head(4), 3, 32)
    initialise(model, None, 0)
    settings = TrainingSettings(epochs=1, batch_size=4, seed=0, precision="float32")
    training = begin_training(model, Learning("fine_tune_all", 0.1, learn="block2"), settings, NORMALISATION)
    source = ImageSource(some_images(4, 3), training.frozen, "none")
    list(train(training, source, source, settings))
    set_training_mode(model, model.learning_layers)
    modes = {name: block.training for name, block in model.blocks.named_modules() if isinstance(block, nn.Sequential)}
    assert {name.split(".")[0] for name, training in modes.items() if training and "." in name} == {"block2"}
