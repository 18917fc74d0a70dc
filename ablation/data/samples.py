"""Images that the report shows: training images as they go into the network, and a model's most confident mistakes.

Legend: N images, C channels (3, RGB), H, W and S pixels (S a side), R classes, I images of each, V views of an image,
M mistakes, K classes of the study.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ablation.base.errors import InputError
from ablation.data.normalisation import Normalisation
from ablation.spec.parameters import Augmentation

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
