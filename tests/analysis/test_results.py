"""A study read back from its store: what is read, and of which runs."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ablation import load_results
from ablation.analysis import results
from ablation.analysis.answer import analyse
from ablation.analysis.results import StudyResult, read_results
from ablation.analysis.runs import CURVES
from ablation.base.errors import InputError
from ablation.reporting.run_charts import curve_panels, curves
from ablation.spec.arms import arms
from ablation.storage.store import Store, find_store
from ablation.tracking import reading
from ablation.tracking.client import ABOUT_FILE
from tests.fake_results import fake_arm, fake_result, fake_spec, store_study

CUTS = ["block3", "block4", "block5"]


@pytest.fixture(scope="module")
def study() -> StudyResult:
    """Three arms with two confirmation runs each, but block4 has none, and those of block5 failed."""
    result = fake_result({"truncate_at": CUTS}, {"block3": 0.9, "block4": 0.8, "block5": 0.7}, seeds=2)
    block3, block4, block5 = result.arms
    failed = [
        dataclasses.replace(run, state="failed", val_accuracy=None, test_accuracy=None, predictions=None)
        for run in block5.confirmations
    ]
    arms = [block3, dataclasses.replace(block4, confirmations=[]), dataclasses.replace(block5, confirmations=failed)]
    return dataclasses.replace(result, arms=arms)


@pytest.fixture(scope="module")
def store(study: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of that study."""
    place = find_store(str(tmp_path_factory.mktemp("results") / "store"))
    store_study(place, study)
    return place


def test_an_arm_without_confirmation_runs_shows_the_curves_of_its_best_trial(store: Store, study: StudyResult) -> None:
    result = read_results(store, "fake")
    assert [len(curves(arm, "val_accuracy")) for arm in result.arms] == [2, 1, 1]
    for arm, expected in zip(result.arms, study.arms, strict=True):
        assert arm.drawn_runs == arm.confirmations if arm.arm.name == "block3" else arm.drawn_runs == [arm.best]
        for run, original in zip(arm.drawn_runs, expected.drawn_runs, strict=True):
            assert {name: list(run.curves[name]) for name in CURVES} == {
                name: list(original.curves[name]) for name in CURVES
            }
    picture = curve_panels(analyse(result), "accuracy", "accuracy")
    assert picture is not None
    assert picture.spec is not None
    assert picture.spec["facet"]["sort"] == CUTS


def test_curves_are_read_of_the_runs_that_are_drawn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []
    original = MlflowClient.get_metric_history

    def history(client: MlflowClient, run_id: str, key: str) -> Any:
        requests.append(run_id)
        return original(client, run_id, key)

    monkeypatch.setattr(MlflowClient, "get_metric_history", history)
    result = read_results(store, "fake")
    assert sorted(set(requests)) == sorted(run.run_id for arm in result.arms for run in arm.drawn_runs)
    assert len(requests) == len(CURVES) * 4


def test_a_store_with_its_own_database_is_read_without_a_temporary_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    assert len(read_results(store, "fake").arms) == 3


def test_a_table_of_results_needs_no_curves_and_no_files_but_one(
    store: Store, study: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[str] = []
    original = reading.run_file

    def run_file(place: Store, run: Any, name: str) -> Any:
        files.append(name)
        return original(place, run, name)

    def refuse(*_: object) -> None:
        raise AssertionError("no curve is in the table")

    for module in (reading, results):
        monkeypatch.setattr(module, "run_file", run_file)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_metric_history", refuse)
        table = load_results("fake", store=str(store.root))
    assert files == [ABOUT_FILE]
    assert len(table) == sum(len(arm.trials) + len(arm.confirmations) for arm in study.arms)
    tests = table[table.arm == "block3"].test_accuracy.dropna()
    assert list(tests) == list(study.arms[0].test_accuracies_S)
    assert table.is_best.sum() == 3
    read_results(store, "fake")
    # about.json, two files of predictions, the samples, the set's summary, the forecast
    assert len(files) == 1 + 1 + 2 + 1 + 1 + 1


def test_the_docstring_names_every_column(store: Store) -> None:
    table = load_results("fake", store=str(store.root))
    columns = list(table.columns)
    own = columns[: columns.index("seed") + 1]
    assert load_results.__doc__ is not None
    assert [name for name in own if f"`{name}`" not in load_results.__doc__] == []


def test_a_store_without_a_summary_run_says_what_to_do(tmp_path: Path, study: StudyResult) -> None:
    place = find_store(str(tmp_path / "store"))
    record = store_study(place, study)
    MlflowClient(place.tracking_uri).delete_run(record.summary.run_id)
    with pytest.raises(InputError, match="study 'fake' has no summary run: run the study once more"):
        load_results("fake", store=str(place.root))


def test_the_best_trial_is_the_first_of_equals_in_the_order_of_the_study() -> None:
    """Whichever repeat of the tuning it is of, and deleted in MLflow or not: so Optuna chooses what is confirmed."""
    values = [0.8, 0.92, 0.85, 0.92, 0.8, 0.8]
    spec = fake_spec({"truncate_at": CUTS}, trials_per_arm=6, confirm={"repeats": 3, "seeds": 0})
    arm = fake_arm(spec, arms(spec)[0], values, [], [])
    assert [run.number for run in arm.chosen] == [3, 1, 2]  # trial n is of repeat n % 3
    one_tuning = fake_arm(fake_spec({"truncate_at": CUTS}, trials_per_arm=6), arms(spec)[0], values, [], [])
    assert [run.number for run in one_tuning.chosen] == [1]
    for whole in (arm, one_tuning):
        without = dataclasses.replace(whole, trials=[*whole.trials[:1], *whole.trials[2:]], deleted=whole.trials[1:2])
        for each in (whole, without):
            assert each.best is not None
            assert each.best.number == 1
        assert without.chosen == whole.chosen


def test_a_best_trial_that_was_deleted_in_mlflow_keeps_its_curves(tmp_path: Path, study: StudyResult) -> None:
    place = find_store(str(tmp_path / "store"))
    block4 = study.arms[1]
    assert block4.best is not None
    store_study(place, study)
    stored = read_results(place, "fake").arms[1].best
    assert stored is not None
    MlflowClient(place.tracking_uri).delete_run(stored.run_id)
    arm = read_results(place, "fake").arms[1]
    assert [run.run_id for run in arm.deleted] == [stored.run_id]
    (drawn,) = arm.drawn_runs
    assert drawn.run_id == stored.run_id
    assert {name: list(drawn.curves[name]) for name in CURVES} == {
        name: list(block4.best.curves[name]) for name in CURVES
    }
