"""The saved views of the MLflow UI: what is stored, and what a browser shows of it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ablation.analysis.runs import CHANGES
from ablation.running.mlflow_pages import conclude_pages, write_views
from ablation.spec.architectures import ARCHITECTURES, block_names
from ablation.spec.metrics import EpochMetrics
from ablation.spec.study import StudySpec
from ablation.storage.store import Store, find_store
from ablation.tracking import saved_views
from ablation.tracking.experiment import Tracker
from ablation.tracking.saved_views import (
    BEST_ARM_VIEW,
    BLOCK_METRICS,
    METRICS,
    VALUE_LIMIT,
    VIEW_TAG,
    SavedView,
    keep_views,
    stored_views,
    study_views,
    view_name,
    view_state,
)
from ablation.tracking.summary_run import SummaryRun
from tests.browser import CHROMIUM, browser_page, mlflow_ui, open_view
from tests.fake_results import fake_result, fake_spec, store_study
from tests.studies import new_tracker

FACTORS = {"truncate_at": ["block1", "block3"], "strategy": ["feature_extraction", "fine_tune_all"]}
ACCURACIES = {
    "block1,feature_extraction": 0.6, "block1,fine_tune_all": 0.7,
    "block3,feature_extraction": 0.9, "block3,fine_tune_all": 0.8,
}  # fmt: skip
NAMES = [
    "1 Which arm is best", "2 How each arm learns", "3 What tuning tried", "4 Level against level: strategy",
    "4 Level against level: truncate_at", "5 Speed and cost", "6 What failed or was pruned",
]  # fmt: skip
WITHOUT_RESULT = {"FAILED": "the training loss became nan in epoch 1", "KILLED": "pruned after epoch 1 of 4"}


def tags(tracker: Tracker) -> dict[str, str]:
    stored = tracker.client.get_experiment(tracker.experiment_id).tags
    return {key: value for key, value in stored.items() if key.startswith(VIEW_TAG)}


def test_a_study_has_its_views_by_name(tracker: Tracker, store: Store) -> None:
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    number, views = stored_views(store, "fake", "http://here:1")
    assert number == tracker.experiment_id
    assert [name for name, _ in views] == NAMES
    address = f"http://here:1/#/experiments/{number}/runs?workflowType=machine_learning"
    assert views[0][1] == f"{address}&compareRunsMode=CHART&viewStateShareKey=ablation-1-best-arm"
    assert views[-1][1] == f"{address}&viewStateShareKey=ablation-6-failures"  # a table
    assert stored_views(store, None, "http://here:1")[1] == views  # the only study


def test_the_menu_of_the_ui_has_the_first_view_first(tracker: Tracker) -> None:
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    newest_first = sorted(map(json.loads, tags(tracker).values()), key=lambda view: -view["updatedAt"])
    assert newest_first[0]["name"] == NAMES[0]
    assert newest_first[-1]["name"] == NAMES[-1]


def test_a_view_that_a_person_changed_is_left_alone(tracker: Tracker) -> None:
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    before = tags(tracker)
    key, deleted = VIEW_TAG + BEST_ARM_VIEW, f"{VIEW_TAG}ablation-5-cost"
    mine = json.loads(before[key])
    # As the UI saves it: without the keys that it does not know.
    changed = json.dumps({name: mine[name] for name in ("name", "createdAt", "updatedAt", "state")})
    tracker.client.set_experiment_tag(tracker.experiment_id, key, changed)
    tracker.client.delete_experiment_tag(tracker.experiment_id, deleted)
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    after = tags(tracker)
    assert after.pop(key) == changed
    assert view_state(after.pop(deleted)) == view_state(before[deleted])  # a way to have the original again
    assert after == {other: before[other] for other in after}


def test_a_view_whose_state_was_edited_is_a_persons(tracker: Tracker) -> None:
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=False))
    key, other = VIEW_TAG + BEST_ARM_VIEW, f"{VIEW_TAG}ablation-5-cost"
    stored = tags(tracker)
    edited = json.dumps({**json.loads(stored[key]), "state": json.loads(stored[other])["state"]})
    tracker.client.set_experiment_tag(tracker.experiment_id, key, edited)
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    assert tags(tracker)[key] == edited


def test_views_are_kept_current(tracker: Tracker) -> None:
    key = VIEW_TAG + BEST_ARM_VIEW
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=False))
    assert view_state(tags(tracker)[key])["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "arm"}]
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    assert view_state(tags(tracker)[key])["searchFilter"] == "tags.kind = 'arm'"
    assert view_name(tags(tracker)[key]) == NAMES[0]


def grouped(view: SavedView) -> tuple[str, str, str]:
    """Return which runs a view shows, sorted by which metric, and how it groups them."""
    return view.state["searchFilter"], view.state["orderByKey"], view.state["groupBy"]["aggregateFunction"]


@pytest.mark.parametrize(("objective", "best"), [("accuracy", "max"), ("loss", "min")])
def test_before_the_first_confirmation_run_views_show_trials(objective: str, best: str) -> None:
    views = study_views(fake_spec(FACTORS, objective=objective), has_confirmations=False, has_arm_runs=False)
    by_name = {view.name: view for view in views}
    trials, metric = "tags.kind = 'trial'", f"metrics.`best_val_{objective}`"
    assert grouped(by_name[NAMES[0]]) == (trials, metric, best)  # the best trial of each arm
    assert grouped(by_name[NAMES[1]]) == (trials, metric, "average")
    assert grouped(by_name[NAMES[3]]) == (trials, metric, "average")
    assert by_name[NAMES[5]].state["searchFilter"] == trials
    assert not any("test_" in column for view in views for column in view.state["selectedColumns"])


def test_a_study_without_confirmation_runs_shows_the_best_trials_of_its_arms(tracker: Tracker) -> None:
    result = fake_result(FACTORS, ACCURACIES, images=50)
    arms = [dataclasses.replace(arm, confirmations=[]) for arm in result.arms]
    conclude_pages(SummaryRun(tracker, "summary"), dataclasses.replace(result, arms=arms))
    state = view_state(tags(tracker)[VIEW_TAG + BEST_ARM_VIEW])
    assert (state["searchFilter"], state["orderByKey"], state["orderByAsc"]) == (
        "tags.kind = 'arm'",
        "metrics.`rank`",
        True,
    )
    shown = [chart.get("metricKey") for chart in state["compareRunCharts"] if not chart["deleted"]]
    assert shown[0] == "best_val_accuracy"
    assert "test_accuracy" not in shown
    runs = tracker.client.search_runs([tracker.experiment_id], state["searchFilter"], order_by=["metrics.rank"])
    assert [run.data.params["arm"] for run in runs] == sorted(ACCURACIES, key=ACCURACIES.__getitem__, reverse=True)


def test_no_chart_is_left_to_the_ui() -> None:
    """The UI adds a chart for each metric that no chart of a view names."""
    fields = [field.name for field in dataclasses.fields(EpochMetrics) if field.name not in ("epoch", "timestamp")]
    assert set(fields) <= {*METRICS, *BLOCK_METRICS}
    assert set(CHANGES) <= set(BLOCK_METRICS)
    for view in study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True):
        charts = view.state["compareRunCharts"]
        named = {chart.get("metricKey") for chart in charts}
        assert named >= {*METRICS, "distance_moved/block2"}
        assert {chart["deleted"] for chart in charts if chart["isGenerated"]} == {True}


def charts(view: SavedView) -> list[str]:
    """Return the charts of a view, such as 'BAR test_accuracy' or 'SCATTER lr', those that are hidden left out."""
    shown = [chart for chart in view.state["compareRunCharts"] if not chart["deleted"]]
    what = [chart.get("metricKey") or chart.get("selectedParams") or chart["xaxis"]["key"] for chart in shown]
    return [f"{chart['type']} {name}" for chart, name in zip(shown, what, strict=True)]


def test_speed_and_cost_has_a_run_per_arm_in_the_arms_colours() -> None:
    """Once there is one: groups of runs have the UI's own colours."""
    for has_confirmations, title in ((True, "Means over seeds"), (False, "Best trial of each arm")):
        cost = study_views(fake_spec(FACTORS), has_confirmations=has_confirmations, has_arm_runs=True)[5]
        assert (cost.state["searchFilter"], cost.state["groupBy"]) == ("tags.kind = 'arm'", None)
        assert cost.state["compareRunSections"][0]["name"] == f"{title}: cost and accuracy"
        assert charts(cost) == ["SCATTER training_seconds", "SCATTER trained_parameters", "BAR training_seconds"]
    so_far = study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=False)[5]
    assert grouped(so_far)[::2] == ("tags.kind = 'confirmation' and tags.superseded IS NULL", "average")


