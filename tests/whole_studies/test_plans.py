"""--plan and --list."""

import re
from pathlib import Path
from typing import Any

import pytest

from ablation.planning import probe
from ablation.planning.probe import Speed
from tests.studies import (
    CONFIRM,
    REPOSITORY,
    Command,
)


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml")))
def test_every_study_plans(command: Command, capsys: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # What it measures is tested in test_probe.py; here it would take minutes.
    monkeypatch.setattr(probe, "measure_training", lambda kind, conditions: Speed(0.1, 1e-3, 1e-4, 1e-4))
    monkeypatch.setattr(probe, "measure_frozen", lambda part, conditions: (1e-3, 1e-3))
    assert command(name, "--plan") == 0
    output = capsys.readouterr().out
    assert re.search(r"\d+ arms?, \d+ trainings, ", output)
    assert "cannot" not in output.partition("What a smaller budget would give up")[0]
    assert list(Path().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml")))
def test_every_study_is_measured(command: Command, capsys: Any, name: str) -> None:
    assert command(name, "--plan") == 0
    output = capsys.readouterr().out
    assert re.search(r"With one worker on \w+(:0)?, in (bfloat16|float16|float32), the study takes about \d", output)
    assert "cannot run" not in output
    assert list(Path().iterdir()) == []


def test_plan_by_hand(command: Command, study_file: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.01)
    before = sorted(Path().rglob("*"))
    assert command(study_file, "--plan") == 0
    output = capsys.readouterr().out
    # block1 of the narrow network: 3*8*9+8 + 8*8*9+8 = 808; the widest head, on 8*2*2 features: 32*16+16 + 170 = 698.
    assert "| block1,feature_extraction | 698 | 1,506 | 0.0 MB |" in output
    assert "| block1,fine_tune_all | 1,506 | 1,506 | 0.0 MB |" in output
    # conv2_1 adds 8*16*9+16 = 1168; its head has 64*16+16 + 170 = 1210.
    assert "| conv2_1,fine_tune_all | 3,186 | 3,186 | 0.0 MB |" in output
    assert "4 arms, 8 trainings, 24 epochs: an arm has 2 trials and 0 confirmation runs" in output
    assert "Cached features take up to 0.1 MB (limit: --feature-cache)" in output
    assert re.search(r"With one worker on \w+(:0)?, in (bfloat16|float16|float32), the study takes about \d", output)
    assert re.search(r"\| half the trials \| 1 \| 0 \| [^|]+ \| 10 % \| - \|", output)
    assert "cannot run" not in output
    assert command(study_file, "--plan", *CONFIRM) == 0
    output = capsys.readouterr().out
    assert "4 arms, 16 trainings, 48 epochs: an arm has 2 trials and 2 confirmation runs" in output
    assert sorted(Path().rglob("*")) == before
    assert command(study_file, "--plan", "--device", "cuda:99") == 2
    assert "--device: cuda:99 is not available" in capsys.readouterr().err


def test_list(command: Command, capsys: Any) -> None:
    assert command("--list") == 0
    output = capsys.readouterr().out
    assert "| vgg_truncation | Which VGG-16 truncation point transfers best to CIFAR-10? |" in output
    assert "published_result" in output
