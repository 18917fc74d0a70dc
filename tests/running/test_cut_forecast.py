"""The forecast before training: computed once, from no test image, and without any effect on the trials."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.analysis.cut_forecasts import CutForecast, forecast_from_json
from ablation.analysis.results import read_results
from ablation.running import cut_forecast
from ablation.running import study as running_study
from ablation.running.session import Session
from ablation.storage.store import find_store
from ablation.tracking.client import FORECAST_FILE
from tests.studies import Command, client, history, runs

TITLE = "Before any training"
FEW = ("--set", "trials_per_arm=1", "--set", "epochs=1")


def logged(store: str) -> list[CutForecast]:
    """Return the forecast in a store of the study `small`."""
    (summary,) = runs(Path(store), "small", kind="summary")
    path = client(Path(store)).download_artifacts(summary.info.run_id, FORECAST_FILE)
    return forecast_from_json(Path(path).read_text())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cuts that are computed, in order."""
    cuts: list[str] = []
    real = cut_forecast._forecast

    def counting(place: tuple[str, Any], *arguments: Any) -> CutForecast:
        cuts.append(place[0])
        return real(place, *arguments)

    monkeypatch.setattr(cut_forecast, "_forecast", counting)
    return cuts


@pytest.fixture
def begin(command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Begins a study in the store of a name, and stops it before its first trial."""

    def stop(session: Session) -> None:
        raise KeyboardInterrupt

    def call(store: str, *changes: str) -> None:
        assert command(study_file, "--store", store, *FEW, *changes) == 130

    monkeypatch.setattr(running_study, "work_until_done", stop)
    return call


def test_a_study_begins_with_it_and_keeps_it(
    command: Command, study_file: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(study_file, "--store", "s", *FEW) == 0
    output = capsys.readouterr().out
    assert output.index(TITLE) < output.index("block1,feature_extraction #0")
    assert computed == ["block1", "conv2_1"]
    forecast = logged("s")
    assert [(cut.truncate_at, cut.features, cut.train_images, cut.val_images) for cut in forecast] == [
        ("block1", 8 * 4, 150, 50),
        ("conv2_1", 16 * 4, 150, 50),
    ]
    assert all(0.2 < cut.ridge_accuracy <= 1 for cut in forecast)  # of ten classes, from random weights
    assert all(0.2 < cut.neighbour_accuracy <= 1 for cut in forecast)

    (summary,) = runs(Path("s"), "small", kind="summary")
    points = client(Path("s")).get_metric_history(summary.info.run_id, "forecast_ridge_accuracy")
    assert [(point.step, point.value) for point in points] == [
        (1, forecast[0].ridge_accuracy),
        (2, forecast[1].ridge_accuracy),
    ]
    assert json.loads(summary.data.tags["mlflow.loggedArtifacts"]) == [{"path": FORECAST_FILE, "type": "table"}]
    assert read_results(find_store("s"), "small").forecast == forecast

    assert command(study_file, "--store", "s", *FEW, "--set", "trials_per_arm=2") == 0  # a resume
    output = capsys.readouterr().out
    assert TITLE in output
    assert "Kept from the study's start" in output
    assert len(computed) == 2
    assert "## Forecast before training" in Path("s/reports/small/report.md").read_text()


def test_trials_do_not_depend_on_it(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither does a failure stop the study: it is one line."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("the device is full\nand more")

    few = (*FEW, "--set", "confirm.seeds=1")
    assert command(study_file, "--store", "with", *few) == 0
    capsys.readouterr()
    monkeypatch.setattr(cut_forecast, "decompose", fail)
    assert command(study_file, "--store", "without", *few) == 0
    output = capsys.readouterr().out
    assert "No forecast before training: the device is full\n" in output
    assert TITLE not in output
    assert read_results(find_store("without"), "small").forecast == []
    assert "## Forecast" not in Path("without/reports/small/report.md").read_text()
    for kind in ("trial", "confirmation"):
        pairs = zip(runs(Path("with"), "small", kind), runs(Path("without"), "small", kind), strict=True)
        for one, other in pairs:
            assert history(Path("with"), one) == history(Path("without"), other)


def test_it_is_the_same_where_no_trial_caches_features(begin: Callable[..., None]) -> None:
    begin("cached")
    assert list(Path("cached/features").glob("*.npy"))
    for number, changes in enumerate(
        [
            ("--set", "fixed.augmentation=crop_flip"),  # whose features cannot be cached
            ("--feature-cache", "0"),
            ("--set", 'factors.strategy=["fine_tune_all"]'),  # no trial freezes all
        ]
    ):
        store = f"computed{number}"
        begin(store, *changes)
        assert not list(Path(store, "features").glob("*.npy"))
        assert logged(store) == logged("cached")


def test_test_images_play_no_part(
    begin: Callable[..., None], monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    real = cut_forecast._compute

    def without_test_images(session: Session, device: torch.device) -> list[CutForecast]:
        for name in ("test_images_NHWC", "test_labels_N"):
            object.__setattr__(session.images, name, None)
        return real(session, device)

    monkeypatch.setattr(cut_forecast, "_compute", without_test_images)
    begin("s")
    assert computed == ["block1", "conv2_1"]


@pytest.mark.parametrize(
    "changes",
    [
        ("--set", 'factors={strategy=["feature_extraction", "fine_tune_all"]}'),  # one cut
        ("--set", 'factors={truncate_at=["block1", "block2"]}', "--set", "fixed.strategy=from_scratch"),
    ],
)
def test_a_study_with_nothing_to_compare_has_none(
    changes: tuple[str, ...], begin: Callable[..., None], computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin("s", *changes)
    output = capsys.readouterr().out
    assert TITLE not in output
    assert "orecast" not in output
    assert computed == []


def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_forecast, "available_memory", lambda: 1000)


def too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_forecast, "MOST_FEATURES", 40)


def too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_forecast, "MOST_SECONDS", -1)
    monkeypatch.setattr(cut_forecast, "evaluation_batch_size", lambda *_: 16)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (limits, "it needs 0.0 GB of memory"),
        (too_wide, "fewer than two cuts have all their weights and at most 40 features"),
        (too_slow, "the features, which no trial needs, would take 0 s"),
    ],
)
def test_limits_are_said_in_a_line(
    limit: Callable[[pytest.MonkeyPatch], None],
    reason: str,
    begin: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit(monkeypatch)
    begin("s", "--feature-cache", "0")
    assert f"No forecast before training: {reason}\n" in capsys.readouterr().out


def test_a_damaged_forecast_is_computed_again(begin: Callable[..., None], computed: list[str]) -> None:
    begin("s")
    forecast = logged("s")
    (path,) = Path("s/artifacts").rglob(FORECAST_FILE)
    path.write_text("{")
    begin("s")
    assert len(computed) == 4
    assert logged("s") == forecast
    (summary,) = runs(Path("s"), "small", kind="summary")
    points = client(Path("s")).get_metric_history(summary.info.run_id, "forecast_ridge_accuracy")
    assert [point.step for point in points] == [1, 2]  # every point once


def test_a_study_that_ended_without_one_gets_none(command: Command, study_file: Path, computed: list[str]) -> None:
    assert command(study_file, "--store", "s", *FEW) == 0
    for path in Path("s/artifacts").rglob(FORECAST_FILE):
        path.unlink()
    assert command(study_file, "--store", "s", *FEW) == 0
    assert len(computed) == 2
