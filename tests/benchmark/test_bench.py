import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ablation.base.command_line import run_command
from ablation.bench import cli, spec_to_measure
from ablation.benchmark import measures, step_modes
from ablation.benchmark.measures import (
    START_UP_STUDY,
    finished_trials,
    flops_of_an_image,
    process_peak_bytes,
    resident_bytes,
    run_study_silently,
    timed,
)
from ablation.benchmark.plain_loop import plain_accuracy, plain_epoch, plain_loader
from ablation.benchmark.subject import Measured, Subject, few_images_limit, load_subject
from ablation.benchmark.tables import cores_table, seconds_for
from ablation.data.images import Images
from ablation.data.reading import load_split
from ablation.data.split import split_seed
from ablation.networks.weights import Weights
from ablation.spec.reading import load_study, parse_override
from ablation.spec.tables import Data


@pytest.fixture
def subject() -> Subject:
    images = Images(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    weights = Weights({}, (0.5,) * 3, (0.5,) * 3, "digest")
    return Subject(torch.device("cpu"), images, images, 10, weights, "random.safetensors", Data(source="digits"), 1, 2)


def test_operations_by_hand(subject: Subject) -> None:
    """Two for each multiplication and addition; a gradient of weights or inputs costs what the forward pass does."""
    conv1_1, conv1_2 = 2 * 3 * 64 * 9 * 32 * 32, 2 * 64 * 64 * 9 * 32 * 32
    hidden, logits = 2 * 64 * 2 * 2 * 256, 2 * 256 * 10
    forward = conv1_1 + conv1_2 + hidden + logits
    extraction = forward + hidden + 2 * logits  # the features have no gradient
    assert flops_of_an_image(subject, "block1", "feature_extraction") == extraction
    assert flops_of_an_image(subject, "block1", "fine_tune_all") == extraction + hidden + conv1_1 + 2 * conv1_2


def test_epochs_of_the_plain_loop_learn(subject: Subject) -> None:
    images = Images(torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8), torch.arange(70) % 10)
    loader = plain_loader(images, subject.normalisation, shuffle=False)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [64, 6]
    sent = pickle.loads(pickle.dumps(loader.dataset))  # as to the loader's processes where they are not forked
    assert torch.equal(sent[69][0], batches[1][0][5])
    assert torch.allclose(batches[1][0], (images.images_NCHW[64:].float() / 255 - 0.5) / 0.5, atol=1e-6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = plain_accuracy(model, loader, subject.device)
    assert all(plain_epoch(model, optimizer, loader, subject.device) > 0 for _ in range(5))
    assert plain_accuracy(model, loader, subject.device) > max(before, 0.9)


def test_the_use_of_the_cores_is_shown() -> None:
    table = cores_table({"fine_tuning": {"own": 0.94, "others": 1.06, "idle_share": 0.0, "throttled": 0.0}})
    assert table.rows == [["fine tuning", "0.9", "1.1"]]


def test_medians_and_spread() -> None:
    assert Measured([3.0, 1.0, 2000.0]).text() == "3 (1 to 2,000, n = 3)"
    assert Measured([0.25, 0.5]).text(3) == "0.375 (0.250 to 0.500, n = 2)"
    assert seconds_for(100, [10.0, 50.0]).values == [10.0, 2.0]


def test_the_study_file_of_the_start_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "start.toml"
    path.write_text(START_UP_STUDY)
    spec = load_study(path, overrides=[parse_override("data.source=digits"), parse_override("data.limit=100")])
    assert (spec.trials_per_arm, spec.epochs, spec.backbone.name, spec.data.limit) == (1, 1, "vgg16", 100)
    assert spec.default("strategy") == "feature_extraction"
    assert spec.default("truncate_at") == "block1"


def test_a_study_of_the_benchmark_runs_on_the_subject(tmp_path: Path) -> None:
    few = load_subject(None, None, 200, "cpu", 1, tmp_path)
    assert len(few.train_images) + len(few.val_images) == 200
    fixed = {"strategy": "feature_extraction", "truncate_at": "block1", "head_width": 8}
    content = {"trials_per_arm": 1, "epochs": 1, "fixed": fixed}
    store = run_study_silently(few, tmp_path / "study", content, few_images_limit(few))
    (trial,) = finished_trials(store)
    assert (trial.spec.head_width, trial.spec.data_limit, trial.state) == (8, 200, "finished")
    assert trial.spec.weights == str(tmp_path / "random.safetensors")


def test_a_rare_class_has_two_images_in_every_study_of_the_benchmark(tmp_path: Path) -> None:
    for split, counts in (("train", (150, 3)), ("test", (1, 1))):
        for name, count in zip("ab", counts, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng([number, ord(name), len(split)]).integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    subject = load_subject(str(tmp_path), None, 100, "cpu", 1, tmp_path)
    assert (subject.data.limit, few_images_limit(subject)) == (102, 102)  # of 153 images, of which 3 are of the class
    for limit in (subject.data.limit, few_images_limit(subject)):
        images, _ = load_split(subject.data.model_copy(update={"limit": limit}), split_seed(0))
        assert np.bincount(images.train_labels_N).tolist() == [100, 2]


def test_the_peak_of_memory_is_no_smaller_than_its_use() -> None:
    use = resident_bytes()
    assert use <= process_peak_bytes() < 1000 * use


def test_windows_needs_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no `resource`; there, psutil knows the peak."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # an import raises
    origin = importlib.util.spec_from_file_location("measures_on_windows", str(measures.__file__))
    assert origin is not None
    assert origin.loader is not None
    on_windows = importlib.util.module_from_spec(origin)
    origin.loader.exec_module(on_windows)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123))
    monkeypatch.setattr(on_windows.psutil, "Process", lambda: process)
    assert on_windows.process_peak_bytes() == 123


