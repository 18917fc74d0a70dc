"""The images: read once, split stratified, kept on the device as uint8; batches and augmentation.

Legend: N images, C channels (3, RGB), H and W pixels.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ablation.datasets import SETS, TorchvisionSet, class_names, labels_of, open_set
from ablation.environment import available_memory
from ablation.seeding import named_seed
from ablation.spec import Augmentation, Data, InputError, expand, first_line
from ablation.weights import IMAGENET_MEAN, IMAGENET_STD, Weights

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision.datasets.folder's
TEST_FRACTION = 0.2  # of sets that come without a test split
VALIDATION_FOLDERS = ("val", "valid", "validation")
EVALUATION_PIXELS = 512 * 32 * 32  # of a batch without gradients
COPIES = 3  # of the training images: as they were decoded, put in order, and on the device where that is the CPU
SHARE_OF_MEMORY = 0.9  # of what is free, for images
DECODING = 3  # of image files: another number makes their caches anew
CROP_PADDING = 4  # pixels, He et al. (2016) for CIFAR-10; named in `report.AUGMENTATIONS`

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (things, how many, description) -> the same things


@dataclass(frozen=True)
class ImageSet:
    """All images of a source: uint8 NHWC, labels int64 N; `digest` is the SHA-256 of all of it."""

    train_images_NHWC: np.ndarray
    train_labels_N: np.ndarray
    test_images_NHWC: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    digest: str


# ------------------------------------------------------------------------------------------------------- reading


def load_images(data: Data, *, track: Track = lambda things, total, description: things) -> ImageSet:
    """Read all images of a source and of the classes that are wanted, whatever `data.limit`.

    Raises:
        InputError: the folder is missing, empty, has classes in one split only or unreadable images; a class is
            unknown; a download failed; they do not fit into memory.
    """
    found = _find_images(data)
    return _read(data, found, np.arange(len(found.train_labels_N)), track, 1)


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
    found = _find_images(data)
    split = _split(data, found, seed)
    kept_N = np.sort(np.concatenate([split.train_N, split.val_N]))
    images = _read(data, found, kept_N, track, processes)
    return images, Split(np.searchsorted(kept_N, split.train_N), np.searchsorted(kept_N, split.val_N))


def check_split(data: Data, seed: int) -> None:
    """Refuse images that cannot be split, or do not fit into memory, without reading them; see `load_split`.

    Only for images that are at hand: others would be downloaded.
    """
    found = _find_images(data)
    split = _split(data, found, seed)
    check_memory(found.side, len(split.train_N) + len(split.val_N), len(found.test_labels_N))


def _split(data: Data, found: "_Found", seed: int) -> "Split":
    counts_K = np.bincount(found.train_labels_N, minlength=len(found.classes))
    if counts_K.min() < 2:
        name = found.classes[int(counts_K.argmin())]
        raise InputError(
            f"data: class {name!r} has {_count(int(counts_K.min()), 'training image')}, but needs two: to learn "
            "from and to validate"
        )
    return split_train_val(found.train_labels_N, data.val_fraction, data.limit, seed)


@dataclass(frozen=True)
class _Found:
    """The images of a source before they are read.

    Attributes:
        train_labels_N: int64.
        test_labels_N: int64.
        classes: what the labels stand for.
        side: height and width of what `read` returns, in pixels.
        read: returns the pixels of the training and the test images with these numbers, uint8 NHWC.
    """

    train_labels_N: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    side: int
    read: Callable[[np.ndarray, np.ndarray, Track], tuple[np.ndarray, np.ndarray]]


def _find_images(data: Data) -> _Found:
    """Find the images of the classes that a study asks for."""
    find = {"imagefolder": _find_imagefolder, "digits": _find_digits}.get(data.source, _find_torchvision)
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
    return _Found(
        train_labels_N,
        test_labels_N,
        list(data.classes),
        found.side,
        lambda train, test, track: found.read(train_N[train], test_N[test], track),
    )


def _read(data: Data, found: _Found, train_N: np.ndarray, track: Track, processes: int) -> ImageSet:
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


def measure(data: Data) -> DataSize:
    """Return how large a study's data are, without decoding or downloading an image.

    Raises:
        InputError: the folder is not what it should be.
    """
    if data.source in SETS:
        found = SETS[data.source]
        classes = len(data.classes) if data.classes else found.classes
        train, test = (n * classes // found.classes for n in (found.train_images, found.test_images))
    else:
        images = _find_images(data)
        classes, train, test = len(images.classes), len(images.train_labels_N), len(images.test_labels_N)
    return DataSize(classes, min(train, data.limit or train), test)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def fit_image(image: "Image", size: int) -> np.ndarray:
    """Return RGB pixels, size x size x 3: scaled so that the shorter side fits, then cropped in the middle."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    image = _as_rgb(image)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Resampling.BILINEAR)
    return np.asarray(image)


