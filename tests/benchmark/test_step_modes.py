import shutil
from typing import Any

import pytest
import torch

from ablation.base.errors import InputError
from ablation.benchmark import step_modes
from ablation.benchmark.step_modes import MODES, WORK, Work, endless_epochs, mode_rows
from ablation.benchmark.tables import mode_tables
from ablation.training import step

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_modes, "IMAGES", 64)


def test_modes_are_those_of_the_study_file() -> None:
    assert MODES == ("eager", "captured", "default", "reduce-overhead", "max-autotune")


@pytest.mark.parametrize("work", [WORK[0], Work("block1", is_head=False)], ids=str)
def test_only_eager_steps_may_not_be_captured(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; each mode trains, on features and on images."""
    asked: list[str] = []

    def may_capture(*_: Any, **__: Any) -> bool:
        asked.append(mode)
        return False

    monkeypatch.setattr(step, "may_capture", may_capture)
    for mode in ("eager", "captured"):
        assert next(endless_epochs(CPU, work, 32, mode)) > 0
    assert asked == ["captured"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_rows_of_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")  # see tests/training/test_compiler.py
    monkeypatch.setattr(step_modes, "WORK", WORK[:1])
    monkeypatch.setattr(step_modes, "BATCH_SIZES", (32,))
    monkeypatch.setattr(step_modes, "MODES", ("eager", "captured", "default"))
    rows = list(mode_rows(CPU, 2))
    assert [row["mode"] for row in rows] == ["eager", "captured", "default"]
    assert all(len(row["images_per_second"]) == 2 for row in rows)
    assert rows[2]["seconds_of_the_first_epoch"] > rows[0]["seconds_of_the_first_epoch"]  # it was compiled
    assert not list(mode_rows(CPU, 2, deadline=0.0))


def test_a_mode_that_cannot_be_compiled_costs_no_other_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(mode: str, device: torch.device) -> None:
        if mode == "default":
            raise InputError("compile: torch.compile does not work here (no C compiler); leave it at none")

    monkeypatch.setattr(step_modes, "WORK", WORK[:1])
    monkeypatch.setattr(step_modes, "BATCH_SIZES", (32,))
    monkeypatch.setattr(step_modes, "check_compiler", refuse)
    monkeypatch.setattr(step_modes, "endless_epochs", lambda *_: iter([1.0, 2.0]))
    rows = list(mode_rows(CPU, 1))
    assert list(dict.fromkeys(row["mode"] for row in rows)) == ["eager", "captured", "reduce-overhead", "max-autotune"]
    assert capsys.readouterr().err == (
        "not measured: default: compile: torch.compile does not work here (no C compiler); leave it at none\n"
    )


def test_what_was_not_measured_is_an_empty_cell() -> None:
    rows = [
        {"mode": mode, "work": "a", "batch_size": batch, "images_per_second": [rate], "seconds_of_the_first_epoch": 1.0}
        for mode, batch, rate in (("eager", 64, 10.0), ("eager", 256, 20.0), ("default", 64, 30.0))
    ]
    speed, _ = mode_tables(rows)
    assert speed.columns == ["work", "batch size", "eager", "default"]
    assert speed.rows == [["a", "64", "10", "30"], ["a", "256", "20", "-"]]
    assert mode_tables([]) == []
