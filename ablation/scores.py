"""What accuracy hides where classes are of unequal size: scores in which each class counts the same.

Legend: N images, K classes.
"""

import numpy as np


def balanced_accuracy_and_macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> tuple[float, float]:
    """Return the mean over classes of the part that is recognised (recall), and of the F1 score; both fractions.

    As in scikit-learn, a class without images has no recall, and one that is neither there nor predicted no F1 score:
    they are left out of the means.

    Args:
        labels_N: true classes, numbers from 0.
        predicted_N: what they were taken for.
        classes: how many classes there are.
    """
    true_K, claimed_K, right_K = (
        np.bincount(numbers, minlength=classes)
        for numbers in (labels_N, predicted_N, labels_N[labels_N == predicted_N])
    )
    recall_K = right_K[true_K > 0] / true_K[true_K > 0]
    sizes_K = true_K + claimed_K
    f1_K = 2 * right_K[sizes_K > 0] / sizes_K[sizes_K > 0]
    return float(recall_K.mean()), float(f1_K.mean())
