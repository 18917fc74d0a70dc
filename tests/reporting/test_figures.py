"""The plots: what they show, complete, the same bytes every time; and the images beside them."""

import base64
import dataclasses
import io
import json
import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ablation.analysis.answer import StudyAnalysis, analyse
from ablation.analysis.comparison import Difference, FactorAnalysis
from ablation.analysis.statistics import Estimate
from ablation.reporting import run_charts
from ablation.reporting.charts import (
    MOST_DOTS,
    NARROW,
    SHAPES,
    WIDE,
    ArmStyles,
    Picture,
    as_json,
    fit,
    recoloured,
)
from ablation.reporting.comparison_charts import _differences
from ablation.reporting.content import Figure, figure_block
from ablation.reporting.figures import draw_figures, figure_files
from ablation.reporting.images import data_address
from ablation.reporting.run_charts import MOST_EPOCHS, curve_panels, overlay_chart, tuning_panels
from ablation.reporting.run_sections import cost_table
from ablation.spec.arms import arms
from ablation.spec.colours import COLOURS
from ablation.spec.objective import OBJECTIVES
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result, fake_spec
from tests.odd_names import NAMES, SHOWN_NAMES

SMALL = {"truncate_at": ["block3", "block5"]}
TWO = {"block3": 0.9, "block5": 0.8}


@pytest.fixture(scope="module")
def analysis() -> StudyAnalysis:
    return analyse(fake_result(TWO_BY_TWO, FOUR))


@pytest.fixture(scope="module")
def pictures(analysis: StudyAnalysis) -> dict[str, Picture]:
    return draw_figures(analysis)


def rows_of(picture: Picture) -> list[dict[str, Any]]:
    """Return the data of a plot."""
    assert picture.spec is not None
    return list(max(picture.spec["datasets"].values(), key=lambda rows: len(rows[0])))


def texts_of(svg: str) -> str:
    return " | ".join(
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith(("text", "tspan"))
    )


def test_a_study_of_two_factors_has_every_plot(pictures: dict[str, Picture]) -> None:
    assert list(pictures) == [
        "arms", "means_truncate_at", "differences_truncate_at", "means_strategy", "differences_strategy", "interaction",
        "curves", "panels_accuracy", "panels_loss", "costs_parameters", "costs_seconds", "costs_inference",
        "search_head_width", "search_lr", "tuning", "samples", "mistakes",
    ]  # fmt: skip


def test_short_times_are_in_the_unit_of_their_axis(analysis: StudyAnalysis) -> None:
    """'100m' on an axis in seconds would be read as minutes, and '0.0' in the table says nothing."""
    seconds = iter([0.034, 0.96, 2.5, 1234.56])
    arms = [dataclasses.replace(arm, training_seconds=next(seconds, 1.0)) for arm in analysis.arms]
    quick = dataclasses.replace(analysis, arms=arms)
    ticks = texts_of(draw_figures(quick, ["costs"])["costs_seconds"].svg)
    assert {"0.1", "1", "10", "100"} <= set(ticks.split(" | "))
    assert [row[2] for row in cost_table(quick).rows[:4]] == ["0.034", "0.96", "2.5", "1,234.6"]


def made_up(levels: int, names: str = "b{}") -> FactorAnalysis:
    """Return a factor with all pairs of so many levels, of which the last one leads."""
    labels = [names.format(n) for n in range(levels)]
    family = [
        Difference(labels[i], labels[j], Estimate(0.01 * (i - j), 0.01, 10, 0.01 * (i - j) - 0.02, 1.0, 0.3), (3, 3), 1)
        for i, j in combinations(range(levels), 2)
    ]
    return FactorAnalysis("arm", None, None, [], family, [], [], labels[-1], {})


def test_many_differences_are_drawn_from_the_leading_level_alone() -> None:
    """A hundred levels have 4,950, whose plot would be 188,000 pixels high, and too deeply nested to be drawn."""
    few, many = _differences(made_up(10)), _differences(made_up(100))
    assert len(rows_of(few)) == 45
    assert few.note == ""
    assert {row["difference"] for row in rows_of(many)} == {f"b{n} \u2212 b99" for n in range(99)}
    assert many.note == "Of arm, only the differences from b99 are drawn; the table has all."
    assert many.note in many.alt
    assert 4000 > float(ElementTree.fromstring(many.svg).attrib["height"]) > 99 * 38
    (figure,) = figure_block("differences", {"differences_arm": many}, OBJECTIVES["accuracy"])
    assert isinstance(figure, Figure)
    assert figure.caption.endswith(f" (p < 0.05). {many.note}")


def test_a_thousand_rows_can_be_drawn() -> None:
    """In the order of the study, without an expression that is nested as deep as there are rows."""
    family = [difference for difference in made_up(1001).family if difference.second == "b1000"]
    drawn = _differences(dataclasses.replace(made_up(2), family=family, pivot="b1000"))
    assert drawn.svg.index(">b1 \u2212") < drawn.svg.index(">b500 \u2212") < drawn.svg.index(">b999 \u2212")


