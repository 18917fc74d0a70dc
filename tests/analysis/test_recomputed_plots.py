"""Every number inside the plots of a report, and of its page, is recomputed or is no result.

The rows that each plot is drawn from are written anew from raw predictions and the runs' own records; what is left of a
definition without its rows is the same in a study with other results. The marks of a static plot stand where the ticks
of its axes say that their numbers are. The page has the tables and sentences of the text that
`test_recomputed_report.py` takes apart, and no number besides.
"""

import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix

from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult
from ablation.reporting.charts import LAYOUT, Picture
from ablation.reporting.figures import draw_figures
from ablation.reporting.report import Report
from tests.analysis.recomputation import ACCURACIES, FACTORS, error, raw
from tests.analysis.test_recomputed_report import (
    SEEDS_STUDY,
    Tables,
    definitions,
    drawn_report,
    embedded,
    report_over_seeds,
    study_over_seeds,
    tables_of,
    text_of,
)
from tests.fake_results import fake_result

Row = dict[str, Any]
Interval = tuple[float, float, float]  # of a mean: its value and ends
NUMBER = re.compile(r"\d[\d.,]*\d|\d")


@pytest.fixture
def study() -> StudyResult:
    return study_over_seeds()


@pytest.fixture
def report() -> Report:
    return report_over_seeds()


def labels(arm: ArmResult) -> Row:
    first, *other = arm.arm.name.split(",")
    return {"arm": arm.arm.name, "first": first, "other": other[0] if other else ""}


def mean_interval(weights: Mapping[str, float], right: dict[str, np.ndarray]) -> Interval:
    value, standard_error, df = error(dict(weights), right)
    low, high = stats.t(df, value, standard_error).interval(0.95)
    return value, float(low), float(high)


def ends(interval: Interval) -> Row:
    return dict(zip(("value", "low", "high"), interval, strict=True))


def accuracies_of(runs: list[RunResult]) -> list[float]:
    return [float(np.mean(p.predicted_N == p.labels_N)) for run in runs if (p := run.predictions) is not None]


def rows_of_runs(study: StudyResult, intervals: Mapping[str, Interval]) -> dict[str, list[Row]]:
    """Return the rows of the plots of runs: curves, costs, tuning; `intervals` are those of the arms."""
    rows: dict[str, list[Row]] = {}

    def add(plot: str, **row: Any) -> None:
        rows.setdefault(plot, []).append(row)

    for arm in study.arms:
        runs, own, name = arm.confirmations, labels(arm), arm.arm.name
        epochs = list(range(1, len(runs[0].curves["val_accuracy"]) + 1))
        curve = np.mean([run.curves["val_accuracy"] for run in runs], axis=0)
        add("curves", **own, epoch=epochs, value=[float(f"{value:.4g}") for value in curve], runs=len(runs))
        for run in runs:
            for kind, prefix in (("training", "train"), ("validation", "val")):
                for quantity in ("accuracy", "loss"):
                    values = [float(f"{value:.4g}") for value in run.curves[f"{prefix}_{quantity}"]]
                    label = f"confirmation run #{run.number}"
                    add(f"panels_{quantity}", arm=name, run=label, kind=kind, epoch=epochs, value=values)
        assert arm.best is not None
        costs = {
            "parameters": arm.best.trained_parameters,
            "seconds": np.mean([run.training_seconds for run in runs]),
            "inference": 1e3 * np.mean([run.inference_seconds for run in runs]),  # type: ignore[arg-type]
        }
        for cost, value in costs.items():
            add(f"costs_{cost}", **own, **ends(intervals[name]), cost=value)
        trials = [run.val_accuracy or 0.0 for run in arm.trials]
        for k, value in enumerate(trials, start=1):
            best_of_k = [max(chosen) for chosen in combinations(trials, k)]
            low, high = np.quantile(best_of_k, [0.1, 0.9], method="inverted_cdf")
            found: Row = {"best": max(trials[:k]), "expected": np.mean(best_of_k), "low": low, "high": high}
            add("tuning", arm=name, k=k, **{"a trial": value}, **found)
    trials_of_all = [(arm, run) for arm in study.arms for run in arm.trials]
    for arm, run in sorted(trials_of_all, key=lambda trial: trial[1].val_accuracy or 0.0, reverse=True):
        about: Row = {**labels(arm), "value": run.val_accuracy, "trial": run.number}
        add("search_head_width", **about, parameter=str(run.spec.head_width))
        add("search_lr", **about, parameter=run.spec.lr)
    return rows


