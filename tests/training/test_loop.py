import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from ablation.base.generators import generator
from ablation.data.images import Images, normalise
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.spec.parameters import Augmentation
from ablation.training import loop
from ablation.training.checkpoint import load_resume_checkpoint, save_resume_checkpoint
from ablation.training.evaluation import Evaluation, evaluate
from ablation.training.loop import Diverged, train
from ablation.training.loss import balanced_weights, weighted_loss
from ablation.training.schedule import lr_factor
from ablation.training.settings import TrainingSettings
from ablation.training.sources import FrozenPart, ImageSource
from ablation.training.state import (
    Training,
    begin_training,
    calibration_sample,
    load_tensors,
    trained_tensors,
)

CPU = torch.device("cpu")
NORMALISATION = Normalisation((0.5,) * 3, (0.25,) * 3)
AS_THEY_ARE = FrozenPart([], None, NORMALISATION, "float32")


def some_images(n: int, seed: int) -> Images:
    """Images whose brightness gives their class away."""
    labels = torch.randint(0, 3, (n,), generator=generator(seed, "labels"))
    noise = torch.randint(0, 60, (n, 3, 32, 32), generator=generator(seed, "pixels"))
    return Images((noise + 60 * labels[:, None, None, None]).to(torch.uint8), labels)


TRAIN, VAL = some_images(96, 1), some_images(30, 2)


SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 16, "schedule": "cosine", "label_smoothing": 0.0, "class_weights": "none",
    "max_grad_norm": 1e9, "head_warmup_epochs": 0, "precision": "float32", "seed": 5,
}  # fmt: skip


def begun(
    settings: TrainingSettings, augmentation: Augmentation = "none", backbone: str = "vgg16_narrow", **learning: Any
) -> Training:
    """Return a training as a trial begins it."""
    model = build_model(backbone, "block2", Head(8, 2), 3, 32)
    initialise(model, None, 0)
    of = {"strategy": "fine_tune_all", "lr": 0.02, "backbone_lr_scale": 0.5} | learning
    return begin_training(
        model, Learning(**of), settings, NORMALISATION, lambda frozen: sources(frozen, augmentation)[0]
    )


def training(strategy: str = "fine_tune_all", optimizer: str = "sgd", **learning: Any) -> Training:
    return begun(TrainingSettings(**(SETTINGS | {"optimizer": optimizer})), strategy=strategy, **learning)


def run(state: Training, augmentation: Augmentation = "crop_flip", **more: Any) -> list[dict[str, Any]]:
    frozen = replace(state.frozen, precision=more.get("precision", "float32"))
    return [
        asdict(metrics)
        for metrics in train(state, *sources(frozen, augmentation), TrainingSettings(**(SETTINGS | more)))
    ]


def sources(frozen: FrozenPart, augmentation: Augmentation = "crop_flip") -> tuple[ImageSource, ImageSource]:
    return ImageSource(TRAIN, frozen, augmentation), ImageSource(VAL, frozen, "none")


def figures(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in epoch.items() if k not in ("timestamp", "images_per_second")} for epoch in epochs]


def test_it_learns() -> None:
    epochs = run(training("feature_extraction", lr=0.05), epochs=5, augmentation="none")
    assert epochs[-1]["val_accuracy"] > 0.9
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_seed_same_figures(optimizer: str) -> None:
    first = figures(run(training(optimizer=optimizer)))
    assert figures(run(training(optimizer=optimizer))) == first
    assert figures(run(training(optimizer=optimizer), seed=6)) != first


@pytest.mark.parametrize(("optimizer", "warmup"), [("sgd", 2), ("adamw", 0)])
def test_continued_training_equals_an_uninterrupted_one(optimizer: str, warmup: int, tmp_path: Path) -> None:
    whole = training(optimizer=optimizer)
    expected = figures(run(whole, epochs=4, head_warmup_epochs=warmup))
    for stop in (1, 3):
        begun = training(optimizer=optimizer)
        settings = TrainingSettings(**(SETTINGS | {"epochs": 4, "head_warmup_epochs": warmup}))
        epochs = train(begun, *sources(begun.frozen), settings)
        for _ in range(stop):
            next(epochs)
        path = save_resume_checkpoint(tmp_path, stop, begun.state_dict())
        continued = training(optimizer=optimizer)
        continued.load_state_dict(load_resume_checkpoint(path, CPU))
        list(train(continued, *sources(continued.frozen), settings))
        assert figures([asdict(metrics) for metrics in continued.history]) == expected
        assert all(torch.equal(t, whole.best_tensors[name]) for name, t in continued.best_tensors.items())
        expected_tensors = trained_tensors(whole.model)
        assert all(torch.equal(t, expected_tensors[name]) for name, t in trained_tensors(continued.model).items())


