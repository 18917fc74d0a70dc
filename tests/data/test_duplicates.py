"""Identical images: between splits and classes they are refused, left out, or kept, as the study wants it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.base.errors import InputError
from ablation.data.duplicates import Pictures, kept, refuse_identical
from ablation.data.reading import load_images, load_split
from ablation.spec.tables import Data
from tests.data.test_image_folder import data, tree


def pictures(digests: str, labels: str, tests: str) -> Pictures:
    labels_N = np.array([int(label) for label in labels])
    is_test_N = np.array([test == "t" for test in tests])
    return Pictures(list(digests), labels_N, is_test_N, [f"{number}.png" for number in range(len(digests))])


def test_pairs_are_named_with_what_they_share() -> None:
    assert refuse_identical(pictures("abcd", "0101", "..tt")) == 0
    with pytest.raises(InputError, match=r"0.png = 2.png \(training and test\), 1.png = 3.png \(two classes\); 'drop'"):
        refuse_identical(pictures("abab", "0001", "..t."))
    many = pictures("a" * 14, "0" * 14, "." + "t" * 13)
    with pytest.raises(InputError, match=r"0.png = 10.png \(training and test\) and 3 more; 'drop'"):
        refuse_identical(many)


def test_copies_in_one_class_and_split_are_counted() -> None:
    assert refuse_identical(pictures("aaabbc", "000110", "...ttt")) == 3


def test_of_copies_one_stays_and_none_with_two_labels() -> None:
    """a: the test image; b: the first of two training images; c: two labels; d: alone."""
    stays = kept(pictures("abacbcd", "0100110", "..t...."))
    assert np.flatnonzero(stays).tolist() == [1, 2, 6]


def planted(root: Path) -> Path:
    """Return a folder in which one training image is a test image, another is in two classes, another twice in one."""
    tree(root, "train/a", "train/b", "test/a", "test/b", count=6)
    Image.open(root / "train" / "a" / "0.png").save(root / "test" / "a" / "leak.bmp")  # the same pixels
    shutil.copy(root / "train" / "a" / "1.png", root / "train" / "b" / "two_labels.png")
    shutil.copy(root / "train" / "a" / "2.png", root / "train" / "a" / "twice.png")
    return root


def test_a_folder_with_leaks(tmp_path: Path) -> None:
    root = planted(tmp_path)
    leak = r"train/a/0.png = \S+test/a/leak.bmp \(training and test\), \S+a/1.png = \S+b/two_labels.png \(two classes\)"
    for more in ({}, {"duplicates": "error"}):
        with pytest.raises(InputError, match=leak):
            load_split(data(root, val_fraction=0.25, **more), seed=0)
    images, _ = load_split(data(root, val_fraction=0.25), seed=0, is_begun=True)  # which has looked
    assert len(images.train_labels_N) == 14
    images, _ = load_split(data(root, val_fraction=0.25, duplicates="keep"), seed=0)
    assert (len(images.train_labels_N), len(images.test_labels_N)) == (14, 13)
    images, _ = load_split(data(root, val_fraction=0.25, duplicates="drop"), seed=0)
    assert (len(images.train_labels_N), len(images.test_labels_N)) == (10, 13)
    assert images.reading.endswith("left out: 4 copies")
    pixels = [image.tobytes() for image in [*images.train_images_NHWC, *images.test_images_NHWC]]
    assert len(set(pixels)) == len(pixels)


def test_a_link_to_a_test_image_is_a_leak(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a", "train/b", "test/a", "test/b", count=6)
    (root / "train" / "a" / "linked.png").symlink_to(root / "test" / "a" / "3.png")
    (root / "train" / "b" / "folder").symlink_to(root / "test" / "b")
    with pytest.raises(InputError, match=r"a/linked.png = \S+test/a/3.png \(training and test\).*b/folder/0.png"):
        load_split(data(root, val_fraction=0.25), seed=0)


def test_copies_inside_a_class_are_said(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a", "train/b", "test/a", "test/b", count=6)
    shutil.copy(root / "train" / "a" / "2.png", root / "train" / "a" / "twice.png")
    images, _ = load_split(data(root, val_fraction=0.25), seed=0)
    assert images.reading.endswith("1 image identical to another of the same class and split")


def test_sets_of_others_are_kept_as_they_are(tmp_path: Path) -> None:
    """scikit-learn's digits have the same digit in both splits, where 8 x 8 pixels are few."""
    whole = load_images(Data(source="digits", image_size=8))
    load_split(Data(source="digits", image_size=8), seed=0)
    dropped, _ = load_split(Data(source="digits", image_size=8, duplicates="drop"), seed=0)
    pixels = [image.tobytes() for image in [*whole.train_images_NHWC, *whole.test_images_NHWC]]
    assert len(dropped.train_labels_N) + len(dropped.test_labels_N) == len(set(pixels))
