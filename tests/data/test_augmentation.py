"""Random changes of training images: what is drawn, and what it does to pixels and labels."""

import math

import pytest
import torch

from ablation.base.generators import generator
from ablation.data.augmentation import Draws, augment, draw, own_share
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.training.loss import mixed_loss
from ablation.training.sources import FrozenPart, ImageSource, draw_epoch

ALL = slice(None)


def unchanged(images: int) -> dict[str, torch.Tensor]:
    """Return draws that mirror nothing and shift nothing."""
    return {"flip_N": torch.zeros(images, dtype=torch.bool), "shift_2N": torch.full((2, images), 4)}


def test_stronger_kinds_draw_more() -> None:
    """The first batch's flips and shifts are the same, so that each kind is the one before it and more."""
    flip, crop, strong = (draw(kind, [50, 7], generator(1)) for kind in ("flip", "crop_flip", "strong"))
    assert torch.equal(flip.flip_N[:50], crop.flip_N[:50])
    assert torch.equal(crop.flip_N[:50], strong.flip_N[:50])
    assert torch.equal(crop.shift_2N[:, :50], strong.shift_2N[:, :50])
    assert flip.shift_2N is crop.erased_4N is crop.mixed_4N is None
    assert strong.erased_4N.shape == strong.mixed_4N.shape == (4, 57)


def test_what_is_erased_has_the_area_and_the_aspect_of_the_paper() -> None:
    height, width, top, left = draw("strong", [20_000], generator(2)).erased_4N
    is_erased = height > 0
    assert is_erased.float().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 20_000))
    area, aspect = (height * width)[is_erased], (height / width)[is_erased]
    assert area.min() >= 0.0199
    assert area.max() <= 0.3301
    assert aspect.min() >= 0.29
    assert aspect.max() <= 3.31
    assert aspect.median().item() == pytest.approx(1.0, abs=0.1)  # high and wide ones are equally frequent
    assert (top - height / 2).min() >= -1e-6
    assert (left + width / 2).max() <= 1 + 1e-6


def test_the_erased_part_is_black() -> None:
    """Two rows and four columns of an image of 8 x 8, whose centre is a quarter from above and a half from the left."""
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    erased = torch.tensor([[0.25, 0.0], [0.5, 0.0], [0.25, 0.5], [0.5, 0.5]])
    changed = augment(images, Draws(**unchanged(2), erased_4N=erased), ALL)
    expected = images.clone()
    expected[0, :, 1:3, 2:6] = 0
    assert torch.equal(changed, expected)


def test_mixup_blends_an_image_with_the_next() -> None:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 8, 8) * 50
    mixed = torch.tensor([0.0, 0.7, 0.5, 0.5])[:, None].expand(4, 3)
    draws = Draws(**unchanged(3), mixed_4N=mixed)
    changed = augment(images, draws, ALL)
    torch.testing.assert_close(changed[:, 0, 0, 0], torch.tensor([0.7 * 0 + 0.3 * 100, 0.7 * 50, 0.7 * 100 + 0.3 * 50]))
    assert own_share(draws, ALL, 8, 8).mean().item() == pytest.approx(0.7)


def test_cutmix_exchanges_a_rectangle_with_the_next_image() -> None:
    """A quarter of the area: 4 x 4 of 8 x 8 pixels around the centre; at a corner, only what lies inside counts."""
    images = torch.tensor([10, 20], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 8, 8)
    for centre, rows, share in ((0.5, slice(2, 6), 0.75), (0.0, slice(0, 2), 1 - 4 / 64)):
        mixed = torch.tensor([1.0, 0.75, centre, centre])[:, None].expand(4, 2)
        draws = Draws(**unchanged(2), mixed_4N=mixed)
        expected = images.float().clone()
        expected[0, :, rows, rows], expected[1, :, rows, rows] = 20, 10
        assert torch.equal(augment(images, draws, ALL), expected)
        assert own_share(draws, ALL, 8, 8).mean().item() == pytest.approx(share)


def test_both_kinds_of_mixing_are_drawn_once_per_batch() -> None:
    mixed = draw("strong", [10] * 400, generator(3)).mixed_4N.reshape(4, 400, 10)
    assert torch.equal(mixed, mixed[:, :, :1].expand_as(mixed))
    assert mixed[0].mean().item() == pytest.approx(0.5, abs=0.1)
    assert mixed[1].mean().item() == pytest.approx(0.5, abs=0.06)  # uniform, as Beta(1, 1) is
    assert mixed[1].var().item() == pytest.approx(1 / 12, abs=0.01)


def test_the_loss_of_mixed_images_has_both_labels() -> None:
    logits = torch.randn(4, 3, generator=generator(4))
    labels = torch.tensor([0, 2, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.5])
    soft = 0.3 * torch.eye(3)[labels] + 0.7 * torch.eye(3)[labels.roll(1)]
    smooth = 0.9 * soft + 0.1 / 3
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed_loss(logits, labels, torch.tensor(0.3), None, 0.1), expected)
    weighted = -(soft * weights * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed_loss(logits, labels, torch.tensor(0.3), weights, 0.0), weighted)


def test_a_source_mixes_images_before_the_frozen_part() -> None:
    """Places given as numbers, as a CUDA graph has them, read the same as a slice of them."""
    pixels = torch.randint(0, 256, (12, 3, 8, 8), generator=generator(5), dtype=torch.uint8)
    images = Images(pixels, torch.arange(12))
    frozen = FrozenPart([], None, Normalisation((0.5,) * 3, (0.25,) * 3), "float32")
    source = ImageSource(images, frozen, "strong")
    epoch = draw_epoch(source, torch.randperm(12, generator=generator(6)), 6, generator(7))
    batch, same = source.read(epoch, slice(6, 12)), source.read(epoch, torch.arange(6, 12))
    assert torch.equal(batch.inputs, same.inputs)
    own = own_share(epoch.draws, slice(6, 12), 8, 8)
    single = Draws(**{**vars(epoch.draws), "mixed_4N": None})
    alone = augment(pixels[epoch.order_N[6:]], single, slice(6, 12)).float()
    expected = own * alone + (1 - own) * alone.roll(1, 0)
    torch.testing.assert_close(batch.inputs, (expected / 255 - 0.5) / 0.25)
    torch.testing.assert_close(batch.own_share, own.mean())
    assert 0 < batch.own_share < 1
