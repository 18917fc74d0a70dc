import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from ablation.training.evaluation import balanced_accuracy_and_macro_f1


def test_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    # Recalls 3/4 and 1/2; F1 scores 2 * 3 / (4 + 4) and 2 * 1 / (2 + 2).
    assert balanced_accuracy_and_macro_f1(labels, predicted, 2) == pytest.approx((0.625, 0.625))


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn(seed: int) -> None:
    """Also where a class has no images, is never predicted, or neither."""
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, 2, 3], 200, p=[0.7, 0.2, 0.08, 0.02])
    predicted = np.where(random.random(200) < 0.6, labels, random.choice([0, 1, 2, 4], 200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the class that is only predicted
        expected = balanced_accuracy_score(labels, predicted), f1_score(labels, predicted, average="macro")
    assert balanced_accuracy_and_macro_f1(labels, predicted, 6) == pytest.approx(expected)
