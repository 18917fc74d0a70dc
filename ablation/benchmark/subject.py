"""What is measured on, and repeated measurements."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ablation.base.device import select_device
from ablation.base.seeds import generator
from ablation.data.images import Images, Normalisation, to_device
from ablation.data.reading import load_split, measure_data, split_seed
from ablation.networks.blocks import expected_tensors
from ablation.networks.transfer_model import TransferModel, build_model, initialise
from ablation.networks.weights import Weights, check_layers, read_weights
from ablation.spec.study import Data

BATCH_SIZE = 64

HEAD_WIDTH, LR = 256, 0.01


@dataclass(frozen=True)
class Subject:
    """What is measured on: a device, images and weights."""

    device: torch.device
    train_images: Images
    val_images: Images
    classes: int
    weights: Weights
    overrides: list[tuple[list[str], Any]]  # that let a study read the same
    repeats: int

    @property
    def normalisation(self) -> Normalisation:
        """Of the weights."""
        return Normalisation(self.weights.mean, self.weights.std, 32)


@dataclass(frozen=True)
class Measured:
    """Repeated measurements of one figure."""

    values: list[float]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    def text(self, digits: int = 0) -> str:
        """Return the median with the smallest and largest value."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f}, n = {len(self.values)})"


def load_subject(
    images: str | None, weights: str | None, limit: int, device_name: str, repeats: int, folder: Path
) -> Subject:
    """Read images and weights.

    Raises:
        InputError: they cannot be read, or the weights lack one of the first three blocks.
    """
    if weights is None:
        weights = str(folder / "random.safetensors")
        shapes = {key: shape for key, (_, shape) in expected_tensors("vgg16", "block5").items()}
        random = generator("bench")
        he = {key: (2 / (9 * shape[1])) ** 0.5 if len(shape) == 4 else 0.0 for key, shape in shapes.items()}
        tensors = {key: torch.randn(shape, generator=random) * he[key] for key, shape in shapes.items()}
        save_file(tensors, weights, {"architecture": "vgg16"})
    data = Data(source="imagefolder", root=images) if images else Data(source="digits")
    data = data.model_copy(update={"limit": min(limit, measure_data(data).train)})
    found, split = load_split(data, split_seed(0))
    device = select_device(device_name)
    train_images, val_images = (
        to_device(found.train_images_NHWC, found.train_labels_N, chosen, device)
        for chosen in (split.train_N, split.val_N)
    )
    loaded = read_weights("vgg16", weights)
    check_layers(loaded, weights, "vgg16", {"block3"})
    overrides: list[tuple[list[str], Any]] = [
        (["backbone", "weights"], weights),
        (["data", "source"], data.source),
        (["data", "limit"], limit),
    ]
    if images:
        overrides.append((["data", "root"], images))
    return Subject(device, train_images, val_images, len(found.classes), loaded, overrides, repeats)


def network(subject: Subject, cut: str, head_width: int = HEAD_WIDTH, seed: int = 0) -> TransferModel:
    """Build a network on the device, as a trial does; layers that the weights lack are random."""
    size = subject.train_images.images_NCHW.shape[-1]
    model = build_model("vgg16", cut, head_width, 2, subject.classes, size)
    initialise(model, "vgg16", subject.weights, seed)
    return model.to(subject.device)


def first_images(subject: Subject, cpu: int, gpu: int) -> Images:
    """Return as many training images as measure a device well."""
    count = cpu if subject.device.type == "cpu" else gpu
    return Images(subject.train_images.images_NCHW[:count], subject.train_images.labels_N[:count])


def few_images_override(subject: Subject) -> list[tuple[list[str], Any]]:
    """Return the override that leaves few images, but two for validation of every class."""
    everything = len(subject.train_images) + len(subject.val_images)
    return [(["data", "limit"], min(everything, max(100, 20 * subject.classes)))]
