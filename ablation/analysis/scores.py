"""What each test image contributes to a run's metric: values whose mean over images is the metric.

Legend: N images, K classes.
"""

import numpy as np

from ablation.spec.objective import Objective


def image_scores(
    objective: Objective, labels_N: np.ndarray, predicted_N: np.ndarray, losses_N: np.ndarray | None = None
) -> np.ndarray:
    """Return a value for each image: bool for accuracy, else float64.

    Accuracy: whether the prediction is right. Loss: the image's cross-entropy. Balanced accuracy and macro F1: the
    metric plus the image's empirical influence, N times the derivative of the metric by the image's weight (Hampel,
    1974), whose mean is 0. For balanced accuracy it is N / (K n) times (whether the image is right, less the recall of
    its class of n images); for macro F1, which is the mean of 2 R / (n + m) over classes with n images of which R are
    found among m predictions, N / K times the sum over classes of (2 dR - F1 (dn + dm)) / (n + m).

    Args:
        objective: the metric.
        labels_N: true classes, numbers from 0.
        predicted_N: predicted classes.
        losses_N: cross-entropies in nats, for the loss.

    Raises:
        ValueError: the loss is wanted of predictions without losses.
    """
    right_N = predicted_N == labels_N
    if objective.counts_images:
        return np.asarray(right_N)
    if objective.name == "loss":
        if losses_N is None:
            raise ValueError("predictions have no losses")
        return losses_N.astype(np.float64)
    N, K = len(labels_N), int(max(labels_N.max(), predicted_N.max())) + 1
    n_K, m_K = (np.bincount(numbers_N, minlength=K) for numbers_N in (labels_N, predicted_N))
    found_K = np.bincount(labels_N[right_N], minlength=K)
    if objective.name == "balanced_accuracy":
        is_present_K = n_K > 0
        recall_K = found_K / np.maximum(n_K, 1)
        influences_N = (right_N - recall_K[labels_N]) / n_K[labels_N]
        metric = recall_K[is_present_K].mean()
    else:
        sizes_K = n_K + m_K
        is_present_K = sizes_K > 0
        f1_K = 2 * found_K / np.maximum(sizes_K, 1)
        gains_K = 1 / np.maximum(sizes_K, 1)
        influences_N = 2 * right_N * gains_K[labels_N]
        influences_N = influences_N - (f1_K * gains_K)[labels_N] - (f1_K * gains_K)[predicted_N]
        metric = f1_K[is_present_K].mean()
    scores_N: np.ndarray = metric + N / is_present_K.sum() * influences_N
    return scores_N
