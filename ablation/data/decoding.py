"""Image files of any mode and size, decoded to RGB."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
from PIL import ImageOps
from PIL.Image import Image, Resampling
from PIL.TiffImagePlugin import TiffImageFile

from ablation.base.cores import usable_cores
from ablation.base.errors import InputError
from ablation.base.text import first_line, listed, one_line
from ablation.spec.tables import Resize

# Version of the decoding. Raise it where pixels change, or which images a folder or a table holds: caches are made
# anew, and a study that began with another version is refused.
DECODING_VERSION = 6
REDUCING_GAP = 2  # a reduced JPEG's sides to the image's, at least; pixels change by 0.1 to 0.8 of 255 on average

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jfif", ".jpe", ".gif", ".avif", ".jp2",
    ".tga", ".pbm", ".pnm",
)  # fmt: skip
TEST_FRACTION = 0.2  # of sets that come without a test split
NEARLY_BLACK = 32  # of 255: the largest value of greys of 13 bits in 16; a set without a larger one is hardly meant so
AHEAD = 8  # images per thread that are decoded before they are asked for
MOST_NAMED = 10  # images that cannot be read, in a message


class Status(NamedTuple):
    """What changes with an image that is not a file of its own, named as in `os.stat_result`."""

    st_size: int
    st_mtime_ns: int


Result = TypeVar("Result")
File = tuple[str, os.stat_result | Status]  # path, or another name of an image, and status
OpenImage = Callable[[str], Image]  # takes the path or name; the image is not decoded yet
# Pillow warns of large pictures, and refuses those of twice that size, which may be meant to exhaust the memory.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)

TrackProgress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, total, description) -> the same items
ReadImages = Callable[[np.ndarray, np.ndarray, TrackProgress, bool], tuple[np.ndarray, np.ndarray]]


def untracked(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Return the items without showing progress: a `TrackProgress`."""
    return items


@dataclass(frozen=True)
class ImageListing:
    """The images of a source before they are read.

    Attributes:
        train_labels_N: int64.
        test_labels_N: int64.
        classes: the class names, by label.
        side: height and width of the images that `read` returns, in pixels.
        read: takes numbers of training images and of test images, what shows progress, and whether the pixels are to be
            memory maps of a file on disk (for sources with `files` only); returns the pixels of both, uint8 NHWC.
        decoding: version of the decoding, for sources whose pixels depend on it.
        files: the files of the splits 'train' and 'test', for sources of image files.
        reading: how a folder was understood, in one line; empty for sources that leave no doubt.
        groups: what the images of the splits 'train' and 'test' belong to; None without groups.
        open_image: opens one of `files`.
    """

    train_labels_N: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    side: int
    read: ReadImages
    decoding: int | None = None
    files: dict[str, list[File]] | None = None
    reading: str = ""
    groups: dict[str, list[str]] | None = None
    open_image: OpenImage = PIL.Image.open


def darkness_note(brightest: int) -> str:
    """Return that images are nearly black, if the largest value of all their pixels (0 to 255) is small; else ''."""
    if brightest > NEARLY_BLACK:
        return ""
    return (
        f"the images are nearly black, no value is above {brightest} of 255: if they are 16-bit files with greys of "
        "fewer bits, scale them to 16 bits, or save them as 8 bits"
    )


def is_image_name(name: str) -> bool:
    """Return whether a file with this name is an image."""
    return name.lower().endswith(SUFFIXES)


def fit_image(image: Image, size: int, resize: Resize = "crop") -> np.ndarray:
    """Return RGB pixels, size x size x 3.

    Args:
        image: its pixels are decoded here, unless they have been.
        size: height and width of the result.
        resize: 'crop' scales so that the shorter side fits and cuts the rest off in the middle; 'squash' scales both
            sides; 'pad' scales so that the longer side fits and fills the rest with black.
    """
    _refuse_stack(image)
    width, height = image.size
    # Only JPEG has this. The decoder's size is the smallest that is not below the one asked for.
    image.draft(None, (REDUCING_GAP * size, REDUCING_GAP * size))
    if image.size != (width, height):
        return _fit_reduced(image, (width, height), size, resize)
    image = _as_rgb(_upright(image))
    if image.size == (size, size):
        return np.asarray(image)
    if resize == "squash":
        return np.asarray(image.resize((size, size), Resampling.BILINEAR))
    fit = ImageOps.fit if resize == "crop" else ImageOps.pad
    return np.asarray(fit(image, (size, size), method=Resampling.BILINEAR))


