import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.base.command_line import run_command
from ablation.bench import cli
from ablation.benchmark.measures import flops_of_an_image, timed, toml
from ablation.benchmark.plain_loop import plain_accuracy, plain_epoch, plain_loader
from ablation.benchmark.subject import Measured, Subject
from ablation.benchmark.tables import seconds_for
from ablation.data.images import Images
from ablation.networks.weights import Weights


@pytest.fixture
def subject() -> Subject:
    images = Images(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    weights = Weights({}, (0.5,) * 3, (0.5,) * 3, "digest")
    return Subject(torch.device("cpu"), images, images, 10, weights, [], 1)


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
    assert torch.allclose(batches[1][0], (images.images_NCHW[64:].float() / 255 - 0.5) / 0.5, atol=1e-6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = plain_accuracy(model, loader, subject.device)
    assert all(plain_epoch(model, optimizer, loader, subject.device) > 0 for _ in range(30))
    assert plain_accuracy(model, loader, subject.device) > max(before, 0.9)


def test_medians_and_spread() -> None:
    assert Measured([3.0, 1.0, 2000.0]).text() == "3 (1 to 2,000, n = 3)"
    assert Measured([0.25, 0.5]).text(3) == "0.375 (0.250 to 0.500, n = 2)"
    assert seconds_for(100, [10.0, 50.0]).values == [10.0, 2.0]


def test_study_files_are_toml() -> None:
    content = {
        "question": 'Which "one"?',
        "epochs": 3,
        "fixed": {"strategy": "fine_tune_all", "lr": 1e-3},
        "search": {"lr": {"low": 1e-3, "high": 0.1, "log": True}, "head_width": {"choices": [1, 2]}},
    }
    assert tomllib.loads(toml(content)) == content


def test_calls_are_timed_and_the_method_is_put_back() -> None:
    class Thing:
        def fail(self) -> None:
            raise ValueError

    spent: list[float] = []
    real = Thing.fail
    with timed(Thing, "fail", spent), pytest.raises(ValueError):
        Thing().fail()
    assert len(spent) == 1
    assert spent[0] >= 0
    assert Thing.fail is real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{tmp}"], "error: --output: {tmp} cannot be written"),
        (["--output", "{tmp}/none/x.json"], "error: --output: {tmp}/none/x.json cannot be written"),
        (["--device", "tpu"], "error: --device: unknown device 'tpu'"),
        (["--images", "{tmp}"], "error: data.root: {tmp} must hold train/<class>/*"),
        (["--fill", "3"], "error: Invalid value for '--fill'"),
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


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ablation.bench", "--limit", "150", "--repeats", "1", "--fill", "25"]
    done = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert len(figures["training_steps"]["rows"]) == 14
    assert len(figures["small_trials"]["last_seconds"]) == 10
    assert figures["feature_extraction"]["ratio"] > 0
    for shown in ("feature extraction, block3, 10 trials of 10 epochs", "MLflow in a trial of", "share of ceiling"):
        assert shown in done.stdout