def check_differences(found: list[Row], printed: list[list[str]], values: Mapping[tuple[str, str], float]) -> None:
    """Values are recomputed, the rest is that of the table, which is recomputed elsewhere."""
    assert found[0] == {"zero": 0}
    for row, (first, second, _, interval, p, shown, *_) in zip(found[1:], printed[1:], strict=True):
        assert row.pop("difference") == f"{first} \u2212 {second}"
        assert row.pop("value") == pytest.approx(100 * values[first, second], rel=1e-5)
        ends = [float(end) for end in interval.split(" to ")]
        assert [row.pop("low"), row.pop("high")] == pytest.approx(ends, abs=0.0501)
        assert row == {"p": p, "shown": {"yes": "shown", "no": "not shown"}[shown]}


def is_same(found: Any, expected: Any) -> bool:
    """Return whether values of rows are the same, numbers to the six digits that a plot has."""
    if isinstance(expected, str):
        return bool(found == expected)
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(is_same, found, expected))
    return isinstance(found, int | float) and found == pytest.approx(expected, rel=1e-5)


def check_plots(
    specs: Mapping[str, Any], rows: Mapping[str, list[Row]], tables: Tables, values: Mapping[tuple[str, str], float]
) -> None:
    """Compare all data of all plots with these rows, or, of differences, with the tables and these values."""
    for plot, spec in specs.items():
        found = [dict(row) for data in spec["datasets"].values() for row in data]
        if plot.startswith("differences_"):
            title = f"Levels of {plot.removeprefix('differences_')}: differences of marginal mean test accuracy"
            check_differences(found, tables[title], values)
            continue
        assert len(found) == len(rows[plot]), plot
        for row, expected in zip(found, rows[plot], strict=True):
            assert row.keys() == expected.keys(), plot
            wrong = [name for name in row if not is_same(row[name], expected[name])]
            assert not wrong, (plot, wrong, row, expected)
    drawn = {plot for plot in specs if not plot.startswith("differences_")}
    assert drawn == rows.keys()


def test_all_data_of_plots_are_recomputed(study: StudyResult, report: Report) -> None:
    right, tables = raw(study), tables_of(text_of(report))
    intervals = {arm: mean_interval({arm: 1.0}, right) for arm in right}
    rows = rows_of_runs(study, intervals)
    of_arms = [{**labels(arm), **ends(intervals[arm.arm.name])} for arm in study.arms]
    rows["interaction"] = of_arms
    rows["arms"] = [
        {**row, "n": "4 seeds", "seeds": accuracies_of(arm.confirmations)}
        for row, arm in zip(of_arms, study.arms, strict=True)
    ]
    values = {}
    for place, (factor, levels) in enumerate(FACTORS.items()):
        arms = {level: [arm for arm in right if arm.split(",")[place] == level] for level in levels}
        rows[f"means_{factor}"] = [
            {"level": level, **ends(mean_interval(dict.fromkeys(of_level, 1 / len(of_level)), right))}
            | {"n": f"{len(of_level)} arms, 4 seeds each"}
            for level, of_level in arms.items()
        ]
        means = {level: np.mean([right[arm].mean() for arm in of_level]) for level, of_level in arms.items()}
        values |= {(a, b): float(means[a] - means[b]) for a, b in combinations(levels, 2)}
    check_plots(definitions(report), rows, tables, values)


def without_rows(definition: Any) -> Any:
    """Return a definition without its data, and without their names, which are digests of them."""
    if isinstance(definition, dict):
        kept = {name: each for name, each in definition.items() if name != "datasets"}
        if "data" in kept:
            assert kept["data"].keys() == {"name"}, "rows stand nowhere else"
            del kept["data"]
        return {name: without_rows(each) for name, each in kept.items()}
    return [without_rows(each) for each in definition] if isinstance(definition, list) else definition


def test_no_other_number_of_a_plot_is_a_result(report: Report) -> None:
    """A study with other accuracies, curves and configurations has the same plots but for their rows."""
    others = {arm: 0.5 * accuracy for arm, accuracy in ACCURACIES.items()}
    other = drawn_report(fake_result(FACTORS, others, **SEEDS_STUDY | {"images": 1200, "seed_deviation": 0.02}))
    # The champion's name is in its label; these two have the same.
    assert without_rows(definitions(other)) == without_rows(definitions(report))
    of_one, of_other = (json.dumps(definitions(each)) for each in (report, other))
    assert of_one != of_other