def test_rows_with_long_labels_can_be_told_apart_on_a_telephone() -> None:
    """In lines below each other; the champion stays marked."""
    name = "block5,fine_tune_all,head_width=128,lr=0.001,variant={}"
    drawn = _differences(made_up(3, name))
    texts = texts_of(drawn.narrow)
    assert "\u2026" not in texts
    first, second = "block5,fine_tune_all,head_width=128,", "lr=0.001,variant={}"
    expected = [first, f"{second.format(0)} \u2212", first, second.format(1)]
    assert " | ".join(expected) in texts
    step = [part["step"] for part in (drawn.spec or {}).values() if isinstance(part, dict) and "step" in part]
    assert step == [38 + 3 * 15]
    listed = [{"name": name.format(n), "truncate_at": f"block{n}"} for n in (3, 5)]
    result = fake_result({}, {name.format(3): 0.8, name.format(5): 0.9}, arms=listed)
    arms_plot = draw_figures(analyse(result), ["arms"])["arms"]
    assert f"{first} | {second.format(5)} \u2605 champion" in texts_of(arms_plot.narrow)


def test_a_label_without_a_place_to_break_is_broken_in_its_word() -> None:
    """Wide letters are cut at the width of the plot."""
    narrow = texts_of(_differences(made_up(2, "x" * 60 + "{}")).narrow)
    assert " | ".join(["x" * 38, "x" * 22 + "0 \u2212", "x" * 38, "x" * 22 + "1"]) in narrow
    plot = _differences(made_up(2, "W" * 60 + "{}"))
    assert "W\u2026" in texts_of(plot.narrow)
    assert "W" * 38 in texts_of(plot.svg)


def test_no_plot_says_the_same_as_another() -> None:
    """With one factor, or with [[arms]], the plot of arms has the means of the levels."""
    names = list(draw_figures(analyse(fake_result(SMALL, TWO)), ["arms", "effects", "interaction"]))
    assert names == ["arms", "differences_truncate_at"]
    listed = [{"name": "frozen", "truncate_at": "block5"}, {"truncate_at": "block3", "strategy": "fine_tune_all"}]
    result = fake_result({}, {"frozen": 0.8, "block3,fine_tune_all": 0.9}, arms=listed)
    assert list(draw_figures(analyse(result), ["arms", "effects", "interaction"])) == ["arms", "differences_arm"]


def test_what_there_is_nothing_of_is_not_drawn() -> None:
    result = fake_result(SMALL, TWO, seeds=0, trials_per_arm=2)
    names = list(draw_figures(analyse(dataclasses.replace(result, samples=None))))
    assert names == ["curves", "panels_accuracy", "panels_loss", "search_head_width", "search_lr"]


def test_arms_have_a_colour_by_the_first_factor_and_a_marker_by_the_others(analysis: StudyAnalysis) -> None:
    styles = ArmStyles(analysis)
    assert styles.colour().to_dict()["scale"] == {"domain": ["block3", "block5"], "range": list(COLOURS[:2])}
    shapes = {"domain": ["feature_extraction", "fine_tune_all"], "range": list(SHAPES[:2])}
    assert styles.shape().to_dict()["scale"] == shapes
    alone = ArmStyles(analyse(fake_result(SMALL, TWO)))
    assert alone.shape().to_dict()["scale"]["domain"] == ["block3", "block5"]  # in grey print, too


def test_a_label_of_two_factors_says_which_it_is() -> None:
    factors = {"head_width": [1, 2], "head_pool": [1, 2]}
    names = [arm.name for arm in arms(fake_spec(factors, search={}))]
    styles = ArmStyles(analyse(fake_result(factors, dict.fromkeys(names, 0.9), search={})))
    assert styles.firsts == ["head_width 1", "head_width 2"]
    assert styles.others == ["head_pool 1", "head_pool 2"]


def test_files_are_complete(pictures: dict[str, Picture]) -> None:
    """An SVG refers to nothing, inside or outside, has no identifiers that could meet those of another, and a size."""
    for name, content in figure_files(pictures).items():
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
            continue
        root = ElementTree.fromstring(content)
        assert not re.search(r"url\(|href=", content.decode()), name
        assert not [element for element in root.iter() if "id" in element.attrib], name
        assert {"width", "height", "viewBox"} <= set(root.attrib)


@pytest.mark.parametrize(("width", "file"), [(WIDE, "svg"), (NARROW, "narrow")])
def test_plots_keep_to_their_width(pictures: dict[str, Picture], width: int, file: str) -> None:
    for name, picture in pictures.items():
        if picture.svg:
            drawn = float(ElementTree.fromstring(getattr(picture, file)).attrib["width"])
            assert drawn <= width * 1.02, name


def test_panels_are_as_many_in_a_row_as_fit() -> None:
    spec = {"facet": {"sort": ["an arm"] * 7}, "spec": {}, "usermeta": {"legendColumn": 150}}
    assert [fit(spec, width)["columns"] for width in (100, 320, 640, 1600)] == [1, 2, 4, 7]
    for width in (320, 640, 1600):
        laid_out = fit(spec, width)
        assert laid_out["columns"] * laid_out["spec"]["width"] < width


