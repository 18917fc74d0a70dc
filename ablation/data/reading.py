"""The images of a study: listed, limited, read.

Legend: N images, C channels (3, RGB), H and W pixels, K classes.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.machine import available_memory
from ablation.base.text import plural
from ablation.data.class_names import refuse_unknown
from ablation.data.decoding import (
    TEST_FRACTION,
    ImageListing,
    TrackProgress,
    darkness_note,
    fit_image,
    untracked,
)
from ablation.data.duplicates import Pictures, kept, refuse_identical
from ablation.data.file_audit import audit_files, pixel_digest
from ablation.data.groups import numbered
from ablation.data.hugging_face import hugging_face_listing
from ablation.data.image_files import files_key
from ablation.data.image_folder import image_folder_listing
from ablation.data.image_set import ImageSet
from ablation.data.manifest import manifest_listing
from ablation.data.near_duplicates import FEW
from ablation.data.split import Split, split_listing
from ablation.data.torchvision_sets import SETS, torchvision_listing
from ablation.spec.files import check_images
from ablation.spec.tables import FILE_SOURCES, Data

# Training images in a process's memory at the peak: decoded, chosen by the split, and reordered for the device.
COPIES = 3
SHARE_OF_MEMORY = 0.9  # of the free memory, for images


def load_images(data: Data, track: TrackProgress = untracked) -> ImageSet:
    """Read all images of a source, or of the classes that `data.classes` names, whatever `data.limit`.

    Raises:
        InputError: the folder is missing, empty, has classes in one split only or unreadable images; a class is
            unknown; a download failed; the images do not fit into memory.
    """
    return read_listing(list_images(data, track), track)


def read_listing(listing: ImageListing, track: TrackProgress = untracked) -> ImageSet:
    """Read all images of a listing.

    Raises:
        InputError: images cannot be read, or do not fit into memory.
    """
    return _read_images(listing, np.arange(len(listing.train_labels_N)), track, processes=1)


def load_split(
    data: Data,
    seed: int,
    *,
    track: TrackProgress = untracked,
    processes: int = 1,
    is_begun: bool = False,
) -> tuple[ImageSet, Split]:
    """Read the images of a study, without those that `data.limit` leaves out, and split the training images.

    Args:
        data: the study's `[data]`.
        seed: see `split_seed`.
        track: shows the progress of decoding.
        processes: see `check_memory`.
        is_begun: whether the study has begun, so that its images have been compared with each other.

    Raises:
        InputError: as `load_images` and `split_train_val`; or images are in two splits or classes.
    """
    listing = list_images(data, track)
    split = split_listing(data, listing, seed)
    listing = _with_split(listing, split)
    kept_N = np.sort(np.concatenate([split.train_N, split.val_N]))
    images = _read_images(listing, kept_N, track, processes)
    if len(kept_N) + len(listing.test_labels_N) <= FEW:
        images = replace(images, names=image_names(listing, kept_N))
    if data.refuses_duplicates and not is_begun:
        copies = refuse_identical(_pictures(listing, kept_N, _pixel_digests(images)))
        if copies:
            note = f"{plural(copies, 'image')} identical to another of the same class and split"
            images = replace(images, reading=f"{images.reading}; {note}" if images.reading else note)
    return images, Split(np.searchsorted(kept_N, split.train_N), np.searchsorted(kept_N, split.val_N))


def _with_split(listing: ImageListing, split: Split) -> ImageListing:
    """Return a listing that says which classes lack images after a split, and how large groups make the validation."""
    notes = [listing.reading]
    for part_N, use in ((split.train_N, "to learn from"), (split.val_N, "for validation")):
        counts_K = np.bincount(listing.train_labels_N[part_N], minlength=len(listing.classes))
        missing = np.flatnonzero(counts_K == 0)
        if len(missing):
            more = f" and {plural(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
            notes.append(f"no image {use} of class {listing.classes[missing[0]]!r}{more}")
    if listing.groups is not None:
        groups = len({listing.groups["train"][n] for n in split.val_N})
        of_all = len(split.val_N) / (len(split.train_N) + len(split.val_N))
        notes.append(
            f"{plural(len(split.val_N), 'image')} of {plural(groups, 'group')} validate ({100 * of_all:.0f} %)"
        )
    return replace(listing, reading="; ".join(filter(None, notes)))


def list_images(data: Data, track: TrackProgress = untracked) -> ImageListing:
    """List the images of a study, with labels from 0 in the order of `data.classes`.

    Unreadable files and copies are left out where the study wants that; then all images are decoded here once.
    """
    listing = _list_classes(data)
    if data.unreadable == "error" and data.duplicates != "drop":
        return listing
    notes: list[str] = []
    digests_N: Sequence[str | None]
    if listing.files is not None:
        files = listing.files["train"] + listing.files["test"]
        digests_N = audit_files(files, data, track, listing.open_image)
        if data.unreadable == "skip" and None in digests_N:
            notes.append(f"left out: {plural(digests_N.count(None), 'unreadable image')}")
    else:
        digests_N = _pixel_digests(read_listing(listing, track))
    stays_N = np.array([digest is not None or data.unreadable == "error" for digest in digests_N])
    if data.duplicates == "drop":
        kept_N = kept(_pictures(listing, np.arange(len(listing.train_labels_N)), digests_N))
        notes.append(f"left out: {plural(int((stays_N & ~kept_N).sum()), 'copy', 'copies')}")
        stays_N &= kept_N
    train_N, test_N = map(np.flatnonzero, np.split(stays_N, [len(listing.train_labels_N)]))
    for split, labels in (("training", listing.train_labels_N[train_N]), ("test", listing.test_labels_N[test_N])):
        missing = np.flatnonzero(np.bincount(labels, minlength=len(listing.classes)) == 0)
        if len(missing):
            raise InputError(
                f"data: class {listing.classes[missing[0]]!r} has no {split} image left ({'; '.join(notes)})"
            )
    return replace(_chosen(listing, train_N, test_N), reading="; ".join(filter(None, [listing.reading, *notes])))


def _chosen(listing: ImageListing, train_N: np.ndarray, test_N: np.ndarray) -> ImageListing:
    """Return the listing of some of its training and test images, by their numbers."""
    numbers = (("train", train_N), ("test", test_N))
    files, groups = listing.files, listing.groups
    if files is not None:
        files = {split: [files[split][n] for n in chosen_N] for split, chosen_N in numbers}
    if groups is not None:
        groups = {split: [groups[split][n] for n in chosen_N] for split, chosen_N in numbers}
    return replace(
        listing,
        train_labels_N=listing.train_labels_N[train_N],
        test_labels_N=listing.test_labels_N[test_N],
        read=lambda train, test, track, is_mapped: listing.read(train_N[train], test_N[test], track, is_mapped),
        files=files,
        groups=groups,
    )


def image_names(listing: ImageListing, train_N: np.ndarray | None = None) -> list[str]:
    """Return the names of the training images, or of some by their numbers, then of all test images."""
    train_N = np.arange(len(listing.train_labels_N)) if train_N is None else train_N
    if listing.files is not None:
        return [listing.files["train"][n][0] for n in train_N] + [path for path, _ in listing.files["test"]]
    return [f"training image {n}" for n in train_N] + [f"test image {n}" for n in range(len(listing.test_labels_N))]


def listing_key(listing: ImageListing, test_images_NHWC: np.ndarray | None = None) -> str:
    """Return what identifies all images of a listing, whatever `data.limit`: what a comparison of them is kept under.

    Args:
        listing: of all images.
        test_images_NHWC: the test images, uint8, of a source without files, which is known by them and all labels.
    """
    if listing.files is not None:
        return files_key(listing.files["train"], listing.files["test"])
    assert test_images_NHWC is not None
    key = hashlib.sha256("\0".join(listing.classes).encode())
    for array in (listing.train_labels_N, listing.test_labels_N, test_images_NHWC):
        key.update(f"{array.shape}".encode())
        key.update(np.ascontiguousarray(array).data)
    return key.hexdigest()


def _pictures(listing: ImageListing, train_N: np.ndarray, digests_N: Sequence[str | None]) -> Pictures:
    labels_N = np.concatenate([listing.train_labels_N[train_N], listing.test_labels_N])
    return Pictures(digests_N, labels_N, np.arange(len(labels_N)) >= len(train_N), image_names(listing, train_N))


def list_own_images(data: Data) -> ImageListing:
    """List the images of the user's own; none is opened.

    Raises:
        InputError: they cannot be understood; says why.
    """
    check_images(data)
    listings = {"imagefolder": image_folder_listing, "manifest": manifest_listing, "huggingface": hugging_face_listing}
    return listings[data.source](data)


def _list_classes(data: Data) -> ImageListing:
    """List the images of the classes that a study asks for, with labels from 0 in the order of `data.classes`."""
    if data.is_own:
        listing = list_own_images(data)
    else:
        listing = _digits_listing(data) if data.source == "digits" else torchvision_listing(data)
    if data.classes is None:
        return listing
    numbers = {name: number for number, name in enumerate(listing.classes)}
    refuse_unknown(data.classes, numbers)
    places_K = np.full(len(listing.classes), -1)
    places_K[[numbers[name] for name in data.classes]] = np.arange(len(data.classes))
    places_N, test_places_N = places_K[listing.train_labels_N], places_K[listing.test_labels_N]
    chosen = _chosen(listing, np.flatnonzero(places_N >= 0), np.flatnonzero(test_places_N >= 0))
    labels = {"train_labels_N": places_N[places_N >= 0], "test_labels_N": test_places_N[test_places_N >= 0]}
    return replace(chosen, **labels, classes=list(data.classes))


def _read_images(listing: ImageListing, train_N: np.ndarray, track: TrackProgress, processes: int) -> ImageSet:
    """Return some of the training images with all test images.

    What does not fit into memory is read through a memory map.
    """
    test_N = np.arange(len(listing.test_labels_N))
    if listing.files is None:
        check_memory(listing.side, len(train_N), len(test_N), processes)
    is_mapped = not _fit_into_memory(listing.side, len(train_N), len(test_N), processes)
    train_images, test_images = listing.read(train_N, test_N, track, is_mapped)
    train_labels, test_labels = listing.train_labels_N[train_N], listing.test_labels_N
    digest = hashlib.sha256("\0".join(listing.classes).encode())
    brightest = 0
    for array in (train_images, train_labels, test_images, test_labels):
        digest.update(str(array.shape).encode())
        for start in range(0, len(array), 4096):  # so that Ctrl-C need not wait for the end
            part = np.ascontiguousarray(array[start : start + 4096])
            digest.update(part.data)
            if part.ndim > 1:
                brightest = max(brightest, int(part.max()))
    groups = listing.groups
    return ImageSet(
        train_images,
        train_labels,
        test_images,
        test_labels,
        listing.classes,
        digest.hexdigest(),
        decoding=listing.decoding,
        reading="; ".join(filter(None, [listing.reading, darkness_note(brightest)])),
        train_groups_N=None if groups is None else numbered(groups["train"])[train_N],
        test_groups_N=None if groups is None else numbered(groups["test"]),
        listing_key=listing_key(listing, test_images),
    )


def _pixel_digests(images: ImageSet) -> list[str]:
    return [pixel_digest(image) for split in (images.train_images_NHWC, images.test_images_NHWC) for image in split]


def _fit_into_memory(side: int, train: int, test: int, processes: int = 1) -> bool:
    """Return whether images fit into the free memory of this machine, see `check_memory`."""
    return (COPIES * train + test) * 3 * side**2 * processes <= SHARE_OF_MEMORY * available_memory()


def is_mapped(data: Data, size: "DataSize", side: int) -> bool:
    """Return whether images with this side are read through a memory map: files that do not fit into memory."""
    return (data.is_own or data.source in FILE_SOURCES) and not _fit_into_memory(side, size.train, size.test)


def check_memory(side: int, train: int, test: int, processes: int = 1) -> None:
    """Refuse images that do not fit into the free memory of this machine.

    A process that trains holds the training images up to `COPIES` times and the test images once. A supervisor of
    several workers drops its images before the workers read theirs, so it does not count.

    Args:
        side: height and width of the images in pixels.
        train: number of training images, those for validation included.
        test: number of test images.
        processes: number of processes that train at the same time.

    Raises:
        InputError: says how much memory the images need, and which `data.limit` would fit.
    """
    if _fit_into_memory(side, train, test, processes):
        return
    image = 3 * side**2 * processes  # bytes of one image in all processes
    needed, free = (COPIES * train + test) * image, available_memory()
    limit = max(0, int((SHARE_OF_MEMORY * free / image - test) / COPIES))
    limit -= limit % 10 ** max(0, len(str(limit)) - 2)  # two digits say enough
    fitting = f"set data.limit = {limit}" if limit >= 2 else "the test images alone are too many: delete some"
    raise InputError(
        f"data: {train:,} training and {test:,} test images of {side} x {side} pixels take "
        f"{needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free; "
        f"{fitting}, or make data.image_size smaller"
    )


@dataclass(frozen=True)
class DataSize:
    """How many classes, training images (validation included) and test images a study has.

    `test_groups` is the number of groups that the test images belong to; None without groups.
    """

    classes: int
    train: int
    test: int
    test_groups: int | None = None

    @property
    def independent_images(self) -> int:
        """How many test images, or groups of them, are independent."""
        return self.test if self.test_groups is None else self.test_groups

    def validation(self, fraction: float) -> int:
        """Return how many of the training images validate, by `split_train_val`; with groups, about how many."""
        return math.ceil(self.train * fraction)


def measure_data(data: Data) -> DataSize:
    """Return the size of a study's data without downloading an image.

    Images are decoded only where those that are unreadable, or copies, are left out.

    Raises:
        InputError: as `list_images`, or a class is unknown.
    """
    groups = None
    if data.source in SETS:
        known = SETS[data.source]
        classes = len(data.classes) if data.classes else known.classes
        train, test = (n * classes // known.classes for n in (known.train_images, known.test_images))
    else:
        listing = list_images(data)
        classes, train, test = len(listing.classes), len(listing.train_labels_N), len(listing.test_labels_N)
        groups = None if listing.groups is None else len(set(listing.groups["test"]))
    return DataSize(classes, min(train, data.limit or train), test, groups)


def _digits_listing(data: Data) -> ImageListing:
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=0)

    def read(train_N: np.ndarray, test_N: np.ndarray, track: TrackProgress, _: bool) -> tuple[np.ndarray, np.ndarray]:
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8 pixels, 17 grey levels
        train_images, test_images = (
            np.stack([fit_image(Image.fromarray(image), data.image_size) for image in grey[numbers_N]])
            for numbers_N in (train[train_N], test[test_N])
        )
        return train_images, test_images

    classes = [str(digit) for digit in range(10)]
    return ImageListing(labels[train], labels[test], classes, data.image_size, read)
