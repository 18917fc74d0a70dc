"""The saved views of a study's experiment in the MLflow UI: each answers one question, and opens by its address.

A view is an experiment tag whose value is JSON with the state of the UI's page of runs, compressed; the MLflow UI lists
the views of an experiment in its menu "Views". The format is MLflow's own since 3.15 and has no public description.
"""

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ablation.spec.architectures import block_names
from ablation.spec.objective import Objective
from ablation.spec.study import StudySpec
from ablation.storage.store import Store
from ablation.tracking.client import KEY_TAG, all_pages, find_experiment, reading_client
from ablation.tracking.experiment import Tracker

ID_PREFIX = "ablation-"  # of the ids of views
BEST_ARM_VIEW = f"{ID_PREFIX}1-best-arm"
FAILURES_VIEW = f"{ID_PREFIX}6-failures"
TABLES = {FAILURES_VIEW}  # views whose addresses open the table of runs, not the charts
VIEW_TAG = "mlflow.sharedViewState."  # followed by the view's id
DIGEST_KEY = "ablation"  # in a view's JSON; the MLflow UI drops it when a person saves the view
VALUE_LIMIT = 5000  # characters of an experiment tag
MOST_BLOCKS = 64  # whose charts are hidden: more names would not fit into a tag, and the UI draws their charts
REASON_WIDTH = 360  # pixels, of the column of reasons
LOWEST_CARD, ARM_HEIGHT, LEGEND_HEIGHT = 300, 20, 160  # pixels, of cards and the bars in them

TRIALS = "tags.kind = 'trial'"
ARM_RUNS = "tags.kind = 'arm'"
CURRENT_CONFIRMATIONS = "tags.kind = 'confirmation' and tags.superseded IS NULL"
BY_ARM = {"mode": "tag", "groupByData": "arm"}
# Of all runs; a chart that the UI would draw of one by itself is hidden by naming it.
METRICS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "lr",
    "images_per_second", "best_val_accuracy", "best_epoch", "trained_parameters", "training_seconds", "test_accuracy",
    "test_balanced_accuracy", "test_macro_f1", "test_loss", "test_sd", "test_low",
    "test_high", "val_sd", "seeds", "rank",
)  # fmt: skip
BLOCK_METRICS = ("relative_gradient_norm", "distance_moved", "mean_relative_gradient_norm", "similarity_to_start")


@dataclass(frozen=True)
class SavedView:
    """A saved view of an experiment's runs.

    Attributes:
        id: names it in addresses; fixed.
        name: as the UI's menu shows it.
        state: the page's state, as the UI has it in JSON.
    """

    id: str
    name: str
    state: dict[str, Any]


@dataclass(frozen=True)
class ShownRuns:
    """The runs that most views show: confirmation runs, or trials before the first of them has finished.

    Attributes:
        query: finds them.
        are_confirmations: whether they are confirmation runs.
        metrics: of the objective, the one that sorts them first.
    """

    query: str
    are_confirmations: bool
    metrics: tuple[str, ...]

    @property
    def words(self) -> str:
        """What their means are over."""
        return "seeds" if self.are_confirmations else "trials"


def study_views(spec: StudySpec, *, has_confirmations: bool, has_arm_runs: bool) -> list[SavedView]:
    """Return a study's views.

    Args:
        spec: the study.
        has_confirmations: whether a confirmation run has finished; views that compare arms show trials before.
        has_arm_runs: whether views 1 and 5 may show a run per arm, see `arm_runs`. While a study runs there are none,
            and the views group the other runs by arm, whose names the UI then cuts.
    """
    factors = [name for name in spec.arm_parameters() if len(_levels(spec, name)) > 1]
    # Of [[arms]], a run has the parameters that its arm sets: a chart leaves out the others.
    drawn = [name for name in factors if all(name in levels for levels in spec.combinations())]
    searched = list(spec.search.entries())
    goal = spec.goal
    runs = ShownRuns(TRIALS, are_confirmations=False, metrics=(goal.best_metric,))
    if has_confirmations:
        runs = ShownRuns(CURRENT_CONFIRMATIONS, are_confirmations=True, metrics=(goal.test_metric, goal.best_metric))
    is_only = len(factors) == 1
    views = [_best_arm(drawn, runs) if has_arm_runs else _arms_so_far(runs, goal), _learning_curves(runs, goal)]
    views.append(_tuning(searched, goal))
    if not spec.arms:  # else a level's mean would be over unrelated arms
        views += [_levels_view(factor, runs, goal, is_only=is_only) for factor in factors]
    views += [_cost(runs, goal, has_arm_runs=has_arm_runs), _failures(searched, goal)]
    blocks = block_names(spec.backbone.name)[:MOST_BLOCKS]
    own = [] if goal.best_metric in METRICS else [goal.best_metric]
    metrics = [*METRICS, *own, *(f"{metric}/{block}" for metric in BLOCK_METRICS for block in blocks)]
    height = max(LOWEST_CARD, ARM_HEIGHT * len(spec.combinations()) + LEGEND_HEIGHT)
    return [replace(view, state=_finished(view.state, metrics, height)) for view in views]