def test_head_warmup_leaves_the_backbone_alone() -> None:
    state = training(lr=0.1)
    before = state.model.blocks.block1.conv1_1.weight.clone()
    head_before = state.model.head[0].weight.clone()
    settings = TrainingSettings(**(SETTINGS | {"head_warmup_epochs": 1}))
    epochs = train(state, *sources(state.frozen), settings)
    next(epochs)
    assert torch.equal(state.model.blocks.block1.conv1_1.weight, before)
    assert not torch.equal(state.model.head[0].weight, head_before)
    assert "blocks.block1.conv1_1.weight" in trained_tensors(state.model)
    next(epochs)
    assert not torch.equal(state.model.blocks.block1.conv1_1.weight, before)


def test_best_epoch_is_the_first_with_the_highest_accuracy() -> None:
    state = training()
    run(state, epochs=4)
    accuracies = [metrics.val_accuracy for metrics in state.history]
    assert state.best.epoch == accuracies.index(max(accuracies)) + 1
    load_tensors(state.model, state.best_tensors)
    best = state.best
    expected = Evaluation(best.val_loss, best.val_accuracy, best.val_balanced_accuracy, best.val_macro_f1)
    assert evaluate(state.model, ImageSource(VAL, AS_THEY_ARE, "none"), "float32") == expected


def test_learning_rate_by_hand() -> None:
    assert [lr_factor("cosine", step, 4) for step in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert lr_factor("constant", 3, 4) == 1
    # 96 images in batches of 16 are 6 steps an epoch: epochs begin at steps 0, 6 and 12 of 18.
    epochs = run(training(lr=0.02), epochs=3)
    assert [epoch["lr"] for epoch in epochs] == pytest.approx([0.02 * lr_factor("cosine", s, 18) for s in (0, 6, 12)])


def test_first_step_by_hand() -> None:
    """One step of SGD on one batch: the new weights are the old ones minus rate times (gradient + decay)."""
    state = training("fine_tune_all", lr=0.1, backbone_lr_scale=0.25)
    reference = training("fine_tune_all").model
    run(state, epochs=1, batch_size=96, augmentation="none")
    inputs = (TRAIN.images_NCHW.float() / 255 - 0.5) / 0.25
    torch.nn.functional.cross_entropy(reference(inputs), TRAIN.labels_N).backward()
    for name, parameter in reference.named_parameters():
        rate = 0.1 if name.startswith("head") else 0.025
        decay = 5e-4 * parameter if name.endswith("weight") else 0
        # Nesterov's first step moves by (1 + momentum) times the gradient.
        expected = parameter - rate * 1.9 * (parameter.grad + decay)
        assert torch.allclose(dict(state.model.named_parameters())[name], expected, atol=1e-5), name


def test_long_gradients_are_shortened() -> None:
    """With plain steps at a rate of 1, no step is longer than the largest norm allowed."""
    state = training("from_scratch", lr=1.0, weight_decay=0.0)
    for group in state.optimizer.param_groups:
        group |= {"momentum": 0.0, "nesterov": False}
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    run(state, epochs=1, batch_size=96, max_grad_norm=1e-3)
    after = list(state.model.parameters())
    moved = sum(((a - b) ** 2).sum().item() for a, b in zip(after, before, strict=True)) ** 0.5
    assert moved == pytest.approx(1e-3, rel=0.01)


def test_evaluation_by_hand() -> None:
    class Constant(torch.nn.Module):
        def forward(self, images: torch.Tensor, start: int) -> torch.Tensor:
            return torch.tensor([2.0, 0.0]).expand(len(images), 2)

    images = Images(torch.zeros(1000, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1] * 250))
    found = evaluate(Constant(), ImageSource(images, AS_THEY_ARE, "none"), "float32")
    assert (found.accuracy, found.balanced_accuracy) == (0.75, 0.5)
    assert found.macro_f1 == pytest.approx((2 * 0.75 / 1.75 + 0) / 2)  # precision 0.75, recall 1; and nothing
    assert found.loss == pytest.approx(math.log(1 + math.exp(-2)) + 0.25 * 2, rel=1e-6)


def test_balanced_weights_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 3])
    # 9 images of 4 classes; the third has none and weighs what one image would.
    assert balanced_weights(labels, 4).tolist() == pytest.approx([9 / 24, 9 / 8, 9 / 4, 9 / 4])


def test_weights_count_in_batches_of_any_size() -> None:
    """The mean over single images is that over all of them at once."""
    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), torch.tensor([0, 0, 1])
    weights = balanced_weights(labels, 2)  # 3/4 and 3/2
    each = [-math.log(math.exp(1) / (math.exp(1) + 1)), -math.log(1 / (1 + math.exp(2))), math.log(1 + math.exp(2))]
    single = [weighted_loss(logits[[i]], labels[[i]], weights, 0.0).item() for i in range(3)]
    assert single == pytest.approx([0.75 * each[0], 0.75 * each[1], 1.5 * each[2]], rel=1e-5)
    assert weighted_loss(logits, labels, weights, 0.0).item() == pytest.approx(sum(single) / 3, rel=1e-5)