def test_long_names_of_a_legend_stand_below_each_other_where_two_have_no_room() -> None:
    three = {**TWO_BY_TWO, "augmentation": ["none", "crop_flip"]}
    names = {f"{arm},{kind}": accuracy for arm, accuracy in FOUR.items() for kind in three["augmentation"]}
    results = (fake_result(three, names, images=50), fake_result(TWO_BY_TWO, FOUR, images=50))
    analyses = [analyse(result) for result in results]
    spec, short = (overlay_chart(analysis, ArmStyles(analysis)).spec for analysis in analyses)  # type: ignore[union-attr]
    assert spec is not None
    assert short is not None
    assert [fit(spec, width)["config"]["legend"]["columns"] for width in (NARROW, WIDE)] == [1, 2]
    assert [fit(short, width)["config"]["legend"]["columns"] for width in (NARROW, WIDE)] == [2, 4]


def test_long_curves_are_thinned() -> None:
    """And thousands of dots are left out of the static plot, which would weigh megabytes."""
    analysis = analyse(fake_result(SMALL, TWO, epochs=301, seeds=5))
    picture = curve_panels(analysis, "accuracy", "accuracy")
    assert picture is not None
    for row in rows_of(picture):
        assert len(row["epoch"]) == len(row["value"]) == MOST_EPOCHS
        assert (row["epoch"][0], row["epoch"][-1]) == (1, 301)
    assert picture.svg.count("<path") < MOST_DOTS
    assert any(layer.get("name") == "dots" for layer in (picture.spec or {})["spec"]["layer"])


def test_of_very_many_arms_the_first_have_panels(analysis: StudyAnalysis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caption says so once, though accuracy and loss have panels each."""
    monkeypatch.setattr(run_charts, "MOST_PANELS", 3)
    panels = {name: curve_panels(analysis, name, name) for name in ("accuracy", "loss")}
    note = "Only the first 3 of 4 arms are drawn."
    first = {arm.name for arm in analysis.arms[:3]}
    for picture in (*panels.values(), tuning_panels(analysis)):
        assert picture is not None
        assert {row["arm"] for row in rows_of(picture)} == first
        assert analysis.arms[3].name not in picture.alt
        assert picture.note == note
    drawn = {f"panels_{name}": picture for name, picture in panels.items() if picture is not None}
    (figure,) = figure_block("panels", drawn, OBJECTIVES["accuracy"])
    assert isinstance(figure, Figure)
    assert figure.caption.count(note) == 1


def test_an_interval_is_rounded_as_in_the_table() -> None:
    """Both ends alike, and none as 0 that is not; a difference without a test has none."""
    factor = made_up(2)
    (difference,) = factor.family
    for estimate, text in (
        (Estimate(0.0063, 0.003, 10, 0.00004, 0.0126, 0.049), "(0.004 to 1.260, shown)"),
        (Estimate(0.0063), "0.63 (not tested)"),
    ):
        family = [dataclasses.replace(difference, estimate=estimate)]
        assert text in _differences(dataclasses.replace(factor, family=family)).alt


def test_the_same_study_gives_the_same_bytes(pictures: dict[str, Picture]) -> None:
    again = draw_figures(analyse(fake_result(TWO_BY_TWO, FOUR)), ["arms", "curves", "images"])
    assert {name: pictures[name] for name in again} == again


def test_a_definition_cannot_end_the_script_that_holds_it() -> None:
    text = as_json({"arm": "</script><b>"})
    assert "<" not in text
    assert json.loads(text) == {"arm": "</script><b>"}


def test_every_colour_is_a_variable_of_the_page(pictures: dict[str, Picture]) -> None:
    """Otherwise it would be as it is in light, on a dark page."""
    for name, picture in pictures.items():
        if picture.svg:
            colours = set(re.findall(r'(?:fill|stroke)="(?!none|transparent)([^"]+)"', recoloured(picture.svg)))
            assert {colour for colour in colours if not colour.startswith("var(--")} == set(), name


def test_images_are_in_the_page_pixel_by_pixel() -> None:
    image_SSC = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    data = base64.b64decode(data_address(image_SSC).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), image_SSC)


def test_a_second_factor_has_a_legend_where_the_first_has_a_single_level() -> None:
    accuracies = {"block3,feature_extraction": 0.8, "block3,fine_tune_all": 0.9}
    factors = {"truncate_at": ["block3"], "strategy": ["feature_extraction", "fine_tune_all"]}
    styles = ArmStyles(analyse(fake_result(factors, accuracies)))
    assert styles.legend(0) is None
    legend = styles.legend(1)
    assert legend is not None
    assert legend.title == "strategy"


def test_names_in_pictures_keep_to_one_line_and_hidden_signs_are_shown() -> None:
    result = fake_result(SMALL, TWO, classes=len(NAMES))
    pictures = [
        draw_figures(analyse(dataclasses.replace(result, classes=names)), ["images"]) for names in (NAMES, SHOWN_NAMES)
    ]  # fmt: skip
    drawn = [{name: picture.png for name, picture in of_names.items()} for of_names in pictures]
    assert drawn[0] == drawn[1]
    assert {"samples", "mistakes"} <= drawn[0].keys()
