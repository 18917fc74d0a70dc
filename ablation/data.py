"""The images: read once, split stratified, kept on the device as uint8; batches and augmentation.

Legend: N images, C channels (3, RGB), H and W pixels.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablation.datasets import SETS, TorchvisionSet, class_names, labels_of, open_set
from ablation.seeding import named_seed
from ablation.spec import Augmentation, Data, InputError, expand, first_line
from ablation.weights import IMAGENET_MEAN, IMAGENET_STD, Weights

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision.datasets.folder's
DIGITS_TEST_FRACTION = 0.2  # scikit-learn's digits come without a test split
EVALUATION_PIXELS = 512 * 32 * 32  # of a batch without gradients
DECODING = 2  # of image files: another number makes their caches anew
CROP_PADDING = 4  # pixels, He et al. (2016) for CIFAR-10

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
    """Read the images that a study asks for.

    Raises:
        InputError: the folder is missing, empty, has classes in one split only or unreadable images; a class is
            unknown; a download failed.
    """
    load = {"imagefolder": _load_imagefolder, "digits": _load_digits}.get(data.source, _load_torchvision)
    images = load(data, track)
    if data.classes is None:
        return images
    _check_classes(data, images.classes)
    numbers = [images.classes.index(name) for name in data.classes]
    arrays = []
    for pixels, labels in (
        (images.train_images_NHWC, images.train_labels_N),
        (images.test_images_NHWC, images.test_labels_N),
    ):
        chosen = np.isin(labels, numbers)
        renumbered = np.array([numbers.index(label) for label in labels[chosen]], np.int64)
        arrays += [pixels[chosen], renumbered]
    return _image_set(arrays[0], arrays[1], arrays[2], arrays[3], list(data.classes))


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
    elif data.source == "imagefolder":
        files = list_imagefolder(expand(str(data.root)))
        _check_classes(data, sorted(files["train"]))
        names = [name for name in files["train"] if data.classes is None or name in data.classes]
        classes = len(names)
        train, test = (sum(len(files[split][name]) for name in names) for split in ("train", "test"))
    else:
        images = load_images(data)  # they come with scikit-learn
        classes, train, test = len(images.classes), len(images.train_labels_N), len(images.test_labels_N)
    return DataSize(classes, min(train, data.limit or train), test)


def _image_set(
    train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray, classes: Any
) -> ImageSet:
    digest = hashlib.sha256("\0".join(classes).encode())
    for array in (train_images, train_labels, test_images, test_labels):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return ImageSet(train_images, train_labels, test_images, test_labels, list(classes), digest.hexdigest())


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


def _load_digits(data: Data, track: Track) -> ImageSet:
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 8x8 pixels, 17 grey levels
    pixels = np.stack([fit_image(Image.fromarray(image), data.image_size) for image in grey])
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_FRACTION, stratify=labels, random_state=0
    )
    return _image_set(pixels[train], labels[train], pixels[test], labels[test], [str(digit) for digit in range(10)])


def _load_torchvision(data: Data, track: Track) -> ImageSet:
    """Read one of torchvision's sets; pixels of one size stay as they are, others are fitted to `image_size`."""
    found = SETS[data.source]
    root = expand(data.root or "data")
    existed = root.exists()
    try:
        train, test = open_set(found, root)
    except (OSError, RuntimeError) as error:
        what, checksum = _missing(found, root)
        raise InputError(
            f"data.root: {what} and could not be downloaded ({first_line(error)}); place it there by hand{checksum}, "
            "or try --demo, which needs no download"
        ) from None
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                root.rmdir()  # torchvision made it for a download that failed
    arrays = []
    for description, parts in (("training", train), ("test", [test])):
        pixels = [_pixels(part, data, track, f"Decoding {description} images") for part in parts]
        labels = [np.array(labels_of(part), np.int64) for part in parts]
        arrays += [np.concatenate(pixels), np.concatenate(labels)]
    return _image_set(arrays[0], arrays[1], arrays[2], arrays[3], class_names(train[0], found.classes))


def _missing(found: TorchvisionSet, root: Path) -> tuple[str, str]:
    """Say what is missing or damaged, and the checksum of its archive, where torchvision has a single one."""
    import torchvision

    kind = getattr(torchvision.datasets, found.name)
    name, md5 = (getattr(kind, attribute, None) for attribute in ("filename", "tgz_md5"))
    if not name or not md5:
        return f"{found.name} is not in {root}", ""
    return f"{root / name} is {'damaged' if (root / name).exists() else 'not there'}", f" (MD5 {md5})"


