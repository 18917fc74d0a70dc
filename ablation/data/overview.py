"""A set of images as a person wants to see it: classes, sizes, modes, and a contact sheet."""

import io
from collections import Counter

import numpy as np
import PIL.Image
from PIL import Image, ImageDraw, ImageFont

from ablation.base.text import Table, one_line, plural
from ablation.data.decoding import OpenImage
from ablation.data.image_set import ImageSet

PER_CLASS = 10  # pictures of a class on the contact sheet
MOST_CLASSES = 30
CELL = 64  # pixels
TITLE = 18  # pixels above the pictures of a class
MOST_BYTES = 150_000  # of the contact sheet in the report
MOST_KINDS = 5  # of sizes and modes that are named


def class_table(images: ImageSet) -> Table:
    """Return the classes with their counts of training and test images."""
    counts = [np.bincount(labels, minlength=len(images.classes)) for labels in
              (images.train_labels_N, images.test_labels_N)]  # fmt: skip
    rows = [
        [one_line(name), f"{train:,}", f"{test:,}"] for name, train, test in zip(images.classes, *counts, strict=True)
    ]
    rows.append(["all", f"{len(images.train_labels_N):,}", f"{len(images.test_labels_N):,}"])
    return Table("Classes", ["class", "training images", "test images"], rows)


def kinds_text(paths: list[str], open_image: OpenImage = PIL.Image.open) -> str:
    """Return the sizes and modes of image files, by their headers, the most frequent first; none is decoded."""
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    for path in paths:
        with open_image(path) as image:
            sizes["{} x {}".format(*image.size)] += 1
            modes[f"{image.format} {image.mode}"] += 1

    def text(kinds: Counter[str]) -> str:
        named = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(MOST_KINDS))
        more = len(kinds) - MOST_KINDS
        return f"{named} and {plural(more, 'other')}" if more > 0 else named

    return f"sizes in pixels: {text(sizes)}; formats and modes: {text(modes)}"


def contact_sheet(images: ImageSet, cell: int = CELL) -> Image.Image:
    """Return some training images of each class, as the network gets them before it resizes, in square cells."""
    names = images.classes[:MOST_CLASSES]
    sheet = Image.new("RGB", (PER_CLASS * cell, len(names) * (cell + TITLE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for label, name in enumerate(names):
        numbers = np.flatnonzero(images.train_labels_N == label)
        top = label * (cell + TITLE)
        pen.text((2, top + 2), f"{one_line(name)} ({len(numbers):,})", "black", font)
        shown = numbers[np.linspace(0, len(numbers) - 1, PER_CLASS).astype(int)] if len(numbers) else numbers
        for place, number in enumerate(shown):
            picture = Image.fromarray(np.asarray(images.train_images_NHWC[number])).resize((cell - 2, cell - 2))
            sheet.paste(picture, (place * cell, top + TITLE))
    return sheet


def small_contact_sheet(images: ImageSet) -> bytes:
    """Return the contact sheet as PNG in 256 colours, with cells so small that it has at most `MOST_BYTES`."""
    rows = min(len(images.classes), MOST_CLASSES)
    for cell in (CELL, 48, 40, 32, 24, 16):
        if 0.6 * rows * PER_CLASS * cell * (cell + TITLE) > MOST_BYTES and cell > 16:
            continue  # hardly a photo takes less than 0.6 bytes per pixel
        buffer = io.BytesIO()
        contact_sheet(images, cell).quantize(256, Image.Quantize.FASTOCTREE).save(buffer, "PNG")
        if buffer.tell() <= MOST_BYTES:
            break
    return buffer.getvalue()
