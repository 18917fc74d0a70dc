"""Metrics of predictions that count every class alike.

Legend: N images, K classes.
"""

import numpy as np


def balanced_accuracy_and_macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> tuple[float, float]:
    """Return the mean recall over classes (balanced accuracy) and the mean F1 score (macro F1); both are fractions.

    As in scikit-learn, a class without images has no recall, and a class that has no images and is never predicted has
    no F1 score; the means leave them out.

    Args:
        labels_N: true classes, numbers from 0.
        predicted_N: predicted classes.
        classes: number of classes.
    """
    true_K, predicted_K, right_K = (
        np.bincount(numbers, minlength=classes)
        for numbers in (labels_N, predicted_N, labels_N[labels_N == predicted_N])
    )
    recall_K = right_K[true_K > 0] / true_K[true_K > 0]
    sizes_K = true_K + predicted_K
    f1_K = 2 * right_K[sizes_K > 0] / sizes_K[sizes_K > 0]
    return float(recall_K.mean()), float(f1_K.mean())
