"""What changes in the course of a training."""

from dataclasses import replace
from itertools import pairwise, product

import pytest

from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import Head, TransferModel, build_model
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import OBJECTIVES, ObjectiveName
from ablation.spec.parameters import StrategyName
from ablation.training import schedule
from ablation.training.schedule import average_decay, best_epoch, is_over, last_alike, layers_learning
from ablation.training.settings import TrainingSettings

SETTINGS = TrainingSettings(10, 16, 0, "float32")


def model(strategy: StrategyName = "fine_tune_all", **learning: object) -> TransferModel:
    made = build_model("vgg16_narrow", "block3", Head(8), 3, 32)
    apply_strategy(made, Learning(strategy, 0.1, **learning))  # type: ignore[arg-type]
    return made


def learning_blocks(made: TransferModel, settings: TrainingSettings) -> list[list[int]]:
    """Return the numbers of the blocks that learn whole in each epoch."""
    ends = [0]
    for block in made.blocks:
        ends.append(ends[-1] + len(list(block.children())))
    stages = [layers_learning(made, settings, epoch) for epoch in range(1, settings.epochs + 1)]
    for stage in stages:
        assert not stage or {stage.start, stage.stop} <= set(ends)
    blocks = [set(range(first, end)) for first, end in pairwise(ends)]
    return [[number for number, block in enumerate(blocks, 1) if block <= set(stage)] for stage in stages]


def test_everything_learns_from_the_start_by_default() -> None:
    assert learning_blocks(model(), SETTINGS) == [[1, 2, 3]] * 10


def test_the_head_learns_alone_in_the_warmup() -> None:
    assert learning_blocks(model(), replace(SETTINGS, head_warmup_epochs=2)) == [[]] * 2 + [[1, 2, 3]] * 8


def test_blocks_are_unfrozen_one_by_one_from_the_top() -> None:
    """As Howard and Ruder (2018): the head alone, then one more block after each two epochs."""
    expected = [[]] * 2 + [[3]] * 2 + [[2, 3]] * 2 + [[1, 2, 3]] * 4
    assert learning_blocks(model(), replace(SETTINGS, unfreeze_every=2)) == expected


def test_how_long_the_same_layers_learn() -> None:
    settings = replace(SETTINGS, unfreeze_every=2)
    assert [last_alike(model(), settings, epoch) for epoch in range(1, 11)] == [2, 2, 4, 4, 6, 6, 10, 10, 10, 10]
    assert [last_alike(model(), SETTINGS, epoch) for epoch in (1, 10)] == [10, 10]


@pytest.mark.parametrize(
    ("strategy", "depth"), [("fine_tune_all", None), ("fine_tune_top", 1), ("feature_extraction", None)]
)
def test_the_last_epoch_with_the_same_layers_is_the_one_before_they_change(
    strategy: StrategyName, depth: int | None
) -> None:
    made = model(strategy, freeze_depth=depth)
    for warmup, every, epochs in product((0, 1, 3), (0, 1, 2, 4), (1, 5, 12)):
        settings = replace(SETTINGS, epochs=epochs, head_warmup_epochs=warmup, unfreeze_every=every)
        stages = [layers_learning(made, settings, epoch) for epoch in range(1, epochs + 1)]
        for epoch, stage in enumerate(stages, start=1):
            others = [later for later in range(epoch, epochs + 1) if stages[later - 1] != stage]
            assert last_alike(made, settings, epoch) == min(others, default=epochs + 1) - 1


def test_the_last_epoch_is_found_without_looking_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of an epoch's time, and the benchmark trains for a million epochs."""
    looked_at: list[int] = []

    def learning(made: TransferModel, settings: TrainingSettings, epoch: int) -> range:
        looked_at.append(epoch)
        return layers_learning(made, settings, epoch)

    monkeypatch.setattr(schedule, "layers_learning", learning)
    settings = replace(SETTINGS, epochs=10**6, head_warmup_epochs=400_000)
    assert [last_alike(model(), settings, epoch) for epoch in (1, 400_001)] == [400_000, 10**6]
    assert len(looked_at) < 100


