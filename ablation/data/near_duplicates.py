"""Pictures that are nearly the same: re-encoded, resized, mirrored. By a perceptual hash, then by their pixels.

Legend: N pictures, P pairs, W words of 64 bits of a hash.
"""

import importlib
from collections.abc import Callable, Sequence
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
FEW = 2000  # pictures; so many are compared within a second by one process, once their pixels are in memory

Picture = str | np.ndarray  # the name of a file, or pixels, uint8 HWC


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures by their numbers, the mean difference of their grey levels (of 255), and whether one is mirrored."""

    first: int
    second: int
    difference: float
    is_mirrored: bool


def find_near_duplicates(
    pictures: Sequence[Picture], track: Callable[[int], None], open_image: OpenImage = PIL.Image.open
) -> list[NearDuplicate]:
    """Compare all pictures with all others, as they are and mirrored; files that cannot be read are left out.

    The hash is `imagehash.phash` (Krawetz, "Looks like it", 2011): the signs of 64 low frequencies. It finds pairs, and
    the thumbnails of those decide, because smooth pictures of different things may have similar hashes.

    Args:
        pictures: image files, or pixels.
        track: is told how many pictures have been looked at.
        open_image: opens a file; processes get a copy of it.

    Returns:
        Pairs, the most similar first.

    Raises:
        InputError: the optional library is missing.
    """
    _library()
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    look = partial(_look, open_image)
    if len(pictures) <= FEW and not isinstance(pictures[0], str):
        parts = list(map(look, chunks))
    else:
        parts = []
        with ProcessPoolExecutor(usable_cores()) as pool:
            for chunk, part in zip(chunks, pool.map(look, chunks), strict=True):
                parts.append(part)
                track(len(chunk))
    readable_N, hashes_N, mirrored_N, thumbnails_NSS = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    pairs = []
    for other_N, is_mirrored in ((hashes_N, False), (mirrored_N, True)):
        for a, b in _similar_hashes(hashes_N, other_N):
            if not (readable_N[a] and readable_N[b]):
                continue
            other_SS = thumbnails_NSS[b][:, ::-1] if is_mirrored else thumbnails_NSS[b]
            difference = float(abs(thumbnails_NSS[a].astype(np.int16) - other_SS).mean())
            if difference <= MOST_DIFFERENCE:
                pairs.append(NearDuplicate(a, b, difference, is_mirrored))
    best: dict[tuple[int, int], NearDuplicate] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.difference, pair.is_mirrored)):
        best.setdefault((pair.first, pair.second), pair)
    return list(best.values())


def _library() -> Any:
    """Return the optional library imagehash.

    Raises:
        InputError: it is missing.
    """
    try:
        return importlib.import_module("imagehash")
    except ImportError:
        raise InputError("near-duplicates: need imagehash: pip install 'ablation[check]'") from None


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


def _hash(grey: Image) -> np.uint64:
    bits: np.ndarray = _library().phash(grey).hash
    return np.uint64(np.packbits(bits.flatten()).view(np.uint64)[0])


def _similar_hashes(hashes_N: np.ndarray, other_N: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs (a, b), a before b, in which hash a and the other hash b differ in few bits."""
    pairs = []
    for start in range(0, len(hashes_N), ROWS):
        rows_R = hashes_N[start : start + ROWS]
        bits_RN = np.bitwise_count(rows_R[:, None] ^ other_N[None, start:])
        a_P, b_P = np.nonzero(bits_RN <= MOST_BITS)
        pairs += [(int(a) + start, int(b) + start) for a, b in zip(a_P, b_P, strict=True) if a < b]
    return pairs
