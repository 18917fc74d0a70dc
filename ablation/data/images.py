"""Images on the device: kept as uint8, augmented, resized and normalised a batch at a time.

Legend: N images, B images of a batch, C channels (3, RGB), H and W pixels.
"""

import functools
import hashlib
from collections.abc import Sequence
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
    """Return the chosen rows on the device; `chosen_B` (numbers) is where the rows are."""
    return copy_to(rows_N[chosen_B], device)


def copy_to(rows_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return rows on the device; a copy from the host's memory does not wait for the device."""
    return rows_B if rows_B.device == device else rows_B.pin_memory().to(device, non_blocking=True)


def evaluation_batch_size(images: Images, normalisation: Normalisation) -> int:
    """Return the size of batches without gradients: 512 images of 32x32 pixels, fewer of larger images."""
    side = normalisation.image_size or images.images_NCHW.shape[-1]
    return max(1, EVALUATION_PIXELS // side**2)


@dataclass(frozen=True)
class Draws:
    """The random numbers of an epoch's augmentation, one of each per image, in the order in which images are read.

    Attributes:
        flip_N: which images are mirrored, bool; None where none is.
        shift_2N: by how many pixels images are cut from above and from the left, 0 to 8; None where none is.
    """

    flip_N: torch.Tensor | None = None
    shift_2N: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Draws":
        """Return them on a device."""
        flip_N, shift_2N = self.flip_N, self.shift_2N
        return Draws(None if flip_N is None else flip_N.to(device), None if shift_2N is None else shift_2N.to(device))


def draw(kind: Augmentation, batch_sizes: Sequence[int], generator: torch.Generator) -> Draws:
    """Draw the random numbers of an epoch: each image is mirrored with probability 1/2 and, for crop_flip, shifted.

    Args:
        kind: 'none', 'flip' or 'crop_flip'.
        batch_sizes: numbers are drawn batch by batch, so that a study's images do not depend on how they are stored.
        generator: on the CPU, so that every device gets the same numbers.
    """
    if kind == "none":
        return Draws()
    flips, shifts = [], []
    for size in batch_sizes:
        flips.append(torch.rand(size, generator=generator) < 0.5)
        if kind == "crop_flip":
            shifts.append(torch.randint(0, 2 * CROP_PADDING + 1, (2, size), generator=generator))
    return Draws(torch.cat(flips), torch.cat(shifts, 1) if shifts else None)


def augment(images_BCHW: torch.Tensor, draws: Draws, places_B: slice | torch.Tensor) -> torch.Tensor:
    """Mirror and shift images as was drawn for their places in the epoch; what comes in from outside is black.

    Args:
        images_BCHW: uint8 images.
        draws: of the epoch, on the images' device.
        places_B: the images' places in the epoch.
    """
    if draws.flip_N is None:
        return images_BCHW
    flip_B = draws.flip_N[places_B]
    images_BCHW = torch.where(flip_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)
    if draws.shift_2N is None:
        return images_BCHW
    n, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded_BCHW = torch.nn.functional.pad(images_BCHW, (CROP_PADDING,) * 4)
    top_B, left_B = draws.shift_2N[:, places_B]
    rows_BH = top_B[:, None] + torch.arange(height, device=device)
    columns_BW = left_B[:, None] + torch.arange(width, device=device)
    numbers_B = torch.arange(n, device=device)
    # Indexing with the channels in between puts them last: B x H x W x C.
    return padded_BCHW[numbers_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)


def _channel_constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a constant per channel, C x 1 x 1."""
    return torch.tensor(values).to(device)[:, None, None]


_kept_channel_constant = functools.cache(_channel_constant)  # because a CUDA graph may not copy from the host


def normalise(images_NCHW: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Turn uint8 images into float32, channels last in memory: resized, scaled to 0..1 and standardised."""
    # While a program is exported, tensors are fake and must not be kept.
    channel_constant = _channel_constant if torch.compiler.is_exporting() else _kept_channel_constant
    mean_C11 = channel_constant(normalisation.mean, images_NCHW.device)
    std_C11 = channel_constant(normalisation.std, images_NCHW.device)
    images_NCHW = images_NCHW.to(torch.float32, memory_format=torch.channels_last)
    side, wanted = images_NCHW.shape[-1], normalisation.image_size
    if wanted is not None and wanted != side:
        images_NCHW = interpolate(images_NCHW, size=wanted, mode="bilinear", antialias=wanted < side)
    return (images_NCHW / 255 - mean_C11) / std_C11
