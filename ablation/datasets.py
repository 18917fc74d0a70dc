"""torchvision's classification data sets, by the names under which a study file asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TorchvisionSet:
    """Where torchvision has a data set, and how large it is.

    Attributes:
        name: of its class in `torchvision.datasets`.
        train: what the class is given for each part that belongs to the training images; validation images that come
            with the set are among them, because a study makes a split of its own.
        test: what it is given for the test images.
        classes: how many there are.
        train_images: how many.
        test_images: how many.
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

# Height and width of the sets whose images have all one size and are kept as they are.
SIDES = {"cifar10": 32, "cifar100": 32, "mnist": 28, "fashion_mnist": 28, "kmnist": 28, "svhn": 32, "stl10": 96}


def open_set(found: TorchvisionSet, root: Path) -> tuple[list[Any], Any]:
    """Open a data set, downloading it to a folder where it is not there.

    Returns:
        torchvision's data sets that make up the training images, and that of the test images.

    Raises:
        OSError: the download failed, or what is there is damaged; or a RuntimeError, as torchvision has it.
    """
    import torchvision

    make = getattr(torchvision.datasets, found.name)
    train = [make(root, download=True, **arguments) for arguments in found.train]
    return train, make(root, download=True, **found.test)


def class_names(dataset: Any, count: int) -> list[str]:
    """Return the names of a data set's classes; their numbers where it has none, as house numbers do."""
    return list(getattr(dataset, "classes", map(str, range(count))))


def labels_of(dataset: Any) -> list[int]:
    """Return the number of every image's class."""
    for attribute in ("targets", "labels", "_labels"):  # by set
        if hasattr(dataset, attribute):
            return [int(label) for label in getattr(dataset, attribute)]
    raise AssertionError(f"{type(dataset).__name__} has no labels")
