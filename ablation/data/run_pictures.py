"""Pictures of a run's test, for the MLflow UI: its most confident mistakes, and its confusion matrix.

Legend: M mistakes, S pixels (a side), K classes.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ablation.base.text import one_line

TILE, COLUMNS, LINE = 144, 4, 18  # pixels of a mistake's image; mistakes in a row; pixels of a line of text
MATRIX, LARGEST_CELL, LABELLED_CELL, VALUE_CELL = 720, 48, 10, 32  # pixels
LONGEST_NAME = 20  # characters of a class's name
INK, PAPER, GRID, DARK = (20, 20, 20), (255, 255, 255), (225, 225, 225), np.array((8, 48, 107))


def mistakes_png(images_MSSC: np.ndarray, captions: Sequence[tuple[str, str]]) -> bytes:
    """Return a PNG of misclassified images, each above two lines of text.

    Args:
        images_MSSC: RGB, uint8; none makes a picture that says so.
        captions: the two lines of each.
    """
    if not captions:
        return _text_png("No test image is misclassified.")
    rows = -(-len(captions) // COLUMNS)
    height = TILE + 2 * LINE + 8
    sheet = Image.new("RGB", (COLUMNS * (TILE + 8) + 8, rows * height + 8), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (image_SSC, lines) in enumerate(zip(images_MSSC, captions, strict=True)):
        x, y = 8 + number % COLUMNS * (TILE + 8), 8 + number // COLUMNS * height
        sheet.paste(Image.fromarray(image_SSC).resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        for place, line in enumerate(lines):
            pen.text((x, y + TILE + 2 + place * LINE), one_line(line)[: LONGEST_NAME + 4], INK, font)
    return _png(sheet)


def confusion_png(counts_KK: np.ndarray, classes: Sequence[str]) -> bytes:
    """Return a PNG of a confusion matrix: how many images of each true class (row) got each class (column).

    A cell is as dark as its share of its row. Names and numbers are left out where the cells are too small for them.
    """
    cell = max(1, min(LARGEST_CELL, MATRIX // len(classes)))
    font = ImageFont.load_default(min(13, max(8, cell - 2)))
    names = [one_line(name)[:LONGEST_NAME] for name in classes] if cell >= LABELLED_CELL else []
    margin = 12 + LINE + max((int(font.getlength(name)) for name in names), default=0)
    side = margin + cell * len(classes) + 8
    sheet = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(sheet)
    shares_KK1 = (counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1))[:, :, None]
    cells_KK3 = (255 - shares_KK1 * (255 - DARK)).astype(np.uint8)
    sheet.paste(Image.fromarray(cells_KK3.repeat(cell, 0).repeat(cell, 1)), (margin, margin))
    for line in range(0, side - margin, cell) if cell >= LABELLED_CELL else []:
        pen.line((margin + line, margin, margin + line, side - 8), GRID)
        pen.line((margin, margin + line, side - 8, margin + line), GRID)
    for true, predicted in np.argwhere(counts_KK) if cell >= VALUE_CELL else []:
        centre = (margin + (predicted + 0.5) * cell, margin + (true + 0.5) * cell)
        ink = PAPER if shares_KK1[true, predicted, 0] > 0.5 else INK
        pen.text(centre, str(counts_KK[true, predicted]), ink, font, "mm")
    for number, name in enumerate(names):
        middle = margin + (number + 0.5) * cell
        pen.text((margin - 4, middle), name, INK, font, "rm")
        turned = Image.new("RGB", (margin - LINE - 4, cell), PAPER)  # the name of a column, before it is turned
        ImageDraw.Draw(turned).text((0, cell / 2), name, INK, font, "lm")
        sheet.paste(turned.rotate(90, expand=True), (margin + number * cell, LINE))
    pen.text((4, 2), "columns: predicted, rows: true", INK, ImageFont.load_default(12))
    return _png(sheet)


def _text_png(text: str) -> bytes:
    sheet = Image.new("RGB", (420, 48), PAPER)
    ImageDraw.Draw(sheet).text((8, 24), text, INK, ImageFont.load_default(14), "lm")
    return _png(sheet)


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
