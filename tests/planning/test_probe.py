"""What a measurement runs, and what becomes of one that fails; how long it takes is not tested."""

import mmap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from ablation.planning import probe as module
from ablation.planning.probe import (
    SAMPLING_SECONDS,
    Conditions,
    Failure,
    Kind,
    Speed,
    _least,
    measure_frozen,
    measure_training,
    peak_memory,
    probe,
)
from ablation.training import step
from ablation.training.evaluation import Evaluation, evaluate
from ablation.training.loop import train
from ablation.training.sources import batch_places
from ablation.training.state import Training
from tests.training.test_step import emulated_graphs

KIND = Kind("block2", 0, False, 16, 2, 32, "none", "sgd")
CONDITIONS = Conditions("vgg16_narrow", 5, 32, 28, 100, 40, 60, "float32", torch.device("cpu"))
SPEED = Speed(1.0, 2.0, 3.0, 4.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(module, "EPOCH_SECONDS", 0.0)


KINDS = [
    KIND,
    replace(KIND, augmentation="crop_flip", optimizer="adamw"),
    replace(KIND, frozen_units=2),
    replace(KIND, frozen_units=2, reads_features=True, augmentation="flip"),
    replace(KIND, frozen_units=4, reads_features=True, head_pool="flatten"),
    replace(KIND, frozen_units=3, reads_features=True),  # within the second block
    replace(KIND, frozen_units=2, learn="biases"),
    replace(KIND, learn="block1"),
    replace(KIND, head_width=0),
    replace(KIND, batch_size=1000),  # more than there are images
]


@pytest.mark.parametrize(("kind", "precision"), [(KIND, "float32"), *((kind, "bfloat16") for kind in KINDS)])
def test_every_kind_is_measured(kind: Kind, precision: str) -> None:
    speed = measure_training(kind, replace(CONDITIONS, precision=precision))
    assert min(speed.begin, speed.train, speed.evaluate, speed.test) > 0
    assert (speed.test == speed.evaluate) == (precision == "float32")


def test_the_real_loop_runs_on_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    evaluated: list[Any] = []

    def watched(training: Any, source: Any, val_source: Any, settings: Any) -> Iterator[Any]:
        trained.append((training, source, settings))
        yield from train(training, source, val_source, settings)

    def watched_evaluation(model: Any, source: Any, precision: str) -> Evaluation:
        evaluated.append(source)
        return evaluate(model, source, precision)

    monkeypatch.setattr(module, "train", watched)
    monkeypatch.setattr(module, "evaluate", watched_evaluation)
    kind = replace(KIND, frozen_units=2, reads_features=True, augmentation="flip", optimizer="adamw")
    measure_training(kind, CONDITIONS)
    training, source, settings = trained[-1]
    # The first block of the narrow network halves 32 x 32 pixels and has 8 channels.
    assert source.features.shape == (32, 16, 16, 8)
    assert source.mirrored.shape == source.features.shape
    assert source.start == 5
    assert settings.batch_size == 32
    assert isinstance(training.optimizer, torch.optim.AdamW)
    assert [any(p.requires_grad for p in block.parameters()) for block in training.model.blocks] == [False, True]
    assert training.model.head[0].out_features == 16
    assert training.model.head[2].out_features == 5
    assert len(evaluated[-1].labels_N) == 60  # 512 images of 32 x 32 pixels are evaluated at once, of 60 that there are

    measure_training(KIND, CONDITIONS)
    assert trained[-1][1].images.images_NCHW.shape == (32, 3, 28, 28)  # as they are kept; enlarged to 32 on the device
    assert trained[-1][1].frozen.normalisation.image_size == 32


@pytest.mark.parametrize("images", [5, 8, 9, 12, 16, 20, 28, 40])
def test_on_cuda_the_measured_epoch_replays_a_graph(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of 8, with a last one that is smaller, or of 9; on the CPU, with emulated graphs."""
    graphs = emulated_graphs(monkeypatch)

    def replayed() -> int:
        return sum(graph.replays for graph in graphs)

    def watched(training: Any, source: Any, *others: Any) -> Iterator[Any]:
        rows = len(source.labels_N)
        sizes = [places.stop - places.start for places in batch_places(rows, 8)]
        before = len(graphs), replayed()
        for metrics in train(training, source, *others):
            is_captured = (len(graphs), replayed() - before[1]) == (before[0], sizes.count(sizes[0]))
            yield replace(metrics, images_per_second=1000.0 if is_captured else 10.0)
            before = len(graphs), replayed()

    count = module._epochs_to_a_captured_one
    monkeypatch.setattr(module, "_epochs_to_a_captured_one", lambda _, batches: count(torch.device("cuda:0"), batches))
    monkeypatch.setattr(step, "may_capture", lambda *_, **__: True)
    monkeypatch.setattr(module, "train", watched)
    monkeypatch.setattr(module, "EPOCH_SECONDS", 0.1)
    kind = replace(KIND, frozen_units=4, reads_features=True, batch_size=8)
    assert measure_training(kind, replace(CONDITIONS, train_images=images)).train == 1 / 1000
    assert count(CONDITIONS.device, 1) == 1


def test_what_is_equal_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def keep(subject: Any, result: Any) -> Any:
        measured.append(subject)
        return result

    monkeypatch.setattr(module, "measure_training", lambda kind, _: keep(kind, SPEED))
    monkeypatch.setattr(module, "measure_frozen", lambda part, _: keep(part, (1.0, 2.0)))
    wider = replace(KIND, head_width=32)
    measurements = probe([KIND, wider, replace(KIND)], [("block2", 2), ("block2", 1), ("block2", 2)], CONDITIONS)
    assert measured == [KIND, wider, ("block2", 2), ("block2", 1)]
    assert measurements.speeds == {KIND: SPEED, wider: SPEED}
    assert measurements.frozen == {("block2", 2): (1.0, 2.0), ("block2", 1): (1.0, 2.0)}
    assert measurements.free_bytes > 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTried 1 TB"), MemoryError()])
def test_what_fails_is_told_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def measure(kind: Kind, _: Conditions) -> Speed:
        if kind.head_width == 16:
            raise error
        return SPEED

    monkeypatch.setattr(module, "measure_training", measure)
    wider = replace(KIND, head_width=32)
    measurements = probe([KIND, wider], [], CONDITIONS)
    reason = "CUDA out of memory." if str(error) else "MemoryError"
    assert measurements.speeds == {KIND: Failure(reason), wider: SPEED}


def test_what_does_not_fit_beside_a_graph_is_measured_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study trains so then; nothing else is tried again."""
    error: Exception = torch.OutOfMemoryError("out of memory")

    def measure(kind: Kind, conditions: Conditions, *, may_capture: bool = True) -> Speed:
        if may_capture:
            raise error
        return SPEED

    monkeypatch.setattr(module, "measure_training", measure)
    on_cuda = replace(CONDITIONS, device=torch.device("cuda"))
    assert module._training_speed(KIND, on_cuda) == SPEED
    with pytest.raises(torch.OutOfMemoryError):
        module._training_speed(KIND, CONDITIONS)
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        module._training_speed(KIND, on_cuda)


def test_a_measurement_without_graphs_captures_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    train_epochs = module.train

    def train(training: Training, *arguments: Any) -> Any:
        seen.append(training.may_capture)
        return train_epochs(training, *arguments)

    monkeypatch.setattr(module, "train", train)
    measure_training(KIND, CONDITIONS, may_capture=False)
    assert set(seen) == {False}


def test_the_memory_of_the_process_is_watched() -> None:
    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as peak:
        held = mmap.mmap(-1, 100_000_000)  # never memory that had been freed
        held.write(bytes(100_000_000))
        threading.Event().wait(5 * SAMPLING_SECONDS)
    assert 90e6 < peak[0] - before[0] < 300e6


def test_frozen_units_are_measured() -> None:
    whole, exact = measure_frozen(("block2", 4), CONDITIONS)
    assert whole == exact > 0
    part, exact = measure_frozen(("block2", 2), replace(CONDITIONS, precision="bfloat16"))
    assert part > 0
    assert exact > 0


def test_the_least_disturbed_measurement_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.5, 0.9, 1.1])
    monkeypatch.setattr(module, "SECONDS", 1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    values = iter([5.0, 2.0, 3.0])
    assert _least(lambda: next(values)) == 2.0
    assert next(values, None) is None
