"""The training step beside a loop that reads as a textbook has it: on the CPU in float32 they agree to the bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ablation.base.generators import generator, seed_globally
from ablation.data.augmentation import CROP_PADDING
from ablation.data.images import normalise
from ablation.networks.strategies import Learning
from ablation.networks.timm_backbones import load_timm_backbone
from ablation.networks.transfer_model import Head, build_model, initialise, set_training_mode
from ablation.spec.metrics import EpochMetrics
from ablation.spec.parameters import Augmentation, StrategyName
from ablation.training import step
from ablation.training.checkpoint import CorruptCheckpoint
from ablation.training.feature_cache import FeatureCache, Pretrained
from ablation.training.loop import train
from ablation.training.schedule import lr_factor
from ablation.training.settings import TrainingSettings
from ablation.training.sources import batch_places
from ablation.training.state import Training, _fill_momenta, begin_training, make_optimizer, trained_tensors
from tests.training.test_loop import CPU, NORMALISATION, some_images

TRAIN, VAL = some_images(97, 1), some_images(30, 2)  # five batches of 16 and one of 17


def cache_in(folder: Path, limit: int = 0) -> FeatureCache:
    return FeatureCache(folder, limit, lambda: Pretrained([], []), lambda text: None)


def begin(backbone: str, learning: Learning, settings: TrainingSettings, cache: FeatureCache, kind: Any) -> Training:
    model = build_model(backbone, "block2", Head(8, 2), 3, 32)
    initialise(model, None, 0)
    return begin_training(model, learning, settings, NORMALISATION, lambda frozen: cache.source(TRAIN, frozen, kind))


def fine_tuning(settings: TrainingSettings, cache: FeatureCache) -> Training:
    return begin("vgg16_narrow", Learning("fine_tune_all", 0.02), settings, cache, "none")


def train_on(
    training: Training, settings: TrainingSettings, cache: FeatureCache, kind: Augmentation = "none"
) -> Iterator[EpochMetrics]:
    source = cache.source(TRAIN, training.frozen, kind)
    return train(training, source, cache.source(VAL, training.frozen, "none"), settings)


def textbook_losses(training: Training, settings: TrainingSettings, kind: Augmentation) -> list[float]:
    """Train as `train` should, without stored features, sources or counters; return the loss of each epoch."""
    model, optimizer = training.model, training.optimizer
    learning = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad]
    weights = 97 / (3 * torch.bincount(TRAIN.labels_N)) if settings.class_weights == "balanced" else None
    losses = []
    for epoch in range(1, settings.epochs + 1):
        seed_globally(settings.seed, "epoch", epoch)
        head_alone = epoch <= settings.head_warmup_epochs
        for parameter in learning:
            parameter.requires_grad_(not head_alone)
        set_training_mode(model, range(0) if head_alone else model.learning_layers)
        order = torch.randperm(97, generator=generator(settings.seed, "order", epoch))
        noise = generator(settings.seed, "augmentation", epoch)
        total = torch.zeros(())
        for number, chosen in enumerate([*order[:80].split(16), order[80:]]):
            images = TRAIN.images_NCHW[chosen].clone()
            if kind != "none":
                for image in (torch.rand(len(chosen), generator=noise) < 0.5).nonzero()[:, 0]:
                    images[image] = images[image].flip(2)
            if kind == "crop_flip":
                tops, lefts = torch.randint(0, 2 * CROP_PADDING + 1, (2, len(chosen)), generator=noise)
                padded = torch.nn.functional.pad(images, (CROP_PADDING,) * 4)
                cuts = zip(padded, tops, lefts, strict=True)
                images = torch.stack([image[:, top : top + 32, left : left + 32] for image, top, left in cuts])
            for group in optimizer.param_groups:
                rate = lr_factor(settings.schedule, 6 * (epoch - 1) + number, 6 * settings.epochs)
                group["lr"] = group["peak_lr"] * rate
            logits = model(normalise(images, NORMALISATION))
            loss = cross_entropy(
                logits, TRAIN.labels_N[chosen], weights, label_smoothing=settings.label_smoothing,
                reduction="mean" if weights is None else "sum",
            )  # fmt: skip
            if weights is not None:
                loss = loss / len(chosen)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            total += loss.detach() * len(chosen)
        losses.append(total.item() / 97)
        for parameter in learning:
            parameter.requires_grad_(True)
    return losses


@pytest.mark.parametrize(("optimizer", "augmentation"), [("sgd", "none"), ("sgd", "crop_flip"), ("adamw", "flip")])
@pytest.mark.parametrize(
    ("backbone", "strategy", "depth"),
    [
        ("vgg16_narrow", "feature_extraction", None), ("vgg16_narrow", "fine_tune_top", 1),
        ("resnet18", "fine_tune_top", 1), ("vgg16_narrow", "fine_tune_all", None), ("resnet18", "from_scratch", None),
    ],
)  # fmt: skip
def test_it_computes_what_a_textbook_does(
    backbone: str, strategy: StrategyName, depth: int | None, optimizer: str, augmentation: Augmentation, tmp_path: Path
) -> None:
    """To the bit, the features cached or not, with a warm-up of the head, class weights and label smoothing."""
    settings = TrainingSettings(
        3, 16, 5, "float32", optimizer=optimizer, label_smoothing=0.1, max_grad_norm=1.0,
        class_weights="balanced" if optimizer == "adamw" else "none",
        head_warmup_epochs=1 if strategy.startswith("fine") else 0,
    )  # fmt: skip
    learning = Learning(strategy, 0.02, depth, 0.5, 1e-3)
    losses = []
    for limit in (0, 10**8):
        cache = cache_in(tmp_path, limit)
        training = begin(backbone, learning, settings, cache, augmentation)
        losses.append([metrics.train_loss for metrics in train_on(training, settings, cache, augmentation)])
    expected = textbook_losses(begin(backbone, learning, settings, cache, augmentation), settings, augmentation)
    assert losses == [expected, expected]
    assert len(set(expected)) == 3


class EmulatedGraph:
    """A CUDA graph on the CPU: a replay computes into the memory of the capture, and changes no attribute `grad`."""

    def __init__(self, owner: step.TrainingStep, batch: int):
        self.owner, self.batch, self.replays = owner, batch, 0
        self.gradients = [(p, torch.zeros_like(p)) for p in owner.model.parameters() if p.grad is not None]
        for parameter, gradient in self.gradients:
            parameter.grad = gradient

    def replay(self) -> None:
        self.replays += 1
        seen = [(parameter, parameter.grad) for parameter, _ in self.gradients]
        self.owner._step(self.owner._images_read + torch.arange(self.batch))
        for parameter, gradient in self.gradients:
            assert parameter.grad is not None
            gradient.copy_(parameter.grad)
        for parameter, gradient in seen:
            parameter.grad = gradient


def emulated_graphs(monkeypatch: pytest.MonkeyPatch) -> list[EmulatedGraph]:
    """Let captures make emulated graphs; return the list that gets each of them."""
    captured: list[EmulatedGraph] = []

    def capture(owner: Any, batch: int) -> None:
        owner._graph, owner._graph_batch = EmulatedGraph(owner, batch), batch
        captured.append(owner._graph)

    monkeypatch.setattr(step.TrainingStep, "_capture", capture)
    return captured


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[EmulatedGraph]:
    """Gets each graph that is captured, which is an emulated one."""
    return emulated_graphs(monkeypatch)


@pytest.mark.parametrize("batch_size", [24, 40, 49, 97])
def test_whole_batches_are_captured_and_gradients_are_those_of_the_last_step(
    batch_size: int, graphs: list[EmulatedGraph], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 97 images, in one to four steps per epoch: the first step that may be captured is often an epoch's last."""
    monkeypatch.setattr(step, "FEWEST_REPLAYS", 1)
    settings = TrainingSettings(6, batch_size, 5, "float32", head_warmup_epochs=1)
    cache = cache_in(tmp_path)
    found = []
    for is_captured in (False, True):
        monkeypatch.setattr(step, "may_capture", lambda *_, is_captured=is_captured, **__: is_captured)
        training = fine_tuning(settings, cache)
        epochs = list(train_on(training, settings, cache))
        found.append([(epoch.train_loss, epoch.relative_gradient_norm) for epoch in epochs])
    assert found[0] == found[1]
    assert {graph.batch for graph in graphs} == {batch_size}
    whole = sum(places.stop - places.start == batch_size for places in batch_places(97, batch_size))
    assert sum(graph.replays for graph in graphs) >= 5 * whole - 3  # after the warm-up: all but three eager steps


