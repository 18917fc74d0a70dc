"""The images that the report shows: those that the network gets, and the right ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ablation.base.errors import InputError
from ablation.data.image_set import ImageSet
from ablation.data.images import normalise
from ablation.data.normalisation import Normalisation
from ablation.data.sample_drawing import as_fed, draw_samples
from ablation.data.samples import Samples, confident_mistakes, load_samples, samples_file
from ablation.spec.parameters import Augmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_images(count: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(count).integers(1, 256, (count, side, side, 3), np.uint8)


def image_set(labels_N: np.ndarray) -> ImageSet:
    pixels = random_images(len(labels_N))
    return ImageSet(pixels, labels_N, pixels[:1], labels_N[:1], [str(k) for k in range(labels_N.max() + 1)], "digest")


# ------------------------------------------------------------------------------------------- as the network gets it


def test_images_that_have_their_size_are_shown_to_the_bit() -> None:
    pixels_NHWC = np.arange(2 * 16 * 16 * 3, dtype=np.int64).reshape(2, 16, 16, 3).astype(np.uint8)  # all 256 values
    images_NCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)
    for normalisation in (Normalisation(MEAN, STD, 16), Normalisation((0.3,) * 3, (0.01, 0.35, 2.0))):
        np.testing.assert_array_equal(as_fed(images_NCHW, normalisation), pixels_NHWC)


@pytest.mark.parametrize("size", [7, 12, 20])
def test_resized_images_differ_from_what_goes_in_by_rounding_alone(size: int) -> None:
    images_NCHW = torch.from_numpy(random_images(3)).permute(0, 3, 1, 2)
    normalisation = Normalisation(MEAN, STD, size)
    shown_NCHW = torch.from_numpy(as_fed(images_NCHW, normalisation)).permute(0, 3, 1, 2)
    assert shown_NCHW.shape == (3, 3, size, size)
    off_NCHW = (normalise(shown_NCHW, normalisation) - normalise(images_NCHW, normalisation)).abs()
    assert (off_NCHW * torch.tensor(STD)[:, None, None] * 255).max() < 0.501


def test_what_a_page_cannot_show_is_scaled_down() -> None:
    image_1CHW = torch.zeros(1, 3, 200, 200, dtype=torch.uint8)
    image_1CHW[:, 1, :, :100] = 200
    (shown_SSC,) = as_fed(image_1CHW, Normalisation(MEAN, STD, 200))
    assert shown_SSC.shape == (96, 96, 3)
    assert (shown_SSC[:, :47] == [0, 200, 0]).all()
    assert (shown_SSC[:, 49:] == 0).all()


# ---------------------------------------------------------------------------------------------------- the samples


def drawn(augmentations: list[Augmentation], labels_N: np.ndarray, train_N: np.ndarray, seed: int = 0) -> Samples:
    return draw_samples(image_set(labels_N), train_N, Normalisation(MEAN, STD, 12), augmentations, seed)


LABELS = np.arange(200) % 5
LEARNT = np.arange(0, 200, 3)


@pytest.mark.parametrize(
    ("augmentations", "images", "views"),
    [
        ([], 8, 1),
        (["flip"], 2, 4),
        (["flip", "crop_flip"], 1, 7),
        (["flip", "crop_flip", "strong"], 1, 10),  # more views than there is room for: one image all the same
    ],
)
def test_samples_are_different_images_of_each_class_that_are_learnt_from(
    augmentations: list[Augmentation], images: int, views: int
) -> None:
    samples = drawn(augmentations, LABELS, LEARNT)
    pixels = random_images(len(LABELS))
    assert samples.images_RIVSSC.shape == (5, images, views, 12, 12, 3)
    assert list(samples.classes_R) == [0, 1, 2, 3, 4]
    numbers = []
    for row, k in enumerate(samples.classes_R):
        for image in range(images):
            (number,) = np.flatnonzero((pixels == samples.images_RIVSSC[row, image, 0]).all((1, 2, 3)))
            assert LABELS[number] == k
            assert number in LEARNT
            numbers.append(number)
    assert len(set(numbers)) == 5 * images


def test_views_are_what_augmentation_may_make_of_the_image() -> None:
    samples = drawn(["flip", "crop_flip"], LABELS, LEARNT)
    flips, shifts = set(), set()
    for views_VSSC in samples.images_RIVSSC.reshape(-1, 7, 12, 12, 3):
        orientations = [views_VSSC[0], views_VSSC[0][:, ::-1]]
        for view_SSC in views_VSSC[1:4]:
            flips.add([np.array_equal(view_SSC, one) for one in orientations].index(True))
        padded = [np.pad(one, ((4, 4), (4, 4), (0, 0))) for one in orientations]
        for view_SSC in views_VSSC[4:]:
            (found,) = [
                (top, left)
                for one in padded for top in range(9) for left in range(9)
                if np.array_equal(view_SSC, one[top : top + 12, left : left + 12])
            ]  # fmt: skip
            shifts.add(found)
    assert flips == {0, 1}
    assert len(shifts) > 5


def test_of_many_classes_some_are_shown_from_the_first_to_the_last() -> None:
    samples = drawn([], np.arange(400) % 20, np.arange(400))
    assert list(samples.classes_R) == [0, 3, 5, 8, 11, 14, 16, 19]


def test_the_rarest_class_says_how_many_images_there_are() -> None:
    labels_N = np.array([0] * 20 + [1] * 3 + [2])
    assert drawn([], labels_N, np.arange(23)).images_RIVSSC.shape[:2] == (2, 3)  # none of class 2 is learnt from
    assert drawn(["flip"], labels_N, np.arange(24)).images_RIVSSC.shape[:2] == (3, 1)


def test_the_seed_says_which() -> None:
    first, second, other = (drawn(["flip"], LABELS, LEARNT, seed) for seed in (0, 0, 1))
    assert samples_file(first) == samples_file(second)
    assert not np.array_equal(first.images_RIVSSC, other.images_RIVSSC)


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = drawn(["crop_flip"], LABELS, LEARNT)
    path = tmp_path / "samples.safetensors"
    path.write_bytes(samples_file(samples))
    found = load_samples(path)
    np.testing.assert_array_equal(found.images_RIVSSC, samples.images_RIVSSC)
    np.testing.assert_array_equal(found.classes_R, samples.classes_R)
    assert (found.augmentations, found.normalisation) == (["crop_flip"], Normalisation(MEAN, STD, 12))
    for content in (b"", path.read_bytes()[:-1], path.read_bytes().replace(b"about", b"uabot")):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            load_samples(path)


# ---------------------------------------------------------------------------------------------------- the mistakes


def test_the_most_confident_mistakes_by_hand() -> None:
    probabilities_NK = np.array(
        [[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.2, 0.0, 0.8], [0.4, 0.6, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]],
        np.float16,
    )
    labels_N = np.array([0, 0, 1, 2, 0, 2])  # 0 and 5 are right
    predicted_N = np.array([0, 1, 2, 1, 1, 2])  # of 4 the argmax of the logits, which float16 made equal
    assert list(confident_mistakes(probabilities_NK, predicted_N, labels_N)) == [2, 1, 3, 4]
    assert list(confident_mistakes(probabilities_NK, labels_N, labels_N)) == []


def test_no_more_mistakes_than_can_be_shown() -> None:
    probabilities_NK = np.stack([np.linspace(0.5, 1, 30), np.linspace(0.5, 0, 30)], axis=1).astype(np.float16)
    zeros_N = np.zeros(30, np.int64)
    assert list(confident_mistakes(probabilities_NK, zeros_N, zeros_N + 1)) == list(range(29, 17, -1))
    assert as_fed(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), Normalisation(MEAN, STD, 8)).shape == (0, 8, 8, 3)
