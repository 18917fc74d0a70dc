"""Image folders: found, listed, decoded once."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.data.decoding import SUFFIXES, TEST_FRACTION, ImageListing, Track, count, decode_images
from ablation.spec.files import check_image_root
from ablation.spec.study import Data

VALIDATION_FOLDERS = ("val", "valid", "validation")

DECODING_VERSION = 3  # of image files: another number makes their caches anew


def image_folder_listing(data: Data) -> ImageListing:
    """Find train/<class>/* and test/<class>/*, which are decoded once; afterwards one cache file holds the pixels."""
    root = expand(str(data.root)).resolve()
    listed = list_imagefolder(root)
    classes = sorted(listed["train"])
    files = {split: [file for name in classes for file in listed[split][name]] for split in ("train", "test")}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(listed[split][name]) for name in classes]) for split in files
    }

    def read(train_N: np.ndarray, test_N: np.ndarray, track: Track) -> tuple[np.ndarray, np.ndarray]:
        chosen = {"train": [files["train"][n] for n in train_N], "test": [files["test"][n] for n in test_N]}
        listing = hashlib.sha256(f"{DECODING_VERSION}\0{data.image_size}".encode())
        for found in chosen.values():
            for path, status in found:
                listing.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        subset = "" if data.limit is None else hashlib.sha256(train_N.tobytes()).hexdigest()  # differs between seeds
        about = f"{root}\0{data.image_size}\0{data.classes}\0{subset}"
        cache = cache_folder() / f"imagefolder-{hashlib.sha256(about.encode()).hexdigest()[:16]}.safetensors"
        return _decoded_once(cache, listing.hexdigest(), chosen, data.image_size, track)

    return ImageListing(labels["train"], labels["test"], classes, data.image_size, read)


def _decoded_once(
    cache: Path, fingerprint: str, files: Mapping[str, list[tuple[str, os.stat_result]]], size: int, track: Track
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of training and test images from a cache file, which is made unless it is as it should be."""
    try:
        with safe_open(cache, framework="numpy") as cached:
            if cached.metadata()["fingerprint"] == fingerprint:
                return cached.get_tensor("train"), cached.get_tensor("test")
    except (OSError, SafetensorError, KeyError):
        pass  # not there, of another version, or damaged: it is made again

    pixels = {}
    for split, found in files.items():
        paths = [path for path, _ in found]
        pixels[split] = decode_images(paths, partial(_open, paths), size, track, f"Decoding {split} images")
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError, SafetensorError):  # without a cache, the next study decodes again
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(pixels, temporary, {"fingerprint": fingerprint})
        temporary.replace(cache)
    return pixels["train"], pixels["test"]


def cache_folder() -> Path:
    """Return the folder of decoded images: ABLATION_CACHE, else `ablation` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablation"
    return Path(os.environ.get("ABLATION_CACHE") or default)


File = tuple[str, os.stat_result]


def list_imagefolder(root: Path) -> dict[str, dict[str, list[File]]]:
    """Return split -> class -> sorted (path, status) of the images below a folder, at any depth below their class's.

    In `train/<class>` and `test/<class>`, with those in `val/<class>` among the training images; where there is no
    `test`, those in `val/<class>` are the test images; where there are only classes, a fifth of each is, the same ones
    for everybody.

    Raises:
        InputError: a split or its images are missing, or a class is in one split only.
    """
    given = [name for name in ("train", *VALIDATION_FOLDERS, "test") if (root / name).is_dir()]
    validation = [name for name in given if name in VALIDATION_FOLDERS]
    if not given and root.is_dir() and _folders_in(root):
        return _split_classes(root, _classes_below(root))
    check_image_root(root)
    for needed, found in (("train", "train" in given), ("test", "test" in given or validation)):
        if not found:
            raise InputError(
                f"data.root: {root} must hold train/<class>/* and test/<class>/*, or <class>/* alone, but there is no "
                f"folder {needed}"
            )
    files = {"train": _classes_below(root / "train")}
    for name in validation if "test" in given else []:
        for class_name, found_files in _classes_below(root / name).items():
            files["train"][class_name] = sorted([*files["train"].get(class_name, []), *found_files])
    files["test"] = _classes_below(root / ("test" if "test" in given else validation[0]))
    test = "test" if "test" in given else validation[0]
    for (split, one), (other, others) in (
        (("train", files["train"]), (test, files["test"])),
        ((test, files["test"]), ("train", files["train"])),
    ):
        only = sorted(one.keys() - others.keys())
        if only:
            raise InputError(f"data.root: class {only[0]!r} is in {root / split} but not in {root / other}")
    return files


def _classes_below(folder: Path) -> dict[str, list[File]]:
    """Return class -> sorted (path, status) of the images in a folder's folders; hidden ones do not count."""
    with _reading_errors():
        files = {
            entry.name: sorted(_images_below(entry.path), key=lambda file: file[0]) for entry in _folders_in(folder)
        }
    if not any(files.values()):
        raise InputError(f"data.root: {folder} holds no images in <class>/*{{{','.join(SUFFIXES)}}}")
    for name, found in files.items():
        if not found:
            raise InputError(f"data.root: {folder / name} holds no images")
    return files


def _folders_in(folder: Path) -> list[os.DirEntry[str]]:
    with _reading_errors():
        return [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Raise what can go wrong with folders and links as InputError."""
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
    """Take a fifth of each class's images as test images."""
    if len(files) < 2:
        raise InputError(
            f"data.root: {root} must hold train/<class>/* and test/<class>/*, or <class>/* of two classes or more"
        )
    splits: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
    for name, found in files.items():
        if len(found) < 3:
            raise InputError(
                f"data.root: {root / name} holds {count(len(found), 'image')}, but a class needs three: to learn "
                "from, to validate and to test"
            )
        train, test = train_test_split(range(len(found)), test_size=TEST_FRACTION, random_state=0)
        for split, numbers in (("train", train), ("test", test)):
            splits[split][name] = [found[number] for number in sorted(numbers)]
    return splits


def _open(paths: list[str], number: int) -> PIL.Image.Image:
    return PIL.Image.open(paths[number])