def test_a_warmup_comes_before_the_first_block() -> None:
    expected = [[]] + [[3]] * 3 + [[2, 3]] * 3 + [[1, 2, 3]] * 3
    assert learning_blocks(model(), replace(SETTINGS, unfreeze_every=3, head_warmup_epochs=1)) == expected


def test_frozen_blocks_stay_frozen() -> None:
    made = model("fine_tune_top", freeze_depth=1)
    assert learning_blocks(made, replace(SETTINGS, unfreeze_every=1)) == [[], [3]] + [[2, 3]] * 8
    made = model("fine_tune_top", freeze_depth="conv3_1")  # a part of the last block learns from the first stage on
    stages = [layers_learning(made, replace(SETTINGS, unfreeze_every=1), epoch) for epoch in (1, 2, 3)]
    assert [len(stage) for stage in stages] == [0, len(made.learning_layers), len(made.learning_layers)]
    made = model(learn="block2")
    assert learning_blocks(made, replace(SETTINGS, unfreeze_every=1)) == [[]] + [[2]] * 9
    assert learning_blocks(model("feature_extraction"), replace(SETTINGS, unfreeze_every=1)) == [[]] * 10


def history(*accuracies: float) -> list[EpochMetrics]:
    values = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "lr": 0.1, "images_per_second": 1.0}
    balanced = {"val_balanced_accuracy": 0.5, "val_macro_f1": 0.5, "timestamp": 0}
    return [EpochMetrics(epoch=e, val_accuracy=a, **values, **balanced) for e, a in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("accuracies", "patience", "expected"),
    [
        ((), 2, False), ((0.5,), 1, False), ((0.5, 0.5), 1, True), ((0.5, 0.4), 2, False), ((0.5, 0.4, 0.5), 2, True),
        ((0.5, 0.4, 0.51), 2, False), ((0.5, 0.4, 0.51, 0.5), 2, False), ((0.5, 0.4, 0.3, 0.2), 0, False),
        ((0.1,) * 10, 0, True), (tuple(number / 20 for number in range(10)), 3, True),
    ],
)  # fmt: skip
def test_a_training_ends_when_nothing_has_improved(
    accuracies: tuple[float, ...], patience: int, expected: bool
) -> None:
    assert is_over(history(*accuracies), replace(SETTINGS, patience=patience)) is expected


def test_the_average_follows_quickly_at_first() -> None:
    assert average_decay(0.99, 0) == 0.1
    assert average_decay(0.99, 90) == 0.91
    assert average_decay(0.99, 10_000) == 0.99
    assert average_decay(0.5, 90) == 0.5


@pytest.mark.parametrize(("name", "best", "epochs"), [
    ("accuracy", 1, 3), ("balanced_accuracy", 3, 5), ("macro_f1", 2, 4), ("loss", 4, 6)
])  # fmt: skip
def test_the_objective_chooses_the_epoch_and_patience_waits_for_it(name: ObjectiveName, best: int, epochs: int) -> None:
    """The first of equals is the best; two epochs without a better one end the training."""
    values = [  # accuracy, balanced accuracy, macro F1, loss
        (0.9, 0.1, 0.1, 3.0), (0.8, 0.2, 0.7, 2.0), (0.9, 0.5, 0.6, 1.5), (0.1, 0.5, 0.7, 1.0), (0.2, 0.1, 0.1, 1.2),
        (0.2, 0.2, 0.1, 1.0),
    ]  # fmt: skip
    history = [
        EpochMetrics(n, 1.0, 0.5, loss, accuracy, 0.1, 1.0, n, balanced, f1)
        for n, (accuracy, balanced, f1, loss) in enumerate(values, start=1)
    ]
    assert best_epoch(history, OBJECTIVES[name]).epoch == best
    settings = replace(SETTINGS, objective=name, patience=2)
    ends = [n for n in range(1, len(history) + 1) if is_over(history[:n], settings)]
    assert ends[0] == epochs
