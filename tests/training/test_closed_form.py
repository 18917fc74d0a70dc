"""Classifiers and a score in closed form, against scikit-learn, brute force and the values of published code."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import one_hot

from ablation.training.closed_form import (
    NEIGHBOURS,
    RIDGE_STRENGTHS,
    TEMPERATURE,
    RidgeProbe,
    class_targets,
    decompose,
    logme,
    nearest_neighbours,
    ridge_probe,
    standardise,
)

CLASSES = 3


def features(n: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random features around a centre per class, and their labels."""
    random = np.random.RandomState(0)  # whose numbers never change
    labels_N = np.arange(n) % CLASSES
    return random.randn(n, dimensions) + random.randn(CLASSES, dimensions)[labels_N], labels_N


def probe_of(train_ND: np.ndarray, labels_N: np.ndarray) -> RidgeProbe:
    rows_ND = torch.from_numpy(train_ND)
    return ridge_probe(rows_ND, decompose(rows_ND), torch.from_numpy(labels_N), CLASSES)


SHAPES = pytest.mark.parametrize(("images", "dimensions"), [(90, 8), (40, 60), (30, 30)])


@SHAPES
def test_the_ridge_probe_is_scikit_learns(images: int, dimensions: int) -> None:
    raw_ND, labels_N = features(images + 50, dimensions)
    train_ND, other_MD = (
        rows.numpy() for rows in standardise(torch.from_numpy(raw_ND[:images]), torch.from_numpy(raw_ND[images:]))
    )
    probe = probe_of(train_ND, labels_N[:images])
    theirs = RidgeClassifierCV(RIDGE_STRENGTHS).fit(train_ND, labels_N[:images])  # for targets -1 and 1
    assert probe.strength == theirs.alpha_
    assert RIDGE_STRENGTHS[0] < probe.strength < RIDGE_STRENGTHS[-1]
    np.testing.assert_allclose(probe.weights_DK.numpy(), theirs.coef_.T / 2, atol=1e-9)
    np.testing.assert_array_equal(probe.predict(torch.from_numpy(other_MD)).numpy(), theirs.predict(other_MD))
    assert 4 * probe.left_out_error == pytest.approx(-theirs.best_score_)


@SHAPES
def test_leaving_each_image_out_is_refitting_without_it(images: int, dimensions: int) -> None:
    raw_ND, labels_N = features(images, dimensions)
    train_ND = (raw_ND - raw_ND.mean(0)) / raw_ND.std(0)
    probe = probe_of(train_ND, labels_N)
    targets_NK = np.eye(CLASSES)[labels_N]
    predicted_NK = []
    for left_out in range(images):
        kept = np.arange(images) != left_out
        refitted = Ridge(alpha=probe.strength).fit(train_ND[kept], targets_NK[kept])
        predicted_NK.append(refitted.predict(train_ND[[left_out]])[0])
    np.testing.assert_array_equal(probe.left_out_N.numpy(), np.argmax(predicted_NK, axis=1))
    assert probe.left_out_error == pytest.approx(np.mean((targets_NK - predicted_NK) ** 2))


def test_features_that_say_nothing_give_the_most_frequent_class() -> None:
    labels_N = torch.tensor([0, 1, 1, 2])
    constant_ND, other_MD = standardise(torch.full((4, 3), 5.0), torch.full((2, 3), 5.0))
    assert constant_ND.tolist() == [[0.0] * 3] * 4
    decomposition = decompose(constant_ND)
    probe = ridge_probe(constant_ND, decomposition, labels_N, 3)
    assert probe.predict(other_MD).tolist() == [1, 1]
    assert np.isfinite(logme(decomposition, class_targets(labels_N, 3)))
    assert len(nearest_neighbours(constant_ND, labels_N, other_MD, 3)) == 2


@pytest.mark.parametrize("images", [90, 12])  # the latter has fewer than the neighbours that vote
def test_nearest_neighbours_are_scikit_learns(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.training.closed_form.ROWS_AT_ONCE", 7)
    (train_ND, labels_N), (other_MD, _) = features(images, 8), features(200, 8)
    other_MD = other_MD[100:] * 0.3
    theirs = KNeighborsClassifier(
        min(NEIGHBOURS, images), metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(train_ND, labels_N)
    ours = nearest_neighbours(*map(torch.from_numpy, (train_ND, labels_N, other_MD)), CLASSES)
    np.testing.assert_array_equal(ours.numpy(), theirs.predict(other_MD))
    assert len(set(ours.tolist())) == CLASSES


@pytest.mark.parametrize(
    ("images", "dimensions", "published", "tolerance"),
    [
        # LogME.py of github.com/thuml/LogME at commit 3a08950, without numba's njit, on `features(images, dimensions)`:
        # LogME()._fit_fixed_point, the version of the journal paper;
        (60, 8, -0.37469660712599584, 1e-6),
        # LogME()._fit_icml, which stops sooner. Its fixed point is 1.15 here, because it forgets ten dimensions.
        (20, 30, -0.28650456605331204, 1e-3),
    ],
)
def test_logme_is_that_of_the_published_code(images: int, dimensions: int, published: float, tolerance: float) -> None:
    rows_ND, labels_N = features(images, dimensions)
    score = logme(decompose(torch.from_numpy(rows_ND)), one_hot(torch.from_numpy(labels_N), CLASSES).double())
    assert score == pytest.approx(published, abs=tolerance)


def test_logme_is_the_maximum_of_the_evidence() -> None:
    """The logarithm of the density of the targets, normal with a covariance of features and noise, at its maximum."""
    rows_ND, labels_N = features(20, 30)
    targets_N = (labels_N == 0).astype(float)

    def evidence(alpha: float, beta: float) -> float:
        covariance_NN = np.eye(20) / beta + rows_ND @ rows_ND.T / alpha
        _, determinant = np.linalg.slogdet(2 * np.pi * covariance_NN)
        return float(-0.5 * (determinant + targets_N @ np.linalg.solve(covariance_NN, targets_N)) / 20)

    best = max(evidence(alpha, beta) for alpha in np.geomspace(1, 1e4, 200) for beta in np.geomspace(1, 1e4, 200))
    score = logme(decompose(torch.from_numpy(rows_ND)), torch.from_numpy(targets_N)[:, None])
    assert score == pytest.approx(best, abs=1e-3)


def test_standardised_features_have_the_training_images_statistics() -> None:
    train_ND = torch.tensor([[1.0, 10.0, 7.0], [3.0, 30.0, 7.0]])  # standard deviations 1, 10 and 0, on average 11 / 3
    other_MD = torch.tensor([[4.0, 0.0, 8.1]])
    train_ND, other_MD = standardise(train_ND, other_MD)
    assert train_ND.tolist() == [[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]
    np.testing.assert_allclose(other_MD.numpy(), [[2.0, -2.0, 3.0]], atol=1e-5)  # 1.1 over a tenth of 11 / 3
