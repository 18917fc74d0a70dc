"""Images on the device: kept as uint8, augmented, resized and normalised a batch at a time.

Legend: N images, B images of a batch, C channels (3, RGB), H and W pixels.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import interpolate

from ablation.networks.weights import IMAGENET_MEAN, IMAGENET_STD, Weights
from ablation.spec.parameters import Augmentation

EVALUATION_PIXELS = 512 * 32 * 32  # per batch without gradients
CROP_PADDING = 4  # pixels, He et al. (2016) for CIFAR-10; the report says so in `run_sections.AUGMENTATIONS`


@dataclass(frozen=True)
class Normalisation:
    """The preprocessing before the first layer.

    Attributes:
        mean: per channel, subtracted from pixels scaled to 0..1.
        std: per channel; divides the difference.
        image_size: height and width in pixels to which images are resized first; None leaves their size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int | None = None


def normalisation_for(weights: Weights | None, image_size: int) -> Normalisation:
    """Return the normalisation of pretrained weights, or ImageNet's without weights, at an image size."""
    mean, std = (weights.mean, weights.std) if weights else (IMAGENET_MEAN, IMAGENET_STD)
    return Normalisation(mean, std, image_size)


@dataclass(frozen=True)
class Images:
    """Images (uint8 NCHW) and labels (int64 N) on the device; pixels that do not fit there are in the host's memory."""

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the pixels."""
        pixels = self.images_NCHW.cpu().contiguous().numpy()
        digest = hashlib.sha256(str(pixels.shape).encode())
        digest.update(pixels.data)
        return digest.hexdigest()


def to_device(images_NHWC: np.ndarray, labels_N: np.ndarray, indices: np.ndarray, device: torch.device) -> Images:
    """Copy the chosen images to the device; pixels that need more than half of its free memory stay on the host."""
    images = torch.from_numpy(images_NHWC[indices]).permute(0, 3, 1, 2).contiguous()
    if device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
        images = images.to(device)
    return Images(images, torch.from_numpy(labels_N[indices]).to(device))


def gather_rows(rows_N: torch.Tensor, chosen_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the chosen rows (numbers on the CPU) on the device, which keeps working while they are copied."""
    if rows_N.device == device:
        return rows_N[chosen_B.to(device, non_blocking=True)]
    return copy_to(rows_N[chosen_B], device)


def copy_to(rows_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return rows on the device; a copy from the host's memory does not wait for the device."""
    return rows_B if rows_B.device == device else rows_B.pin_memory().to(device, non_blocking=True)


def evaluation_batch_size(images: Images, normalisation: Normalisation) -> int:
    """Return the size of batches without gradients: 512 images of 32x32 pixels, fewer of larger images."""
    side = normalisation.image_size or images.images_NCHW.shape[-1]
    return max(1, EVALUATION_PIXELS // side**2)


def augment(images_NCHW: torch.Tensor, kind: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Flip each image with probability 1/2 and, for crop_flip, shift it by up to 4 pixels over black.

    Args:
        images_NCHW: uint8 images on any device.
        kind: 'none', 'flip' or 'crop_flip'.
        generator: on the CPU, so that every device gets the same numbers.
    """
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


def draw_flips(n: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Return which of n images are mirrored, bool N, each with probability 1/2."""
    return (torch.rand(n, generator=generator) < 0.5).to(device, non_blocking=True)


def normalise(images_NCHW: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Turn uint8 images into float32, channels last in memory: resized, scaled to 0..1 and standardised."""
    device = images_NCHW.device
    mean_C11 = torch.tensor(normalisation.mean).to(device, non_blocking=True)[:, None, None]
    std_C11 = torch.tensor(normalisation.std).to(device, non_blocking=True)[:, None, None]
    images_NCHW = images_NCHW.to(torch.float32, memory_format=torch.channels_last)
    side, wanted = images_NCHW.shape[-1], normalisation.image_size
    if wanted is not None and wanted != side:
        images_NCHW = interpolate(images_NCHW, size=wanted, mode="bilinear", antialias=wanted < side)
    return (images_NCHW / 255 - mean_C11) / std_C11
