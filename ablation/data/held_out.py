"""Which images are the test: those that a set gives to it, or a fifth of each class, always the same ones.

Legend: N images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.text import one_line, plural
from ablation.data.decoding import TEST_FRACTION
from ablation.data.groups import choose_groups, numbered, refuse_shared
from ablation.data.split_names import split_of

FEWEST = 3  # images of a class of which a fifth is the test: to learn from, to validate and to test


@dataclass(frozen=True)
class Rows:
    """The images of a table, a row each.

    Attributes:
        table: what messages call it, such as 'data.manifest: labels.csv'.
        places: what messages call each row, such as 'line 3'.
        labels: the classes.
        splits: words such as 'train'; None without a column of them.
        groups: None without groups.
    """

    table: str
    places: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def fault(self, row: int, text: str) -> InputError:
        """Return the error of a row, to be raised."""
        return InputError(f"{self.table}, {self.places[row]}: {text}")


def a_fifth(labels_N: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """Return which images are the test, bool N: a fifth of each class (three images or more), or whole groups.

    Raises:
        InputError: there are too few groups.
    """
    if groups is not None:
        return choose_groups(labels_N, numbered(groups), TEST_FRACTION, seed=0, left=2)
    is_test_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        numbers = np.flatnonzero(labels_N == label)
        _, test = train_test_split(range(len(numbers)), test_size=TEST_FRACTION, random_state=0)
        is_test_N[numbers[test]] = True
    return is_test_N


def held_out_rows(rows: Rows) -> tuple[np.ndarray, str]:
    """Return which rows of a table are the test, bool N, and how that was understood, for people.

    Where some rows are for validation and none for the test, the test are these; otherwise they count as training
    images, because a study makes a split of its own.

    Raises:
        InputError: a word is no split; there are no training images; a class is in one split only, or too small; a
            group is in both.
    """
    counts = Counter(rows.labels)
    if len(counts) < 2:
        raise InputError(f"{rows.table}: must have rows of two labels or more, not of {', '.join(counts) or 'none'}")
    kinds = [split_of(word) for word in rows.splits] if rows.splits is not None else []
    for row, kind in enumerate(kinds):
        if kind is None and rows.splits is not None:
            raise rows.fault(row, f"{one_line(rows.splits[row])!r} is no split; say train, val or test, or set "
                             "data.split_column = ''")  # fmt: skip
    test = "test" if "test" in kinds else "val"
    if test not in kinds:
        for row, label in enumerate(rows.labels):
            if counts[label] < FEWEST:
                raise rows.fault(row, f"label {label!r} is that of {plural(counts[label], 'image')}, but a class needs "
                                 "three: to learn from, to validate and to test")  # fmt: skip
        labels_N = np.unique(np.asarray(rows.labels, object), return_inverse=True)[1]
        return a_fifth(labels_N, rows.groups), f"a fifth of {'the groups' if rows.groups else 'each class'} is the test"
    is_test_N = np.array([kind == test for kind in kinds])
    if is_test_N.all():
        raise InputError(f"{rows.table}: no row is for training")
    labels = np.asarray(rows.labels, object)
    sides = [set(labels[is_test_N == side]) for side in (False, True)]
    for row, label in enumerate(rows.labels):
        if not all(label in side for side in sides):
            only = "training" if label in sides[0] else "test"
            raise rows.fault(row, f"label {label!r} has {only} images only")
    if rows.groups is not None:
        groups = np.asarray(rows.groups, object)
        refuse_shared(groups[~is_test_N], groups[is_test_N])
    assert rows.splits is not None
    words = sorted(set(np.asarray(rows.splits, object)[is_test_N]))
    return is_test_N, f"the test images are those of {' and '.join(repr(one_line(word)) for word in words)}"
