"""The training step on CUDA: captured and replayed, it computes what it computes eagerly."""

import gc
import logging
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.base.device import free_memory, make_deterministic, select_device
from ablation.base.generators import generator
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.spec.metrics import EpochMetrics
from ablation.spec.parameters import Augmentation, StrategyName
from ablation.training import step
from ablation.training.feature_cache import FeatureCache, Pretrained
from ablation.training.loop import train
from ablation.training.settings import TrainingSettings
from ablation.training.state import Training, begin_training

pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda:0")
NORMALISATION = Normalisation((0.5,) * 3, (0.25,) * 3)
PLAIN = Head(16, 2)
DEPTHS: dict[StrategyName, int | None] = {
    "feature_extraction": None, "fine_tune_top": 1, "fine_tune_all": None, "from_scratch": None
}  # fmt: skip
CLOCK = ("timestamp", "images_per_second")
Trained = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]  # each epoch's metrics; the network's tensors


@pytest.fixture(autouse=True)
def _deterministic() -> Any:
    select_device("cuda")
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Gets an item with every replay of a graph."""
    return noted_replays(monkeypatch)


def noted_replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that gets an item with every replay of a graph from now on."""
    made: list[None] = []
    real = torch.cuda.CUDAGraph.replay

    def counted(graph: Any) -> None:
        made.append(None)
        real(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return made


def some_images(n: int, seed: int, device: str = "cuda:0") -> Images:
    labels = torch.randint(0, 3, (n,), generator=generator(seed, "labels"))
    noise = torch.randint(0, 60, (n, 3, 32, 32), generator=generator(seed, "pixels"))
    return Images((noise + 60 * labels[:, None, None, None]).to(torch.uint8).to(device), labels.to(device))


def begin(
    folder: Path,
    strategy: StrategyName,
    settings: TrainingSettings,
    augmentation: Augmentation,
    backbone: str,
    head: Head = PLAIN,
) -> tuple[Training, Any, Any]:
    model = build_model(backbone, "block2", head, 3, 32)
    initialise(model, None, 0)
    model = model.to("cuda:0").to(memory_format=torch.channels_last)
    cache = FeatureCache(folder, 10**9, lambda: Pretrained([], []), lambda text: None)
    images, others = some_images(330, 1), some_images(60, 2)  # ten batches of 32 and one of 10 in every epoch
    learning = Learning(strategy, 0.02, DEPTHS[strategy], 0.5)
    training = begin_training(
        model, learning, settings, NORMALISATION, lambda frozen: cache.source(images, frozen, augmentation)
    )
    return (
        training,
        cache.source(images, training.frozen, augmentation),
        cache.source(others, training.frozen, "none"),
    )


def trained(folder: Path, strategy: StrategyName, settings: TrainingSettings, *others: Any) -> Trained:
    training, source, val_source = begin(folder, strategy, settings, *others)
    return without_clock(train(training, source, val_source, settings)), training.model.state_dict()


def without_clock(epochs: Iterable[EpochMetrics]) -> list[dict[str, Any]]:
    """Return the metrics but for those that differ between equal trainings."""
    return [{name: value for name, value in asdict(epoch).items() if name not in CLOCK} for epoch in epochs]


def assert_same(found: Trained, expected: Trained) -> None:
    """Assert that two trainings agree to the bit."""
    assert repr(found[0]) == repr(expected[0])  # a step that float16 skips has NaN for norms
    for name, tensor in expected[1].items():
        assert torch.equal(found[1][name], tensor), name


CASES = [
    (strategy, optimizer, augmentation, "bfloat16", "vgg16_narrow")
    for strategy in DEPTHS
    for optimizer in ("sgd", "adamw")
    for augmentation in ("none", "flip", "crop_flip", "strong")
] + [
    (strategy, "sgd", "flip", precision, backbone)
    for strategy in ("fine_tune_top", "fine_tune_all")
    for precision in ("float32", "bfloat16", "float16")
    for backbone in ("resnet18", "vgg16_narrow")
]


@pytest.mark.parametrize(("strategy", "optimizer", "augmentation", "precision", "backbone"), CASES)
def test_captured_equals_eager(
    strategy: StrategyName, optimizer: str, augmentation: Augmentation, precision: str, backbone: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, replays: list[None],
) -> None:  # fmt: skip
    """To the bit, with a head warm-up, class weights, label smoothing and a last batch of another size.

    With AdamW also block by block, pulled back to the start, and with an average of the weights.
    """
    is_fine_tuned, has_more = strategy.startswith("fine_tune"), optimizer == "adamw"
    settings = TrainingSettings(
        12, 32, 5, precision, optimizer=optimizer, label_smoothing=0.1, class_weights="balanced", max_grad_norm=1.0,
        head_warmup_epochs=2 if is_fine_tuned else 0, unfreeze_every=2 if is_fine_tuned and has_more else 0,
        l2_sp=0.1 if is_fine_tuned and has_more else 0.0, ema=0.9 if has_more else 0.0,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        captured = trained(tmp_path, strategy, settings, augmentation, backbone)
    assert "without CUDA graphs" not in caplog.text
    assert len(replays) > 50
    monkeypatch.setattr(step, "FEWEST_REPLAYS", 10**9)
    assert_same(captured, trained(tmp_path, strategy, settings, augmentation, backbone))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dropout_in_a_graph_draws_what_eager_steps_draw(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[None]
) -> None:
    settings = TrainingSettings(12, 32, 5, precision)
    head = Head(16, 2, norm="batch", dropout=0.3)
    captured = trained(tmp_path, "feature_extraction", settings, "none", "vgg16_narrow", head)
    assert len(replays) > 50
    monkeypatch.setattr(step, "FEWEST_REPLAYS", 10**9)
    assert_same(captured, trained(tmp_path, "feature_extraction", settings, "none", "vgg16_narrow", head))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_a_resumed_training_equals_an_uninterrupted_one(
    optimizer: str, warmup: int, tmp_path: Path, replays: list[None]
) -> None:
    settings = TrainingSettings(12, 32, 5, "bfloat16", optimizer=optimizer, head_warmup_epochs=warmup)
    whole = trained(tmp_path, "fine_tune_all", settings, "crop_flip", "vgg16_narrow")
    assert len(replays) > 50
    begun, source, val_source = begin(tmp_path, "fine_tune_all", settings, "crop_flip", "vgg16_narrow")
    for metrics in train(begun, source, val_source, settings):
        if metrics.epoch == 5:
            state = begun.state_dict()
            break
    file = tmp_path / "state.pt"
    torch.save(state, file)
    resumed, source, val_source = begin(tmp_path, "fine_tune_all", settings, "crop_flip", "vgg16_narrow")
    resumed.load_state_dict(torch.load(file, map_location="cuda:0", weights_only=True))
    replays.clear()
    for _ in train(resumed, source, val_source, settings):
        pass
    assert len(replays) > 50
    assert_same((without_clock(resumed.history), resumed.model.state_dict()), whole)


def test_a_training_that_a_cpu_began_is_resumed(tmp_path: Path) -> None:
    settings = TrainingSettings(6, 32, 5, "float32", optimizer="adamw")
    training, source, val_source = begin(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")
    for group in training.optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    state = training.state_dict()
    for group in state["optimizer"]["param_groups"]:  # as the CPU's optimizer leaves them
        group |= {"fused": False, "capturable": False, "lr": 0.01}
    training.load_state_dict(state)
    assert [metrics.epoch for metrics in train(training, source, val_source, settings)] == [1, 2, 3, 4, 5, 6]
    assert all(group["fused"] and group["capturable"] for group in training.optimizer.param_groups)


def test_memory_is_released_between_trainings(tmp_path: Path) -> None:
    settings = TrainingSettings(8, 32, 5, "bfloat16")
    used = []
    for _ in range(4):
        trained(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")
        gc.collect()
        torch.cuda.empty_cache()
        used.append(torch.cuda.memory_reserved())
    assert used[-1] <= used[1]


def test_no_memory_for_a_graph_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    settings = TrainingSettings(8, 32, 5, "bfloat16")
    expected, _ = trained(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    assert trained(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")[0] == expected
    assert caplog.text.count("without CUDA graphs, which is slower: CUDA out of memory") == 1


@pytest.mark.parametrize(
    ("precision", "head"), [("bfloat16", PLAIN), ("float16", PLAIN), ("bfloat16", Head(16, 2, dropout=0.3))]
)
def test_what_a_graph_cannot_do_is_done_eagerly_and_spoils_no_later_training(
    precision: str, head: Head, tmp_path: Path
) -> None:
    """In a process of its own: torch 2.11 keeps an invalid graph's memory, which other tests measure."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(check_an_invalid_capture, precision, head, tmp_path).result()


def check_an_invalid_capture(precision: str, head: Head, folder: Path) -> None:
    """The capture ends in the middle of a step, after gradients were unscaled, by a number that the host asks for."""
    select_device("cuda")
    make_deterministic()
    warnings: list[str] = []
    settings = TrainingSettings(8, 32, 5, precision, optimizer="adamw", ema=0.9)
    work = folder, "fine_tune_all", settings, "crop_flip", "vgg16_narrow", head
    clip = step.clip_grad_norm_

    def asking(parameters: Any, longest: float) -> torch.Tensor:
        of_all = clip(parameters, longest)
        of_all.item()
        return of_all

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step.logger, "warning", lambda text, *_: warnings.append(text))
        replays = noted_replays(patch)
        with patch.context() as eager:
            eager.setattr(step, "FEWEST_REPLAYS", 10**9)
            expected = trained(*work)
        with patch.context() as invalid:
            invalid.setattr(step, "clip_grad_norm_", asking)
            assert_same(trained(*work), expected)
        assert warnings == ["trains without CUDA graphs, which is slower: %s"]
        assert not replays
        assert_same(trained(*work), expected)
        assert len(replays) > 50


def test_memory_that_runs_out_after_a_capture_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[None]
) -> None:
    """In an epoch's last batch, which is smaller and trains eagerly beside the graph."""
    settings = TrainingSettings(8, 32, 5, "bfloat16")
    expected, _ = trained(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")
    free_memory(DEVICE)
    before = torch.cuda.memory_reserved()
    replays.clear()
    eager_step = step.TrainingStep._step

    def full(self: step.TrainingStep, places_B: Any) -> None:
        if self._graph is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        eager_step(self, places_B)

    with monkeypatch.context() as patch:
        patch.setattr(step.TrainingStep, "_step", full)
        training, source, val_source = begin(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")
        with pytest.raises(torch.OutOfMemoryError):
            list(train(training, source, val_source, settings))
    assert training.has_graph
    assert len(replays) == 10 - step.EAGER_STEPS
    del training, source, val_source
    free_memory(DEVICE)
    assert torch.cuda.memory_reserved() <= before
    replays.clear()
    training, source, val_source = begin(tmp_path, "fine_tune_all", settings, "none", "vgg16_narrow")
    training.may_capture = False
    assert without_clock(train(training, source, val_source, settings)) == expected
    assert not replays
