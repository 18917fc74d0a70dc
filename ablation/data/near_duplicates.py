"""Pictures that are nearly the same: re-encoded, resized, mirrored. By a perceptual hash, then by their pixels.

Legend: N pictures, R those of them that are compared with each other, P pairs, S pixels of a thumbnail's side.
"""

import importlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageOps
from PIL.Image import Image

from ablation.base.cores import usable_cores
from ablation.base.errors import InputError
from ablation.data.decoding import OpenImage, fit_image

MOST_BITS = 10  # of the hash's 64 that may differ
MOST_DIFFERENCE = 6.0  # of 255 grey levels, on average over the thumbnails
THUMBNAIL = 16  # pixels a side
SIDE = 32  # of the picture that is hashed: imagehash's own
ROWS = 512  # of the comparison of all with all that are in memory at once
CHUNK = 500  # pictures that a process looks at, at a time
SLICE = 4096  # pairs whose thumbnails are in memory at once
MOST_EQUAL = 20  # pictures of which all pairs are named: of 20,000 black ones these would be 200 million
FEW = 2000  # pictures; so many are compared within a second by one process, once their pixels are in memory

Picture = str | np.ndarray  # the name of a file, or pixels, uint8 HWC


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of pictures, the most similar first.

    Attributes:
        first_P: a picture's number, int64.
        second_P: that of the other one, which is larger.
        difference_P: the mean difference of their grey levels, of 255.
        is_mirrored_P: whether one is mirrored, bool.
        unreadable: how many files could not be read, so that they were compared with none.
        represented: how many pictures are equal to at least `MOST_EQUAL` before them, and paired with the first of
            these only.
    """

    first_P: np.ndarray
    second_P: np.ndarray
    difference_P: np.ndarray
    is_mirrored_P: np.ndarray
    unreadable: int
    represented: int


def find_near_duplicates(pictures: Sequence[Picture], open_image: OpenImage = PIL.Image.open) -> NearDuplicates:
    """Compare all pictures with all others, as they are and mirrored; files that cannot be read are left out.

    The hash is `imagehash.phash` (Krawetz, "Looks like it", 2011): the signs of 64 low frequencies. It finds pairs, and
    the thumbnails of those decide, because smooth pictures of different things may have similar hashes.

    Args:
        pictures: image files, or pixels.
        open_image: opens a file; processes get a copy of it.

    Raises:
        InputError: the optional library is missing.
    """
    hashing_library()
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    look = partial(_look, open_image)
    if len(pictures) <= FEW and not isinstance(pictures[0], str):
        parts = list(map(look, chunks))
    else:
        with ProcessPoolExecutor(usable_cores()) as pool:
            parts = list(pool.map(look, chunks))
    readable_N, *looked_at = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    equal_P, represented_P = _beyond_the_most(readable_N, *looked_at)
    numbers_R = np.setdiff1d(np.flatnonzero(readable_N), represented_P)
    hashes_R, mirrored_R, thumbnails_RSS = (array[numbers_R] for array in looked_at)
    thumbnails_RSS = thumbnails_RSS.astype(np.int16)
    found = [(equal_P, represented_P, np.zeros(len(equal_P)), np.zeros(len(equal_P), bool))]
    for is_mirrored, other_R in ((False, hashes_R), (True, mirrored_R)):
        others_RSS = thumbnails_RSS[:, :, ::-1] if is_mirrored else thumbnails_RSS
        for a_P, b_P in _similar_hashes(hashes_R, other_R):
            difference_P = abs(thumbnails_RSS[a_P] - others_RSS[b_P]).mean((1, 2))
            is_near_P = difference_P <= MOST_DIFFERENCE
            a_P, b_P, difference_P = a_P[is_near_P], b_P[is_near_P], difference_P[is_near_P]
            found.append((numbers_R[a_P], numbers_R[b_P], difference_P, np.full(len(a_P), is_mirrored)))
    first_P, second_P, difference_P, is_mirrored_P = (np.concatenate(column) for column in zip(*found, strict=True))
    order_P = np.lexsort((second_P, first_P, is_mirrored_P, difference_P))
    _, places_P = np.unique((first_P * len(pictures) + second_P)[order_P], return_index=True)  # as it is, or mirrored
    best_P = order_P[np.sort(places_P)]
    pairs = (first_P[best_P], second_P[best_P], difference_P[best_P], is_mirrored_P[best_P])
    return NearDuplicates(*pairs, int((~readable_N).sum()), len(represented_P))


def hashing_library() -> Any:
    """Return the optional library imagehash.

    Raises:
        InputError: it is missing.
    """
    try:
        return importlib.import_module("imagehash")
    except ImportError:
        raise InputError("near-duplicates: need imagehash: python -m pip install imagehash") from None


def open_picture(picture: Picture, open_image: OpenImage) -> Image:
    """Return the image of a file, or of pixels."""
    return open_image(picture) if isinstance(picture, str) else PIL.Image.fromarray(picture)


def _look(open_image: OpenImage, pictures: Sequence[Picture]) -> tuple[np.ndarray, ...]:
    """Return which pictures can be read (bool N), their hashes, hashes mirrored (uint64 N), thumbnails (uint8 NSS)."""
    readable = np.zeros(len(pictures), bool)
    hashes, mirrored = np.zeros((2, len(pictures)), np.uint64)
    thumbnails = np.zeros((len(pictures), THUMBNAIL, THUMBNAIL), np.uint8)
    for number, picture in enumerate(pictures):
        try:
            with open_picture(picture, open_image) as image:
                grey = PIL.Image.fromarray(fit_image(image, SIDE, resize="squash")).convert("L")
        except Exception:  # Pillow raises many kinds for broken files
            continue
        readable[number], hashes[number], mirrored[number] = True, _hash(grey), _hash(ImageOps.mirror(grey))
        thumbnails[number] = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.BOX))
    return readable, hashes, mirrored, thumbnails


def _beyond_the_most(
    readable_N: np.ndarray, hashes_N: np.ndarray, mirrored_N: np.ndarray, thumbnails_NSS: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures that are equal to `MOST_EQUAL` before them or more, each after the first of these."""
    equal: defaultdict[tuple[int, int, bytes], list[int]] = defaultdict(list)
    for number in np.flatnonzero(readable_N).tolist():
        equal[int(hashes_N[number]), int(mirrored_N[number]), thumbnails_NSS[number].tobytes()].append(number)
    pairs = [(numbers[0], number) for numbers in equal.values() for number in numbers[MOST_EQUAL:]]
    first_P, second_P = np.array(pairs, np.int64).reshape(-1, 2).T
    return first_P, second_P


def _hash(grey: Image) -> np.uint64:
    bits: np.ndarray = hashing_library().phash(grey).hash
    return np.uint64(np.packbits(bits.flatten()).view(np.uint64)[0])


def _similar_hashes(hashes_R: np.ndarray, other_R: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs (a, b), a before b, in which hash a and the other hash b differ in few bits, slice by slice."""
    for start in range(0, len(hashes_R), ROWS):
        bits = np.bitwise_count(hashes_R[start : start + ROWS, None] ^ other_R[None, start:])
        a_P, b_P = np.nonzero(np.triu(bits <= MOST_BITS, 1))
        for place in range(0, len(a_P), SLICE):
            yield a_P[place : place + SLICE] + start, b_P[place : place + SLICE] + start