def test_class_weights_make_a_step_that_counts_classes_alike() -> None:
    """A step on all images moves by the gradient of the mean over classes of the classes' mean losses."""
    labels = torch.cat([torch.zeros(60), torch.ones(30), torch.full((6,), 2)]).long()
    images = Images(TRAIN.images_NCHW, labels)
    state, reference = (training("fine_tune_all", lr=0.1, weight_decay=0.0) for _ in range(2))
    source = ImageSource(images, state.frozen, "none")
    settings = TrainingSettings(**(SETTINGS | {"epochs": 1, "batch_size": 96, "class_weights": "balanced"}))
    (metrics,) = train(state, source, source, settings)
    losses_N = torch.nn.functional.cross_entropy(
        reference.model((images.images_NCHW.float() / 255 - 0.5) / 0.25), labels, reduction="none"
    )
    loss = torch.stack([losses_N[labels == number].mean() for number in range(3)]).mean()
    loss.backward()
    assert metrics.train_loss == pytest.approx(loss.item(), rel=1e-5)
    head, expected = state.model.head[2].weight, reference.model.head[2].weight
    assert torch.allclose(head, expected - 0.1 * 1.9 * expected.grad, atol=1e-6)


def test_calibration_sees_every_class_of_ordered_images() -> None:
    labels = torch.arange(10).repeat_interleave(450)
    sample = calibration_sample(len(labels))
    assert len(sample) == 1000
    assert torch.bincount(labels[sample]).min() >= 99
    assert calibration_sample(7).tolist() == list(range(7))


def test_batches_without_gradients_shrink_with_the_image() -> None:
    sizes = {
        side: [
            len(batch)
            for batch in ImageSource(
                Images(torch.zeros(1030, 3, side, side, dtype=torch.uint8), torch.zeros(1030)), AS_THEY_ARE, "none"
            ).in_order()
        ]
        for side in (32, 64)
    }
    assert sizes[32] == [512, 512, 6]
    assert sizes[64] == [128] * 8 + [6]


def test_divergence_is_raised() -> None:
    state = training(lr=1e30)
    with pytest.raises(Diverged, match=r"loss became (nan|inf) in epoch 1"):
        run(state)
    assert state.history == []


def test_bfloat16_is_close_to_float32() -> None:
    exact, rounded = run(training(lr=1e-3)), run(training(lr=1e-3), precision="bfloat16")
    assert rounded[-1]["train_loss"] == pytest.approx(exact[-1]["train_loss"], rel=0.02)
    assert rounded[-1]["train_loss"] != exact[-1]["train_loss"]


def test_tensors_of_another_model_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no tensor other"):
        load_tensors(training().model, {"other": torch.ones(1)})


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_training_is_close_and_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler imports setuptools, which refuses a distutils that another test of this process imported before.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    counters.clear()
    eager = run(training(), epochs=2)
    for seed in (5, 6):  # another trial of the same shape
        compiled = run(training(), epochs=2, compile="default", seed=seed)
        assert counters["stats"]["unique_graphs"] == 1
        if seed == 5:
            for mine, theirs in zip(compiled, eager, strict=True):
                assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
                assert mine["val_accuracy"] == pytest.approx(theirs["val_accuracy"], abs=1 / 30 + 1e-9)


WAYS = {
    "unfreeze_every": {"unfreeze_every": 1}, "l2_sp": {"l2_sp": 0.1}, "ema": {"ema": 0.9}, "patience": {"patience": 1},
    "all": {"unfreeze_every": 1, "head_warmup_epochs": 2, "l2_sp": 0.1, "ema": 0.9, "patience": 3},
}  # fmt: skip


@pytest.mark.parametrize(("way", "augmentation"), [*((way, "none") for way in WAYS), ("all", "strong")])
def test_each_way_resumes_to_the_bit(way: str, augmentation: Augmentation, tmp_path: Path) -> None:
    settings = TrainingSettings(**(SETTINGS | {"epochs": 4} | WAYS[way]))
    whole = begun(settings, augmentation)
    expected = figures([asdict(metrics) for metrics in train(whole, *sources(whole.frozen, augmentation), settings)])
    assert len(expected) >= 2
    first = begun(settings, augmentation)
    epochs = train(first, *sources(first.frozen, augmentation), settings)
    next(epochs)
    path = save_resume_checkpoint(tmp_path, 1, first.state_dict())
    next(epochs)  # which the checkpoint does not have
    resumed = begun(settings, augmentation)
    resumed.load_state_dict(load_resume_checkpoint(path, CPU))
    later = [asdict(metrics) for metrics in train(resumed, *sources(resumed.frozen, augmentation), settings)]
    assert figures(later) == expected[1:]
    for name, tensor in whole.best_tensors.items():
        assert torch.equal(tensor, resumed.best_tensors[name]), name


