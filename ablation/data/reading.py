"""The images of a study: listed, split, limited, read.

Legend: N images, C channels (3, RGB), H and W pixels, K classes.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.machine import available_memory
from ablation.base.seeds import named_seed
from ablation.data.decoding import TEST_FRACTION, ImageListing, Track, count, fit_image
from ablation.data.image_folder import image_folder_listing
from ablation.data.torchvision_sets import SETS, torchvision_listing
from ablation.spec.study import Data

COPIES = 3  # of the training images: as they were decoded, put in order, and on the device where that is the CPU
SHARE_OF_MEMORY = 0.9  # of what is free, for images


@dataclass(frozen=True)
class ImageSet:
    """All images of a source: uint8 NHWC, labels int64 N; `digest` is the SHA-256 of all of it."""

    train_images_NHWC: np.ndarray
    train_labels_N: np.ndarray
    test_images_NHWC: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    digest: str


def load_images(data: Data, *, track: Track = lambda things, total, description: things) -> ImageSet:
    """Read all images of a source and of the classes that are wanted, whatever `data.limit`.

    Raises:
        InputError: the folder is missing, empty, has classes in one split only or unreadable images; a class is
            unknown; a download failed; they do not fit into memory.
    """
    found = _list_images(data)
    return _read_images(data, found, np.arange(len(found.train_labels_N)), track, 1)


def load_split(
    data: Data, seed: int, *, track: Track = lambda things, total, description: things, processes: int = 1
) -> tuple[ImageSet, "Split"]:
    """Read the images of a study, those that `data.limit` leaves out aside, and split the training images.

    Args:
        data: what the study says of them.
        seed: see `split_seed`.
        track: shows how far the decoding is.
        processes: how many will hold them in memory.

    Raises:
        InputError: as `load_images` and `split_train_val`.
    """
    found = _list_images(data)
    split = _split(data, found, seed)
    kept_N = np.sort(np.concatenate([split.train_N, split.val_N]))
    images = _read_images(data, found, kept_N, track, processes)
    return images, Split(np.searchsorted(kept_N, split.train_N), np.searchsorted(kept_N, split.val_N))


def check_split(data: Data, seed: int) -> None:
    """Refuse images that cannot be split, or do not fit into memory, without reading them; see `load_split`.

    Only for images that are at hand: others would be downloaded.
    """
    found = _list_images(data)
    split = _split(data, found, seed)
    check_memory(found.side, len(split.train_N) + len(split.val_N), len(found.test_labels_N))


def _split(data: Data, found: ImageListing, seed: int) -> "Split":
    counts_K = np.bincount(found.train_labels_N, minlength=len(found.classes))
    if counts_K.min() < 2:
        name = found.classes[int(counts_K.argmin())]
        raise InputError(
            f"data: class {name!r} has {count(int(counts_K.min()), 'training image')}, but needs two: to learn "
            "from and to validate"
        )
    return split_train_val(found.train_labels_N, data.val_fraction, data.limit, seed)


def _list_images(data: Data) -> ImageListing:
    """Find the images of the classes that a study asks for."""
    find = {"imagefolder": image_folder_listing, "digits": _digits_listing}.get(data.source, torchvision_listing)
    found = find(data)
    if data.classes is None:
        return found
    _check_classes(data, found.classes)
    numbers = [found.classes.index(name) for name in data.classes]
    train_N, test_N = (
        np.flatnonzero(np.isin(labels, numbers)) for labels in (found.train_labels_N, found.test_labels_N)
    )
    train_labels_N, test_labels_N = (
        np.array([numbers.index(label) for label in labels], np.int64)
        for labels in (found.train_labels_N[train_N], found.test_labels_N[test_N])
    )
    return ImageListing(
        train_labels_N,
        test_labels_N,
        list(data.classes),
        found.side,
        lambda train, test, track: found.read(train_N[train], test_N[test], track),
    )


def _read_images(data: Data, found: ImageListing, train_N: np.ndarray, track: Track, processes: int) -> ImageSet:
    test_N = np.arange(len(found.test_labels_N))
    check_memory(found.side, len(train_N), len(test_N), processes)
    train_images, test_images = found.read(train_N, test_N, track)
    labels = found.train_labels_N[train_N], found.test_labels_N
    digest = hashlib.sha256("\0".join(found.classes).encode())
    for array in (train_images, labels[0], test_images, labels[1]):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return ImageSet(train_images, labels[0], test_images, labels[1], found.classes, digest.hexdigest())


def check_memory(side: int, train: int, test: int, processes: int = 1) -> None:
    """Refuse images that do not fit into what is free of this machine's memory.

    Args:
        side: their height and width in pixels.
        train: how many training images there are, those for validation among them.
        test: how many test images.
        processes: how many will hold all of them.

    Raises:
        InputError: says how large they are, and which `data.limit` would fit.
    """
    image = 3 * side**2 * processes  # bytes
    needed, free = (COPIES * train + test) * image, available_memory()
    if needed <= SHARE_OF_MEMORY * free:
        return
    limit = max(0, int((SHARE_OF_MEMORY * free / image - test) / COPIES))
    limit -= limit % 10 ** max(0, len(str(limit)) - 2)  # two digits say enough
    fitting = f"set data.limit = {limit}" if limit >= 2 else "the test images alone are too many: delete some"
    raise InputError(
        f"data: {train:,} training and {test:,} test images of {side} x {side} pixels take "
        f"{needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free; "
        f"{fitting}, or make data.image_size smaller"
    )


def _check_classes(data: Data, known: list[str]) -> None:
    unknown = [name for name in data.classes or [] if name not in known]
    if unknown:
        raise InputError(f"data.classes: no class {unknown[0]!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class DataSize:
    """How many classes, training images (validation included) and test images a study has."""

    classes: int
    train: int
    test: int


def measure_data(data: Data) -> DataSize:
    """Return how large a study's data are, without decoding or downloading an image.

    Raises:
        InputError: the folder is not what it should be.
    """
    if data.source in SETS:
        found = SETS[data.source]
        classes = len(data.classes) if data.classes else found.classes
        train, test = (n * classes // found.classes for n in (found.train_images, found.test_images))
    else:
        images = _list_images(data)
        classes, train, test = len(images.classes), len(images.train_labels_N), len(images.test_labels_N)
    return DataSize(classes, min(train, data.limit or train), test)


def _digits_listing(data: Data) -> ImageListing:
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=0)

    def read(train_N: np.ndarray, test_N: np.ndarray, track: Track) -> tuple[np.ndarray, np.ndarray]:
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8 pixels, 17 grey levels
        pixels = np.stack([fit_image(Image.fromarray(image), data.image_size) for image in grey])
        return pixels[train[train_N]], pixels[test[test_N]]

    classes = [str(digit) for digit in range(10)]
    return ImageListing(labels[train], labels[test], classes, data.image_size, read)


@dataclass(frozen=True)
class Split:
    """Indices into the training images, sorted: those that are learnt from, and those that choose."""

    train_N: np.ndarray
    val_N: np.ndarray


def split_seed(study_seed: int) -> int:
    """Return the seed of a study's split: the same for all its trials and for all seeds of confirmation runs."""
    return named_seed(study_seed, "split")


