"""Images that the report shows: training images as they go into the network, and a model's most confident mistakes.

Legend: N images, C channels (3, RGB), H, W and S pixels (S a side), R classes, I images of each, V views of an image,
M mistakes, K classes of the study.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ablation.base.errors import InputError
from ablation.base.seeds import generator
from ablation.data.augmentation import augment, draw
from ablation.data.decoding import fit_image
from ablation.data.images import Normalisation, scaled
from ablation.data.reading import ImageSet
from ablation.spec.parameters import Augmentation

LARGEST_SIDE = 96  # pixels: a page shows about as many, and would weigh megabytes with more
MOST_CLASSES = 8  # in the samples
VIEWS_PER_CLASS = 8
DRAWS = 3  # of an image, by each augmentation
MOST_MISTAKES = 12


@dataclass(frozen=True)
class Samples:
    """Training images as they go into the network.

    Attributes:
        images_RIVSSC: uint8. The first view of an image is the unchanged image; `DRAWS` of each augmentation follow.
        classes_R: the classes' numbers, int64.
        augmentations: any of 'flip', 'crop_flip' and 'strong'.
        normalisation: the size of the images in the network, and how they are standardised.
    """

    images_RIVSSC: np.ndarray
    classes_R: np.ndarray
    augmentations: list[Augmentation]
    normalisation: Normalisation


@dataclass(frozen=True)
class Mistakes:
    """Test images that a model assigns to a wrong class, the most confident mistake first.

    `numbers_M` (int64) are the images' positions in the test split, from 0; `images_MSSC` (uint8) are the images as
    they go into the network.
    """

    numbers_M: np.ndarray
    images_MSSC: np.ndarray


def draw_samples(
    images: ImageSet,
    train_N: np.ndarray,
    normalisation: Normalisation,
    augmentations: Sequence[Augmentation],
    seed: int,
) -> Samples:
    """Draw a few training images of some classes, and augment them.

    Args:
        images: the study's images.
        train_N: the numbers of its training images, without those for validation.
        normalisation: the preprocessing before the first layer.
        augmentations: those that a trial may have, besides 'none'.
        seed: the study's seed.
    """
    labels_N = images.train_labels_N[train_N]
    classes, counts = np.unique(labels_N, return_counts=True)
    spread_R = np.linspace(0, len(classes) - 1, min(len(classes), MOST_CLASSES)).round().astype(np.int64)
    per_class = min(max(1, VIEWS_PER_CLASS // (1 + DRAWS * len(augmentations))), *counts[spread_R])
    numbers = []
    for k in classes[spread_R]:
        class_N = train_N[labels_N == k]
        order = torch.randperm(len(class_N), generator=generator(seed, "samples", int(k)))
        numbers.append(class_N[order[:per_class].numpy()])
    plain_NCHW = torch.from_numpy(images.train_images_NHWC[np.concatenate(numbers)]).permute(0, 3, 1, 2)
    views = [plain_NCHW]
    for kind in augmentations:
        noise = generator(seed, "samples", kind)
        views += [augment(plain_NCHW, draw(kind, [len(plain_NCHW)], noise), slice(None)) for _ in range(DRAWS)]
    views_NVSSC = np.stack([as_fed(view_NCHW, normalisation) for view_NCHW in views], axis=1)
    images_RIVSSC = views_NVSSC.reshape(len(numbers), per_class, *views_NVSSC.shape[1:])
    return Samples(images_RIVSSC, classes[spread_R], list(augmentations), normalisation)


def as_fed(images_NCHW: torch.Tensor, normalisation: Normalisation) -> np.ndarray:
    """Return uint8 images as the network sees them: resized, as uint8 NSSC with a side of at most `LARGEST_SIDE`.

    The images are scaled by the code that training uses, and not standardised.
    """
    size = normalisation.image_size or images_NCHW.shape[-1]
    side = min(size, LARGEST_SIDE)
    fed_NSSC = np.empty((len(images_NCHW), side, side, 3), np.uint8)
    for number in range(len(images_NCHW)):  # one at a time: large images need much memory in float32
        scaled_CSS = scaled(images_NCHW[number : number + 1], normalisation.image_size)[0]
        pixels_SSC = (255 * scaled_CSS).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        fed_NSSC[number] = fit_image(Image.fromarray(pixels_SSC), side)
    return fed_NSSC


def confident_mistakes(probabilities_NK: np.ndarray, predicted_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return the numbers of up to `MOST_MISTAKES` images, int64: the most probable wrong class first.

    Among equal probabilities, the lower number comes first.
    """
    wrong_M = np.flatnonzero(predicted_N != labels_N)
    confidence_M = probabilities_NK[wrong_M, predicted_N[wrong_M]]
    return wrong_M[np.argsort(-confidence_M, kind="stable")[:MOST_MISTAKES]]


def samples_file(samples: Samples) -> bytes:
    """Return samples as the content of a safetensors file."""
    about = {"augmentations": samples.augmentations, "normalisation": asdict(samples.normalisation)}
    return save({"images": samples.images_RIVSSC, "classes": samples.classes_R}, {"about": json.dumps(about)})


def load_samples(path: Path) -> Samples:
    """Read a file of `samples_file`.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["about"])
            stored = about["normalisation"]
            normalisation = Normalisation(tuple(stored["mean"]), tuple(stored["std"]), stored["image_size"])
            return Samples(file.get_tensor("images"), file.get_tensor("classes"), about["augmentations"], normalisation)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
