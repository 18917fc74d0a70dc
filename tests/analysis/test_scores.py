"""What each image contributes to a metric: scikit-learn's values, and the jackknife's influences.

Legend: N images, K classes.
"""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from ablation.analysis.estimator import Estimator
from ablation.analysis.scores import image_scores, units_of_classes
from ablation.spec.objective import ACCURACY, OBJECTIVES, Objective
from tests.fake_results import fake_predictions

LABELS_N = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 4])  # class 3 is neither true nor predicted, class 5 predicted alone
PREDICTED_N = np.array([0, 0, 0, 0, 1, 5, 1, 0, 2, 2])


def metric(objective: Objective, labels_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Return scikit-learn's metric."""
    if objective.name == "balanced_accuracy":
        return float(balanced_accuracy_score(labels_N, predicted_N))
    return float(f1_score(labels_N, predicted_N, average="macro", labels=np.union1d(labels_N, predicted_N)))


def test_hand_computed_scores() -> None:
    balanced_N = image_scores(OBJECTIVES["balanced_accuracy"], LABELS_N, PREDICTED_N)
    mean = (4 / 6 + 1 / 2 + 1 + 0) / 4
    added = (0 + (1 / 2 - mean) + (1 - mean) + (0 - mean)) / 4  # by deviations from the mean of all classes
    unbiased = np.sqrt(6 / 5)
    assert balanced_N[0] == pytest.approx(mean - added + 10 / 4 / 6 * (1 - 4 / 6) * unbiased)  # one of six, right
    assert balanced_N[4] == pytest.approx(mean - added + 10 / 4 / 6 * (0 - 4 / 6) * unbiased)
    assert balanced_N[6] == pytest.approx(mean - added + 10 / 4 / 2 * (1 - mean))  # one of two
    assert balanced_N[8] == pytest.approx(mean - added + 10 / 4 * (1 - mean))  # the only one of its class
    assert balanced_N[9] == pytest.approx(mean - added + 10 / 4 * (0 - mean))
    f1 = {0: 8 / 11, 1: 2 / 4, 2: 2 / 3, 4: 0.0, 5: 0.0}
    f1_N = image_scores(OBJECTIVES["macro_f1"], LABELS_N, PREDICTED_N)
    mean = sum(f1.values()) / 5
    added = sum(value - mean for number, value in f1.items() if number) / 5
    assert f1_N[0] == pytest.approx(mean - added + 10 / 5 * (2 - 2 * 8 / 11) / 11 * unbiased)
    assert f1_N[4] == pytest.approx(mean - added - 10 / 5 * (8 / 11 / 11 * unbiased + mean / 4))
    assert f1_N[8] == pytest.approx(mean - added + 10 / 5 * (2 - 2 * mean) / 3)
    assert image_scores(ACCURACY, LABELS_N, PREDICTED_N).tolist() == [True] * 4 + [False] * 2 + [
        True,
        False,
        True,
        False,
    ]


def test_the_variance_of_balanced_accuracy_is_unbiased() -> None:
    """That of a mean of recalls: the mean over classes of s² / n of each class, with s² over n - 1, over K."""
    labels_N = np.array([0] * 6 + [1] * 20)
    right_N = np.array([True] * 4 + [False] * 2 + [True] * 15 + [False] * 5)
    scores_N = image_scores(OBJECTIVES["balanced_accuracy"], labels_N, np.where(right_N, labels_N, 1 - labels_N))
    of_classes = (4 * 2 / 6 / 5 / 6, 15 * 5 / 20 / 19 / 20)
    assert ((scores_N - scores_N.mean()) ** 2).sum() / 26**2 == pytest.approx(sum(of_classes) / 2**2)


def test_groups_take_the_place_of_the_images_of_a_class() -> None:
    """Class 0 is in six groups of two images, class 1 in one group, which also has an image of class 0."""
    labels_N = np.array([0] * 12 + [1] * 6)
    groups_N = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 7, 7, 7, 7, 7, 7, 7, 7])  # no image of groups 5 and 6 is left
    assert units_of_classes(labels_N, groups_N, 3).tolist() == [6, 1, 0]
    assert units_of_classes(labels_N, None, 3).tolist() == [12, 6, 0]
    predicted_N = np.array([0] * 9 + [1] * 3 + [1] * 6)
    scores_N = image_scores(OBJECTIVES["balanced_accuracy"], labels_N, predicted_N, groups_N=groups_N)
    mean = (9 / 12 + 1) / 2
    added = (1 - mean) / 2
    predictions = replace(fake_predictions(predicted_N, labels_N, 2), groups_N=groups_N)
    assert predictions.scores_N(OBJECTIVES["balanced_accuracy"]) == pytest.approx(scores_N)
    assert scores_N.mean() == pytest.approx(mean)
    assert scores_N[0] == pytest.approx(mean - added + 18 / 2 / 12 * (1 - 9 / 12) * np.sqrt(6 / 5))
    assert scores_N[-1] == pytest.approx(mean - added + 18 / 2 / 6 * (1 - mean))


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize("rare", [1, 2, 3])
def test_a_class_of_few_images_declares_no_difference(name: str, rare: int) -> None:
    """Arms that are right equally often in all classes: 28 % of studies declared a difference from one image."""
    random, objective = np.random.default_rng(6), OBJECTIVES[name]  # type: ignore[index]
    labels_N = np.array([0] * 200 + [1] * 200 + [2] * rare)
    shown = 0
    for _ in range(100):
        scores = {}
        for arm in "ab":
            chance_N = random.beta(0.6, 0.4, len(labels_N))
            predicted_SN = np.where(random.random((5, len(labels_N))) < chance_N, labels_N, (labels_N + 1) % 3)
            scores[arm] = np.array([image_scores(objective, labels_N, predicted_N) for predicted_N in predicted_SN])
        p = Estimator(objective=objective).contrast({"a": 1.0, "b": -1.0}, scores).p
        shown += p is not None and p < 0.05
    assert shown <= 5


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
def test_the_mean_is_scikit_learns_metric(name: str) -> None:
    random, objective = np.random.default_rng(3), OBJECTIVES[name]  # type: ignore[index]
    for _ in range(20):
        labels_N = random.choice(6, 60, p=[0.5, 0.3, 0.1, 0.05, 0.05, 0.0])
        predicted_N = np.where(random.uniform(size=60) < 0.7, labels_N, random.integers(0, 6, 60))
        scores_N = image_scores(objective, labels_N, predicted_N)
        assert scores_N.mean() == pytest.approx(metric(objective, labels_N, predicted_N), abs=1e-12)


