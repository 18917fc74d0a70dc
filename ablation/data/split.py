"""The split of a study's training images: into those to learn from and those for validation.

Legend: N images, K classes.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.seeds import named_seed
from ablation.base.text import plural
from ablation.data.decoding import ImageListing
from ablation.data.groups import choose_groups, numbered
from ablation.spec.tables import Data


@dataclass(frozen=True)
class Split:
    """Sorted indices into a set's training images: those for training, and those for validation."""

    train_N: np.ndarray
    val_N: np.ndarray


def split_seed(study_seed: int) -> int:
    """Return the seed of a study's split: the same for all its trials and for all seeds of confirmation runs."""
    return named_seed(study_seed, "split")


def split_listing(data: Data, listing: ImageListing, seed: int) -> Split:
    """Split the training images of a study, or a stratified subset of `data.limit` images; see `split_train_val`.

    Raises:
        InputError: as `split_train_val`; there are fewer images than `data.limit`; or a class has fewer than two, of
            all or of those that it leaves.
    """
    labels_N = listing.train_labels_N
    _check_counts(labels_N, listing.classes, "data:")
    chosen_N = np.arange(len(labels_N))
    if data.limit is not None:
        chosen_N = _limited(labels_N, data.limit, seed)
        _check_counts(labels_N[chosen_N], listing.classes, f"data.limit: of {data.limit} images,")
    groups_N = None if listing.groups is None else numbered(listing.groups["train"])[chosen_N]
    split = split_train_val(labels_N[chosen_N], data.val_fraction, seed, groups_N)
    return Split(np.sort(chosen_N[split.train_N]), np.sort(chosen_N[split.val_N]))


def _check_counts(labels_N: np.ndarray, classes: list[str], where: str) -> None:
    """Refuse a class with fewer than two images."""
    counts_K = np.bincount(labels_N, minlength=len(classes))
    if counts_K.min() < 2:
        raise InputError(
            f"{where} class {classes[int(counts_K.argmin())]!r} has {plural(int(counts_K.min()), 'training image')}, "
            "but needs two: to learn from and to validate"
        )


def split_train_val(labels_N: np.ndarray, val_fraction: float, seed: int, groups_N: np.ndarray | None = None) -> Split:
    """Split images into those to learn from and those for validation.

    Both parts keep the classes' shares, as far as whole groups allow.

    Raises:
        InputError: there are too few images or groups of a class.
    """
    random_state = seed % 2**32  # NumPy's seeds have 32 bits
    images, classes, val_count = len(labels_N), len(np.unique(labels_N)), int(np.ceil(val_fraction * len(labels_N)))
    if min(val_count, images - val_count) < classes:
        raise InputError(
            f"data.val_fraction: {val_count} of {images} images for validation, but {classes} classes need one each, "
            "for validation and for training; change it, or use more images"
        )
    if groups_N is not None:
        is_val_N = choose_groups(labels_N, groups_N, val_fraction, random_state)
        return Split(np.flatnonzero(~is_val_N), np.flatnonzero(is_val_N))
    try:
        train_N, val_N = train_test_split(
            np.arange(images), test_size=val_fraction, stratify=labels_N, random_state=random_state
        )
    except ValueError as error:
        raise InputError(f"data.val_fraction: {images} images cannot be split by class: {error}") from None
    return Split(np.sort(train_N), np.sort(val_N))


def _limited(labels_N: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return the numbers of a stratified subset of so many images.

    Raises:
        InputError: there are fewer, or too few of a class among those chosen or left out.
    """
    images, classes = len(labels_N), len(np.unique(labels_N))
    if limit > images:
        raise InputError(f"data.limit: {limit} is more than the {images} training images")
    if limit == images:
        return np.arange(images)
    if min(limit, images - limit) < classes:  # scikit-learn's rule for a stratified choice
        raise InputError(
            f"data.limit: {limit} of {images} images cannot be chosen by class: {classes} classes need one image each "
            "among those chosen and among those left out"
        )
    chosen_N: np.ndarray
    chosen_N, _ = train_test_split(np.arange(images), train_size=limit, stratify=labels_N, random_state=seed % 2**32)
    return chosen_N