# ------------------------------------------------------------------------------------------------------------- marks


SVG = "{http://www.w3.org/2000/svg}"


def groups(svg: str, role: str) -> list[ElementTree.Element]:
    """Return the groups of marks with a class, in the order of the drawing."""
    root = ElementTree.fromstring(svg)
    return [group for group in root.iter(f"{SVG}g") if role in group.get("class", "").split()]


def places(group: ElementTree.Element) -> np.ndarray:
    """Return where the marks of a group stand, x and y in pixels."""
    transforms = [mark.get("transform", "translate(0,0)") for mark in group]
    return np.array([list(map(float, re.findall(r"-?[\d.]+(?:e-?\d+)?", each))) for each in transforms])


def axis(svg: str, dimension: int, *, is_log: bool = False) -> np.ndarray:
    """Return slope and intercept that give a number's pixels (of its logarithm), by the labels of an axis."""
    for group in groups(svg, "role-axis-label"):
        where = places(group)[:, dimension]
        texts = [(text.text or "").replace("\u2212", "-").replace("k", "e3").replace("M", "e6") for text in group]
        where, texts = where[[text != "" for text in texts]], [text for text in texts if text]
        if len(set(where)) < 2 or not all(re.fullmatch(r"-?[\d.]+(e\d)?", text) for text in texts):
            continue
        if dimension == 1:
            where = where - 4  # a text's baseline
        numbers = np.array([float(text) for text in texts])
        fitted: np.ndarray = np.polyfit(np.log(numbers) if is_log else numbers, where, 1)
        return fitted
    raise AssertionError("no axis of numbers")


def rows_of(pictures: Mapping[str, Picture], plot: str) -> list[Row]:
    spec = pictures[plot].spec
    assert spec is not None
    return [row for data in spec["datasets"].values() for row in data if "zero" not in row]


@pytest.fixture(scope="module")
def pictures() -> dict[str, Picture]:
    kinds = ("arms", "effects", "interaction", "curves", "costs", "search")
    return {
        name: picture for name, picture in draw_figures(report_over_seeds().analysis, kinds).items() if picture.spec
    }


ROWS = ["arms", "means_truncate_at", "means_strategy", "differences_truncate_at", "differences_strategy"]


@pytest.mark.parametrize("plot", ROWS)
def test_marks_of_rows_stand_where_their_numbers_are(pictures: dict[str, Picture], plot: str) -> None:
    svg, rows = pictures[plot].svg, rows_of(pictures, plot)
    slope, start = axis(svg, 0)
    (dots,) = groups(svg, "mark-symbol")
    assert places(dots)[:, 0] == pytest.approx([start + slope * row["value"] for row in rows], abs=0.6)
    lines = [line for group in groups(svg, "role-mark") if "mark-rule" in group.get("class", "") for line in group]
    lines = [line for line in lines if line.get("stroke-width") == "2.5"]
    for line, row in zip(lines, rows, strict=True):
        x, _ = (float(part) for part in re.findall(r"-?[\d.]+", line.get("transform", "")))
        ends_of_line = sorted([x, x + float(line.get("x2", "0"))])
        assert ends_of_line == pytest.approx([start + slope * row[end] for end in ("low", "high")], abs=0.6)


def test_no_label_of_an_axis_stands_twice(pictures: dict[str, Picture]) -> None:
    """As '2' beside '2' does where ticks of whole numbers are few."""
    for plot, picture in pictures.items():
        for group in groups(picture.svg, "role-axis-label"):
            texts = [text.text for text in group if text.text]
            assert len(set(texts)) == len(texts), plot


