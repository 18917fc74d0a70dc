"""The report's images: of the set, of training as the network sees it, and of what the champion gets wrong.

Legend: R classes, I images of each, V views of an image, P pairs, S pixels of an image's side; T = 2 S.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.label_errors import (
    FEWEST_RUNS,
    SuspectedLabel,
    confirmed_runs,
    mistake_pictures,
    suspected_labels,
)
from ablation.analysis.results import StudyResult
from ablation.base.text import one_line, plural
from ablation.data.overview import MOST_CLASSES
from ablation.data.run_pictures import mistakes_png
from ablation.reporting.charts import Picture

TILE, GAP, NAMES = 64, 4, 150  # pixels in a file: of an image, between images, for the names of classes
LONGEST_NAME = 22  # characters in a file
MOST_SUSPECTS = 24


def samples_picture(analysis: StudyAnalysis) -> Picture | None:
    """Return one row per class: each image unchanged, then its augmentations."""
    samples = analysis.result.samples
    if samples is None:
        return None
    rows_RXSSC = samples.images_RIVSSC.reshape(len(samples.classes_R), -1, *samples.images_RIVSSC.shape[3:])
    pitch = TILE + GAP
    sheet = Image.new("RGB", (NAMES + rows_RXSSC.shape[1] * pitch, GAP + len(rows_RXSSC) * pitch), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, k in enumerate(samples.classes_R):
        name = one_line(analysis.result.classes[k])[:LONGEST_NAME]
        pen.text((GAP, GAP + row * pitch + TILE // 2), name, "black", font, "lm")
        for column, image_SSC in enumerate(rows_RXSSC[row]):
            tile = Image.fromarray(image_SSC).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (NAMES + column * pitch, GAP + row * pitch))
    names = ", ".join(analysis.result.classes[k] for k in samples.classes_R)
    kinds = f", each unchanged and with {', '.join(samples.augmentations)}" if samples.augmentations else ""
    return Picture(f"Training images of the classes {names}{kinds}", png=_png(sheet))


def mistakes_picture(analysis: StudyAnalysis) -> Picture | None:
    """Return the champion's most confident mistakes with true class, predicted class and probability."""
    if not analysis.mistakes:
        return None
    texts = [(f"{m.number}: {m.true}", f"\u2192 {m.predicted} {m.probability:.3f}") for m in analysis.mistakes]
    png = mistakes_png(np.stack([m.image_SSC for m in analysis.mistakes]), texts)
    first = analysis.mistakes[0]
    return Picture(
        f"{len(analysis.mistakes)} misclassified test images; the most confident: a {first.true} taken for a "
        f"{first.predicted} with probability {first.probability:.3f}",
        png=png,
    )


def sheet_picture(analysis: StudyAnalysis) -> Picture | None:
    """Return the contact sheet of training images, as it was drawn when the study began."""
    images = analysis.result.images
    if images is None:
        return None
    count = len(analysis.result.classes)
    which = f"{count} classes" if count <= MOST_CLASSES else f"the first {MOST_CLASSES} of {count} classes"
    return Picture(f"Contact sheet: training images of {which}, a row for each", png=images.sheet)


def near_duplicates_picture(analysis: StudyAnalysis) -> Picture | None:
    """Return the pairs of a training and a test picture that are nearly the same, side by side."""
    images = analysis.result.images
    if images is None or images.comparison is None or not images.comparison.pairs:
        return None
    comparison = images.comparison
    texts = [(one_line(PurePath(pair.first).name), one_line(PurePath(pair.second).name)) for pair in comparison.pairs]
    png = mistakes_png(np.stack([side_by_side(pair_2SSC) for pair_2SSC in comparison.thumbnails_P2SSC]), texts)
    return Picture(f"{plural(len(texts), 'pair')} of a training and a test picture that are nearly the same", png=png)


def side_by_side(images_2SSC: np.ndarray) -> np.ndarray:
    """Return two pictures as one square one, uint8: the first on the left, the second on the right."""
    side = images_2SSC.shape[1]
    square_TTC = np.full((2 * side, 2 * side, 3), 255, np.uint8)
    square_TTC[side // 2 : side // 2 + side] = np.concatenate(list(images_2SSC), axis=1)
    return square_TTC


def suspects_picture(analysis: StudyAnalysis) -> Picture | None:
    """Return the test images whose label all confirmation runs contradict, as far as the store has them."""
    result = analysis.result
    shown = shown_suspects(result, suspected_labels(result)) if confirmed_runs(result) >= FEWEST_RUNS else []
    if not shown:
        return None
    texts = [(f"{s.number}: {s.label}", f"\u2192 {s.called} {s.probability:.3f}") for s, _ in shown]
    png = mistakes_png(np.stack([image_SSC for _, image_SSC in shown]), texts)
    first = shown[0][0]
    return Picture(
        f"{plural(len(shown), 'test image')} that all confirmation runs call another class; the most probable: a "
        f"{first.label} called {first.called} with a mean probability of {first.probability:.3f}",
        png=png,
    )


def shown_suspects(result: StudyResult, suspects: Sequence[SuspectedLabel]) -> list[tuple[SuspectedLabel, np.ndarray]]:
    """Return the first suspected labels with their images, uint8 SSC, of those that the store has an image of."""
    pictures = mistake_pictures(result)
    return [(each, pictures[each.number]) for each in suspects if each.number in pictures][:MOST_SUSPECTS]


def data_address(image_SSC: np.ndarray) -> str:
    """Return the data address of an image as PNG, pixel by pixel."""
    return png_address(_png(Image.fromarray(image_SSC)))


def png_address(png: bytes) -> str:
    """Return the data address of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
