"""What each image contributes to a metric: scikit-learn's values, and the jackknife's influences.

Legend: N images, K classes.
"""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from ablation.analysis.scores import image_scores
from ablation.spec.objective import ACCURACY, OBJECTIVES, Objective

LABELS_N = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 4])  # class 3 is neither true nor predicted, class 5 predicted alone
PREDICTED_N = np.array([0, 0, 0, 0, 1, 5, 1, 0, 2, 2])


def metric(objective: Objective, labels_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Return scikit-learn's metric."""
    if objective.name == "balanced_accuracy":
        return float(balanced_accuracy_score(labels_N, predicted_N))
    return float(f1_score(labels_N, predicted_N, average="macro", labels=np.union1d(labels_N, predicted_N)))


def test_hand_computed_scores() -> None:
    balanced_N = image_scores(OBJECTIVES["balanced_accuracy"], LABELS_N, PREDICTED_N)
    recalls = [4 / 6, 1 / 2, 1, 0]
    mean = sum(recalls) / 4
    assert balanced_N[0] == pytest.approx(mean + 10 / 4 / 6 * (1 - 4 / 6))  # right, one of six of its class
    assert balanced_N[4] == pytest.approx(mean + 10 / 4 / 6 * (0 - 4 / 6))
    assert balanced_N[8] == balanced_N[9] == pytest.approx(mean)  # the only ones of their classes
    f1 = {0: 8 / 11, 1: 2 / 4, 2: 2 / 3, 4: 0.0, 5: 0.0}
    f1_N = image_scores(OBJECTIVES["macro_f1"], LABELS_N, PREDICTED_N)
    assert f1_N[0] == pytest.approx(sum(f1.values()) / 5 + 10 / 5 * (2 - 2 * 8 / 11) / 11)
    assert f1_N[4] == pytest.approx(sum(f1.values()) / 5 - 10 / 5 * (8 / 11 / 11 + 2 / 4 / 4))
    assert image_scores(ACCURACY, LABELS_N, PREDICTED_N).tolist() == [True] * 4 + [False] * 2 + [
        True,
        False,
        True,
        False,
    ]


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