@pytest.mark.parametrize(
    "plot", ["interaction", "curves", "costs_parameters", "costs_seconds", "costs_inference", "search_head_width",
             "search_lr", "panels_accuracy", "panels_loss", "tuning"]
)  # fmt: skip
def test_marks_stand_as_high_as_their_numbers(pictures: dict[str, Picture], plot: str) -> None:
    svg, rows = pictures[plot].svg, rows_of(pictures, plot)
    slope, start = axis(svg, 1)
    field = "a trial" if plot == "tuning" else "value"
    values = [value for row in rows for value in (row[field] if isinstance(row[field], list) else [row[field]])]
    in_plot = [group for group in groups(svg, "mark-symbol") if "role-mark" in group.get("class", "").split()]
    marks = np.concatenate([places(group) for group in in_plot])
    assert marks[:, 1] == pytest.approx([start + slope * value for value in values], abs=1.1)
    if plot.startswith("costs_") or plot == "search_lr":
        across, begin = axis(svg, 0, is_log=True)
        numbers = np.log([row["cost" if "cost" in row else "parameter"] for row in rows])
        assert marks[:, 0] == pytest.approx(begin + across * numbers, abs=1.1)


# -------------------------------------------------------------------------------------------------------------- page


class _Page(HTMLParser):
    """Takes a page apart: cells of its tables, other texts, texts of attributes, shades of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.shades: list[float] = []
        self._tags: list[str] = []
        self._is_new = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "svg" and "svg" not in self._tags:
            self.attributes += [(name, value) for name, value in attrs if value and not value.startswith("data:image/")]
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in ("img", "meta", "br", "input", "link"):
            self._tags.append(tag)
        self._is_new = tag not in ("a", "br", "strong")

    def handle_endtag(self, tag: str) -> None:
        while self._tags and self._tags.pop() != tag:
            pass
        self._is_new = tag not in ("a", "strong")

    def handle_data(self, data: str) -> None:
        if "script" in self._tags or "style" in self._tags or "svg" in self._tags:
            return
        if "td" in self._tags or "th" in self._tags:
            self.cells[-1] += data.strip("\n")
        elif data.strip():
            self.texts.append(data.strip())


def page_parts(report: Report) -> _Page:
    page = _Page()
    page.feed(report.html)
    return page


# No results: what a page says besides its text, names of places in it, sizes.
NO_RESULTS = {
    "content": r"width=device-width, initial-scale=1",
    "charset": r"utf-8",
    "tabindex": r"0",
    "href": r"#[\w-]+",
    "id": r"[\w-]+",
    "class": r"[\w -]+",
    "data-chart": r"\w+",
    "alt": r"class \d, view \d",
}


def check_page(report: Report, matrices: list[np.ndarray]) -> None:
    """Compare a page with its text; `matrices` are those of its heat maps."""
    page, text, data = page_parts(report), text_of(report), embedded(report)
    assert data.keys() == {"specs", "arms", "layout"}
    assert data["layout"] == LAYOUT
    levels = [arm.arm.compared_levels for arm in report.analysis.result.arms]
    assert [arm["levels"] for arm in data["arms"]] == levels
    cells = [cell for rows in every_table(text) for cells in rows for cell in cells]
    assert sorted(cell.replace("|", "") for cell in page.cells) == sorted(cell.replace("|", "") for cell in cells)
    mistakes = tables_of(text)["The same mistakes as a table"][1:]
    other = {"Written by ablation 0.1.0 from the study's MLflow runs."}
    other |= {line for number, _, given, p, _ in mistakes for line in (f"{p}, image {number}", f"\u2192 {given}")}
    other |= {f"Test image {number}: a {true} taken for a {given}" for number, true, given, *_ in mistakes}
    assert [each for each in page.texts if NUMBER.search(each) and each not in text and each not in other] == []
    shades = []
    for name, value in page.attributes:
        if name == "style":
            shades.append(float(value.removeprefix("--s:")))
        elif NUMBER.search(value) and value not in text and value not in other:
            assert re.fullmatch(NO_RESULTS[name], value), (name, value)
    expected = np.concatenate([matrix.ravel() for matrix in matrices])
    assert shades == pytest.approx([float(f"{shade:.3g}") for shade in expected], abs=1e-9)


def every_table(text: str) -> Iterator[list[list[str]]]:
    """Yield the rows of every table of a text, its heading first."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            if set(line) - set("|- "):
                rows.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")])
        elif rows:
            yield rows
            rows = []


def test_the_page_has_the_numbers_of_the_text_and_no_others(study: StudyResult, report: Report) -> None:
    (champion,) = [arm for arm in study.arms if arm.arm.name == "block3,fine_tune_all"]
    pairs = [(p.labels_N, p.predicted_N) for run in champion.confirmations if (p := run.predictions) is not None]
    check_page(report, [np.mean([confusion_matrix(*pair, normalize="true") for pair in pairs], axis=0)])