def _as_rgb(image: "Image") -> "Image":
    """Return an image of any mode in RGB, the way it is meant to be seen.

    Greys of 16 bits are scaled (Pillow would cut them off at 255), what is transparent becomes white, and a photo that
    its camera holds on the side is turned.

    Raises:
        ValueError: it has 32 bits per channel.
    """
    import PIL.Image
    from PIL import ImageOps

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


def _find_digits(data: Data) -> _Found:
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=0)

    def read(train_N: np.ndarray, test_N: np.ndarray, track: Track) -> tuple[np.ndarray, np.ndarray]:
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8 pixels, 17 grey levels
        pixels = np.stack([fit_image(Image.fromarray(image), data.image_size) for image in grey])
        return pixels[train[train_N]], pixels[test[test_N]]

    classes = [str(digit) for digit in range(10)]
    return _Found(labels[train], labels[test], classes, data.image_size, read)


def _find_torchvision(data: Data) -> _Found:
    """Find one of torchvision's sets; pixels of one size stay as they are, others are fitted to `image_size`."""
    known = SETS[data.source]
    root = expand(data.root or "data")
    existed = root.exists()
    try:
        train, test = open_set(known, root)
    except (OSError, RuntimeError) as error:
        what, checksum = _missing(known, root)
        raise InputError(
            f"data.root: {what} and could not be downloaded ({first_line(error)}); place it there by hand{checksum}, "
            "or try --demo, which needs no download"
        ) from None
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                root.rmdir()  # torchvision made it for a download that failed

    def read(train_N: np.ndarray, test_N: np.ndarray, track: Track) -> tuple[np.ndarray, np.ndarray]:
        return (
            _pixels(train, train_N, data, track, "training image"),
            _pixels([test], test_N, data, track, "test image"),
        )

    labels = [label for part in train for label in labels_of(part)]
    side = len(train[0].data[0][0]) if hasattr(train[0], "data") else data.image_size
    return _Found(
        np.array(labels, np.int64),
        np.array(labels_of(test), np.int64),
        class_names(train[0], known.classes),
        side,
        read,
    )


def _missing(found: TorchvisionSet, root: Path) -> tuple[str, str]:
    """Say what is missing or damaged, and the checksum of its archive, where torchvision has a single one."""
    import torchvision

    kind = getattr(torchvision.datasets, found.name)
    name, md5 = (getattr(kind, attribute, None) for attribute in ("filename", "tgz_md5"))
    if not name or not md5:
        return f"{found.name} is not in {root}", ""
    return f"{root / name} is {'damaged' if (root / name).exists() else 'not there'}", f" (MD5 {md5})"


def _pixels(parts: Sequence[Any], chosen_N: np.ndarray, data: Data, track: Track, what: str) -> np.ndarray:
    """Return the pixels of chosen images of torchvision's data sets, which are counted through; uint8 NHWC."""
    if hasattr(parts[0], "data"):
        pixels: np.ndarray = np.concatenate([_channels_last(part.data) for part in parts])[chosen_N]
        return pixels
    places = [(part, number) for part in parts for number in range(len(part))]  # files of many sizes
    names = [f"{data.source}, {what} {number}" for number in chosen_N]

    def open_image(number: int) -> "Image":
        part, number_there = places[chosen_N[number]]
        return cast("Image", part[number_there][0])

    return _decode_all(names, open_image, data.image_size, track, f"Decoding {what}s")


def _channels_last(array: Any) -> np.ndarray:
    """Return pixels as torchvision's sets hold them, NHW, NHWC or NCHW, as NHWC."""
    pixels: np.ndarray = np.asarray(array)
    if pixels.ndim == 3:  # greys
        pixels = pixels[..., None].repeat(3, 3)
    return pixels if pixels.shape[-1] == 3 else np.moveaxis(pixels, 1, -1)


