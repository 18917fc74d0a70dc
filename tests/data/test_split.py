"""The split of training images: reproducible, by class, refused where it cannot be."""

import numpy as np
import pytest

from ablation.base.errors import InputError
from ablation.data.decoding import ImageListing
from ablation.data.reading import DataSize
from ablation.data.split import Split, split_listing, split_train_val
from ablation.spec.tables import Data


def split_of(labels_N: np.ndarray, *, limit: int, seed: int = 0) -> Split:
    """Split a subset of training images."""
    classes = [str(k) for k in range(labels_N.max() + 1)]
    listing = ImageListing(labels_N, labels_N, classes, 8, lambda *_: (labels_N, labels_N))
    return split_listing(Data(source="digits", limit=limit), listing, seed)


def test_split_is_disjoint_balanced_and_reproducible() -> None:
    labels = np.repeat(np.arange(10), [50, 50, 50, 50, 50, 100, 100, 100, 100, 150])
    split = split_of(labels, seed=2**40, limit=400)
    both = np.concatenate([split.train_N, split.val_N])
    assert len(np.unique(both)) == len(both) == 400
    assert len(split.val_N) == 40
    # Half of the images: half of each class, and a tenth of those for validation, rounded.
    assert np.bincount(labels[both]).tolist() == [25, 25, 25, 25, 25, 50, 50, 50, 50, 75]
    assert all(abs(np.bincount(labels[split.val_N]) - np.bincount(labels[both]) / 10) < 1)
    again = split_of(labels, seed=2**40, limit=400)
    assert np.array_equal(again.train_N, split.train_N)
    assert np.array_equal(again.val_N, split.val_N)
    assert not np.array_equal(split_of(labels, seed=1, limit=400).val_N, split.val_N)


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(InputError, match="data.limit: 11 is more than the 10 training images"):
        split_of(np.arange(10) % 2, limit=11)
    for limit in (3, 92):
        with pytest.raises(
            InputError, match=f"data.limit: {limit} of 100 images cannot be chosen by class: 10 classes need one image"
        ):
            split_of(np.arange(100) % 10, limit=limit)
    with pytest.raises(InputError, match="data.val_fraction: 2 of 12 images for validation, but 3 classes need one"):
        split_train_val(np.arange(12) % 3, 0.1, seed=0)
    with pytest.raises(InputError, match="data.val_fraction: 10 images cannot be split by class"):
        split_train_val(np.array([0] * 9 + [1]), 0.2, seed=0)


def test_a_size_counts_the_validation_images_that_the_split_makes() -> None:
    """A tenth of 1,442 is rounded up."""
    split = split_train_val(np.arange(1442) % 2, 0.1, seed=0)
    assert len(split.val_N) == DataSize(2, 1442, 100).validation(0.1) == 145
