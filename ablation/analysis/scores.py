"""What each test image contributes to a run's metric: values whose mean over images is the metric.

Legend: N images, K classes.
"""

import numpy as np

from ablation.spec.objective import Objective

FEWEST_OF_CLASS = 5  # test images, or groups of them, of a class whose own spread is believed


def image_scores(
    objective: Objective,
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    losses_N: np.ndarray | None = None,
    groups_N: np.ndarray | None = None,
) -> np.ndarray:
    """Return a value for each image: bool for accuracy, else float64.

    Accuracy: whether the prediction is right. Loss: the image's cross-entropy. Balanced accuracy and macro F1: the
    metric plus the image's empirical influence, N times the derivative of the metric by the image's weight (Hampel,
    1974), whose mean is 0. For balanced accuracy it is N / (K n) times (whether the image is right, less the recall of
    its class of n images); for macro F1, which is the mean of 2 R / (n + m) over classes with n images of which R are
    found among m predictions, N / K times the sum over classes of (2 dR - F1 (dn + dm)) / (n + m).

    A recall lies nearer to its own images than the true one does: what a class adds is multiplied by sqrt(n / (n - 1)),
    which makes its variance unbiased. Of a few images all may be right by chance, and a single one is its own recall:
    where a class has fewer than five, their deviation is that from the metric, the mean of all classes, as if classes
    with few images differed by chance alone (collapsed strata, Cochran, 1977). If they do differ, the variance is on
    average too large. With groups, n counts the groups that have images of the class.

    Args:
        objective: the metric.
        labels_N: true classes, numbers from 0.
        predicted_N: predicted classes.
        losses_N: cross-entropies in nats, for the loss.
        groups_N: what each image belongs to, as numbers from 0, int64; None for images that are independent.

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
    is_recall = objective.name == "balanced_accuracy"
    sizes_K = n_K if is_recall else (n_K + m_K) / 2
    is_present_K, sizes_K = sizes_K > 0, np.maximum(sizes_K, 0.5)
    metric_K = found_K / sizes_K
    metric = metric_K[is_present_K].mean()
    units_K = units_of_classes(labels_N, groups_N, K)
    has_few_K = units_K < FEWEST_OF_CLASS
    centre_K = np.where(has_few_K, metric, metric_K)
    gains_K = np.where(has_few_K, 1.0, np.sqrt(units_K / np.maximum(units_K - 1, 1))) / sizes_K
    lost_K = centre_K * gains_K
    lost_N = lost_K[labels_N] if is_recall else (lost_K[labels_N] + lost_K[predicted_N]) / 2
    influences_N = right_N * gains_K[labels_N] - lost_N
    # Deviations from another centre than the class's own have a mean, which is no part of the metric.
    scores_N: np.ndarray = metric + N / is_present_K.sum() * (influences_N - influences_N.mean())
    return scores_N


def units_of_classes(labels_N: np.ndarray, groups_N: np.ndarray | None, classes: int) -> np.ndarray:
    """Return how many images, or groups with an image, each class has; arguments: `image_scores`."""
    if groups_N is None:
        return np.bincount(labels_N, minlength=classes)
    pairs = np.unique(groups_N * classes + labels_N)
    return np.bincount(pairs % classes, minlength=classes)