def test_the_loss_is_scikit_learns() -> None:
    random = np.random.default_rng(4)
    probabilities_NK = random.dirichlet(np.ones(4), 50)
    labels_N = random.integers(0, 4, 50)
    losses_N = -np.log(probabilities_NK[np.arange(50), labels_N])
    scores_N = image_scores(OBJECTIVES["loss"], labels_N, probabilities_NK.argmax(1), losses_N)
    assert scores_N.mean() == pytest.approx(log_loss(labels_N, probabilities_NK, labels=range(4)))
    with pytest.raises(ValueError, match="no losses"):
        image_scores(OBJECTIVES["loss"], labels_N, labels_N)


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
def test_influences_are_those_of_the_jackknife(name: str) -> None:
    """With N images, (N - 1) times the metric's change without one of them differs by about 1 / n of its class."""
    random, objective = np.random.default_rng(5), OBJECTIVES[name]  # type: ignore[index]
    N = 3_000
    labels_N = random.choice(3, N, p=[0.7, 0.2, 0.1])
    predicted_N = np.where(random.uniform(size=N) < 0.8, labels_N, random.integers(0, 3, N))
    scores_N = image_scores(objective, labels_N, predicted_N)
    full = metric(objective, labels_N, predicted_N)
    for n in range(0, N, 100):
        without = metric(objective, np.delete(labels_N, n), np.delete(predicted_N, n))
        assert (N - 1) * (full - without) == pytest.approx(scores_N[n] - full, rel=0.01)