def test_calls_are_timed_and_the_method_is_put_back() -> None:
    class Thing:
        def fail(self) -> None:
            raise ValueError

    durations: list[float] = []
    real = Thing.fail
    with timed(Thing, "fail", durations), pytest.raises(ValueError):
        Thing().fail()
    assert len(durations) == 1
    assert durations[0] >= 0
    assert Thing.fail is real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{tmp}"], "error: --output: {tmp} cannot be written"),
        (["--output", "{tmp}/none/x.json"], "error: --output: {tmp}/none/x.json cannot be written"),
        (["--device", "tpu"], "error: --device: unknown device 'tpu'"),
        (["--images", "{tmp}"], "error: data.root: {tmp} holds no images in <class>/*"),
        (["--fill", "3"], "error: Invalid value for '--fill'"),
        (["--trials", "3"], "error: --trials, --epochs and --set: only with --study"),
        (["--set", "epochs=3"], "error: --trials, --epochs and --set: only with --study"),
        (["--study", "vgg_truncation", "--limit", "500"], "error: --limit: not with --study; --set data.limit=N"),
        (["--scale", "100", "--study"], "error: --scale: goes with --workers and --output alone"),
        (["--scale", "100", "--device", "cpu"], "error: --scale: goes with --workers and --output alone"),
        (["--scale", "100", "--images", "{tmp}"], "error: --scale: goes with --workers and --output alone"),
        (["--workers", "2"], "error: --workers: only with --scale"),
        (["--study", "vgg_trunc"], "error: no study 'vgg_trunc'; did you mean 'vgg_truncation'?"),
        (["--study", "--weights", "none.pth"], "error: backbone.weights: none.pth: no such file"),
        (["--study", "--images", "{tmp}/none"], "error: data.root: {tmp}/none: there is no such folder"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *(argument.format(tmp=tmp_path) for argument in arguments)])
    monkeypatch.chdir(tmp_path)
    assert run_command(cli) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(message.format(tmp=tmp_path))
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_scaled_study_says_where_its_measurements_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    numbers = ("claims_per_second", "first_tenth_seconds", "last_tenth_seconds", "status_seconds", "results_seconds")
    sizes = ("processor_seconds", "optuna_bytes", "mlflow_bytes", "connections")
    measured = {"trials": 100, "workers": 1, **dict.fromkeys(numbers, 0.5), **dict.fromkeys(sizes)}
    monkeypatch.setattr("ablation.benchmark.scale.scale", lambda store, count, workers: measured)
    monkeypatch.setattr(sys, "argv", ["bench", "--scale", "100", "--output", str(tmp_path / "scale.json")])
    assert run_command(cli) == 0
    assert json.loads((tmp_path / "scale.json").read_text()) == measured
    assert capsys.readouterr().out.endswith(f"All measurements: {tmp_path}/scale.json\n")


