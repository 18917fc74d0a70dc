"""Drawing what the report shows: training images as they go into the network.

Legend: N images, C channels (3, RGB), H, W and S pixels (S a side), R classes, I images of each, V views of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ablation.base.generators import generator
from ablation.data.augmentation import augment, draw
from ablation.data.decoding import fit_image
from ablation.data.image_set import ImageSet
from ablation.data.images import scaled
from ablation.data.normalisation import Normalisation
from ablation.data.samples import DRAWS, Samples
from ablation.spec.parameters import Augmentation

LARGEST_SIDE = 96  # pixels: a page shows about as many, and would weigh megabytes with more
MOST_CLASSES = 8  # in the samples
VIEWS_PER_CLASS = 8


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
