"""What learns of a backbone, counted in units: VGG-16 has 2, 2, 3, 3 and 3 convolutions in its blocks."""

import pytest

from ablation.spec.parameters import STRATEGIES, Strategy, StrategyName
from ablation.spec.reuse import Reuse, cut_at_end, unit_at_end, units_up_to


@pytest.mark.parametrize(
    ("strategy", "freeze_depth", "expected"),
    [
        ("feature_extraction", None, set()),
        ("fine_tune_top", None, {"freeze_depth", "backbone_lr_scale", "head_warmup_epochs", "learn", "lr_decay"}),
        ("fine_tune_top", 1, {"freeze_depth", "backbone_lr_scale", "head_warmup_epochs", "learn"}),
        ("fine_tune_top", "conv1_1", {"freeze_depth", "backbone_lr_scale", "head_warmup_epochs", "learn", "lr_decay"}),
        ("fine_tune_top", "conv2_1", {"freeze_depth", "backbone_lr_scale", "head_warmup_epochs", "learn"}),
        ("fine_tune_top", 2, {"freeze_depth"}),  # all kept blocks are frozen
        ("fine_tune_top", "conv2_2", {"freeze_depth"}),
        ("fine_tune_all", None, {"backbone_lr_scale", "head_warmup_epochs", "learn", "lr_decay"}),
        ("from_scratch", None, {"learn"}),
    ],
)
def test_parameters_with_an_effect(strategy: StrategyName, freeze_depth: int | str | None, expected: set[str]) -> None:
    parameters = ("freeze_depth", "backbone_lr_scale", "head_warmup_epochs", "learn", "lr_decay")
    reuse = Reuse("vgg16", "block2", strategy, freeze_depth)
    assert {name for name in parameters if reuse.applies(name)} == expected
    assert reuse.applies("lr")


def test_a_single_block_has_no_block_above_it() -> None:
    assert not Reuse("vgg16", "block2", "fine_tune_all", learn="block1").applies("lr_decay")
    assert Reuse("vgg16", "block2", "fine_tune_all", learn="block1").applies("backbone_lr_scale")
    assert Reuse("vgg16", "block2", "fine_tune_all", learn="biases").applies("lr_decay")
    assert not Reuse("vgg16", "block1", "fine_tune_all").applies("lr_decay")


def test_a_new_strategy_needs_no_other_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """What applies to it follows from its description."""
    monkeypatch.setitem(STRATEGIES, "random_features", Strategy(starts_pretrained=False, freezes="all"))
    reuse = Reuse("vgg16", "block3", "random_features")  # type: ignore[arg-type]
    assert not reuse.applies("backbone_lr_scale")
    assert (reuse.frozen, reuse.kept) == (7, 7)


@pytest.mark.parametrize(
    ("cut", "depth", "learn", "learning"),
    [
        ("block3", 0, "all", range(7)),
        ("block3", 1, "all", range(2, 7)),
        ("block3", 3, "all", range(7, 7)),
        ("conv3_2", 3, "all", range(6, 6)),  # block 3 is cut inside
        ("block3", "conv2_1", "all", range(3, 7)),
        ("block3", "conv2_1", "norms", range(3, 7)),
        ("block3", "conv2_1", "block2", range(3, 4)),
        ("block3", "conv2_1", "block3", range(4, 7)),
        ("conv3_2", 0, "block3", range(4, 6)),
        ("block5", 0, "block1", range(2)),
    ],
)
def test_units_that_learn(cut: str, depth: int | str, learn: str, learning: range) -> None:
    reuse = Reuse("vgg16", cut, "fine_tune_top", depth, learn)
    assert reuse.learning == learning
    assert reuse.frozen == (learning.start if learning else reuse.kept)
    assert reuse.fault() is None


@pytest.mark.parametrize(
    ("cut", "depth", "learn", "fault"),
    [
        ("conv3_1", "conv3_2", "all",
         ("freeze_depth", "conv3_2 cannot be frozen where conv3_1 is the last that is kept")),
        ("block2", 0, "block3", ("learn", "block3 cannot learn, because block2 cuts it off")),
        ("block3", 2, "block2", ("learn", "block2 cannot learn, because freeze_depth = 2 freezes it")),
        ("block3", "conv2_2", "block1", ("learn", "block1 cannot learn, because freeze_depth = conv2_2 freezes it")),
    ],
)  # fmt: skip
def test_what_contradicts_itself(cut: str, depth: int | str, learn: str, fault: tuple[str, str]) -> None:
    reuse = Reuse("vgg16", cut, "fine_tune_top", depth, learn)
    assert reuse.fault() == fault
    assert not reuse.learning


def test_names_and_numbers_of_units() -> None:
    assert [units_up_to("vgg16", depth) for depth in (0, 1, 3, 5, "conv1_1", "conv3_3", "conv4_1")] == [
        0, 2, 7, 13, 1, 7, 8,
    ]  # fmt: skip
    assert [unit_at_end("vgg16", units) for units in (1, 2, 7, 8)] == ["conv1_1", "conv1_2", "conv3_3", "conv4_1"]
    assert [cut_at_end("vgg16", units) for units in (1, 2, 7, 8)] == ["conv1_1", "block1", "block3", "conv4_1"]
