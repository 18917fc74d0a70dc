"""torchvision's data sets."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import first_line
from ablation.data.decoding import (
    DECODING_VERSION,
    ImageListing,
    TrackProgress,
    decode_images,
    fit_image,
    in_memory,
)
from ablation.data.image_files import file_reader, file_status
from ablation.spec.tables import FILE_SOURCES, Data


def torchvision_listing(data: Data) -> ImageListing:
    """List one of torchvision's sets; pixels of one size stay as they are, others are fitted to `image_size`.

    Raises:
        InputError: the set is missing or damaged, and cannot be downloaded.
    """
    known = SETS[data.source]
    root = expand(data.root or "data")
    existed, gives_files = root.exists(), data.source in FILE_SOURCES
    try:
        train, test = open_set(known, root, gives_files=gives_files)
    except (OSError, RuntimeError) as error:
        fault, checksum = _missing(known, root)
        raise InputError(
            f"data.root: {fault} and could not be downloaded ({first_line(error)}); place it there by hand{checksum}, "
            "or try --demo, which needs no download"
        ) from None
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                root.rmdir()  # torchvision made it for a download that failed

    def read(train_N: np.ndarray, test_N: np.ndarray, track: TrackProgress, _: bool) -> tuple[np.ndarray, np.ndarray]:
        return (
            _pixels(train, train_N, data, track, "training image"),
            _pixels([test], test_N, data, track, "test image"),
        )

    labels = [label for part in train for label in labels_of(part)]
    listing = ImageListing(
        np.array(labels, np.int64),
        np.array(labels_of(test), np.int64),
        class_names(train[0], known.classes),
        SIDES.get(data.source, data.image_size),
        read,
        decoding=DECODING_VERSION if data.resize != "crop" else None,
    )
    if not gives_files:
        return listing
    files = {
        split: [file_status(part[number][0]) for part in parts for number in range(len(part))]
        for split, parts in (("train", train), ("test", [test]))
    }
    read_files = file_reader(files, data, root.resolve() / data.source)
    return replace(listing, read=read_files, decoding=DECODING_VERSION, files=files)


def _missing(known: "TorchvisionSet", root: Path) -> tuple[str, str]:
    """Return what is missing or damaged, and the checksum of its archive, where torchvision has a single one."""
    dataset = getattr(torchvision.datasets, known.name)
    name, md5 = (getattr(dataset, attribute, None) for attribute in ("filename", "tgz_md5"))
    if not name or not md5:
        return f"{known.name} is not in {root}", ""
    return f"{root / name} is {'damaged' if (root / name).exists() else 'not there'}", f" (MD5 {md5})"


def _pixels(parts: Sequence[Any], chosen_N: np.ndarray, data: Data, track: TrackProgress, kind: str) -> np.ndarray:
    """Return the pixels of chosen images, uint8 NHWC; the images of all parts are numbered through from 0."""
    if data.source in SIDES:
        pixels: np.ndarray = np.concatenate([_channels_last(part.data) for part in parts])[chosen_N]
        return pixels
    places = [(part, number) for part in parts for number in range(len(part))]  # files of many sizes
    names = [f"{data.source}, {kind} {number}" for number in chosen_N]

    def decode(number: int) -> np.ndarray:
        part, number_there = places[chosen_N[number]]
        return fit_image(part[number_there][0], data.image_size, resize=data.resize)  # decoded at full size

    images = decode_images(names, decode, track, f"Decoding {kind}s", can_skip=False)
    return in_memory(images, (len(names), data.image_size, data.image_size, 3))


def _channels_last(array: Any) -> np.ndarray:
    """Return pixels as torchvision's sets hold them, NHW, NHWC or NCHW, as NHWC."""
    pixels: np.ndarray = np.asarray(array)
    if pixels.ndim == 3:  # greys
        pixels = pixels[..., None].repeat(3, 3)
    return pixels if pixels.shape[-1] == 3 else np.moveaxis(pixels, 1, -1)


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision, and its size.

    Attributes:
        name: its class in `torchvision.datasets`.
        train: the class's arguments for each part of the training images. The set's own validation images are among
            them, because every study makes its own split.
        test: the class's arguments for the test images.
        classes: number of classes.
        train_images: number of training images.
        test_images: number of test images.
    """

    name: str
    train: tuple[Mapping[str, Any], ...]
    test: Mapping[str, Any]
    classes: int
    train_images: int
    test_images: int


_TRAIN, _TEST = ({"train": True},), {"train": False}
_SPLIT, _TEST_SPLIT = ({"split": "train"},), {"split": "test"}
_WITH_VAL = ({"split": "train"}, {"split": "val"})

SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet("CIFAR10", _TRAIN, _TEST, 10, 50_000, 10_000),
    "cifar100": TorchvisionSet("CIFAR100", _TRAIN, _TEST, 100, 50_000, 10_000),
    "mnist": TorchvisionSet("MNIST", _TRAIN, _TEST, 10, 60_000, 10_000),
    "fashion_mnist": TorchvisionSet("FashionMNIST", _TRAIN, _TEST, 10, 60_000, 10_000),
    "kmnist": TorchvisionSet("KMNIST", _TRAIN, _TEST, 10, 60_000, 10_000),
    "svhn": TorchvisionSet("SVHN", _SPLIT, _TEST_SPLIT, 10, 73_257, 26_032),
    "stl10": TorchvisionSet("STL10", _SPLIT, _TEST_SPLIT, 10, 5_000, 8_000),
    "flowers102": TorchvisionSet("Flowers102", _WITH_VAL, _TEST_SPLIT, 102, 2_040, 6_149),
    "oxford_pets": TorchvisionSet("OxfordIIITPet", ({"split": "trainval"},), _TEST_SPLIT, 37, 3_680, 3_669),
    "dtd": TorchvisionSet("DTD", _WITH_VAL, _TEST_SPLIT, 47, 3_760, 1_880),
    "food101": TorchvisionSet("Food101", _SPLIT, _TEST_SPLIT, 101, 75_750, 25_250),
}

# Height and width in pixels of the sets whose images all have one size; they are not resized.
SIDES = {"cifar10": 32, "cifar100": 32, "mnist": 28, "fashion_mnist": 28, "kmnist": 28, "svhn": 32, "stl10": 96}


def open_set(known: TorchvisionSet, root: Path, *, gives_files: bool) -> tuple[list[Any], Any]:
    """Open a data set in a folder, and download it first if the folder does not have it.

    Args:
        known: the set.
        root: the folder.
        gives_files: whether the set's items are the paths of the images, not the images.

    Returns:
        torchvision's data sets of the training images, and the one of the test images.

    Raises:
        OSError: the download failed, or the files are damaged; torchvision may raise RuntimeError instead.
    """
    dataset = getattr(torchvision.datasets, known.name)
    loader = {"loader": str} if gives_files else {}
    train = [dataset(root, download=True, **arguments, **loader) for arguments in known.train]
    return train, dataset(root, download=True, **known.test, **loader)


def class_names(dataset: Any, count: int) -> list[str]:
    """Return the names of a data set's classes, or their numbers if they have no names, as in SVHN."""
    return list(getattr(dataset, "classes", map(str, range(count))))


def labels_of(dataset: Any) -> list[int]:
    """Return the class number of every image."""
    for attribute in ("targets", "labels", "_labels"):  # by set
        if hasattr(dataset, attribute):
            return [int(label) for label in getattr(dataset, attribute)]
    raise AssertionError(f"{type(dataset).__name__} has no labels")
