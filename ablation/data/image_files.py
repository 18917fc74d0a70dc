"""Sets of image files: decoded once, then read from the cache into memory, or through a memory map."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import PIL.Image

from ablation.base.errors import InputError
from ablation.data.decoding import (
    DECODING_VERSION,
    File,
    OpenImage,
    ReadImages,
    TrackProgress,
    decode_images,
    fit_image,
)
from ablation.data.image_cache import DecodedImages, map_decoded, read_decoded
from ablation.spec.tables import Data, Resize


def file_status(path: str) -> File:
    """Return a file's path and status.

    Raises:
        InputError: it is missing, or may not be read.
    """
    try:
        return path, os.stat(path)  # noqa: PTH116 - paths are strings, of which there may be millions
    except OSError as error:
        raise InputError(f"data.root: {path} cannot be read ({error.strerror})") from None


def add_files(digest: "hashlib._Hash", files: Iterable[File]) -> None:
    """Let a digest depend on files: their names, sizes and times."""
    for path, status in files:
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))


def files_key(*splits: Iterable[File]) -> str:
    """Return what identifies the image files of splits: it changes with their names, sizes and times."""
    key = hashlib.sha256()
    for files in splits:
        add_files(key, files)
        key.update(b"\n")  # a file that moves from the end of one split to the beginning of the next changes the key
    return key.hexdigest()


def file_reader(
    files: dict[str, list[File]], data: Data, root: Path, open_image: OpenImage = PIL.Image.open
) -> ReadImages:
    """Return the function `read` of an `ImageListing` of files.

    Args:
        files: those of the splits 'train' and 'test'.
        data: the study's `[data]`; images get its size.
        root: identifies the set in the cache.
        open_image: opens one.
    """

    def read(
        train_N: np.ndarray, test_N: np.ndarray, track: TrackProgress, is_mapped: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = {"train": [files["train"][n] for n in train_N], "test": [files["test"][n] for n in test_N]}
        # What `data.limit` leaves differs between seeds.
        subset = "" if data.limit is None else hashlib.sha256(train_N.tobytes()).hexdigest()
        size, resize = data.image_size, "" if data.resize == "crop" else data.resize
        identity = f"{root}\0{size}\0{data.classes}\0{subset}{resize}"
        fingerprint = hashlib.sha256(f"{DECODING_VERSION}\0{size}{resize}".encode())
        for split_files in chosen.values():
            add_files(fingerprint, split_files)

        def decode(split: str) -> Iterator[np.ndarray]:
            paths = [path for path, _ in chosen[split]]
            return decode_images(
                paths,
                lambda number: decode_file(paths[number], size, data.resize, open_image),
                track,
                f"Decoding {split} images",
            )

        images = DecodedImages(
            name=hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16],
            fingerprint=fingerprint.hexdigest(),
            shapes={split: (len(split_files), size, size, 3) for split, split_files in chosen.items()},
            decode=decode,
        )
        pixels: Mapping[str, np.ndarray] = map_decoded(images) if is_mapped else read_decoded(images)
        return pixels["train"], pixels["test"]

    return read


def decode_file(path: str, size: int, resize: Resize = "crop", open_image: OpenImage = PIL.Image.open) -> np.ndarray:
    """Return the pixels of an image file, see `fit_image`."""
    with open_image(path) as image:
        return fit_image(image, size, resize)
