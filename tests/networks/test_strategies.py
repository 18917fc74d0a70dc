import pytest

from ablation.networks.strategies import Learning, apply_strategy, check_coverage
from ablation.networks.transfer_model import TransferModel, build_model, initialise
from ablation.spec.parameters import STRATEGIES


def model() -> TransferModel:
    built = build_model("vgg16_narrow", "conv3_2", 8, 2, 5, 32)
    initialise(built, "vgg16_narrow", None, 0)
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


def test_which_strategies_start_pretrained() -> None:
    assert {name: strategy.starts_pretrained for name, strategy in STRATEGIES.items()} == {
        "feature_extraction": True, "fine_tune_top": True, "fine_tune_all": True, "from_scratch": False,
    }  # fmt: skip


def test_a_parameter_left_out_or_given_twice_is_an_error() -> None:
    net = model()
    groups = apply_strategy(net, Learning("from_scratch", lr=1, weight_decay=0.1))
    left_out = groups[0]["params"].pop()
    with pytest.raises(AssertionError, match="head.2.weight is in 0 optimizer groups, not in 1"):
        check_coverage(net, groups)
    groups[0]["params"] += [left_out, left_out]
    with pytest.raises(AssertionError, match="head.2.weight is in 2 optimizer groups, not in 1"):
        check_coverage(net, groups)
    groups[0]["params"].pop()
    left_out.requires_grad_(False)
    with pytest.raises(AssertionError, match="head.2.weight is in 1 optimizer groups, not in 0"):
        check_coverage(net, groups)