def _refuse_stack(image: Image) -> None:
    """Refuse a TIFF file of several pictures of one size, such as layers of a microscope: which one is meant?

    Smaller copies of the first, which cameras and slide scanners add, do no harm.

    Raises:
        ValueError: says how many there are.
    """
    if not isinstance(image, TiffImageFile):
        return
    size, pictures = image.size, 0
    with suppress(Exception):  # after the last, or where the next cannot be read: Pillow raises many kinds
        for number in count():
            image.seek(number)
            pictures += image.size == size
    image.seek(0)
    if pictures > 1:
        raise ValueError(f"a stack of {pictures} pictures: save each as a file")


def _fit_reduced(image: Image, full_size: tuple[int, int], size: int, resize: Resize) -> np.ndarray:
    """Return what `fit_image` returns, for an image of a full width and height that is decoded at a part of its size.

    The decoder rounds sizes up, so its last row and column may show less; the box is exact, else the picture shifts.
    """
    width, height = full_size
    ratio = round(width / image.width)  # 2, 4 or 8
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if resize == "crop" else (0, 0)
    box = (left / ratio, top / ratio, (width - left) / ratio, (height - top) / ratio)
    if resize != "pad":
        return np.asarray(_upright(_as_rgb(image).resize((size, size), Resampling.BILINEAR, box)))
    longer = max(width, height)
    scaled = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    image = _upright(_as_rgb(image).resize(scaled, Resampling.BILINEAR, box))
    return np.asarray(ImageOps.pad(image, (size, size)))


def _upright(image: Image) -> Image:
    """Turn a photo that was taken with the camera on its side; return it."""
    ImageOps.exif_transpose(image, in_place=True)  # of most images, without a copy
    return image


def _as_rgb(image: Image) -> Image:
    """Return an image of any mode in RGB, the way it is meant to be seen.

    Greys of 16 bits are scaled (Pillow would cut them off at 255), and transparent pixels become white.

    Raises:
        ValueError: the image has 32 bits per channel.
    """
    if image.mode in ("I", "F"):
        raise ValueError("32 bits, which may stand for anything")
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image) / 257
        return PIL.Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_images(
    names: list[str],
    decode: Callable[[int], np.ndarray],
    track: TrackProgress,
    description: str,
    *,
    can_skip: bool = True,
) -> Iterator[np.ndarray]:
    """Yield the pixels of all images in order, decoded by a thread per core: Pillow releases Python's lock.

    Args:
        names: the images' names, for errors.
        decode: returns the pixels of the image with a number from 0.
        track: shows progress.
        description: the text beside the progress.
        can_skip: whether a study can leave unreadable images out, as the error then says.

    Raises:
        InputError: after the last image; names up to ten images that cannot be decoded.
    """
    unreadable: list[tuple[str, str]] = []

    def decode_or_note(number: int) -> np.ndarray | None:
        try:
            return decode(number)
        except Exception as error:  # Pillow raises many kinds for broken files
            unreadable.append((names[number], fault(error)))
            return None

    for pixels in track(in_order(decode_or_note, range(len(names))), len(names), description):
        if pixels is not None:
            yield pixels
    if unreadable:
        named = listed([f"{one_line(name)} ({reason})" for name, reason in sorted(unreadable)], MOST_NAMED)
        advice = "; data.unreadable = 'skip' leaves such files out" if can_skip else ""
        raise InputError(f"data.root: cannot be read as an image: {named}{advice}")


def fault(error: Exception) -> str:
    """Return why an image cannot be read, in a few words."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image"
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def in_order(work: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Result]:
    """Yield the results of `work` for numbers in their order, by a thread per core, with few of them in memory."""
    threads = usable_cores()
    pool, pending = ThreadPoolExecutor(threads), deque[Future[Result]]()
    try:
        for number in numbers:
            pending.append(pool.submit(work, number))
            if len(pending) > AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, only the images that have been begun are waited for


def in_memory(images: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of images, uint8 NHWC with this shape, filled one by one."""
    pixels = np.empty(shape, np.uint8)
    for number, image in enumerate(images):
        pixels[number] = image
    return pixels
