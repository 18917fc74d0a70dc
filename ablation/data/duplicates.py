"""Identical images, by their decoded pixels: found across splits and across classes, refused or left out.

Legend: N images of the training set, then of the test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablation.base.errors import InputError
from ablation.base.text import listed, one_line

MOST_PAIRS = 10  # that are named


@dataclass(frozen=True)
class Pictures:
    """The images of a set by what identifies them: training images first, then test images.

    Attributes:
        digests_N: of the pixels; None for images that cannot be read, which are identical to none.
        labels_N: int64.
        is_test_N: bool.
        names: the images' names, for messages.
    """

    digests_N: Sequence[str | None]
    labels_N: np.ndarray
    is_test_N: np.ndarray
    names: Sequence[str]


def identical(pictures: Pictures) -> list[list[int]]:
    """Return the numbers of images that are identical to each other, set by set, in the order of their first images."""
    places: dict[str, list[int]] = {}
    for number, digest in enumerate(pictures.digests_N):
        if digest is not None:
            places.setdefault(digest, []).append(number)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def refuse_identical(pictures: Pictures) -> int:
    """Refuse identical images in training and test set, or under two labels; return how many other copies there are.

    The others are copies inside the training images, or inside the test images, of one class.

    Raises:
        InputError: names up to ten pairs.
    """
    pairs, others = [], 0
    for numbers in identical(pictures):
        first = numbers[0]
        for number in numbers[1:]:
            if pictures.is_test_N[number] != pictures.is_test_N[first]:
                pairs.append((first, number, "training and test"))
            elif pictures.labels_N[number] != pictures.labels_N[first]:
                pairs.append((first, number, "two classes"))
            else:
                others += 1
    if not pairs:
        return others
    named = [f"{one_line(pictures.names[a])} = {one_line(pictures.names[b])} ({why})" for a, b, why in pairs]
    raise InputError(
        f"data.duplicates: the same image in training and test, or in two classes: {listed(named, MOST_PAIRS)}; "
        "'drop' leaves copies out, 'keep' keeps them"
    )


def kept(pictures: Pictures) -> np.ndarray:
    """Return which images stay where copies are dropped, bool N.

    Of copies of one class, the first test image stays, or else the first training image. Of copies under two labels
    none stays, because nobody knows which label is right.
    """
    stays_N = np.ones(len(pictures.names), bool)
    for numbers in identical(pictures):
        stays_N[numbers] = False
        if len({int(pictures.labels_N[number]) for number in numbers}) == 1:
            stays_N[max(numbers, key=lambda number: (pictures.is_test_N[number], -number))] = True
    return stays_N