def test_phases_that_are_too_short_get_no_graph(
    graphs: list[EmulatedGraph], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Six steps of the head, six of one block more, then 24 of all, of which three come before the capture."""
    monkeypatch.setattr(step, "FEWEST_REPLAYS", 10)
    monkeypatch.setattr(step, "may_capture", lambda *_, **__: True)
    settings = TrainingSettings(6, 17, 5, "float32", unfreeze_every=1)
    cache = cache_in(tmp_path)
    training = fine_tuning(settings, cache)
    assert len(list(train_on(training, settings, cache))) == 6
    assert [graph.replays for graph in graphs] == [24 - 3 - 4]  # without the last batch of each epoch, of 12 images


class FailingCapture:
    """CUDA's state, and a capture that fails at its end and leaves it as it is then, like torch 2.11: emulated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.attempts = 0
        self.stream, self.is_capturing = "trains", False
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "default_generators", (None, self))
        compute = step.TrainingStep._step
        monkeypatch.setattr(
            step.TrainingStep, "_step", lambda *step: None if self.stream == "captures" else compute(*step)
        )

    def clone_state(self) -> str:
        """Return the numbers that the generator draws next, but not whether it is part of a capture."""
        return "state"

    def graphsafe_set_state(self, state: str) -> None:
        assert state == "state"
        self.is_capturing = False

    def __enter__(self) -> None:
        self.attempts += 1
        self.stream, self.is_capturing = "captures", True

    def __exit__(self, *_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_capture_that_fails_leaves_eager_steps(
    precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And CUDA as it was before: otherwise the next dropout would raise an error."""

    settings = TrainingSettings(2, 16, 5, precision)
    cache = cache_in(tmp_path)

    def losses() -> list[float]:
        return [metrics.val_loss for metrics in train_on(fine_tuning(settings, cache), settings, cache)]

    expected = losses()
    capture = FailingCapture(monkeypatch)
    monkeypatch.setattr(step, "FEWEST_REPLAYS", 1)
    monkeypatch.setattr(step, "may_capture", lambda *_, **__: True)
    assert losses() == expected
    assert capture.attempts == caplog.text.count("trains without CUDA graphs, which is slower: CUDA out of memory") == 1
    assert (capture.stream, capture.is_capturing) == ("trains", False)


def test_no_graph_is_captured_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("captured on the CPU")

    monkeypatch.setattr(step, "FEWEST_REPLAYS", 0)
    monkeypatch.setattr(step.TrainingStep, "_capture", refuse)
    settings = TrainingSettings(2, 16, 5, "float32")
    cache = cache_in(tmp_path)
    training = fine_tuning(settings, cache)
    assert len(list(train_on(training, settings, cache))) == 2


def test_a_checkpoint_keeps_the_kernels_of_its_device(tmp_path: Path) -> None:
    """What a GPU's optimizer says of its kernels, and its learning rates, are no use to a CPU."""
    settings = TrainingSettings(2, 16, 5, "float32", optimizer="adamw")
    cache = cache_in(tmp_path)
    training = fine_tuning(settings, cache)
    state = training.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group |= {"fused": True, "capturable": True, "lr": torch.tensor(0.3)}
    training.load_state_dict(state)
    assert len(list(train_on(training, settings, cache))) == 2
    assert all(not group["fused"] and not group["capturable"] for group in training.optimizer.param_groups)


def test_a_checkpoint_in_which_other_parameters_learned_is_refused(tmp_path: Path) -> None:
    """As one of a version that decayed others: the trial starts anew, and nothing has changed."""
    settings = TrainingSettings(2, 16, 5, "float32")
    cache = cache_in(tmp_path)
    state = fine_tuning(settings, cache).state_dict()
    decayed, undecayed = state["optimizer"]["param_groups"][:2]
    undecayed["params"].append(decayed["params"].pop())
    training = fine_tuning(settings, cache)
    state["trained"] = {name: tensor + 1 for name, tensor in state["trained"].items()}
    before = trained_tensors(training.model)
    with pytest.raises(CorruptCheckpoint, match="let other parameters learn"):
        training.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_tensors(training.model).items())


def test_momentum_starts_at_zero_where_kernels_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step that overflows in float16 is skipped: it must not leave momenta of uninitialised memory."""
    parameter = torch.nn.Parameter(torch.ones(3))
    groups: list[dict[str, Any]] = [{"params": [parameter], "peak_lr": 0.1, "weight_decay": 0.0}]
    optimizer = make_optimizer("sgd", groups, torch.device("cuda"))
    assert optimizer.state[parameter]["momentum_buffer"].tolist() == [0.0, 0.0, 0.0]
    optimizer.state.clear()  # as a checkpoint without momenta leaves it
    _fill_momenta(optimizer)
    assert optimizer.state[parameter]["momentum_buffer"].tolist() == [0.0, 0.0, 0.0]


def test_what_may_be_captured() -> None:
    """A user's or timm's code may do something else in each call; a graph would repeat one of them."""
    settings, gpu = TrainingSettings(2, 16, 5, "float32"), torch.device("cuda:0")
    assert step.may_capture(gpu, gpu, settings, runs_foreign_code=False)
    assert not step.may_capture(gpu, gpu, settings, runs_foreign_code=True)
    assert not step.may_capture(gpu, CPU, settings, runs_foreign_code=False)
    assert not step.may_capture(CPU, CPU, settings, runs_foreign_code=False)
    assert not step.may_capture(gpu, gpu, replace(settings, compile="default"), runs_foreign_code=False)


@pytest.mark.parametrize(
    ("name", "strategy", "depth", "limit", "expected"),
    [
        ("timm:test_resnet", "fine_tune_all", None, 10**8, True),
        ("timm:test_resnet", "fine_tune_top", 1, 10**8, True),  # cached features of block1, then block2 and the head
        ("timm:test_resnet", "feature_extraction", None, 0, True),  # no room for features
        ("timm:test_resnet", "feature_extraction", None, 10**8, False),  # the head alone
        ("vgg16_narrow", "fine_tune_all", None, 10**8, False),
    ],
)
def test_which_steps_run_foreign_code(
    name: str, strategy: StrategyName, depth: int | None, limit: int, expected: bool,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """timm's networks, like a user's: some free tensors between two calls, whose memory a graph would still read."""
    backbone = load_timm_backbone(name, 32) if name.startswith("timm:") else name
    settings = TrainingSettings(2, 16, 5, "float32")
    cache = cache_in(tmp_path, limit)
    training = begin(backbone, Learning(strategy, 0.02, depth), settings, cache, "none")
    asked: list[bool] = []

    def may_capture(*_: object, runs_foreign_code: bool) -> bool:
        asked.append(runs_foreign_code)
        return False

    monkeypatch.setattr(step, "may_capture", may_capture)
    step.TrainingStep(training, cache.source(TRAIN, training.frozen, "none"), settings)
    assert asked == [expected]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fused_update_scales_long_gradients_down(optimizer: str, tmp_path: Path) -> None:
    """As torch's clipping followed by the textbook's update, to rounding; short gradients keep their length."""
    settings = TrainingSettings(1, 16, 5, "bfloat16", optimizer=optimizer, max_grad_norm=0.5)
    cache = cache_in(tmp_path)
    trainings = [fine_tuning(replace(settings, precision=precision), cache) for precision in ("bfloat16", "float32")]
    fused, textbook = trainings
    source = cache.source(TRAIN, fused.frozen, "none")
    update = step.TrainingStep(fused, source, settings)._update
    for scale in (1.0, 1e-4, 10.0):
        for ours, theirs in zip(fused.model.parameters(), textbook.model.parameters(), strict=True):
            ours.grad = scale * torch.randn(ours.shape, generator=generator(0, "gradient"))
            theirs.grad = ours.grad.clone()
        update()
        clip_grad_norm_(textbook.model.parameters(), 0.5)
        textbook.optimizer.step()
    for ours, theirs in zip(fused.model.parameters(), textbook.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_training_resumes_to_the_bit_in_bfloat16(tmp_path: Path) -> None:
    settings = TrainingSettings(3, 16, 5, "bfloat16", max_grad_norm=1.0)
    cache = cache_in(tmp_path)

    def losses(training: Training) -> list[float]:
        return [metrics.val_loss for metrics in train_on(training, settings, cache)]

    whole, first, second = (fine_tuning(settings, cache) for _ in range(3))
    expected = losses(whole)
    next(train_on(first, settings, cache))
    second.load_state_dict(first.state_dict())
    assert losses(second) == expected[1:]