def test_where_nothing_is_searched_the_view_of_tuning_has_the_trials() -> None:
    tuning = study_views(fake_spec(FACTORS, search={}), has_confirmations=True, has_arm_runs=True)[2]
    assert (tuning.name, tuning.state["searchFilter"]) == (NAMES[2], "tags.kind = 'trial'")
    assert charts(tuning) == ["BAR best_val_accuracy"]


def test_listed_arms_are_shown_by_the_parameters_that_all_of_them_set() -> None:
    """They are no grid: there are no means of levels, and a parameter that some do not set has no axis."""
    listed = [{"truncate_at": "block1", "lr": 0.1}, {"truncate_at": "block3"}, {"truncate_at": "block5"}]
    views = study_views(fake_spec({}, arms=listed, search={}), has_confirmations=True, has_arm_runs=True)
    assert [view.name[0] for view in views] == ["1", "2", "3", "5", "6"]
    drawn = [chart for chart in charts(views[0]) if not chart.startswith("BAR")]
    assert drawn == ["PARALLEL ['truncate_at']"]  # whose axis is sorted
    listed = [{"name": "plain"}, {"head_width": 8, "lr": 0.1}, {"label_smoothing": 0.1}]
    views = study_views(fake_spec({}, arms=listed, search={}), has_confirmations=True, has_arm_runs=True)
    assert {chart.partition(" ")[0] for chart in charts(views[0])} == {"BAR"}