def _find_imagefolder(data: Data) -> _Found:
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
        listing = hashlib.sha256(f"{DECODING}\0{data.image_size}".encode())
        for found in chosen.values():
            for path, status in found:
                listing.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        subset = "" if data.limit is None else hashlib.sha256(train_N.tobytes()).hexdigest()  # differs between seeds
        about = f"{root}\0{data.image_size}\0{data.classes}\0{subset}"
        cache = cache_folder() / f"imagefolder-{hashlib.sha256(about.encode()).hexdigest()[:16]}.safetensors"
        return _decoded_once(cache, listing.hexdigest(), chosen, data.image_size, track)

    return _Found(labels["train"], labels["test"], classes, data.image_size, read)


def _decoded_once(
    cache: Path, fingerprint: str, files: Mapping[str, list[tuple[str, os.stat_result]]], size: int, track: Track
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of training and test images from a cache file, which is made unless it is as it should be."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    try:
        with safe_open(cache, framework="numpy") as cached:
            if cached.metadata()["fingerprint"] == fingerprint:
                return cached.get_tensor("train"), cached.get_tensor("test")
    except (OSError, SafetensorError, KeyError):
        pass  # not there, of another version, or damaged: it is made again

    pixels = {}
    for split, found in files.items():
        paths = [path for path, _ in found]
        pixels[split] = _decode_all(paths, partial(_open, paths), size, track, f"Decoding {split} images")
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
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        raise InputError(
            f"data.root: {root}: {what}; it must hold train/<class>/* and test/<class>/*, or <class>/* alone"
        )
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
    from sklearn.model_selection import train_test_split

    if len(files) < 2:
        raise InputError(
            f"data.root: {root} must hold train/<class>/* and test/<class>/*, or <class>/* of two classes or more"
        )
    splits: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
    for name, found in files.items():
        if len(found) < 3:
            raise InputError(
                f"data.root: {root / name} holds {_count(len(found), 'image')}, but a class needs three: to learn "
                "from, to validate and to test"
            )
        train, test = train_test_split(range(len(found)), test_size=TEST_FRACTION, random_state=0)
        for split, numbers in (("train", train), ("test", test)):
            splits[split][name] = [found[number] for number in sorted(numbers)]
    return splits


def _open(paths: list[str], number: int) -> "Image":
    from PIL import Image

    return Image.open(paths[number])


def _decode_all(
    names: list[str], open_image: Callable[[int], "Image"], size: int, track: Track, description: str
) -> np.ndarray:
    """Decode all images into uint8 NHWC.

    Raises:
        InputError: names up to ten that cannot be decoded.
    """
    pixels = np.empty((len(names), size, size, 3), np.uint8)
    bad: list[str] = []

    def decode(number: int) -> None:
        try:
            with open_image(number) as image:
                pixels[number] = fit_image(image, size)
        except Exception:  # Pillow raises many kinds for broken files
            bad.append(names[number])

    with ThreadPoolExecutor() as pool:
        for _ in track(pool.map(decode, range(len(names))), len(names), description):
            pass
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise InputError(f"data.root: cannot be read as an image: {', '.join(sorted(bad)[:10])}{more}")
    return pixels


# ------------------------------------------------------------------------------------------------------ splitting


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
    from sklearn.model_selection import train_test_split

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


# ---------------------------------------------------------------------------------------------------- on the device


@dataclass(frozen=True)
class Normalisation:
    """What is done to pixels before the first layer.

    Attributes:
        mean: of the channels, subtracted from pixels scaled to 0..1.
        std: of the channels; what is left is divided by it.
        image_size: height and width in pixels to which images are resized before; None leaves them as they are.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int | None = None


def normalisation_for(weights: Weights | None, image_size: int) -> Normalisation:
    """Return what pretrained weights were trained with, ImageNet's where there are none, at an image size."""
    mean, std = (weights.mean, weights.std) if weights else (IMAGENET_MEAN, IMAGENET_STD)
    return Normalisation(mean, std, image_size)


@dataclass(frozen=True)
class Images:
    """Images: uint8 NCHW, labels int64 N, both on the device; pixels that do not fit are in the host's memory."""

    images_NCHW: "torch.Tensor"
    labels_N: "torch.Tensor"

    def __len__(self) -> int:
        return len(self.labels_N)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the pixels."""
        pixels = self.images_NCHW.cpu().contiguous().numpy()
        digest = hashlib.sha256(str(pixels.shape).encode())
        digest.update(pixels.data)
        return digest.hexdigest()


def to_device(images_NHWC: np.ndarray, labels_N: np.ndarray, indices: np.ndarray, device: "torch.device") -> Images:
    """Copy the chosen images to the device; where half of its free memory does not suffice, the pixels stay here."""
    import torch

    images = torch.from_numpy(images_NHWC[indices]).permute(0, 3, 1, 2).contiguous()
    if device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
        images = images.to(device)
    return Images(images, torch.from_numpy(labels_N[indices]).to(device))


def take(rows_N: "torch.Tensor", chosen_B: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Return the chosen rows (numbers on the CPU) on the device, which goes on working while they are copied."""
    if rows_N.device == device:
        return rows_N[chosen_B.to(device, non_blocking=True)]
    return copy_to(rows_N[chosen_B], device)


def copy_to(rows_B: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Return rows on the device; from the host's memory without waiting for the device."""
    return rows_B if rows_B.device == device else rows_B.pin_memory().to(device, non_blocking=True)


def evaluation_batch_size(images: Images, normalisation: Normalisation) -> int:
    """Return how many images go through a network at once without gradients: 512 of 32x32 pixels, fewer larger ones."""
    side = normalisation.image_size or images.images_NCHW.shape[-1]
    return max(1, EVALUATION_PIXELS // side**2)


def augment(images_NCHW: "torch.Tensor", kind: Augmentation, generator: "torch.Generator") -> "torch.Tensor":
    """Flip each image with probability 1/2 and, for crop_flip, shift it by up to 4 pixels over black.

    Args:
        images_NCHW: uint8 images on any device.
        kind: 'none', 'flip' or 'crop_flip'.
        generator: on the CPU, so that every device gets the same numbers.
    """
    import torch

    if kind == "none":
        return images_NCHW
    n, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    flip_N = draw_flips(n, generator, device)
    images_NCHW = torch.where(flip_N[:, None, None, None], images_NCHW.flip(3), images_NCHW)
    if kind == "flip":
        return images_NCHW
    padded_NCHW = torch.nn.functional.pad(images_NCHW, (CROP_PADDING,) * 4)
    top_N, left_N = torch.randint(0, 2 * CROP_PADDING + 1, (2, n), generator=generator).to(device, non_blocking=True)
    rows_NH = top_N[:, None] + torch.arange(height, device=device)
    columns_NW = left_N[:, None] + torch.arange(width, device=device)
    numbers_N = torch.arange(n, device=device)
    # Indexing with the channels in between puts them last: N x H x W x C.
    return padded_NCHW[numbers_N[:, None, None], :, rows_NH[:, :, None], columns_NW[:, None, :]].permute(0, 3, 1, 2)


def draw_flips(n: int, generator: "torch.Generator", device: "torch.device") -> "torch.Tensor":
    """Return which of n images are mirrored, bool N: each with probability 1/2."""
    import torch

    return (torch.rand(n, generator=generator) < 0.5).to(device, non_blocking=True)


def normalise(images_NCHW: "torch.Tensor", normalisation: Normalisation) -> "torch.Tensor":
    """Turn uint8 images into float32, channels last in memory: resized, scaled to 0..1 and standardised."""
    import torch
    from torch.nn.functional import interpolate

    device = images_NCHW.device
    mean_C11 = torch.tensor(normalisation.mean).to(device, non_blocking=True)[:, None, None]
    std_C11 = torch.tensor(normalisation.std).to(device, non_blocking=True)[:, None, None]
    images_NCHW = images_NCHW.to(torch.float32, memory_format=torch.channels_last)
    side, wanted = images_NCHW.shape[-1], normalisation.image_size
    if wanted is not None and wanted != side:
        images_NCHW = interpolate(images_NCHW, size=wanted, mode="bilinear", antialias=wanted < side)
    return (images_NCHW / 255 - mean_C11) / std_C11