def _pixels(dataset: Any, data: Data, track: Track, description: str) -> np.ndarray:
    """Return the pixels of a torchvision data set, uint8 NHWC."""
    if not hasattr(dataset, "data"):  # files of many sizes
        names = [f"{data.source}, image {number}" for number in range(len(dataset))]
        return _decode_all(names, lambda number: dataset[number][0], data.image_size, track, description)
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 3:  # greys
        pixels = pixels[..., None].repeat(3, 3)
    return pixels if pixels.shape[-1] == 3 else pixels.transpose(0, 2, 3, 1)


def _load_imagefolder(data: Data, track: Track) -> ImageSet:
    """Decode train/<class>/* and test/<class>/* once; afterwards one cache file holds the pixels."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    root = expand(str(data.root)).resolve()
    files = list_imagefolder(root)
    classes = sorted(files["train"])
    listing = hashlib.sha256(f"{DECODING}\0{data.image_size}".encode())
    for split in ("train", "test"):
        for name in classes:
            for path, status in files[split][name]:
                listing.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    fingerprint = listing.hexdigest()
    key = hashlib.sha256(f"{root}\0{data.image_size}".encode()).hexdigest()[:16]
    cache = cache_folder() / f"imagefolder-{key}.safetensors"
    try:
        with safe_open(cache, framework="numpy") as cached:
            if cached.metadata()["fingerprint"] == fingerprint:
                arrays = [cached.get_tensor(name) for name in _CACHED]
                return ImageSet(arrays[0], arrays[1], arrays[2], arrays[3], classes, cached.metadata()["digest"])
    except (OSError, SafetensorError, KeyError):
        pass  # not there, of another version, or damaged: it is made again

    arrays = []
    for split in ("train", "test"):
        paths = [path for name in classes for path, _ in files[split][name]]
        counts = [len(files[split][name]) for name in classes]
        pixels = _decode_all(paths, partial(_open, paths), data.image_size, track, f"Decoding {split} images")
        arrays += [pixels, np.repeat(np.arange(len(classes)), counts)]
    images = _image_set(arrays[0], arrays[1], arrays[2], arrays[3], classes)
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    metadata = {"fingerprint": fingerprint, "digest": images.digest}
    with contextlib.suppress(OSError, SafetensorError):  # without a cache, the next study decodes again
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(_CACHED, arrays, strict=True)), temporary, metadata)
        temporary.replace(cache)
    return images


_CACHED = ("train_images", "train_labels", "test_images", "test_labels")


def cache_folder() -> Path:
    """Return the folder of decoded images: ABLATION_CACHE, else `ablation` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablation"
    return Path(os.environ.get("ABLATION_CACHE") or default)


def list_imagefolder(root: Path) -> dict[str, dict[str, list[tuple[str, os.stat_result]]]]:
    """Return split -> class -> sorted (path, status) of the images below a folder.

    Raises:
        InputError: a split or its images are missing, or a class is in one split only.
    """
    files: dict[str, dict[str, list[tuple[str, os.stat_result]]]] = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise InputError(f"data.root: {root} must hold {split}/<class>/*, but there is no folder {split}")
        files[split] = {}
        try:
            for folder in os.scandir(root / split):
                if folder.is_dir() and not folder.name.startswith("."):
                    found = [(e.path, e.stat()) for e in os.scandir(folder) if e.name.lower().endswith(SUFFIXES)]
                    files[split][folder.name] = sorted(found, key=lambda entry: entry[0])
        except OSError as error:  # a link to nowhere, a folder that may not be read
            raise InputError(f"data.root: {error.filename} cannot be read ({error.strerror})") from None
        if not any(files[split].values()):
            raise InputError(f"data.root: {root / split} holds no images in <class>/*{{{','.join(SUFFIXES)}}}")
        for name, found in files[split].items():
            if not found:
                raise InputError(f"data.root: {root / split / name} holds no images")
    for split, other in (("train", "test"), ("test", "train")):
        only = sorted(files[split].keys() - files[other].keys())
        if only:
            raise InputError(f"data.root: class {only[0]!r} is in {root / split} but not in {root / other}")
    return files


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
