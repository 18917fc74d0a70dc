"""Whole studies on a GPU: killed and resumed, out of memory, several workers, its load, and a change of device."""

import gc
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run

from ablation.base.device import exact_float32, select_device
from ablation.base.generators import generator
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.running import trial, worker
from ablation.training.feature_cache import FeatureCache, Pretrained
from ablation.training.sources import FeatureSource, frozen_part
from tests.studies import ONE_ARM, Command, history, patched_train, runs

pytestmark = pytest.mark.cuda
DEVICE = "cuda:0"
KIND = DEVICE.partition(":")[0]
ON_DEVICE = ("--device", DEVICE)
DETERMINISTIC = ("--set", "deterministic=true")
ONE_TRIAL = ("--trials", "1")
STEPS = 5  # of an epoch of the small study: 150 images in batches of 32
# Large images, so that a batch of them takes memory: 150 of 256 x 256 pixels and 8 channels are 157 MB in bfloat16.
LARGE = ("--set", "data.image_size=256", "--set", "fixed.truncate_at=block1", "--epochs", "1")
# A study that is killed right before a step, counted from 1 in its process.
KILLED_AT_A_STEP = """
import os, signal, sys
from ablation import study
from ablation.running import trial
from ablation.training.step import TrainingStep

trial.CHECKPOINT_SECONDS = 0
last, real, made = int(sys.argv.pop(1)), TrainingStep.run, []

def run(*args, **kwargs):
    made.append(None)
    if len(made) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

TrainingStep.run = run
sys.exit(study.main())
"""


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every replay of a CUDA graph in this process."""
    made: list[None] = []
    if KIND == "cuda":
        real = torch.cuda.CUDAGraph.replay

        def counted(graph: Any) -> None:
            made.append(None)
            real(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return made


def by_trial(store: str) -> dict[tuple[str, str], dict[str, list[tuple[int, float]]]]:
    """Return the curves of all trials, by arm and number."""
    return {
        (run.data.tags["arm"], run.data.tags["trial"]): history(Path(store), run) for run in runs(Path(store), "small")
    }


def statuses(store: str) -> list[str]:
    return [run.info.status for run in runs(Path(store), "small")]


def reasons(found: list[Run]) -> list[str]:
    return [run.data.tags.get("reason", "") for run in found]


def test_a_killed_study_is_resumed_exactly(command: Command, study_file: Path, replays: list[None]) -> None:
    """Killed between two epochs, and inside one; before and after, steps are captured."""
    arguments = [study_file, *ON_DEVICE, *DETERMINISTIC, *ONE_ARM, *ONE_TRIAL, "--epochs", "30"]
    assert command(*arguments, "--store", "whole") == 0
    (whole,) = runs(Path("whole"), "small")
    assert len(replays) >= 100 or KIND != "cuda"
    for name, step, done in (("between", 10 * STEPS + 1, 10), ("inside", 10 * STEPS + 3, 10)):
        words = [sys.executable, "-c", KILLED_AT_A_STEP, str(step), *map(str, arguments), "--store", name]
        killed = subprocess.run(words, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        (begun,) = runs(Path(name), "small")
        assert [epoch for epoch, _ in history(Path(name), begun)["val_loss"]] == list(range(1, done + 1))
        replays.clear()
        assert command(*arguments, "--store", name) == 0
        assert len(replays) >= 50 or KIND != "cuda"
        (resumed,) = runs(Path(name), "small")
        assert resumed.info.status == "FINISHED"
        assert history(Path(name), resumed) == history(Path("whole"), whole)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_features_of_the_device_are_those_of_the_cpu(tmp_path: Path, precision: str, tolerance: float) -> None:
    """Of images and of their mirror images; the tolerance is relative, of the root mean square."""
    select_device(DEVICE)
    model = build_model("vgg16_narrow", "block2", Head(8, 2), 3, 32)
    initialise(model, None, 0)
    pixels = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=generator(1, "pixels"))
    sources = []
    for device in ("cpu", DEVICE):
        there = model.to(device).to(memory_format=torch.channels_last).eval()
        frozen = frozen_part(there, len(there.layers), Normalisation((0.5,) * 3, (0.25,) * 3), precision)
        images = Images(pixels.to(device), torch.zeros(70, dtype=torch.int64, device=device))
        cache = FeatureCache(tmp_path / device.replace(":", "-"), 10**9, lambda: Pretrained([], []), lambda text: None)
        with exact_float32():
            source = cache.source(images, frozen, "flip")
        assert isinstance(source, FeatureSource)
        assert source.features.device.type == device.partition(":")[0]
        sources.append(source)
    for name in ("features", "mirrored"):
        expected, computed = (getattr(source, name).float().cpu() for source in sources)
        assert expected.std() > 0
        assert ((computed - expected).square().mean() / expected.square().mean()).sqrt() < tolerance
    assert not torch.equal(sources[1].features, sources[1].mirrored)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let torch allocate at most 400 MB more on the device."""
    select_device(DEVICE)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400e6) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def filled_device() -> Iterator[None]:
    """Fill the device but for 128 MB with another tensor."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(DEVICE)
    filler = torch.empty(free - 2**27, dtype=torch.uint8, device=DEVICE)
    try:
        yield
    finally:
        del filler
        torch.cuda.empty_cache()


def allocated() -> int:
    """Return the bytes of the device that tensors take, and the workspaces of cuBLAS (32 MB each)."""
    gc.collect()
    return torch.cuda.memory_allocated() if KIND == "cuda" else 0


def test_a_batch_that_does_not_fit_fails_its_trial_alone(command: Command, study_file: Path) -> None:
    before = allocated()
    sizes = ("--set", "factors={batch_size=[150, 8]}", "--set", 'fixed={strategy="fine_tune_all"}')
    with limited_memory():
        assert command(study_file, *ON_DEVICE, "--store", "s", *sizes, *LARGE, *ONE_TRIAL) == 0
    failed, finished = runs(Path("s"), "small")
    assert (failed.data.params["batch_size"], finished.data.params["batch_size"]) == ("150", "8")
    assert statuses("s") == ["FAILED", "FINISHED"]
    assert failed.data.tags["reason"].startswith(f"out of memory on {DEVICE}: ")
    assert allocated() < before + 100e6


def test_a_device_that_another_tensor_fills_fails_the_trials_of_that_time_alone(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first trial loads kernels and libraries, which need memory, too; the second meets a full device."""
    before = allocated()
    real = worker.run_trial

    def run_trial(workbench: Any, claim: Any, spec: Any, on_epoch: Any) -> Any:
        with filled_device() if spec.trial == 1 else nullcontext():
            return real(workbench, claim, spec, on_epoch)

    monkeypatch.setattr(worker, "run_trial", run_trial)
    batch = ("--set", 'factors={strategy=["fine_tune_all"]}', "--set", "fixed.batch_size=150")
    assert command(study_file, *ON_DEVICE, "--store", "s", *batch, *LARGE, "--trials", "3") == 0
    assert statuses("s") == ["FINISHED", "FAILED", "FINISHED"]
    assert [reason.startswith(f"out of memory on {DEVICE}: ") for reason in reasons(runs(Path("s"), "small"))] == [
        False, True, False,
    ]  # fmt: skip
    assert allocated() < before + 100e6