@pytest.mark.parametrize("backbone", ['module = "nets.py"\nfunction = "mine"', 'name = "timm:resnet18"'])
def test_a_study_of_any_backbone_is_measured(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.networks.timm_backbones.load_backbone", lambda *_: "vgg16_narrow")
    (tmp_path / "weights.pth").touch()
    study = f'question = "?"\ntrials_per_arm = 1\nepochs = 1\n[backbone]\n{backbone}\n[data]\nsource = "digits"\n'
    (tmp_path / "own.toml").write_text(study)
    spec = spec_to_measure(str(tmp_path / "own.toml"), None, str(tmp_path / "weights.pth"), [(["epochs"], 2)])
    assert (spec.backbone.name, spec.epochs) == ("vgg16_narrow", 2)


MEASUREMENTS: dict[str, dict[str, Any]] = {
    "feature_extraction": {
        "study_seconds": [20.0, 25.0],
        "plain_seconds_of_one_trial": 30.0,
        "ratio": 13.3,
        "our_accuracy": 0.9,
        "plain_accuracy": 0.89,
        "validation_images": 50,
        "training_seconds_of_a_trial": [1.0, 2.0],
        "images_per_second_without_stored_features": [500.0],
    },
    "fine_tuning": {
        "cut": "block3",
        "precision": "float32",
        "our_batch_size": 64,
        "ours": [90.0],
        "plain": [60.0],
        "ratio": 1.5,
    },
    "training_steps": {
        "precision": "float32",
        "ceiling_flops": [1e11],
        "rows": [
            {
                "cut": "block1",
                "strategy": "feature_extraction",
                "batch_size": 64,
                "images_per_second": [1000.0],
                "share_of_ceiling": 0.5,
            }
        ],
    },
    "step_modes": {
        "rows": [
            {
                "mode": mode,
                "work": "fine_tune_all, block3",
                "batch_size": 64,
                "images_per_second": [1000.0, 1500.0, 2000.0],
                "seconds_of_the_first_epoch": seconds,
            }
            for mode, seconds in (("eager", 2.0), ("reduce-overhead", 30.0))
        ]
    },
    "small_trials": {
        "trials": 100,
        "first_seconds": [0.1],
        "last_seconds": [0.2],
        "of_which_training": 0.05,
        "memory_growth_bytes": 3_000_000,
    },
    "tracking_overhead": {"trial_seconds": 65.0, "epochs": 9, "calls": 30, "tracking_seconds": 0.13},
    "start_up": {"new_store": [8.0], "old_store": [6.0]},
}


def test_every_measurement_is_stored_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name, result in MEASUREMENTS.items():
        measure = lambda subject, folder, fill, result=result: result  # noqa: E731
        measure.__name__ = name
        monkeypatch.setattr(step_modes if name == "step_modes" else measures, name, measure)
    monkeypatch.setattr(sys, "argv", ["bench", "--limit", "100", "--output", str(tmp_path / "bench.json")])
    assert run_command(cli) == 0
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert stored.pop("about")["training images"] == 90
    assert stored.pop("peak_memory_bytes") > 0
    for result in stored.values():
        assert result.pop("seconds") >= 0
        assert result.pop("core_use").keys() == {"own", "others", "idle_share", "throttled"}
    assert stored == MEASUREMENTS
    output = capsys.readouterr().out
    for row in (
        "10 trials of 10 epochs (s) | 22.5 (20.0 to 25.0, n = 2) | 300 (10 x 30.0, n = 1) | 13.3 |",
        "| an epoch on cached features (s) | 0.150 (0.100 to 0.200, n = 2) |",
        "| MLflow in a trial of 65 s, 9 epochs | 0.13 s, 0.20 % |",
        "| block1 | feature_extraction | 64 | 1,000 (1,000 to 1,000, n = 1) | 50 % |",
        "| work | batch size | eager | reduce-overhead |",
        "| fine_tune_all, block3 | 64 | 1,500 | 1,500 |",
        "| fine_tune_all, block3 | 64 | 2.0 | 30.0 |",
    ):
        assert row in output


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ablation.bench", "--limit", "150", "--repeats", "1", "--fill", "25"]
    done = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measurements = json.loads((tmp_path / "bench.json").read_text())
    assert len(measurements["training_steps"]["rows"]) == 14
    assert len(measurements["small_trials"]["last_seconds"]) == 10
    assert measurements["feature_extraction"]["ratio"] > 0
    for shown in ("feature extraction, block3, 10 trials of 10 epochs", "MLflow in a trial of", "share of ceiling"):
        assert shown in done.stdout