def test_views_show_the_objective() -> None:
    """Sorted by it, the best first; nothing but the training's accuracy is of accuracy."""
    names = {
        view.name: view.state
        for view in study_views(fake_spec(FACTORS, objective="loss"), has_confirmations=True, has_arm_runs=False)
    }
    for name in (NAMES[0], NAMES[1]):
        assert names[name]["orderByKey"] == "metrics.`test_loss`"
        assert names[name]["orderByAsc"]
        assert "metrics.`best_val_loss`" in names[name]["selectedColumns"]
    for state in names.values():
        shown = {chart.get("metricKey") for chart in state["compareRunCharts"] if not chart["deleted"]}
        assert not shown & {"val_accuracy", "test_accuracy", "best_val_accuracy"}
        assert {"best_val_loss", "best_val_accuracy"} <= {chart.get("metricKey") for chart in state["compareRunCharts"]}
    balanced = study_views(fake_spec(FACTORS, objective="balanced_accuracy"), has_confirmations=True, has_arm_runs=True)
    assert not balanced[1].state["orderByAsc"]
    assert balanced[1].state["compareRunCharts"][0]["metricKey"] == "val_balanced_accuracy"


@pytest.mark.parametrize("backbone", sorted(ARCHITECTURES, key=lambda name: -len(block_names(name)))[:2])
def test_views_fit_into_a_tag(backbone: str, tracker: Tracker) -> None:
    """The networks with the most blocks, every hyper-parameter searched that can be."""
    ranges = {name: {"low": 1e-4, "high": 1e-1, "log": True} for name in ("lr", "weight_decay", "backbone_lr_scale")}
    blocks = list(block_names(backbone))
    factors = {"truncate_at": blocks, "strategy": ["feature_extraction", "fine_tune_all"]}
    search = {**ranges, "head_width": {"choices": [1, 2]}, "batch_size": {"choices": [8, 16]}}
    data = {"source": "cifar10", "image_size": 224}
    spec = fake_spec(factors, backbone={"name": backbone}, search=search, data=data)
    keep_views(tracker, study_views(spec, has_confirmations=True, has_arm_runs=True))
    assert max(map(len, tags(tracker).values())) < 0.8 * VALUE_LIMIT


def test_a_backbone_of_very_many_blocks_has_its_views(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"stage{number // 30}.residual_unit_{number * 7919 % 1000:03}" for number in range(300))
    monkeypatch.setattr(saved_views, "block_names", lambda backbone: names)
    keep_views(tracker, study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True))
    assert sorted(map(view_name, tags(tracker).values())) == NAMES


