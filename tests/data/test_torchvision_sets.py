"""torchvision's sets, read from small files in the formats that their makers publish."""

import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from ablation.base.errors import InputError
from ablation.data import torchvision_sets
from ablation.data.decoding import DECODING_VERSION, untracked
from ablation.data.image_set import ImageSet
from ablation.data.reading import list_images, load_images, measure_data
from ablation.data.torchvision_sets import SETS, SIDES
from ablation.spec.tables import OWN_SOURCES, SIZED_SOURCES, Data

RANDOM = np.random.default_rng(0)


def load(source: str, root: Path, **more: Any) -> ImageSet:
    return load_images(Data(source=source, root=str(root), **more))


def trust(monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    """The files are not those that torchvision has checksums of."""
    monkeypatch.setattr(getattr(torchvision.datasets, name), method, lambda self: True)


def idx(path: Path, array: np.ndarray) -> None:
    """Write a file in the format of MNIST: two zeros, the type, the number of axes, their lengths, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes())


@pytest.mark.parametrize(
    ("source", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_greys_of_mnists_format(tmp_path: Path, source: str, folder: str) -> None:
    pixels = {split: RANDOM.integers(0, 256, (n, 28, 28), np.uint8) for split, n in (("train", 5), ("t10k", 3))}
    for split, array in pixels.items():
        idx(tmp_path / folder / "raw" / f"{split}-images-idx3-ubyte", array)
        idx(tmp_path / folder / "raw" / f"{split}-labels-idx1-ubyte", np.arange(len(array), dtype=np.uint8))
    images = load(source, tmp_path, image_size=64)
    assert images.train_images_NHWC.shape == (5, 28, 28, 3)  # as they are; they are resized on the device
    assert (images.train_images_NHWC == pixels["train"][..., None]).all()
    assert (images.test_images_NHWC == pixels["t10k"][..., None]).all()
    assert images.train_labels_N.tolist() == [0, 1, 2, 3, 4]
    assert len(images.classes) == 10


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, "CIFAR100", "_check_integrity")
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = {split: RANDOM.integers(0, 256, (n, 3, 32, 32), np.uint8) for split, n in (("train", 4), ("test", 2))}
    names = [f"class {number}" for number in range(100)]
    for split, array in pixels.items():
        content = {"data": array.reshape(len(array), -1), "fine_labels": [99 - i for i in range(len(array))]}
        (folder / split).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    images = load("cifar100", tmp_path)
    assert (images.train_images_NHWC == pixels["train"].transpose(0, 2, 3, 1)).all()
    assert images.test_labels_N.tolist() == [99, 98]
    assert images.classes == names


def test_house_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", lambda *_: True)
    trust(monkeypatch, "SVHN", "download")
    pixels = {split: RANDOM.integers(0, 256, (32, 32, 3, n), np.uint8) for split, n in (("train", 4), ("test", 2))}
    for split, array in pixels.items():
        savemat(tmp_path / f"{split}_32x32.mat", {"X": array, "y": np.array([[10], [1], [2], [3]])[: array.shape[3]]})
    images = load("svhn", tmp_path)
    assert (images.train_images_NHWC == pixels["train"].transpose(3, 0, 1, 2)).all()
    assert images.train_labels_N.tolist() == [0, 1, 2, 3]  # 10 stands for zero
    assert images.classes == [str(digit) for digit in range(10)]


def test_flowers_of_many_sizes_with_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, "Flowers102", "_check_integrity")
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 8):
        Image.new("RGB", (40 + number, 30), (30 * number, 0, 0)).save(folder / "jpg" / f"image_{number:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 4, 1, 2, 102]])})
    savemat(
        folder / "setid.mat", {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[5, 7]])}
    )
    images = load("flowers102", tmp_path, image_size=24)
    assert images.train_images_NHWC.shape == (4, 24, 24, 3)
    reds = images.train_images_NHWC[:, 12, 12, 0].astype(int)
    assert np.abs(reds - [30, 60, 90, 120]).max() <= 3  # JPEG
    assert images.train_labels_N.tolist() == [0, 1, 2, 3]
    assert images.test_labels_N.tolist() == [0, 101]
    assert len(images.classes) == 102
    (folder / "jpg" / "image_00003.jpg").write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"cannot be read as an image: \S*image_00003.jpg \(not an image\); data.unreadable"
    ):
        load("flowers102", tmp_path, image_size=24)


def test_a_set_without_files_is_scaled_as_the_study_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The left quarter is white: cropping removes it, squeezing keeps it, padding adds black above and below."""
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 10, 20))
    pets = [(picture, 0), (picture, 1)]
    monkeypatch.setattr(torchvision_sets, "labels_of", lambda part: [label for _, label in part])
    monkeypatch.setattr(torchvision_sets, "open_set", lambda *_, **__: ([pets], pets))
    monkeypatch.setattr(torchvision_sets, "class_names", lambda *_: ["cat", "dog"])
    white: dict[str, list[int]] = {}
    for resize in ("crop", "squash", "pad"):
        listing = list_images(Data(source="oxford_pets", image_size=20, resize=resize))
        pixels_NHWC, _ = listing.read(np.arange(1), np.arange(0), untracked, False)
        white[resize] = [int((pixels_NHWC[0, row, :, 0] > 127).sum()) for row in (0, 10)]
        assert listing.decoding == (None if resize == "crop" else DECODING_VERSION)
    assert white == {"crop": [0, 0], "squash": [5, 5], "pad": [0, 5]}


def test_an_image_that_cannot_be_left_out_is_named_without_that_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    pets = [(None, 0), (None, 1)]
    monkeypatch.setattr(torchvision_sets, "labels_of", lambda part: [label for _, label in part])
    monkeypatch.setattr(torchvision_sets, "open_set", lambda *_, **__: ([pets], pets))
    monkeypatch.setattr(torchvision_sets, "class_names", lambda *_: ["cat", "dog"])
    with pytest.raises(InputError, match=r"cannot be read as an image: oxford_pets, training image 0 \(") as caught:
        load_images(Data(source="oxford_pets"))
    assert "unreadable" not in str(caught.value)


@pytest.mark.parametrize("source", SETS)
def test_every_set_is_torchvisions_and_its_failed_download_is_said(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each class is given is accepted up to the download, which does not come."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    kind = getattr(torchvision.datasets, SETS[source].name)
    module = __import__(kind.__module__, fromlist=["x"])
    for function in ("download_url", "download_and_extract_archive"):
        if hasattr(module, function):
            monkeypatch.setattr(module, function, no_network)
    with pytest.raises(InputError, match=r"data.root: .*could not be downloaded \(") as caught:
        load(source, tmp_path / "new")
    assert "no route to host" in str(caught.value) or "Error downloading" in str(caught.value)


def test_sizes_without_a_download() -> None:
    assert set(SETS) == set(SIDES) | set(SIZED_SOURCES)
    assert set(SETS) | {*OWN_SOURCES, "digits"} == set(get_args(Data.model_fields["source"].annotation))
    size = measure_data(Data(source="cifar100"))
    assert (size.classes, size.train, size.test) == (100, 50_000, 10_000)
    size = measure_data(Data(source="cifar10", classes=["cat", "dog"], limit=5_000))
    assert (size.classes, size.train, size.test) == (2, 5_000, 2_000)