@pytest.mark.parametrize("backbone", ["vgg16_narrow", "resnet18"])
def test_blocks_that_wait_are_unchanged_to_the_bit(backbone: str) -> None:
    settings = TrainingSettings(**(SETTINGS | {"epochs": 4, "unfreeze_every": 1}))
    state = begun(settings, backbone=backbone)
    changed = []
    before = trained_tensors(state.model)
    for _ in train(state, *sources(state.frozen, "none"), settings):
        now = trained_tensors(state.model)
        names = [name for name in now if not torch.equal(now[name], before[name])]
        changed.append({name.split(".")[1] if name.startswith("blocks") else "head" for name in names})
        before = now
    assert changed == [{"head"}, {"head", "block2"}, {"head", "block1", "block2"}, {"head", "block1", "block2"}]


def test_a_training_without_progress_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule keeps its length: the epochs are those of a training without patience."""
    values = iter([0.4, 0.5, 0.5, 0.45, 0.9])
    evaluation = Evaluation(1.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr(loop, "evaluate", lambda *_: replace(evaluation, accuracy=next(values)))
    epochs = run(training(), epochs=5, patience=2)
    assert [epoch["val_accuracy"] for epoch in epochs] == [0.4, 0.5, 0.5, 0.45]
    values = iter([0.4, 0.5, 0.5, 0.45, 0.9])
    assert figures(run(training(), epochs=5))[:4] == figures(epochs)


def test_the_average_of_the_weights_is_what_is_evaluated() -> None:
    """Averaged by hand after every step; the training itself is that of the weights."""
    settings = TrainingSettings(**(SETTINGS | {"epochs": 2, "batch_size": 48, "ema": 0.15}))
    plain = begun(replace(settings, ema=0.0))
    average = {n: tensor.double() for n, tensor in trained_tensors(plain.model).items() if tensor.is_floating_point()}
    decays = iter([0.1, 0.15, 0.15, 0.15])  # (1 + step) / (10 + step), at most 0.15

    def record(*_: Any) -> None:
        decay = next(decays)
        for name, tensor in trained_tensors(plain.model).items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double()

    plain.optimizer.register_step_post_hook(record)
    losses = [
        metrics.train_loss for metrics in train(plain, *sources(plain.frozen, "none"), replace(settings, ema=0.0))
    ]
    state = begun(settings)
    with_average = list(train(state, *sources(state.frozen, "none"), settings))
    assert [metrics.train_loss for metrics in with_average] == losses
    for name, tensor in state.averages.items():
        torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-7)
    for name, tensor in trained_tensors(plain.model).items():
        assert torch.equal(tensor, trained_tensors(state.model)[name]), name
    load_tensors(plain.model, state.averages)
    assert evaluate(plain.model, sources(plain.frozen)[1], "float32").loss == with_average[-1].val_loss
    assert any(torch.equal(state.best_tensors[name], tensor) for name, tensor in state.averages.items())


@pytest.mark.parametrize("backbone", ["vgg16_narrow", "resnet18"])
def test_pretrained_weights_are_pulled_back_to_their_start(backbone: str) -> None:
    """One step of plain gradient descent; the head decays towards zero, the blocks towards their start."""
    settings = TrainingSettings(**(SETTINGS | {"epochs": 1, "batch_size": 96, "schedule": "constant", "l2_sp": 0.3}))
    state = begun(settings, backbone=backbone)
    gradients = {}
    for name, parameter in state.model.named_parameters():
        with torch.no_grad():
            if name.startswith("blocks"):
                parameter += 0.01  # away from the start, else there is nothing to pull
    before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    for group in state.optimizer.param_groups:
        group |= {"momentum": 0.0, "nesterov": False}
    state.model.train()
    batch = sources(state.frozen, "none")[0].images
    logits = state.model(normalise(batch.images_NCHW, NORMALISATION))
    torch.nn.functional.cross_entropy(logits, batch.labels_N).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in state.model.named_parameters()}
    list(train(state, *sources(state.frozen, "none"), settings))
    for name, parameter in state.model.named_parameters():
        is_head = name.startswith("head")
        decay = 5e-4 * before[name] if is_head and parameter.ndim > 1 else 0
        pull = 0 if is_head else 0.3 * 0.01
        expected = before[name] - 0.02 * (1 if is_head else 0.5) * (gradients[name] + decay + pull)
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