def test_a_view_that_does_not_fit_is_left_out(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    views = study_views(fake_spec(FACTORS), has_confirmations=True, has_arm_runs=True)
    monkeypatch.setattr(saved_views, "VALUE_LIMIT", 100)
    keep_views(tracker, views)
    assert tags(tracker) == {}


@pytest.fixture(scope="module")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of made-up results, with all that the UI shows of it."""
    store = find_store(str(tmp_path_factory.mktemp("views") / "s"))
    result = fake_result(FACTORS, ACCURACIES, images=200)
    record = store_study(store, result)
    run_ids = {(run.tags["arm"], run.tags["kind"], run.tags["trial"]): run.run_id for run in record.runs}
    arms = []
    for arm in result.arms:
        confirmations = [
            dataclasses.replace(run, run_id=run_ids[arm.arm.name, "confirmation", str(run.number)])
            for run in arm.confirmations
        ]
        arms.append(dataclasses.replace(arm, confirmations=confirmations))
    tracker = new_tracker(store, "fake")
    write_views(tracker, result.spec, has_confirmations=True)
    conclude_pages(SummaryRun(tracker, "summary"), dataclasses.replace(result, arms=arms))
    for status, reason in WITHOUT_RESULT.items():
        tags = {"kind": "trial", "arm": "block1,fine_tune_all", "reason": reason}
        run = tracker.client.create_run(tracker.experiment_id, tags=tags)
        tracker.client.set_terminated(run.info.run_id, status)
    return store.root


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@needs_browser
def test_the_first_view_answers_at_a_glance(finished_store: Path) -> None:
    pytest.importorskip("playwright")
    errors: list[str] = []
    with mlflow_ui(finished_store, "fake") as addresses, browser_page() as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        open_view(page, addresses[0])
        names = page.locator(".ag-center-cols-container, .ag-pinned-left-cols-container").get_by_role("link")
        shown = [name.strip() for name in names.all_inner_texts()]
        assert shown == [  # best first
            "block3 / feature extraction", "block3 / fine-tune all",
            "block1 / fine-tune all", "block1 / feature extraction",
        ]  # fmt: skip
        # No chart of the UI's own.
        assert re.search(r"Means over seeds, best validation first\s*\(5\)", page.inner_text("body"))
        assert page.get_by_text("test_accuracy", exact=True).first.is_visible()
        assert not errors


@needs_browser
@pytest.mark.slow
def test_every_view_opens_with_its_charts(finished_store: Path) -> None:
    pytest.importorskip("playwright")
    titles = {
        NAMES[1]: r"Mean over seeds after each epoch\s*\(5\)", NAMES[2]: r"Every trial of every arm\s*\(3\)",
        NAMES[3]: r"Means over arms and seeds\s*\(4\)", NAMES[4]: r"Means over arms and seeds\s*\(4\)",
        NAMES[5]: r"Means over seeds: cost and accuracy\s*\(3\)",
    }  # fmt: skip
    with mlflow_ui(finished_store, "fake") as addresses, browser_page() as page:
        for name, address in list(zip(NAMES, addresses, strict=True))[1:6]:
            open_view(page, address)
            assert re.search(titles[name], page.inner_text("body")), name
            assert page.get_by_role("button", name=name).is_visible()
        page.goto("about:blank")
        page.goto(addresses[6])  # a table
        for reason in WITHOUT_RESULT.values():
            cell = page.get_by_text(reason, exact=True)
            cell.wait_for()
            assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth"), "it is not cut"
        assert page.get_by_text("2 matching runs").is_visible()
        page.goto("about:blank")
        page.goto(f"{addresses[0].partition('/#/')[0]}/#/experiments/1/models?workflowType=machine_learning")
        page.get_by_text("block3 - feature extraction - seed 1").first.wait_for()


def test_a_study_without_factors_or_search_has_views(tracker: Tracker) -> None:
    spec: StudySpec = fake_spec({}, search={})
    keep_views(tracker, study_views(spec, has_confirmations=True, has_arm_runs=True))
    names = sorted(map(view_name, tags(tracker).values()))
    assert names == [name for name in NAMES if not name.startswith("4")]
