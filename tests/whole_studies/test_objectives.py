"""Whole studies that choose by another objective than accuracy."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import ablation
from ablation.analysis.results import read_results
from ablation.storage.store import find_store
from tests.studies import CONFIRM, ONE_ARM, Command, arm_study, history, runs

COUNTS = {"train": {0: 60, 1: 25, 7: 12}, "test": {0: 50, 1: 20, 7: 10}}


def unbalanced_folder(folder: Path) -> Path:
    """Write digits of three classes, most of them zeros, and return the folder."""
    digits = load_digits()
    for split, counts in COUNTS.items():
        for digit, count in counts.items():
            place = folder / split / f"digit {digit}"
            place.mkdir(parents=True)
            numbers = np.flatnonzero(digits.target == digit)
            numbers = numbers[:count] if split == "train" else numbers[-count:]
            for number in numbers:
                pixels = (digits.images[number] * 15.9375).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_a_study_of_losses_is_resumed_repaired_and_read(
    command: Command, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [study_file, "--store", "s", *ONE_ARM, *CONFIRM, "--set", "objective=loss"]
    assert command(*arguments) == 0
    assert "test loss" in capsys.readouterr().out
    tuning = arm_study(Path("s"), "small/fine_tune_all")
    assert tuning.direction is optuna.study.StudyDirection.MINIMIZE
    values = {trial.number: (trial.value, trial.intermediate_values) for trial in tuning.trials}
    for run in runs(Path("s"), "small"):
        losses = dict(history(Path("s"), run)["val_loss"])
        value, reported = values[int(run.data.tags["trial"])]
        assert reported == losses
        assert value == run.data.metrics["best_val_loss"] == min(losses.values())
        assert losses[int(run.data.metrics["best_epoch"])] == value
        assert run.data.params["objective"] == "loss"
    result = read_results(find_store("s"), "small")
    (arm,) = result.arms
    assert [run.number for run in arm.chosen] == [min(values, key=lambda number: values[number][0] or 9.0)]
    for run, scores_N in zip(arm.confirmed, arm.scores_SN, strict=True):
        assert scores_N.dtype == np.float64
        assert scores_N.mean() == pytest.approx(run.test_loss, rel=1e-12)

    table = ablation.load_results("small", store="s")
    assert table.columns[table.columns.get_loc("val_accuracy") + 1] == "val_loss"
    assert table.val_loss.notna().all()
    arms = ablation.open_study("small", store="s").arms
    assert arms.test_loss[0] == pytest.approx(arm.test_values_S.mean())

    assert command(study_file, "--store", "s", "--status") == 0
    assert "best val. loss" in capsys.readouterr().out
    assert command(study_file, "--store", "s", *ONE_ARM, *CONFIRM) == 2  # by accuracy it is another study
    assert "objective (was 'loss', is not set)" in capsys.readouterr().err

    Path("s/optuna.db").unlink()
    assert command(*arguments, "--repair") == 0
    told = arm_study(Path("s"), "small/fine_tune_all")
    assert told.direction is optuna.study.StudyDirection.MINIMIZE
    assert {trial.number: (trial.value, trial.intermediate_values) for trial in told.trials} == values
    capsys.readouterr()


def test_the_report_speaks_of_balanced_accuracy(
    command: Command, study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unbalanced_folder(tmp_path / "digits")
    content = study_file.read_text()
    content = content.replace('source = "digits"\nlimit = 200', f'source = "imagefolder"\nroot = "{root}"')
    content = content.replace('strategy = ["feature_extraction", "fine_tune_all"]', "")
    content = re.sub(r"backbone_lr_scale.*\n", "", content)
    study_file.write_text(f'objective = "balanced_accuracy"\n{content}\n[confirm]\nseeds = 3\n')
    fixed: list[Any] = ["--set", "fixed.strategy=feature_extraction", "--set", "data.image_size=32"]
    assert command(study_file, "--store", "s", *fixed) == 0
    assert re.search(r"Answer +By balanced accuracy, ", capsys.readouterr().out)

    opened = ablation.open_study("small", store="s")
    assert opened.answer.startswith("By balanced accuracy, ")
    pictures = {name: picture for name, picture in opened.plots.items() if not picture.png}
    about_the_objective = [name for name in pictures if not name.startswith("panels_")]
    assert {"arms", "curves", "differences_truncate_at"} <= {*about_the_objective}
    for name in about_the_objective:
        assert "balanced accuracy" in pictures[name].alt.lower()
        assert "accuracy" not in pictures[name].alt.lower().replace("balanced accuracy", "")
        assert "balanced accuracy" in pictures[name].svg
    page = Path("s/reports/small/report.md").read_text()
    plain = [line for line in page.splitlines() if "accuracy" in line.lower().replace("balanced accuracy", "")]
    assert all(re.search(r"ridge probe|Test accuracy of each class|arm \| test accuracy \||equals accuracy", line)
               for line in plain), plain  # fmt: skip
    (summary,) = runs(Path("s"), "small", "summary")
    assert {name for name in summary.data.metrics if name.startswith("test_")} == {
        "test_balanced_accuracy/block1", "test_balanced_accuracy/conv2_1",
    }  # fmt: skip
    for run in runs(Path("s"), "small", "arm"):
        assert run.data.metrics["test_balanced_accuracy"] == pytest.approx(
            opened.arms.set_index("arm").test_balanced_accuracy[run.data.tags["arm"]]
        )
        assert "by validation balanced accuracy" in run.data.tags["mlflow.note.content"]