def _levels(spec: StudySpec, name: str) -> set[str]:
    return {str(value) for levels in spec.combinations() for value in spec.possible(name, levels)}


def view_address(server: str, experiment_id: str, view_id: str) -> str:
    """Return the address of a view of an experiment, on an MLflow UI whose own address is `server`."""
    mode = "" if view_id in TABLES else "&compareRunsMode=CHART"
    # The UI opens in its GenAI mode without the workflow.
    query = f"workflowType=machine_learning{mode}&viewStateShareKey={quote(view_id)}"
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"


def stored_views(store: Store, study: str | None, server: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the id of a study's experiment, and its views that have this package's ids: names and addresses.

    Args:
        store: where the study is.
        study: its name; without one, the only study in the store, or None and no views where there are several.
        server: the address of the MLflow UI.

    Raises:
        InputError: there is no such study, or the store cannot be opened.
        StoreAway: the server or database is away.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    if study is None:
        experiments = [other for other in all_pages(client.search_experiments) if KEY_TAG in other.tags]
        if len(experiments) != 1:
            return None, []
        study = experiments[0].name
    experiment = find_experiment(client, store, study)
    ids = sorted(tag.removeprefix(VIEW_TAG) for tag in experiment.tags if tag.startswith(f"{VIEW_TAG}{ID_PREFIX}"))
    views = [
        (view_name(experiment.tags[VIEW_TAG + view_id]), view_address(server, experiment.experiment_id, view_id))
        for view_id in ids
    ]
    return experiment.experiment_id, views


def keep_views(tracker: Tracker, views: Sequence[SavedView]) -> None:
    """Write views to the experiment, except over those that a person has changed; one that was deleted comes back.

    A view that is too long for a tag, because of long names of factors or blocks, is left out.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    with tracker.calls():
        stored = tracker.client.get_experiment(tracker.experiment_id).tags
        now = time.time_ns() // 1_000_000
        for place, view in enumerate(views):
            before = stored.get(VIEW_TAG + view.id)
            if before is not None and _own_digest(before) in (None, _digest(view.name, view.state)):
                continue
            value = _value(view, now - place)  # the UI's menu has the newest first
            if len(value) <= VALUE_LIMIT:
                tracker.client.set_experiment_tag(tracker.experiment_id, VIEW_TAG + view.id, value)


def _value(view: SavedView, timestamp: int) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(view.state, separators=(",", ":")).encode(), 9)).decode()
    envelope = {"name": view.name, "createdAt": timestamp, "updatedAt": timestamp, "state": f"deflate;{packed}"}
    return json.dumps({**envelope, DIGEST_KEY: _digest(view.name, view.state)})


def _digest(name: str, state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, state], sort_keys=True).encode()).hexdigest()[:16]


def view_state(value: str) -> dict[str, Any]:
    """Return the page's state that the value of a view's tag holds.

    Raises:
        ValueError: the value is no view.
    """
    try:
        packed = json.loads(value)["state"].removeprefix("deflate;")
        state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    except (KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"not a saved view ({error})") from None
    return state


def view_name(value: str) -> str:
    """Return the name of a view that the value of its tag holds."""
    try:
        return str(json.loads(value)["name"])
    except (ValueError, KeyError, TypeError):
        return "damaged view"


def _own_digest(value: str) -> str | None:
    """Return the digest in a view's value; None where somebody else wrote it: it is missing, or of another content."""
    try:
        envelope = json.loads(value)
        digest = _digest(envelope["name"], view_state(value))
        return digest if digest == envelope[DIGEST_KEY] else None
    except (ValueError, KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------------------------------- the views


def _best_arm(factors: list[str], runs: ShownRuns) -> SavedView:
    metric = runs.metrics[0]
    charts = [_bar(name) for name in runs.metrics]
    # It sorts a factor's levels; a scatter plot has words in the order of the runs.
    charts += [_parallel(factors, metric)] if factors else []
    charts += [_bar("training_seconds"), _bar("trained_parameters")]
    spread = ["test_sd", "test_low", "test_high", "seeds"] if runs.are_confirmations else []
    columns = [metric, *spread, *runs.metrics[1:], "training_seconds", "trained_parameters"]
    state = _state(
        "Means over seeds, best validation first" if runs.are_confirmations else "Best trial of each arm, best first",
        ARM_RUNS,
        "rank",
        charts,
        [_metric(name) for name in columns],
        ascending=True,
    )
    return SavedView(BEST_ARM_VIEW, "1 Which arm is best", state)


def _arms_so_far(runs: ShownRuns, goal: Objective) -> SavedView:
    shown = [*runs.metrics, *(["training_seconds", "trained_parameters"] if runs.are_confirmations else [])]
    charts, columns = [_bar(name) for name in shown], [_metric(name) for name in shown]
    title = "Means over the seeds so far" if runs.are_confirmations else "Best trial of each arm so far"
    state = _state(title, runs.query, runs.metrics[0], charts, columns, ascending=not goal.higher_is_better)
    best = "max" if goal.higher_is_better else "min"
    grouped = _grouped(BY_ARM, "average" if runs.are_confirmations else best)
    return SavedView(BEST_ARM_VIEW, "1 Which arm is best", {**state, "groupBy": grouped})


def _learning_curves(runs: ShownRuns, goal: Objective) -> SavedView:
    shown = dict.fromkeys([goal.val_metric, "train_accuracy", "val_loss", "train_loss"])
    columns = [_metric(name) for name in (*runs.metrics, "best_epoch")]
    charts = [_line(name) for name in (*shown, "images_per_second")]
    title = f"Mean over {runs.words} after each epoch"
    state = _state(title, runs.query, runs.metrics[0], charts, columns, ascending=not goal.higher_is_better)
    return SavedView(f"{ID_PREFIX}2-learning", "2 How each arm learns", {**state, "groupBy": _grouped(BY_ARM)})


def _tuning(searched: list[str], goal: Objective) -> SavedView:
    charts = [_parallel(searched, goal.best_metric)] if searched else [_bar(goal.best_metric)]
    charts += [_scatter(name, "PARAM", goal.best_metric) for name in searched]
    columns = [_tag("arm"), _metric(goal.best_metric), *(_param(name) for name in searched)]
    state = _state(
        "Every trial of every arm",
        TRIALS,
        goal.best_metric,
        charts,
        columns,
        ascending=not goal.higher_is_better,
    )
    return SavedView(f"{ID_PREFIX}3-tuning", "3 What tuning tried", state)


def _levels_view(factor: str, runs: ShownRuns, goal: Objective, *, is_only: bool) -> SavedView:
    shown = [*runs.metrics, "training_seconds"]
    charts = [*(_bar(name) for name in shown), _line(goal.val_metric)]
    columns = [_metric(name) for name in shown]
    title = f"Means over arms and {runs.words}"
    state = _state(title, runs.query, runs.metrics[0], charts, columns, ascending=not goal.higher_is_better)
    state["groupBy"] = _grouped({"mode": "param", "groupByData": factor})
    name = "4 Level against level" if is_only else f"4 Level against level: {factor}"
    return SavedView(f"{ID_PREFIX}4-levels-{factor}", name, state)


def _cost(runs: ShownRuns, goal: Objective, *, has_arm_runs: bool) -> SavedView:
    metrics = [runs.metrics[0], "training_seconds", "trained_parameters"]
    charts = [*(_scatter(name, "METRIC", metrics[0]) for name in metrics[1:]), _bar("training_seconds")]
    over = "Best trial of each arm" if has_arm_runs and not runs.are_confirmations else f"Means over {runs.words}"
    query = ARM_RUNS if has_arm_runs else runs.query
    columns = [_metric(name) for name in metrics]
    state = _state(f"{over}: cost and {goal.label}", query, "training_seconds", charts, columns, ascending=True)
    # The UI gives groups colours of its own; runs have their arms'.
    groups = None if has_arm_runs else _grouped(BY_ARM)
    return SavedView(f"{ID_PREFIX}5-cost", "5 Speed and cost", {**state, "groupBy": groups})


def _failures(searched: list[str], goal: Objective) -> SavedView:
    columns = [_tag("reason"), _tag("arm"), _tag("kind"), *(_param(name) for name in searched)]
    charts = [_line(goal.val_metric), _line("train_loss")]
    statuses = [f"attributes.status != '{status}'" for status in ("FINISHED", "RUNNING", "SCHEDULED")]
    query = " and ".join([*statuses, "tags.kind != 'summary'"])  # MLflow knows no OR, and IN not for a status
    state = _state("Runs without a result, until they ended", query, "start_time", charts, columns)
    state["columnWidths"] = {_tag("reason"): REASON_WIDTH}
    return SavedView(FAILURES_VIEW, "6 What failed or was pruned", state)


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _param(name: str) -> str:
    return f"params.`{name}`"


def _tag(name: str) -> str:
    return f"tags.`{name}`"


def _grouped(key: dict[str, str], aggregate: str = "average") -> dict[str, Any]:
    return {"aggregateFunction": aggregate, "groupByKeys": [key]}


def _state(
    title: str, query: str, order: str, charts: list[dict[str, Any]], columns: list[str], *, ascending: bool = False
) -> dict[str, Any]:
    """Return the state of the page of runs, without a height of cards.

    Args:
        title: stands above the charts.
        query: which runs.
        order: the metric that sorts them, or `start_time`.
        charts: the cards, without ids.
        columns: of the table of runs.
        ascending: whether the smallest comes first.
    """
    section = {"uuid": "section", "name": title, "display": True, "isReordered": True, "deleted": False}
    return {
        "searchFilter": query,
        "orderByKey": "attributes.start_time" if order == "start_time" else _metric(order),
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "runsVisibilityMap": {},
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": [{**section, "isGenerated": False, "columns": 2}],
        "compareRunCharts": [
            {**chart, "uuid": f"{number}", "metricSectionId": "section", "deleted": False, "isGenerated": False}
            for number, chart in enumerate(charts)
        ],
    }


def _finished(state: dict[str, Any], metrics: Sequence[str], height: int) -> dict[str, Any]:
    """Return a state with cards of a height in pixels, in which the charts that the UI would add are hidden."""
    shown = {chart.get("metricKey") for chart in state["compareRunCharts"]}
    hidden = {"type": "BAR", "metricSectionId": "section", "deleted": True, "isGenerated": True}
    charts = [{"uuid": f"-{name}", "metricKey": name, **hidden} for name in metrics if name not in shown]
    sections = [{**section, "cardHeight": height} for section in state["compareRunSections"]]
    return {**state, "compareRunCharts": [*state["compareRunCharts"], *charts], "compareRunSections": sections}


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 100}


def _line(metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "yAxisKey": "metric", "xAxisScaleType": "linear", "scaleType": "linear", "range": {}}
    chart = {"type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric], "runsCountToCompare": 100, **axes}
    return {**chart, "lineSmoothness": 0, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}


def _scatter(x: str, kind: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": kind}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "runsCountToCompare": 100, **axes}


def _parallel(params: list[str], metric: str) -> dict[str, Any]:
    chosen = {"selectedParams": params, "selectedMetrics": [metric], "showAllRuns": True}
    return {"type": "PARALLEL", "runsCountToCompare": 100, **chosen}
