"""The report's sections on the set of images."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ablation.analysis.pooling import analyse_study
from ablation.analysis.results import StudyResult
from ablation.data.kept_duplicates import Comparison, Pair
from ablation.data.samples import Mistakes
from ablation.data.set_summary import SetSummary
from ablation.reporting.report import Report, build_report
from tests.analysis.test_label_errors import with_calls
from tests.fake_results import fake_result

pytestmark = pytest.mark.usefixtures("plots_are_not_drawn")
PNG = io.BytesIO()
Image.new("RGB", (640, 328), "red").save(PNG, "PNG")
COUNTS_DK = np.array([[50, 40, 30, 20], [5, 4, 3, 2], [1, 2, 3, 1234]])


def with_images(comparison: Comparison | None, why_not: str = "") -> StudyResult:
    result = fake_result({"truncate_at": ["block1", "block2"]}, {"block1": 0.6, "block2": 0.7})
    return replace(
        result, images=SetSummary(COUNTS_DK, PNG.getvalue(), comparison, why_not), data_reading="photos: all"
    )


def comparison(across: int, pictures: int = 1394) -> Comparison:
    pairs = [Pair(f"/home/me/set/train/a/{n}.jpg", f"/home/me/set/test/b/<{n}>.jpg", n / 4, n == 1)
             for n in range(min(across, 12))]  # fmt: skip
    thumbnails = np.zeros((len(pairs), 2, 48, 48, 3), np.uint8)
    thumbnails[:, 1] = 200
    return Comparison(pictures, across, pairs, thumbnails)


def section(report: Report, title: str) -> str:
    """Return a section of the markdown; empty without one."""
    return report.markdown.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_classes_are_counted_and_the_sheet_is_in_the_page() -> None:
    report = build_report(analyse_study(with_images(comparison(0))))
    text = section(report, "Images")
    assert text.startswith("\nImages as read: photos: all.")
    assert "| class 3 | 20 | 2 | 1,234 |" in text.replace("class\\_3", "class 3").replace("| 3 |", "| class 3 |")
    assert "| all | 140 | 14 | 1,240 |" in text
    assert "](contact_sheet.png)" in text
    assert report.figures["contact_sheet.png"] == PNG.getvalue()
    assert 'alt="Contact sheet: training images of 4 classes, a row for each"' in report.html
    duplicates = section(report, "Near-duplicates across training and test")
    assert "All 1,394 pictures were compared with each other, as they are and mirrored: no pair of a" in duplicates
    whole = section(
        build_report(analyse_study(with_images(comparison(0, 60_200)))), "Near-duplicates across training and test"
    )
    assert "All 60,200 pictures of the whole set were compared with each other" in whole


def test_near_duplicates_are_shown_beside_each_other_and_not_folded() -> None:
    report = build_report(analyse_study(with_images(comparison(30))))
    text = section(report, "Near-duplicates across training and test")
    assert "mirrored: 30 pairs of a training and a test picture are nearly the same." in text
    assert "The 12 most similar pairs" in text
    assert '<section id="duplicates">' in report.html
    assert 'alt="train/a/0.jpg beside test/b/&lt;0&gt;.jpg"' in report.html
    assert report.html.count(">mirrored<") == 1 or report.html.count("<br>mirrored</li>") == 1
    assert "/home/me" not in report.html
    single = section(
        build_report(analyse_study(with_images(comparison(1)))), "Near-duplicates across training and test"
    )
    assert "mirrored: 1 pair of a training and a test picture is nearly the same." in single


def test_equal_pictures_whose_pairs_are_not_all_named_are_said() -> None:
    report = build_report(analyse_study(with_images(replace(comparison(5), represented=3))))
    text = section(report, "Near-duplicates across training and test")
    assert "mirrored: at least 5 pairs of a training and a test picture are nearly the same." in text
    assert "The 5 most similar pairs" in text
    none = build_report(analyse_study(with_images(replace(comparison(0), represented=3))))
    assert "mirrored: no pair of" in section(none, "Near-duplicates across training and test")


def test_why_nobody_looked_for_near_duplicates_is_said() -> None:
    report = build_report(analyse_study(with_images(None, "the set has more than 2,000 images")))
    text = section(report, "Near-duplicates across training and test")
    assert "were not looked for: the set has more than 2,000 images." in text
    assert "python -m ablation.data check fake keeps what it finds" in text.replace("\\", "")
    assert '<section id="duplicates">' not in report.html


def test_suspected_labels_have_their_pictures() -> None:
    """All runs call image 0 class 1; only some call the others something else."""
    result = fake_result({"truncate_at": ["block1", "block2"]}, {"block1": 0.6, "block2": 0.7}, seeds=2)
    result = with_calls(result, [[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]], [0.8] * 4)
    first, *others = result.arms[0].confirmations
    assert first.predictions is not None
    mistakes = Mistakes(np.array([0]), np.full((1, 8, 8, 3), 77, np.uint8))
    first = replace(first, predictions=replace(first.predictions, mistakes=mistakes))
    arms = [replace(result.arms[0], confirmations=[first, *others]), *result.arms[1:]]
    result = replace(result, arms=arms, samples=None)
    report = build_report(analyse_study(result))
    with Image.open(io.BytesIO(report.figures["suspects.png"])) as picture:
        assert picture.getpixel((80, 80)) == (77, 77, 77)
    text = section(report, "Suspected label errors")
    assert "All 4 confirmation runs of all arms call 1 test image of 4 the same other class." in text
    assert f"| 0 | {result.classes[0]} | {result.classes[1]} | 0.800 |" in text
    assert f"Test image 0: labelled {result.classes[0]}, called {result.classes[1]}" in report.html


def test_older_stores_and_few_runs_have_no_such_sections() -> None:
    result = fake_result({"truncate_at": ["block1", "block2"]}, {"block1": 0.6, "block2": 0.7}, seeds=1)
    report = build_report(analyse_study(result))
    assert "suspects.png" not in report.figures
    for title in ("Images", "Near-duplicates across training and test", "Suspected label errors"):
        assert section(report, title) == ""
