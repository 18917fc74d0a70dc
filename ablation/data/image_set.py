"""The images of a study in memory.

Legend: N images, H and W pixels, C channels (3, RGB).
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """All images of a source.

    Attributes:
        train_images_NHWC: uint8; a memory map (`np.memmap`) where the images do not fit into memory.
        train_labels_N: int64.
        test_images_NHWC: as the training images.
        test_labels_N: int64.
        classes: the class names, by label.
        digest: the SHA-256 of pixels, labels and classes.
        decoding: version of the decoding, for sources whose pixels depend on it.
        reading: how a folder was understood, in one line; empty for sources that leave no doubt.
        train_groups_N: what the training images belong to, as numbers, int64; None without groups.
        test_groups_N: the same of the test images, as numbers from 0.
        names: of the training images, then of the test images, where these are few enough to be compared at once.
        listing_key: see the function `listing_key`.
    """

    train_images_NHWC: np.ndarray
    train_labels_N: np.ndarray
    test_images_NHWC: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    digest: str
    decoding: int | None = None
    reading: str = ""
    train_groups_N: np.ndarray | None = None
    test_groups_N: np.ndarray | None = None
    names: list[str] = field(default_factory=list)
    listing_key: str = ""
