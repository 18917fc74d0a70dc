"""Images of the user's own, in folders or tables: their classes checked, the test set aside, listed.

Legend: N images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.text import one_line, plural
from ablation.data.class_names import folded, refuse_look_alikes
from ablation.data.decoding import DECODING_VERSION, TEST_FRACTION, File, ImageListing, OpenImage
from ablation.data.folder_walk import Passed, passed_text
from ablation.data.groups import choose_groups, numbered, refuse_shared
from ablation.data.image_files import file_reader
from ablation.spec.tables import Data

FEWEST = 3  # images of a class of which a fifth is the test: to learn from, to validate and to test


@dataclass(frozen=True)
class OwnImages:
    """Image files, and what a folder or a table says of them.

    Attributes:
        files: their names are what `open_image` takes.
        labels: their classes.
        is_test_N: which are the test, bool; None where nothing says it, so that it is a fifth of each class.
        groups: what they belong to; None without groups.
        where: where they are, for people.
        source: their place, which identifies the set in the cache.
        passed: what was passed over.
        open_image: opens one.
    """

    files: Sequence[File]
    labels: Sequence[str]
    is_test_N: np.ndarray | None
    groups: Sequence[str] | None
    where: str
    source: Path
    passed: Passed
    open_image: OpenImage = PIL.Image.open


def own_listing(images: OwnImages, data: Data) -> ImageListing:
    """List images in their order.

    Raises:
        InputError: there are fewer than two classes, or two that look the same; a class is in one split only, or too
            small; a group is in both splits; or the groups cannot be split.
    """
    classes, where, is_test_N = sorted(set(images.labels)), one_line(images.where), images.is_test_N
    if len(classes) < 2:
        named = "".join(map(repr, classes)) or "none"
        raise InputError(f"data: must have images of two classes or more, not of {named} ({where})")
    if is_test_N is None:
        for name, count in Counter(images.labels).items():
            if count < FEWEST:
                need = "needs three: to learn from, to validate and to test"
                raise InputError(f"data: class {name!r} has {plural(count, 'image')}, but {need} ({where})")
        is_test_N = a_fifth(images.labels, images.groups)
        where += f", a fifth of {'each class' if images.groups is None else 'the groups'} is the test"
    numbers = {"train": np.flatnonzero(~is_test_N).tolist(), "test": np.flatnonzero(is_test_N).tolist()}
    labels_N = numbered(images.labels)
    sides = {split: set(labels_N[chosen].tolist()) for split, chosen in numbers.items()}
    if one_sided := sides["train"] ^ sides["test"]:
        name = classes[min(one_sided)]
        only = "training" if min(one_sided) in sides["train"] else "test"
        alike = [each for each in classes if each != name and folded(each) == folded(name)]
        hint = f"; is {alike[0]!r} the same class in another spelling?" if alike else ""
        raise InputError(f"data: class {name!r} has {only} images only{hint} ({where})")
    if data.classes is None:
        refuse_look_alikes(classes)
    files = {split: [images.files[n] for n in chosen] for split, chosen in numbers.items()}
    groups = None
    if images.groups is not None:
        groups = {split: [images.groups[n] for n in chosen] for split, chosen in numbers.items()}
        refuse_shared(groups["train"], groups["test"])
        where += f"; {plural(len(set(images.groups)), 'group')} of images"
    counts = f"{len(files['train']):,} training and {plural(len(files['test']), 'test image')}"
    over = passed_text(images.passed)
    passed = f"passed over: {over}" if over else "nothing passed over"
    return ImageListing(
        labels_N[numbers["train"]],
        labels_N[numbers["test"]],
        classes,
        data.image_size,
        file_reader(files, data, images.source, images.open_image),
        decoding=DECODING_VERSION,
        files=files,
        reading=one_line(f"{where}; {counts} of {len(classes)} classes; {passed}"),
        groups=groups,
        open_image=images.open_image,
    )


def a_fifth(labels: Sequence[str], groups: Sequence[str] | None) -> np.ndarray:
    """Return which images are the test, bool N: a fifth of each class (three images or more), or whole groups.

    Raises:
        InputError: there are too few groups.
    """
    labels_N = numbered(labels)
    if groups is not None:
        return choose_groups(labels_N, numbered(groups), TEST_FRACTION, seed=0, left=2)
    is_test_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        _, test = train_test_split(np.flatnonzero(labels_N == label), test_size=TEST_FRACTION, random_state=0)
        is_test_N[test] = True
    return is_test_N
