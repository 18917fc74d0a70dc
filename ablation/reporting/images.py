"""The report's images: training images as the network sees them, and the champion's most confident mistakes.

Legend: R classes, I images of each, V views of an image, S pixels of an image's side.
"""

import base64
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ablation.analysis.answer import StudyAnalysis
from ablation.data.run_pictures import mistakes_png
from ablation.reporting.charts import Picture

TILE, GAP, NAMES = 64, 4, 150  # pixels in a file: of an image, between images, for the names of classes
LONGEST_NAME = 22  # characters in a file


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
        pen.text((GAP, GAP + row * pitch + TILE // 2), analysis.result.classes[k][:LONGEST_NAME], "black", font, "lm")
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


def data_address(image_SSC: np.ndarray) -> str:
    """Return the data address of an image as PNG, pixel by pixel."""
    return f"data:image/png;base64,{base64.b64encode(_png(Image.fromarray(image_SSC))).decode()}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
