"""Images on the device: kept as uint8, resized and normalised a batch at a time.

Legend: N images, B images of a batch, C channels (3, RGB), H and W pixels.
"""

import functools
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import interpolate

from ablation.data.normalisation import Normalisation
from ablation.networks.weights import IMAGENET_MEAN, IMAGENET_STD, Weights

BLOCK_IMAGES = 1024  # that are read at a time where a whole set is
EVALUATION_PIXELS = 512 * 32 * 32  # per batch without gradients


def normalisation_for(weights: Weights | None, image_size: int) -> Normalisation:
    """Return the normalisation of pretrained weights, or ImageNet's without weights, at an image size."""
    mean, std = (weights.mean, weights.std) if weights else (IMAGENET_MEAN, IMAGENET_STD)
    return Normalisation(mean, std, image_size)


@dataclass(frozen=True)
class Images:
    """Images and labels.

    Attributes:
        images_NCHW: uint8, on the device; pixels that do not fit there are in the host's memory or in a memory map.
        labels_N: int64, on the device.
        rows_N: numbers of the images' rows in `images_NCHW`, beside it; None: row n is image n.
    """

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    rows_N: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def read(self, chosen_B: torch.Tensor) -> torch.Tensor:
        """Return the images with these numbers on the device; the numbers are where the pixels are, or on the host."""
        rows_B = chosen_B if self.rows_N is None else self.rows_N[chosen_B]
        return copy_to(self.images_NCHW[rows_B], self.labels_N.device)

    def in_order(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield all images in order, on the device."""
        if self.rows_N is None:
            batches: Iterable[torch.Tensor] = torch.split(self.images_NCHW, batch_size)
        else:
            batches = (self.images_NCHW[rows_B] for rows_B in torch.split(self.rows_N, batch_size))
        for images_BCHW in batches:
            yield copy_to(images_BCHW, self.labels_N.device)

    def subset(self, chosen_N: torch.Tensor) -> "Images":
        """Return the images with these numbers, which are where the pixels are, or on the host."""
        labels_N = self.labels_N[chosen_N.to(self.labels_N.device)]
        if self.rows_N is None:
            return Images(self.images_NCHW[chosen_N], labels_N)
        return Images(self.images_NCHW, labels_N, self.rows_N[chosen_N])

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the pixels."""
        digest = hashlib.sha256(str((len(self), *self.images_NCHW.shape[1:])).encode())
        for numbers_B in torch.split(torch.arange(len(self), device=self.images_NCHW.device), BLOCK_IMAGES):
            rows_B = numbers_B if self.rows_N is None else self.rows_N[numbers_B]
            digest.update(self.images_NCHW[rows_B].cpu().contiguous().numpy().data)
        return digest.hexdigest()


def to_device(images_NHWC: np.ndarray, labels_N: np.ndarray, indices: np.ndarray, device: torch.device) -> Images:
    """Copy the chosen images to the device; pixels that need more than half of its free memory stay on the host.

    Pixels in a memory map (`np.memmap`) are not copied to the host's memory either, but read from it batch by batch.
    """
    chosen_labels_N = torch.from_numpy(labels_N[indices]).to(device)
    needed = len(indices) * images_NHWC[:1].nbytes
    fits = device.type != "cuda" or needed <= torch.cuda.mem_get_info(device)[0] / 2
    if not isinstance(images_NHWC, np.memmap):
        images = torch.from_numpy(images_NHWC[indices]).permute(0, 3, 1, 2).contiguous()
        return Images(images.to(device) if fits else images, chosen_labels_N)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        mapped = Images(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2), chosen_labels_N, torch.from_numpy(indices))
    if device.type != "cuda" or not fits:
        return mapped
    copied_NCHW = torch.empty((len(indices), *mapped.images_NCHW.shape[1:]), dtype=torch.uint8, device=device)
    first = 0
    for images_BCHW in mapped.in_order(BLOCK_IMAGES):
        copied_NCHW[first : first + len(images_BCHW)] = images_BCHW
        first += len(images_BCHW)
    return Images(copied_NCHW, chosen_labels_N)


def copy_to(rows_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return rows on the device; a copy from the host's memory does not wait for the device."""
    return rows_B if rows_B.device == device else rows_B.pin_memory().to(device, non_blocking=True)


def evaluation_batch_size(images: Images, normalisation: Normalisation) -> int:
    """Return the size of batches without gradients: 512 images of 32x32 pixels, fewer of larger images."""
    side = normalisation.image_size or images.images_NCHW.shape[-1]
    return max(1, EVALUATION_PIXELS // side**2)


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
    return (scaled(images_NCHW, normalisation.image_size) - mean_C11) / std_C11


def scaled(images_NCHW: torch.Tensor, image_size: int | None) -> torch.Tensor:
    """Turn uint8 images into float32 from 0 to 1, channels last in memory, resized if a size is given."""
    images_NCHW = images_NCHW.to(torch.float32, memory_format=torch.channels_last)
    side = images_NCHW.shape[-1]
    if image_size is not None and image_size != side:
        images_NCHW = interpolate(images_NCHW, size=image_size, mode="bilinear", antialias=image_size < side)
    return images_NCHW / 255
