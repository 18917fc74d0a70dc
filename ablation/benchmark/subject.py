"""The device, images and weights of the measurements, and repeated measurements."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ablation.base.device import select_device
from ablation.base.generators import generator
from ablation.data.images import Images, to_device
from ablation.data.normalisation import Normalisation
from ablation.data.reading import list_images, load_split
from ablation.data.split import split_seed
from ablation.networks.blocks import build_blocks, initialise_blocks, torchvision_tensors
from ablation.networks.transfer_model import Head, TransferModel, build_model, initialise
from ablation.networks.weights import Weights, check_layers, read_weights
from ablation.spec.tables import Data

BATCH_SIZE = 64
HEAD_WIDTH = 256


@dataclass(frozen=True)
class Subject:
    """The device, images and weights that are measured.

    Attributes:
        device: the device that trains.
        train_images: on the device.
        val_images: on the device.
        classes: their number.
        weights: of VGG-16, as read.
        weights_file: path of the weights, for a study.
        data: the images, for a study.
        repeats: number of repeats of each measurement.
        fewest_images: the smallest `data.limit` that leaves two images of every class, which studies need.
    """

    device: torch.device
    train_images: Images
    val_images: Images
    classes: int
    weights: Weights
    weights_file: str
    data: Data
    repeats: int
    fewest_images: int

    @property
    def normalisation(self) -> Normalisation:
        """Return the normalisation that the weights ask for."""
        return Normalisation(self.weights.mean, self.weights.std, 32)


@dataclass(frozen=True)
class Measured:
    """Repeated measurements of one quantity."""

    values: list[float]

    @property
    def median(self) -> float:
        """Return their median."""
        return statistics.median(self.values)

    def text(self, digits: int = 0) -> str:
        """Return the median with the smallest and largest value."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f}, n = {len(self.values)})"


def load_subject(
    images: str | None, weights: str | None, limit: int, device_name: str, repeats: int, folder: Path
) -> Subject:
    """Read images and weights.

    Args:
        images: an image folder; scikit-learn's digits by default.
        weights: a file; by default random weights, which are written to `folder`.
        limit: number of training images, before the validation split; fewer where there are fewer, more where a rare
            class would have fewer than two.
        device_name: auto, cpu, cuda, cuda:N or mps.
        repeats: number of repeats of each measurement.
        folder: for temporary files.

    Raises:
        InputError: they cannot be read, or the weights lack one of the first three blocks.
    """
    if weights is None:
        weights = str(folder / "random.safetensors")
        blocks = build_blocks("vgg16", "block5", 32)
        initialise_blocks(blocks, "vgg16", None, generator("bench"))
        save_file(torchvision_tensors(blocks, "vgg16"), weights, {"architecture": "vgg16"})
    data = Data(source="imagefolder", root=images) if images else Data(source="digits")
    labels_N = list_images(data).train_labels_N
    _, counts_K = np.unique(labels_N, return_counts=True)
    fewest_images = math.ceil(2 * len(labels_N) / counts_K.min())  # classes keep their shares
    data = data.model_copy(update={"limit": min(max(limit, fewest_images), len(labels_N))})
    arrays, split = load_split(data, split_seed(0))
    device = select_device(device_name)
    train_images, val_images = (
        to_device(arrays.train_images_NHWC, arrays.train_labels_N, indices, device)
        for indices in (split.train_N, split.val_N)
    )
    pretrained = read_weights("vgg16", weights)
    check_layers(pretrained, weights, "vgg16", {"block3"})
    classes = len(arrays.classes)
    return Subject(device, train_images, val_images, classes, pretrained, weights, data, repeats, fewest_images)


def network(subject: Subject, cut: str, head_width: int = HEAD_WIDTH, seed: int = 0) -> TransferModel:
    """Build a network on the device as a trial does; layers that the weights lack are random."""
    size = subject.train_images.images_NCHW.shape[-1]
    model = build_model("vgg16", cut, Head(head_width), subject.classes, size)
    initialise(model, subject.weights, seed)
    return model.to(subject.device)


def first_images(subject: Subject, cpu: int, gpu: int) -> Images:
    """Return the first training images: `cpu` of them for the CPU and `gpu` for a GPU, which needs more work."""
    count = cpu if subject.device.type == "cpu" else gpu
    return subject.train_images.subset(torch.arange(min(count, len(subject.train_images))))


def few_images_limit(subject: Subject) -> int:
    """Return a small `data.limit` that leaves two images of every class: for validation, if classes are of one size."""
    available = len(subject.train_images) + len(subject.val_images)
    return min(available, max(100, 20 * subject.classes, subject.fewest_images))
