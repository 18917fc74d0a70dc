"""The figures: complete, inside their frame, the same bytes every time."""

import base64
import dataclasses
import io
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ablation.analysis.answer import StudyAnalysis, analyse
from ablation.reporting import figures
from ablation.reporting.figures import STYLE, Picture, _render, draw_figures
from ablation.spec.arms import arms
from tests.fake_results import fake_result, fake_samples, fake_spec

SMALL = {"truncate_at": ["block3", "block5"]}
ALL = [
    "arms", "effects", "interaction", "curves_accuracy", "curves_loss", "costs", "tuning", "best_of", "importances",
    "samples", "confusion", "confusion_arms", "mistakes",
]  # fmt: skip


def many_arms() -> StudyAnalysis:
    factors = {
        "truncate_at": ["block1", "block2", "block3", "block4", "block5", "conv3_2"],
        "strategy": ["feature_extraction", "fine_tune_all"],
    }
    names = [arm.name for arm in arms(fake_spec(factors))]
    result = fake_result(factors, {name: 0.6 + 0.02 * i for i, name in enumerate(names)}, classes=10)
    both = fake_samples(10, ["flip", "crop_flip"])
    return analyse(dataclasses.replace(result, classes=["W" * 40, "a b" * 20, *result.classes[2:]], samples=both))


def shares(analysis: StudyAnalysis) -> dict[str, dict[str, float]]:
    return {arm.name: {"lr": 0.75, "head_width": 0.25} for arm in analysis.arms}


def test_a_study_of_twelve_arms_stays_inside_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    render = _render

    def keep(figure: Figure) -> Picture:
        drawn.append(figure)
        return render(figure)

    monkeypatch.setattr(figures, "_render", keep)
    analysis = many_arms()
    pictures = draw_figures(analysis, shares(analysis))
    assert list(pictures) == ALL
    for name, figure in zip(pictures, drawn, strict=True):
        with mpl.rc_context(STYLE):
            used = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())  # type: ignore[no-untyped-call]  # inches
        width, height = figure.get_size_inches()
        edges = (used.x0, used.y0, width - used.x1, height - used.y1)
        assert min(edges) > -0.02, (name, edges)


def test_the_same_study_gives_the_same_bytes() -> None:
    first, second = (draw_figures(analyse(fake_result(SMALL, {"block3": 0.9, "block5": 0.8})), {}) for _ in range(2))
    assert first == second
    assert list(first) == [name for name in ALL if name not in ("interaction", "importances")]


def test_files_are_complete() -> None:
    """An SVG refers to nothing outside it and has a size, by which a page knows its proportions."""
    pictures = draw_figures(analyse(fake_result(SMALL, {"block3": 0.9, "block5": 0.8})), {})
    for name, picture in pictures.items():
        root = ElementTree.fromstring(picture.svg)
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg.decode())
        assert references, name
        assert set(references) <= set(ids)
        assert len(ids) == len(set(ids))
        assert {"width", "height", "viewBox"} <= set(root.attrib)
        assert picture.png.startswith(b"\x89PNG")


def test_what_there_is_nothing_of_is_not_drawn() -> None:
    analysis = analyse(fake_result(SMALL, {"block3": 0.9, "block5": 0.8}, seeds=0))
    assert list(draw_figures(analysis, {})) == ["curves_accuracy", "curves_loss", "tuning", "best_of", "samples"]
    result = dataclasses.replace(analysis.result, samples=None)
    assert "samples" not in draw_figures(analyse(result), {})


def test_signs_in_names_are_drawn_as_they_are() -> None:
    result = fake_result(SMALL, {"block3": 0.9, "block5": 0.8})
    names = ["$x_1$", "<b>", "a & b", "--"]
    analysis = analyse(type(result)(**{**vars(result), "classes": names}))
    ElementTree.fromstring(draw_figures(analysis, {})["confusion"].svg)


def test_one_seed_has_no_interval_drawn() -> None:
    result = fake_result(SMALL, {"block3": 0.9, "block5": 0.8}, seeds=1)
    assert "effects" in draw_figures(analyse(result), {})


def embedded(svg: bytes) -> list[np.ndarray]:
    """Return the images in an SVG."""
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', svg.decode())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def test_images_are_in_the_page_pixel_by_pixel() -> None:
    analysis = analyse(fake_result(SMALL, {"block3": 0.9, "block5": 0.8}))
    pictures = draw_figures(analysis, {})
    assert analysis.result.samples is not None
    wanted = {image.tobytes() for image in analysis.result.samples.images_RIVSSC.reshape(-1, 8, 8, 3)}
    assert {image.tobytes() for image in embedded(pictures["samples"].svg)} == wanted
    mistakes = embedded(pictures["mistakes"].svg)
    assert len(mistakes) == 12
    np.testing.assert_array_equal(mistakes, [mistake.image_SSC for mistake in analysis.mistakes])


def test_listed_arms_have_a_style_each_and_no_figure_of_a_grid() -> None:
    listed = [{"name": "frozen", "truncate_at": "block5"}, {"truncate_at": "block3", "strategy": "fine_tune_all"}]
    known = [{"lr": 0.01}]
    result = fake_result({}, {"frozen": 0.8, "block3,fine_tune_all": 0.9}, arms=listed, known=known)
    analysis = analyse(result)
    pictures = draw_figures(analysis, {})
    assert [name for name in pictures if name in ("arms", "effects", "interaction", "differences")] == [
        "arms", "differences",
    ]  # fmt: skip
    assert len({figures._style(arm, analysis) for arm in result.arms}) == 2
