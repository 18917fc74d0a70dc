"""Pictures of a run's test."""

import io

import numpy as np
from PIL import Image

from ablation.data.run_pictures import confusion_png, mistakes_png
from tests.odd_names import NAMES, SHOWN_NAMES


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_cell_is_as_dark_as_its_share_of_its_row() -> None:
    sheet = pixels(confusion_png(np.array([[30, 10], [0, 0]]), ["cat", "dog"]))
    top, left = np.argwhere((sheet == (69, 99, 144)).all(axis=2)).min(axis=0)  # of the cell with 75 %
    cells = [sheet[top + y, left + x].tolist() for y, x in ((5, 5), (5, 53), (53, 5), (53, 53))]
    assert cells == [[69, 99, 144], [193, 203, 218], [255, 255, 255], [255, 255, 255]]  # 25 %, no images


def test_many_classes_fit() -> None:
    counts_KK = np.eye(1000, dtype=np.int64)
    sheet = pixels(confusion_png(counts_KK, [f"class {k}" for k in range(1000)]))
    assert max(sheet.shape) < 1100
    assert (sheet == (8, 48, 107)).all(axis=2).sum() == 1000


def test_mistakes_are_shown_in_order() -> None:
    greys_MSSC = np.broadcast_to(np.arange(10, 60, 10, dtype=np.uint8)[:, None, None, None], (5, 8, 8, 3))
    sheet = pixels(mistakes_png(greys_MSSC, [("cat (99%)", "is dog")] * 5))
    assert [sheet[80, 80 + 152 * n, 0] for n in range(4)] == [10, 20, 30, 40]
    assert sheet[80 + 188, 80, 0] == 50
    assert pixels(mistakes_png(greys_MSSC[:0], [])).shape == (48, 420, 3)


def test_names_keep_to_one_line_and_hidden_signs_are_shown() -> None:
    """Whatever the names of classes hold; nothing is taken for a formula."""
    counts_KK = np.eye(len(NAMES), dtype=np.int64)
    assert confusion_png(counts_KK, NAMES) == confusion_png(counts_KK, SHOWN_NAMES)
    assert confusion_png(counts_KK, SHOWN_NAMES) != confusion_png(counts_KK, SHOWN_NAMES[::-1])
    images_MSSC = np.zeros((len(NAMES), 4, 4, 3), np.uint8)
    captions, shown = ([(f"{name} (99%)", f"is {name}") for name in names] for names in (NAMES, SHOWN_NAMES))
    assert mistakes_png(images_MSSC, captions) == mistakes_png(images_MSSC, shown)
