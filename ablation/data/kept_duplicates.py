"""What a comparison of all pictures of a set found: kept beside the cache, shown in the report.

Legend: P pairs, S pixels of a thumbnail's side.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ablation.base.errors import InputError, StoreError
from ablation.base.files import write_atomically
from ablation.data.decoding import OpenImage, fit_image
from ablation.data.image_cache import cache_file
from ablation.data.near_duplicates import NearDuplicates, Picture, open_picture

MOST_PAIRS = 12  # that are kept with their thumbnails
SIDE = 48  # pixels of a thumbnail


class Pair(NamedTuple):
    """The names of two pictures, their mean difference in grey levels (of 255), and whether one is mirrored."""

    first: str
    second: str
    difference: float
    is_mirrored: bool


@dataclass(frozen=True)
class Comparison:
    """Near-duplicates across training and test.

    Attributes:
        pictures: how many were compared with each other.
        across: how many pairs of a training and a test picture are nearly the same; at least so many if pictures are
            `represented`.
        pairs: the most similar of these, up to `MOST_PAIRS`.
        thumbnails_P2SSC: uint8, of `pairs`.
        represented: see `NearDuplicates`.
    """

    pictures: int
    across: int
    pairs: list[Pair]
    thumbnails_P2SSC: np.ndarray
    represented: int = 0


def comparison_of(
    found: NearDuplicates,
    pictures: Sequence[Picture],
    names: Sequence[str],
    train: int,
    open_image: OpenImage = PIL.Image.open,
) -> Comparison:
    """Return what is kept of a comparison.

    Args:
        found: the pairs.
        pictures: what was compared, training pictures first.
        names: of the pictures.
        train: the number of training pictures.
        open_image: opens a file.
    """
    across = np.flatnonzero((found.first_P < train) & (found.second_P >= train))
    pairs, thumbnails_P2SSC = [], np.empty((min(len(across), MOST_PAIRS), 2, SIDE, SIDE, 3), np.uint8)
    for place, pair in enumerate(across[:MOST_PAIRS]):
        numbers = (int(found.first_P[pair]), int(found.second_P[pair]))
        first, second = (names[number] for number in numbers)
        pairs.append(Pair(first, second, float(found.difference_P[pair]), bool(found.is_mirrored_P[pair])))
        for side, number in enumerate(numbers):
            with open_picture(pictures[number], open_image) as image:
                thumbnails_P2SSC[place, side] = fit_image(image, SIDE)
    compared = len(pictures) - found.unreadable
    return Comparison(compared, len(across), pairs, thumbnails_P2SSC, found.represented)


def keep_comparison(comparison: Comparison, key: str) -> None:
    """Keep a comparison beside the cache of decoded images, where that can be written."""
    if (place := _place(key)) is not None:
        with suppress(StoreError):
            write_atomically(place, comparison_file(comparison))


def kept_comparison(key: str) -> Comparison | None:
    """Return the comparison that was kept under a key; None without one."""
    place = _place(key)
    try:
        return None if place is None else load_comparison(place.read_bytes())
    except (OSError, InputError):
        return None


def _place(key: str) -> Path | None:
    return cache_file(f"near-{key[:32]}.safetensors")


def comparison_file(comparison: Comparison) -> bytes:
    """Return a comparison as the content of a safetensors file."""
    about = {name: getattr(comparison, name) for name in ("pictures", "across", "pairs", "represented")}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    return save({"about": text, "thumbnails": comparison.thumbnails_P2SSC})


def load_comparison(content: bytes) -> Comparison:
    """Read what `comparison_file` wrote.

    Raises:
        InputError: it is damaged.
    """
    try:
        tensors = load(content)
        about = json.loads(tensors["about"].tobytes())
        about["pairs"] = [Pair(*pair) for pair in about["pairs"]]
        return Comparison(**about, thumbnails_P2SSC=tensors["thumbnails"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"a comparison of pictures is damaged ({error})") from None
