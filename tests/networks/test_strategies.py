from typing import Any

import pytest
import torch

from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import Head, TransferModel, build_model, initialise
from ablation.spec.parameters import STRATEGIES


def model() -> TransferModel:
    built = build_model("vgg16_narrow", "conv3_2", Head(8, 2), 5, 32)
    initialise(built, None, 0)
    return built


@pytest.mark.parametrize(
    ("strategy", "depth", "scale", "frozen_blocks", "backbone_lr"),
    [
        ("feature_extraction", None, None, ["block1", "block2", "block3"], None),
        ("fine_tune_top", 2, 0.1, ["block1", "block2"], 0.05),
        ("fine_tune_top", 0, 0.1, [], 0.05),
        ("fine_tune_top", 3, None, ["block1", "block2", "block3"], None),
        ("fine_tune_all", None, 0.01, [], 0.005),
        ("from_scratch", None, None, [], 0.5),
    ],
)
def test_what_each_strategy_trains(
    strategy: str, depth: int | None, scale: float | None, frozen_blocks: list[str], backbone_lr: float | None
) -> None:
    net = model()
    groups = apply_strategy(net, Learning(strategy, 0.5, depth, scale, weight_decay=0.1))
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in net.named_parameters() if n.split(".")[0] == "blocks" and n.split(".")[1] in frozen_blocks
    }

    names = {id(p): name for name, p in net.named_parameters()}
    grouped = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(grouped + sorted(frozen)) == sorted(names.values())  # each in exactly one place
    rates = {names[id(p)]: group["peak_lr"] for group in groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if name.startswith("head")} == {0.5}
    expected = [] if backbone_lr is None else [pytest.approx(backbone_lr)]
    assert list({rate for name, rate in rates.items() if name.startswith("blocks")}) == expected
    for group in groups:
        kinds = {names[id(p)].split(".")[-1] for p in group["params"]}
        assert kinds == ({"weight"} if group["weight_decay"] == 0.1 else {"bias"})


FAMILIES = ("resnet18", "convnext_tiny", "densenet121", "vgg16_bn", "vit_b_32", "regnet_y_400mf")


@pytest.mark.parametrize("backbone", FAMILIES)
def test_norms_and_biases_of_every_family(backbone: str) -> None:
    """By the classes of torchvision's modules and its names of parameters."""
    with torch.device("meta"):
        net = build_model(backbone, "block2", Head(8), 5, 64)
    modules = dict(net.named_modules())
    learned: dict[str, set[str]] = {}
    for learn in ("all", "norms", "biases"):
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        apply_strategy(net, Learning("fine_tune_all", 0.1, learn=learn))
        learned[learn] = {name for name, p in net.named_parameters() if p.requires_grad and name.startswith("blocks.")}
        assert net.learning_layers == range(len(net.layers))
    owners = {name: type(modules[name.rpartition(".")[0]]).__name__ for name in learned["all"]}
    assert learned["norms"] == {name for name, owner in owners.items() if "Norm" in owner} != set()
    assert learned["biases"] == {name for name in learned["all"] if name.endswith("bias")} != set()


def test_biases_learn_while_statistics_stay() -> None:
    """What checkpoints hold: with biases no batch norm's statistics, with norms those of the layers that learn."""
    for learn in ("norms", "biases"):
        net = build_model("vgg16_narrow_bn", "block2", Head(8, norm="batch"), 5, 32)
        apply_strategy(net, Learning("fine_tune_top", 0.1, freeze_depth="conv1_1", learn=learn))
        kept = {name for name in net.state_dict() if name not in net.frozen_tensors and name.startswith("blocks.")}
        units = {"block1.bn1_2", "block2.bn2_1", "block2.bn2_2"}
        tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        biases = {f"blocks.{unit}.bias" for unit in units | {unit.replace("bn", "conv") for unit in units}}
        norms = {f"blocks.{unit}.{name}" for unit in units for name in tensors}
        assert kept == (norms if learn == "norms" else biases)
        assert {"head.0.running_mean", "head.0.weight", "feature_mean_D"}.isdisjoint(net.frozen_tensors)
        modes = {name for name, module in net.blocks.named_modules() if ".bn" in name and module.training}
        assert modes == (units if learn == "norms" else set())
        assert net.head[0].training


