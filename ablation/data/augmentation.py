"""Random changes of training images on the device, whose random numbers are drawn an epoch at a time.

Legend: N images of an epoch, B images of a batch, C channels, H and W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from ablation.spec.parameters import Augmentation

CROP_PADDING = 4  # pixels, He et al. (2016) for CIFAR-10; the report says so in `run_sections.AUGMENTATIONS`
ERASED_IMAGES = 0.1  # share of images of which `strong` erases a part, as torchvision's recipe of 2021 does
ERASED_AREA = (0.02, 0.33)  # share of an image, and `ERASED_ASPECT` height by width: Zhong et al. (2020)
ERASED_ASPECT = (0.3, 3.3)


@dataclass(frozen=True)
class Draws:
    """The random numbers of an epoch's augmentation, one of each per image, in the order in which images are read.

    Attributes:
        flip_N: which images are mirrored, bool; None where none is.
        shift_2N: by how many pixels images are cut from above and from the left, 0 to 8; None where none is.
        erased_4N: height and width of the part that is erased, and the place of its centre from above and from the
            left, as shares of the image's height and width, float32; None where nothing is.
        mixed_4N: whether a rectangle is exchanged with the next image of the batch (1, CutMix) or the whole image
            blended with it (0, mixup); the share of the image that is its own; the rectangle's centre from above and
            from the left. A batch has the same numbers throughout. float32; None where nothing is mixed.
    """

    flip_N: torch.Tensor | None = None
    shift_2N: torch.Tensor | None = None
    erased_4N: torch.Tensor | None = None
    mixed_4N: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Draws":
        """Return them on a device."""
        return Draws(**{name: numbers.to(device) for name, numbers in self._drawn().items()})

    def copy_(self, other: "Draws") -> None:
        """Take the numbers of another epoch with the same augmentation over, in the same memory."""
        drawn = other._drawn()
        for name, numbers in self._drawn().items():
            numbers.copy_(drawn[name])

    def _drawn(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: numbers for name, numbers in values.items() if numbers is not None}


def draw(kind: Augmentation, batch_sizes: Sequence[int], generator: torch.Generator) -> Draws:
    """Draw the random numbers of an epoch.

    Each image is mirrored with probability 1/2, shifted ('crop_flip' and 'strong'), and a part of some is erased
    ('strong'; Zhong et al., 2020). With 'strong', each batch is also mixed: by mixup (Zhang et al., 2018) or by CutMix
    (Yun et al., 2019) with equal probability, each with uniform shares, as these papers have it for CIFAR-10.

    Args:
        kind: 'none', 'flip', 'crop_flip' or 'strong'.
        batch_sizes: numbers are drawn batch by batch, so that a study's images do not depend on how they are stored.
        generator: on the CPU, so that every device gets the same numbers.
    """
    if kind == "none":
        return Draws()
    flips, shifts, erased, mixed = [], [], [], []
    for size in batch_sizes:
        flips.append(torch.rand(size, generator=generator) < 0.5)
        if kind != "flip":
            shifts.append(torch.randint(0, 2 * CROP_PADDING + 1, (2, size), generator=generator))
        if kind == "strong":
            erased.append(_draw_erased(size, generator))
            is_cutmix, *numbers = torch.rand(4, generator=generator)
            mixed.append(torch.stack([(is_cutmix < 0.5).float(), *numbers])[:, None].expand(4, size))
    return Draws(
        torch.cat(flips),
        torch.cat(shifts, 1) if shifts else None,
        torch.cat(erased, 1) if erased else None,
        torch.cat(mixed, 1) if mixed else None,
    )


def _draw_erased(size: int, generator: torch.Generator) -> torch.Tensor:
    """Return what `Draws.erased_4N` says of one batch."""
    chosen_B, area_B, aspect_B, top_B, left_B = torch.rand(5, size, generator=generator)
    smallest, largest = ERASED_AREA
    area_B = torch.where(chosen_B < ERASED_IMAGES, smallest + (largest - smallest) * area_B, 0)
    low, high = (math.log(aspect) for aspect in ERASED_ASPECT)
    aspect_B = (low + (high - low) * aspect_B).exp()
    height_B, width_B = (area_B * aspect_B).sqrt().clamp(max=1), (area_B / aspect_B).sqrt().clamp(max=1)
    top_B, left_B = height_B / 2 + (1 - height_B) * top_B, width_B / 2 + (1 - width_B) * left_B
    return torch.stack([height_B, width_B, top_B, left_B])


def augment(images_BCHW: torch.Tensor, draws: Draws, places_B: slice | torch.Tensor) -> torch.Tensor:
    """Change images as was drawn for their places in the epoch; what comes in from outside, or is erased, is black.

    Args:
        images_BCHW: uint8 images.
        draws: of the epoch, on the images' device.
        places_B: the images' places in the epoch.

    Returns:
        Images BCHW: uint8, or float32 from 0 to 255 where they are mixed.
    """
    if draws.flip_N is None:
        return images_BCHW
    flip_B = draws.flip_N[places_B]
    images_BCHW = torch.where(flip_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)
    if draws.shift_2N is not None:
        images_BCHW = _shift(images_BCHW, draws.shift_2N[:, places_B])
    if draws.erased_4N is not None:
        erased_BHW = _rectangles(draws.erased_4N[:, places_B], *images_BCHW.shape[2:])
        images_BCHW = images_BCHW.masked_fill(erased_BHW[:, None], 0)
    if draws.mixed_4N is not None:
        own_HW = own_share(draws, places_B, *images_BCHW.shape[2:])
        images_BCHW = torch.lerp(images_BCHW.roll(1, 0).float(), images_BCHW.float(), own_HW)
    return images_BCHW


def own_share(draws: Draws, places_B: slice | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return how much of each pixel of a batch's images is their own: HW, from 0 to 1; the rest is the next image's.

    Its mean is the weight of an image's own label. The draws must mix.
    """
    assert draws.mixed_4N is not None
    is_cutmix, share, top, left = draws.mixed_4N[:, places_B][:, 0]
    side = (1 - share).sqrt()
    inside_HW = _rectangles(torch.stack([side, side, top, left])[:, None], height, width)[0]
    return torch.where(is_cutmix > 0, 1 - inside_HW.float(), share)


def _shift(images_BCHW: torch.Tensor, shift_2B: torch.Tensor) -> torch.Tensor:
    n, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded_BCHW = torch.nn.functional.pad(images_BCHW, (CROP_PADDING,) * 4)
    top_B, left_B = shift_2B
    rows_BH = top_B[:, None] + torch.arange(height, device=device)
    columns_BW = left_B[:, None] + torch.arange(width, device=device)
    numbers_B = torch.arange(n, device=device)
    # Indexing with the channels in between puts them last: B x H x W x C.
    return padded_BCHW[numbers_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)


def _rectangles(shares_4B: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return which pixels lie in rectangles: bool BHW.

    Args:
        shares_4B: height, width, and centre from above and from the left, as shares of the image's sides.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    height_B, width_B, top_B, left_B = shares_4B
    device = shares_4B.device
    rows_H = (torch.arange(height, device=device) + 0.5) / height
    columns_W = (torch.arange(width, device=device) + 0.5) / width
    rows_BH: torch.Tensor = (rows_H - top_B[:, None]).abs() < height_B[:, None] / 2
    columns_BW: torch.Tensor = (columns_W - left_B[:, None]).abs() < width_B[:, None] / 2
    return rows_BH[:, :, None] & columns_BW[:, None, :]
