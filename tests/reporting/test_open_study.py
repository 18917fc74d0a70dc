"""A study in a notebook: its tables, what Jupyter shows of it, and the notebook of the front page."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from pandas.testing import assert_frame_equal

import ablation
from ablation.analysis.results import read_results
from ablation.reporting.open_study import OpenStudy, Page
from ablation.storage.store import find_store
from ablation.tracking.client import open_client
from tests.champions import ChampionStudy
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result, store_study
from tests.studies import REPOSITORY

NOTEBOOK = REPOSITORY / "studies" / "notebooks" / "compare.ipynb"


@pytest.fixture
def study(champion_study: ChampionStudy) -> OpenStudy:
    return ablation.open_study("small", store=str(champion_study.store.root))


def test_arms_are_the_runs_means(study: OpenStudy) -> None:
    confirmed = study.runs.query("kind == 'confirmation'").groupby("arm").test_accuracy
    expected = pd.DataFrame({"test_accuracy": confirmed.mean(), "standard_deviation": confirmed.std()})
    found = study.arms.set_index("arm")
    assert_frame_equal(found[list(expected.columns)].sort_index(), expected, check_dtype=False, check_index_type=False)
    assert list(study.arms.test_accuracy) == sorted(study.arms.test_accuracy, reverse=True)
    assert set(study.arms.n) == {2}
    assert (found.low <= found.test_accuracy).all()


def test_differences_are_those_of_the_arms(study: OpenStudy) -> None:
    arms = study.arms
    assert len(study.differences) > 0
    for row in study.differences.itertuples():
        first, second = (arms[arms[row.factor] == level].test_accuracy.mean() for level in (row.first, row.second))
        assert row.difference == pytest.approx(first - second)


def test_curves_are_those_of_the_confirmation_runs(study: OpenStudy) -> None:
    runs = study.runs.query("kind == 'confirmation'").set_index("run_id")
    assert set(study.curves.run_id) == set(runs.index)
    best = study.curves.groupby("run_id").val_accuracy.max()
    np.testing.assert_allclose(best, runs.val_accuracy[best.index])
    assert study.curves.groupby("run_id").epoch.apply(list).map(lambda epochs: epochs == [1, 2, 3]).all()


def test_a_run_may_lack_points_of_a_metric(study: OpenStudy) -> None:
    """What was not recorded is missing in the table; a run without any has no rows."""
    (arm, *others) = study.analysis.result.arms
    first, second = arm.drawn_runs
    short = replace(first, curves={**first.curves, "train_loss": first.curves["train_loss"][:1]})
    arm = replace(arm, confirmations=[short, replace(second, curves={})])
    analysis = replace(study.analysis, result=replace(study.analysis.result, arms=[arm, *others]))
    curves = replace(study, analysis=analysis).curves
    assert list(curves.columns) == list(study.curves.columns)
    own = curves[curves.run_id == first.run_id]
    assert list(own.epoch) == [1, 2, 3]
    assert list(own.train_loss.isna()) == [False, True, True]
    assert list(own.val_loss) == list(first.curves["val_loss"])
    assert second.run_id not in set(curves.run_id)


def test_jupyter_shows_the_answer_and_a_page_in_a_frame(study: OpenStudy) -> None:
    shown = study._repr_html_()
    assert study.question in shown
    assert study.answer in shown
    assert f"{study.arms.test_accuracy[0]:.4f}" in shown
    assert shown.count("<svg") == 1
    hostile = Page('<p title="x">&</p>')
    assert 'srcdoc="&lt;p title=&quot;x&quot;&gt;&amp;&lt;/p&gt;"' in hostile._repr_html_()


def test_a_study_without_confirmation_runs_is_shown(tmp_path: Path) -> None:
    store = find_store(str(tmp_path))
    store_study(store, fake_result(TWO_BY_TWO, FOUR, name="tuned", seeds=0))
    study = ablation.open_study("tuned", store=tmp_path)
    shown = study._repr_html_()
    assert study.answer in shown
    assert "<svg" not in shown
    assert "None" not in shown
    assert "Validation accuracy of the best trial" in shown
    best = {arm.arm.name: arm.best.val_value for arm in study.analysis.result.arms if arm.best is not None}
    assert list(study.arms.arm) == sorted(best, key=lambda arm: -(best[arm] or 0))
    assert list(study.arms.best_trial) == sorted(filter(None, best.values()), reverse=True)
    assert set(study.arms.dtypes[["test_accuracy", "low", "chance_to_be_best"]].astype(str)) == {"float64"}
    assert set(study.differences.dtypes[["difference", "p"]].astype(str)) == {"float64"}


@pytest.mark.parametrize(
    ("names", "message"), [((), "name the study to open"), ((["a", "b"],), "name each study by a string of its own")]
)
def test_what_is_not_opened(tmp_path: Path, names: Any, message: str) -> None:
    with pytest.raises(ablation.InputError, match=message):
        ablation.open_study(*names, store=tmp_path)


def test_differences_name_the_levels_of_arms(tmp_path: Path) -> None:
    """Numbers stay numbers, and the other factor of an interaction is named."""
    factors = {"truncate_at": ["block1", "block3"], "batch_size": [16, 32]}
    accuracies = {"block1,batch_size=16": 0.6, "block1,batch_size=32": 0.9,
                  "block3,batch_size=16": 0.9, "block3,batch_size=32": 0.6}  # fmt: skip
    store_study(find_store(str(tmp_path)), fake_result(factors, accuracies, name="crossed"))
    study = ablation.open_study("crossed", store=tmp_path)
    rows = study.differences
    assert set(rows.factor) == {"truncate_at", "batch_size"}
    assert len(rows) == 2 + 4  # averages, and both at each level of the other
    for row in rows.itertuples():
        arms = study.arms if row.at_factor is pd.NA else study.arms[study.arms[row.at_factor] == row.at_level]
        first, second = (arms[arms[row.factor] == level].test_accuracy.mean() for level in (row.first, row.second))
        assert row.difference == pytest.approx(first - second)


def test_the_report_is_the_commands(
    study: OpenStudy, champion_study: ChampionStudy, finished_study: Path, tmp_path: Path
) -> None:
    study.report.save(tmp_path / "report.html")
    written = (champion_study.store.root / "reports" / "small" / "report.html").read_text()
    original, copy = str(finished_study / "store"), str(champion_study.store.root)  # which commands name
    assert original in written
    assert (tmp_path / "report.html").read_text() == written.replace(original, copy)


def test_the_notebook_runs(champion_study: ChampionStudy, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # no results of anybody's are committed
    (names,) = (cell for cell in notebook.cells if 'NAME, STORE = "vgg_truncation-demo", "mlruns"' in cell.source)
    names.source = names.source.replace(
        '"vgg_truncation-demo", "mlruns"', f'"small", {str(champion_study.store.root)!r}'
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in shown if output.output_type == "stream"] == []
    assert sum("text/html" in output.get("data", {}) for output in shown) == 5
    assert sum("image/svg+xml" in output.get("data", {}) for output in shown) == 1


@pytest.mark.skipif(os.name != "posix", reason="only there can a user lack a name")
def test_a_user_without_a_home_folder_can_open_one() -> None:
    """As in a container that runs as a number: plots need a library that looks for the folder when it is imported."""
    code = (
        "import os, pwd; os.environ.pop('HOME'); pwd.getpwuid = {}.__getitem__\n"
        "import ablation.reporting.charts, ablation.tracking; print('HOME' in os.environ)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HOME": "/"})
    assert done.stdout == "False\n", done.stderr


def test_a_deleted_best_trial_still_has_its_learning_curves(tmp_path: Path) -> None:
    store = find_store(str(tmp_path))
    two = {"truncate_at": ["block3", "block4"]}
    store_study(store, fake_result(two, {"block3": 0.8, "block4": 0.85}, name="tuned", seeds=0))
    best = read_results(store, "tuned").arms[0].best
    client = open_client(store, create=False)
    assert best is not None
    assert client is not None
    client.delete_run(best.run_id)
    curves = ablation.open_study("tuned", store=str(tmp_path)).curves
    assert list(curves[curves.arm == "block3"].run_id) == [best.run_id] * 4