def split_train_val(labels_N: np.ndarray, val_fraction: float, limit: int | None, seed: int) -> Split:
    """Split the training images into training and validation images.

    Both parts keep the classes' shares. `limit` first takes a stratified subset of that many images.

    Raises:
        InputError: there are too few images of a class, or fewer than `limit`.
    """
    random_state = seed % 2**32  # what NumPy takes
    chosen = np.arange(len(labels_N))
    if limit is not None and limit > len(chosen):
        raise InputError(f"data.limit: {limit} is more than the {len(chosen)} training images")
    try:
        if limit is not None and limit < len(chosen):
            chosen, _ = train_test_split(chosen, train_size=limit, stratify=labels_N, random_state=random_state)
    except ValueError as error:
        raise InputError(f"data.limit: {limit} of {len(labels_N)} images cannot be taken by class: {error}") from None
    classes, validated = len(np.unique(labels_N[chosen])), int(np.ceil(val_fraction * len(chosen)))
    if min(validated, len(chosen) - validated) < classes:
        raise InputError(
            f"data.val_fraction: {validated} of {len(chosen)} images for validation, but {classes} classes need one "
            "each, for validation and for training; change it, or take more images"
        )
    try:
        train, val = train_test_split(
            chosen, test_size=val_fraction, stratify=labels_N[chosen], random_state=random_state
        )
    except ValueError as error:
        raise InputError(f"data.val_fraction: {len(chosen)} images cannot be split by class: {error}") from None
    return Split(np.sort(train), np.sort(val))
