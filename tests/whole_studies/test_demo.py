"""The demo of every study."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablation import load_results
from ablation.running import demo_network
from tests.studies import (
    REPOSITORY,
    Command,
    runs,
)


def test_demo_in_small(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The demo, and then a study of the same file in the same store: they don't get in each other's way."""
    monkeypatch.setattr(demo_network, "SETTINGS", replace(demo_network.SETTINGS, epochs=1))
    small = ("--trials", "1", "--epochs", "1", "--set", "confirm.seeds=0")
    small += ("--set", 'factors.strategy=["fine_tune_top", "from_scratch"]')
    assert command("strategies", "--demo", *small) == 0
    output = capsys.readouterr().out
    assert "for handwritten digits? (demo: a narrow VGG-16, pretrained on" in " ".join(output.split())
    assert len(runs(Path("mlruns"), "strategies-demo")) == 4
    weights = ("--set", "backbone.name=vgg16_narrow", "--set", "backbone.weights=" + str(
        next(Path("mlruns/demo").glob("*.safetensors"))))  # fmt: skip
    assert command("strategies", *small, *weights, "--set", "data={source='digits'}") == 0
    assert len(runs(Path("mlruns"), "strategies")) == len(runs(Path("mlruns"), "strategies-demo")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml")))
def test_every_study_has_a_demo(name: str, tmp_path: Path) -> None:
    """It ends with a report, and finds what is known; the README says how long that of vgg_truncation takes."""
    done = subprocess.run([sys.executable, "-m", "ablation.study", name, "--demo"],
                          cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    if name == "vgg_truncation":
        best = [run.data.metrics["best_val_accuracy"] for run in runs(tmp_path / "mlruns", "vgg_truncation-demo")]
        assert len(best) == 20
        assert max(best) > 0.9
    if name == "strategies":  # the first lesson: with so few images, pretraining helps
        table = load_results("strategies-demo", store=str(tmp_path / "mlruns"))
        accuracies = table[table["kind"] == "confirmation"].groupby("arm")["test_accuracy"].mean()
        scratch = accuracies.pop("block3,from_scratch")
        assert all(accuracy > scratch for arm, accuracy in accuracies.items() if arm.startswith("block3"))
