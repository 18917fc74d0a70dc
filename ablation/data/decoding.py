"""Image files of any mode and size, decoded to RGB."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageOps
from PIL.Image import Image, Resampling

from ablation.base.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision.datasets.folder's
TEST_FRACTION = 0.2  # of sets that come without a test split

TrackProgress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, total, description) -> the same items


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
        read: takes numbers of training images and of test images; returns the pixels of both, uint8 NHWC.
    """

    train_labels_N: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    side: int
    read: Callable[[np.ndarray, np.ndarray, TrackProgress], tuple[np.ndarray, np.ndarray]]


def fit_image(image: Image, size: int) -> np.ndarray:
    """Return RGB pixels, size x size x 3: scaled so that the shorter side fits, then cropped in the middle."""
    image = _as_rgb(image)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Resampling.BILINEAR)
    return np.asarray(image)


def _as_rgb(image: Image) -> Image:
    """Return an image of any mode in RGB, the way it is meant to be seen.

    Greys of 16 bits are scaled (Pillow would cut them off at 255), transparent pixels become white, and a photo that
    was taken with the camera on its side is turned.

    Raises:
        ValueError: the image has 32 bits per channel.
    """
    image = ImageOps.exif_transpose(image)
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
    return image.convert("RGB")


def decode_images(
    names: list[str], open_image: Callable[[int], Image], size: int, track: TrackProgress, description: str
) -> np.ndarray:
    """Decode all images into uint8 NHWC.

    Args:
        names: the images' names, for errors.
        open_image: opens the image with a number from 0.
        size: height and width in pixels of the result.
        track: shows progress.
        description: the text beside the progress.

    Raises:
        InputError: names up to ten images that cannot be decoded.
    """
    pixels = np.empty((len(names), size, size, 3), np.uint8)
    unreadable: list[str] = []

    def decode(number: int) -> None:
        try:
            with open_image(number) as image:
                pixels[number] = fit_image(image, size)
        except Exception:  # Pillow raises many kinds for broken files
            unreadable.append(names[number])

    with ThreadPoolExecutor() as pool:
        for _ in track(pool.map(decode, range(len(names))), len(names), description):
            pass
    if unreadable:
        more = f" and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        raise InputError(f"data.root: cannot be read as an image: {', '.join(sorted(unreadable)[:10])}{more}")
    return pixels
