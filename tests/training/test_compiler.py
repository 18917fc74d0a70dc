import shutil
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from ablation.base.errors import InputError
from ablation.base.generators import generator
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.training import compiler
from ablation.training.compiler import check_compiler, compiled_forward, has_compiled, release_compiled
from ablation.training.loop import train
from ablation.training.settings import TrainingSettings
from ablation.training.sources import FeatureSource
from ablation.training.state import begin_training

CPU = torch.device("cpu")
NORMALISATION = Normalisation((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Every test compiles anew, and leaves nothing compiled."""
    compiler._compiled.cache_clear()
    yield
    compiler._compiled.cache_clear()


def losses_of_a_head(mode: str) -> list[float]:
    """Train a head on features of 45 images, whose last batch is smaller; return the losses of every epoch."""
    model = build_model("vgg16_narrow", "block1", Head(8, 2), 3, 32)
    initialise(model, None, 0)
    settings = TrainingSettings(3, 16, 5, "float32", compile=mode)
    training = begin_training(model, Learning("feature_extraction", 0.05), settings, NORMALISATION)
    labels_N = torch.randint(3, (45,), generator=generator(1, "labels"))
    features = torch.randn(45, 32, generator=generator(1, "features")) + labels_N[:, None]
    source = FeatureSource(features, None, labels_N, len(model.layers), 45)
    epochs = [asdict(metrics) for metrics in train(training, source, source, settings)]
    return [epoch[name] for epoch in epochs for name in ("train_loss", "val_loss")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_losses_of_a_mode_with_graphs_are_those_of_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler imports setuptools, which refuses a distutils that another test of this process imported before.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    eager = losses_of_a_head("none")
    assert eager[-1] < eager[0]
    check_compiler("reduce-overhead", CPU)
    counters.clear()
    assert losses_of_a_head("reduce-overhead") == pytest.approx(eager, rel=1e-4)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled == 2  # for full batches, and for the last smaller one
    assert losses_of_a_head("reduce-overhead") == pytest.approx(eager, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == compiled  # the next network needs no compilation
    release_compiled()
    assert losses_of_a_head("reduce-overhead") == pytest.approx(eager, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 2 * compiled


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called of torch.compile, in order; the compiled function computes nothing."""
    called: list[str] = []

    def compile_(function: Any, *, mode: str, dynamic: bool) -> Any:
        called.append(f"compile {mode}")
        return lambda *_: called.append("forward")

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: called.append("next step"))
    monkeypatch.setattr(torch.compiler, "reset", lambda: called.append("reset"))
    return called


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_graph_learns_that_a_step_begins(mode: str, calls: list[str]) -> None:
    """Else a step that was not finished would hold the memory of its graph, and every later step would record anew."""
    model = build_model("vgg16_narrow", "block1", Head(8, 2), 3, 32)
    for _ in range(2):
        compiled_forward(mode)(model, torch.zeros(1, 32), len(model.layers))
    step = ["forward"] if mode == "default" else ["next step", "forward"]
    assert calls == [f"compile {mode}", *step, *step]


def test_only_what_was_compiled_is_released(calls: list[str]) -> None:
    compiled_forward("none")
    assert not has_compiled()
    release_compiled()
    assert calls == []  # `reset` imports the compiler, which takes seconds
    compiled_forward("default")
    assert has_compiled()
    release_compiled()
    assert not has_compiled()
    release_compiled()
    assert calls == ["compile default", "reset"]


def test_a_compiler_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler found\nlong advice")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match=r"compile: torch.compile does not work here \(no compiler found\)"):
        check_compiler("default", CPU)
