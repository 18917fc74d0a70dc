"""Image folders: which images they hold, of which split and class."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import plural
from ablation.data.decoding import SUFFIXES, TEST_FRACTION, ImageListing
from ablation.data.image_files import File, file_readers
from ablation.spec.files import check_image_root
from ablation.spec.tables import Data

VALIDATION_FOLDERS = ("val", "valid", "validation")


def image_folder_listing(data: Data, version: int) -> ImageListing:
    """List train/<class>/* and test/<class>/*, see `list_imagefolder`."""
    root = expand(str(data.root)).resolve()
    splits = list_imagefolder(root)
    classes = sorted(splits["train"])
    files = {split: [file for name in classes for file in splits[split][name]] for split in ("train", "test")}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(splits[split][name]) for name in classes]) for split in files
    }
    read, map_ = file_readers(files, data, root, version)
    return ImageListing(labels["train"], labels["test"], classes, data.image_size, read, map_, version)


def list_imagefolder(root: Path) -> dict[str, dict[str, list[File]]]:
    """Return split -> class -> sorted (path, status) of the images in a folder, at any depth below their class's.

    Training images are in `train/<class>`, test images in `test/<class>`. Images in `val/<class>` count as training
    images; without `test`, they are the test images. Of classes alone, a fifth of each becomes test images, always the
    same ones.

    Raises:
        InputError: a split or its images are missing, or a class is in one split only.
    """
    with _reading_errors():
        folders = [name for name in ("train", *VALIDATION_FOLDERS, "test") if (root / name).is_dir()]
    validation = [name for name in folders if name in VALIDATION_FOLDERS]
    if not folders and root.is_dir() and _folders_in(root):
        return _split_classes(root, _classes_below(root))
    check_image_root(root)
    for split, is_present in (("train", "train" in folders), ("test", "test" in folders or validation)):
        if not is_present:
            raise InputError(
                f"data.root: {root} must hold train/<class>/* and test/<class>/*, or <class>/* alone, but there is no "
                f"folder {split}"
            )
    files = {"train": _classes_below(root / "train")}
    if "test" in folders:
        test_folder = "test"
        for folder in validation:
            for name, class_files in _classes_below(root / folder).items():
                files["train"][name] = sorted([*files["train"].get(name, []), *class_files])
    else:
        test_folder = validation[0]
    files["test"] = _classes_below(root / test_folder)
    places = {"train": root / "train", "test": root / test_folder}
    for split, other in (("train", "test"), ("test", "train")):
        unmatched = sorted(files[split].keys() - files[other].keys())
        if unmatched:
            raise InputError(f"data.root: class {unmatched[0]!r} is in {places[split]} but not in {places[other]}")
    return files


def _classes_below(folder: Path) -> dict[str, list[File]]:
    """Return class -> sorted (path, status) of the images in a folder's folders; hidden folders do not count."""
    with _reading_errors():
        files = {
            entry.name: sorted(_images_below(entry.path), key=lambda file: file[0]) for entry in _folders_in(folder)
        }
    if not any(files.values()):
        raise InputError(f"data.root: {folder} holds no images in <class>/*{{{','.join(SUFFIXES)}}}")
    for name, class_files in files.items():
        if not class_files:
            raise InputError(f"data.root: {folder / name} holds no images")
    return files


def _folders_in(folder: Path) -> list[os.DirEntry[str]]:
    with _reading_errors():
        return [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Raise errors of folders and links as InputError."""
    try:
        yield
    except OSError as error:  # a link to nowhere, a folder that may not be read
        raise InputError(f"data.root: {error.filename} cannot be read ({error.strerror})") from None


def _images_below(folder: str) -> Iterator[File]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):  # .ipynb_checkpoints, or ._1.jpg of macOS
            continue
        if entry.name.lower().endswith(SUFFIXES):
            yield entry.path, entry.stat()
        elif entry.is_dir(follow_symlinks=False):
            yield from _images_below(entry.path)


def _split_classes(root: Path, files: dict[str, list[File]]) -> dict[str, dict[str, list[File]]]:
    """Make a fifth of each class's images test images."""
    if len(files) < 2:
        raise InputError(
            f"data.root: {root} must hold train/<class>/* and test/<class>/*, or <class>/* of two classes or more"
        )
    splits: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
    for name, class_files in files.items():
        image_count = len(class_files)
        if image_count < 3:
            raise InputError(
                f"data.root: {root / name} holds {plural(image_count, 'image')}, but a class needs three: to learn "
                "from, to validate and to test"
            )
        train, test = train_test_split(range(image_count), test_size=TEST_FRACTION, random_state=0)
        for split, numbers in (("train", train), ("test", test)):
            splits[split][name] = [class_files[number] for number in sorted(numbers)]
    return splits