@pytest.mark.parametrize(
    ("learning", "rates"),
    [
        ({"lr_decay": 0.1}, {"block1": 0.0005, "block2": 0.005, "block3": 0.05}),
        ({"lr_decay": 0.5, "strategy": "fine_tune_top", "freeze_depth": "conv1_1"},
         {"block1": 0.0125, "block2": 0.025, "block3": 0.05}),
        ({"lr_decay": 0.5, "strategy": "fine_tune_top", "freeze_depth": 1}, {"block2": 0.025, "block3": 0.05}),
        ({"lr_decay": 1.0}, {"backbone": 0.05}),
        ({}, {"backbone": 0.05}),
    ],
)  # fmt: skip
def test_rates_of_the_blocks(learning: dict[str, Any], rates: dict[str, float]) -> None:
    """The topmost has backbone_lr_scale x lr, and each block lr_decay times the rate of the block above it."""
    net = model()
    groups = apply_strategy(net, Learning(**({"strategy": "fine_tune_all"} | learning), lr=0.5, backbone_lr_scale=0.1))
    found = {group["name"]: group["peak_lr"] for group in groups}
    assert found == {"head": 0.5} | {name: pytest.approx(rate) for name, rate in rates.items()}
    names = {id(p): name for name, p in net.named_parameters()}
    for group in groups:
        assert {group["weight_decay"] > 0} == {p.ndim > 1 for p in group["params"]}
        if group["name"].startswith("block"):
            assert all(names[id(p)].startswith(f"blocks.{group['name']}.") for p in group["params"])


@pytest.mark.parametrize("backbone", FAMILIES)
def test_rates_of_the_blocks_of_every_family(backbone: str) -> None:
    with torch.device("meta"):
        net = build_model(backbone, "block3", Head(8), 5, 64)
    groups = apply_strategy(net, Learning("fine_tune_all", 0.5, lr_decay=0.1))
    rates = {id(parameter): group["peak_lr"] for group in groups for parameter in group["params"]}
    for name, block in net.blocks.named_children():
        rate = {"block1": 0.005, "block2": 0.05, "block3": 0.5}[name]
        assert all(rates[id(parameter)] == pytest.approx(rate) for parameter in block.parameters())


@pytest.mark.parametrize(
    ("backbone", "cut", "depth", "first"),
    [
        ("resnet50", "block3", "unit2_2", "blocks.block2.unit2_3.conv1.weight"),
        ("resnet50", "block3", "unit1_1", "blocks.block2.unit2_1.conv1.weight"),
        ("convnext_tiny", "block2", "unit1_3", "blocks.block2.downsample2_1.0.weight"),
        ("densenet121", "block2", "unit1_1", "blocks.block2.unit2_1.denselayer1.norm1.weight"),
        ("vgg16", "conv2_2", "conv2_1", "blocks.block2.conv2_2.weight"),
        ("alexnet", "block3", "conv3_2", "blocks.block3.conv3_3.weight"),
        ("vit_b_16", "block2", "unit1_1", "blocks.block1.unit1_2.ln_1.weight"),
        ("vit_b_16", "block2", 1, "blocks.block2.unit2_1.ln_1.weight"),
    ],
)
def test_everything_up_to_a_unit_or_block_is_frozen(backbone: str, cut: str, depth: str | int, first: str) -> None:
    with torch.device("meta"):
        net = build_model(backbone, cut, Head(8), 5, 64)
    apply_strategy(net, Learning("fine_tune_top", 0.1, freeze_depth=depth))
    names = [name for name, _ in net.named_parameters() if name.startswith("blocks.")]
    learning = [name for name, p in net.named_parameters() if p.requires_grad and name.startswith("blocks.")]
    assert learning == names[names.index(first) :]
    frozen = {id(p) for layer in net.layers[: net.learning_layers.start] for p in layer.parameters()}
    assert frozen == {id(p) for p in net.parameters() if not p.requires_grad}


def test_which_strategies_start_pretrained() -> None:
    assert {name: strategy.starts_pretrained for name, strategy in STRATEGIES.items()} == {
        "feature_extraction": True, "fine_tune_top": True, "fine_tune_all": True, "from_scratch": False,
    }  # fmt: skip
