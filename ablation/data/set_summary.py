"""What the report shows of a set of images: counts, a contact sheet, near-duplicates across training and test.

Legend: D splits (training, validation, test), K classes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ablation.base.errors import InputError
from ablation.data.image_set import ImageSet
from ablation.data.kept_duplicates import (
    Comparison,
    comparison_file,
    comparison_of,
    keep_comparison,
    kept_comparison,
    load_comparison,
)
from ablation.data.near_duplicates import FEW, Picture, find_near_duplicates
from ablation.data.overview import small_contact_sheet
from ablation.data.split import Split


@dataclass(frozen=True)
class SetSummary:
    """A study's images as the report shows them.

    Attributes:
        counts_DK: images of each class in training, validation and test, int64.
        sheet: a contact sheet of training images, PNG.
        comparison: what a comparison of all pictures found; None without one.
        why_not: why there is no comparison; empty with one.
    """

    counts_DK: np.ndarray
    sheet: bytes
    comparison: Comparison | None
    why_not: str = ""


def summarise_set(images: ImageSet, split: Split) -> SetSummary:
    """Return the summary of a study's images.

    Up to `FEW` pictures are compared here unless that has been done before. Of more, only what
    `python -m ablation.data check` kept is shown, because comparing them takes time. That is of all images, whatever
    `data.limit`.
    """
    labels = [images.train_labels_N[split.train_N], images.train_labels_N[split.val_N], images.test_labels_N]
    counts_DK = np.stack([np.bincount(labels_N, minlength=len(images.classes)) for labels_N in labels])
    comparison, why_not = kept_comparison(_own_key(images)) or kept_comparison(images.listing_key), ""
    if comparison is None:
        comparison, why_not = _compare(images)
    return SetSummary(counts_DK, small_contact_sheet(images), comparison, why_not)


def _own_key(images: ImageSet) -> str:
    """Return what identifies a study's own images: by their pixels, and by their names, which the comparison shows."""
    return hashlib.sha256(f"{images.listing_key} {images.digest}".encode()).hexdigest()


def _compare(images: ImageSet) -> tuple[Comparison | None, str]:
    count = len(images.train_labels_N) + len(images.test_labels_N)
    if count > FEW:
        return None, f"the set has more than {FEW:,} images"
    pictures: list[Picture] = [*images.train_images_NHWC, *images.test_images_NHWC]
    try:
        found = find_near_duplicates(pictures)
    except InputError as error:  # without the optional library
        return None, str(error).removeprefix("near-duplicates: ")
    comparison = comparison_of(found, pictures, images.names, len(images.train_labels_N))
    keep_comparison(comparison, _own_key(images))
    return comparison, ""


def summary_file(summary: SetSummary) -> bytes:
    """Return a summary as the content of a safetensors file."""
    parts = {"sheet": summary.sheet, "why_not": summary.why_not.encode()}
    if summary.comparison is not None:
        parts["comparison"] = comparison_file(summary.comparison)
    tensors = {name: np.frombuffer(content, np.uint8) for name, content in parts.items()}
    return save({"counts": summary.counts_DK.astype(np.int64), **tensors})


def load_summary(path: Path) -> SetSummary:
    """Read a file of `summary_file`.

    Raises:
        InputError: the file is damaged.
    """
    try:
        tensors = load_file(path)
        comparison = load_comparison(tensors["comparison"].tobytes()) if "comparison" in tensors else None
        why_not = tensors["why_not"].tobytes().decode()
        return SetSummary(tensors["counts"], tensors["sheet"].tobytes(), comparison, why_not)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
