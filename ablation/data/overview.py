"""A set of images as a person wants to see it: classes, sizes, modes, and a contact sheet."""

from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import Image, ImageDraw, ImageFont

from ablation.base.text import Table, one_line, plural
from ablation.data.decoding import OpenImage
from ablation.data.reading import ImageSet

PER_CLASS = 10  # pictures of a class on the contact sheet
MOST_CLASSES = 30
CELL = 64  # pixels
TITLE = 18  # pixels above the pictures of a class
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


def write_contact_sheet(images: ImageSet, path: Path) -> None:
    """Write a PNG file with the first training images of each class, as the network gets them before it resizes."""
    names = images.classes[:MOST_CLASSES]
    sheet = Image.new("RGB", (PER_CLASS * CELL, len(names) * (CELL + TITLE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for label, name in enumerate(names):
        numbers = np.flatnonzero(images.train_labels_N == label)
        top = label * (CELL + TITLE)
        pen.text((2, top + 2), f"{one_line(name)} ({len(numbers):,})", "black", font)
        for place, number in enumerate(numbers[np.linspace(0, len(numbers) - 1, PER_CLASS).astype(int)]):
            picture = Image.fromarray(np.asarray(images.train_images_NHWC[number])).resize((CELL - 2, CELL - 2))
            sheet.paste(picture, (place * CELL, top + TITLE))
    sheet.save(path, "PNG")
