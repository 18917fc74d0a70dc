"""Groups of images that belong together, such as those of a patient or a camera: on one side of every split.

Legend: N images, G groups, K classes.
"""

import re
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from ablation.base.errors import InputError
from ablation.base.text import listed, one_line, plural

MOST_NAMED = 10  # images or groups in a message
MOST_FOLDS = 100  # of which a split joins some
CLOSE = 0.05  # of the share that was asked for: how far the share of a split's folds may be from it


def groups_in(names: Sequence[str], expression: str) -> list[str]:
    """Return the group of each name: what the one group of a regular expression, searched in the name, stands for.

    Raises:
        InputError: some names do not match, or their group is empty; names up to ten.
    """
    pattern = re.compile(expression)
    groups, others = [], []
    for name in names:
        match = pattern.search(name)
        groups.append((match[1] or "") if match else "")
        if not groups[-1]:
            others.append(name)
    if others:
        named = listed(list(map(one_line, others)), MOST_NAMED)
        raise InputError(f"data.groups: {expression!r} finds no group in {plural(len(others), 'path')}: {named}")
    return groups


def numbered(names: Sequence[str]) -> np.ndarray:
    """Return the groups or classes of images as numbers from 0 in the order of their names, int64 N."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], np.int64)


def refuse_shared(train: Sequence[str], test: Sequence[str]) -> None:
    """Refuse groups that have images in a given training set and in a given test set.

    Raises:
        InputError: names up to ten.
    """
    shared = sorted(set(train) & set(test))
    if shared:
        named = listed(list(map(one_line, shared)), MOST_NAMED)
        raise InputError(
            f"data.groups: {plural(len(shared), 'group')} with images in training and in test: {named}; move their "
            "images to one side, or name no test split, and a fifth of the groups is chosen"
        )


def choose_groups(labels_N: np.ndarray, groups_N: np.ndarray, share: float, seed: int, *, left: int = 1) -> np.ndarray:
    """Choose whole groups that hold about a share of the images of each class.

    Scikit-learn's `StratifiedGroupKFold` makes folds, of which some neighbours together have about the share that was
    asked for; of all such choices the one is taken whose classes are the closest to it. Where that leaves a class on
    one side only, there are fewer and larger folds.

    Args:
        labels_N: int64.
        groups_N: int64.
        share: of the images, between 0 and 1.
        seed: of the order of the groups.
        left: how many groups with images of a class have to be left, for every class.

    Returns:
        Whether an image is chosen, bool N.

    Raises:
        InputError: there are too few groups with images of a class.
    """
    counts_K = np.bincount(labels_N)
    classes = np.flatnonzero(counts_K)
    best_N, least = None, np.inf
    for folds in _fold_counts(share, min(len(np.unique(groups_N)), int(counts_K.max()))):
        for chosen_N in _joined_folds(labels_N, groups_N, folds, max(1, round(share * folds)), seed):
            pairs = np.unique(np.stack([labels_N[~chosen_N], groups_N[~chosen_N]]), axis=1)
            if (np.bincount(pairs[0], minlength=len(counts_K))[classes] < left).any():
                continue
            shares_K = np.bincount(labels_N[chosen_N], minlength=len(counts_K))[classes] / counts_K[classes]
            distance = float(((shares_K - share) ** 2).sum()) if shares_K.min() > 0 else np.inf
            if distance < least:
                best_N, least = chosen_N, distance
        if best_N is not None:
            return best_N
    pairs = np.unique(np.stack([labels_N, groups_N]), axis=1)
    fewest = int(np.bincount(pairs[0], minlength=len(counts_K))[classes].min())
    raise InputError(
        f"data.groups: {plural(len(np.unique(groups_N)), 'group')} cannot be split so that every class is on both "
        f"sides: the class in the fewest groups is in {fewest}; it needs {1 + left}, or more where groups hold several "
        "classes"
    )


def _fold_counts(share: float, most: int) -> list[int]:
    """Return the number of folds of which some have nearly the share, then all smaller ones down to 2."""
    counts = range(2, min(MOST_FOLDS, most) + 1)
    if not counts:
        return []
    best = min(counts, key=lambda folds: (max(abs(max(1, round(share * folds)) / folds - share), CLOSE * share), folds))
    return list(range(best, 1, -1))


def _joined_folds(
    labels_N: np.ndarray, groups_N: np.ndarray, folds: int, joined: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield, as bool N, every choice of some neighbouring folds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
        fold_N = np.empty(len(labels_N), np.int64)
        for number, (_, members) in enumerate(splitter.split(labels_N, labels_N, groups_N)):
            fold_N[members] = number
    for first in range(folds):
        yield (fold_N - first) % folds < joined