def test_two_workers_on_a_device_compute_what_one_does(command: Command, study_file: Path) -> None:
    cut = ("--set", 'factors={strategy=["feature_extraction", "fine_tune_all"]}', "--set", "fixed.truncate_at=block1")
    arguments = [study_file, *ON_DEVICE, *DETERMINISTIC, *cut]
    assert command(*arguments, "--store", "one") == 0
    assert command(*arguments, "--store", "two", "--workers", "2") == 0
    assert statuses("two") == ["FINISHED"] * 4
    assert by_trial("two") == by_trial("one")


def test_system_metrics_show_the_device(command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    assert command(study_file, *ON_DEVICE, "--store", "s", *ONE_ARM, *ONE_TRIAL, "--system-metrics") == 0
    (run,) = runs(Path("s"), "small")
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] <= 100
    if KIND == "cuda":
        assert run.data.metrics["system/gpu_0_memory_usage_megabytes"] > 0
        assert 0 <= run.data.metrics["system/gpu_0_utilization_percentage"] <= 100


@pytest.mark.parametrize(
    ("first", "then", "optimizer"),
    [("cpu", DEVICE, "sgd"), ("cpu", DEVICE, "adamw"), (DEVICE, "cpu", "sgd"), (DEVICE, "cpu", "adamw")],
)
def test_a_study_is_resumed_on_another_device(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str, optimizer: str
) -> None:
    """With the precision that it began with; what was trained is close to a training on one device."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    choices = ("--set", f"fixed.optimizer={optimizer}", "--set", "precision=float32", "--set", "fixed.lr=0.01")
    rates = ("--set", "search={head_width={choices=[8]}, backbone_lr_scale={choices=[0.1]}}")
    arguments = [study_file, *ONE_ARM, *ONE_TRIAL, "--epochs", "4", *choices, *rates]
    assert command(*arguments, "--store", "whole", "--device", first) == 0

    def fault(number: int, epoch: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(*arguments, "--store", "s", "--device", first) == 130
    (begun,) = runs(Path("s"), "small")
    logged = history(Path("s"), begun)["train_loss"]
    assert [epoch for epoch, _ in logged] == [1, 2]
    assert command(*arguments, "--store", "s", "--device", then) == 0
    (whole,), (resumed,) = runs(Path("whole"), "small"), runs(Path("s"), "small")
    assert resumed.info.status == "FINISHED"
    kinds = [device.partition(":")[0] for device in (first, then)]
    assert resumed.data.tags["device"] == f"{kinds[0]} from epoch 1, {kinds[1]} from epoch 3"
    curves = history(Path("s"), resumed)
    assert curves["train_loss"][:2] == logged
    expected = [loss for _, loss in history(Path("whole"), whole)["train_loss"]]
    assert [loss for _, loss in curves["train_loss"]] == pytest.approx(expected, rel=0.02)
