"""The training loss, and the weights of classes in it.

Legend: B images of a batch, N images, K classes.
"""

import torch
from torch.nn.functional import cross_entropy


def weighted_loss(
    logits_BK: torch.Tensor, labels_B: torch.Tensor, weights_K: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy of a batch, weighted by class if there are weights.

    torch's own weighted mean divides by the weights of the batch's images: weights would have less effect in smaller
    batches, and none on a single image.
    """
    if weights_K is None:
        return cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing)
    total = cross_entropy(logits_BK, labels_B, weights_K, label_smoothing=label_smoothing, reduction="sum")
    return total / len(labels_B)


def mixed_loss(
    logits_BK: torch.Tensor,
    labels_B: torch.Tensor,
    own_share: torch.Tensor | None,
    weights_K: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Return `weighted_loss`; of images that are mixed with the next one of the batch, by both labels.

    Args:
        logits_BK: float32.
        labels_B: of the images.
        own_share: weight of an image's own label, a scalar; the rest is the next image's. None: nothing is mixed.
        weights_K: of the classes, if they have any.
        label_smoothing: share of the target that is spread evenly over all classes.
    """
    loss = weighted_loss(logits_BK, labels_B, weights_K, label_smoothing)
    if own_share is None:
        return loss
    return torch.lerp(weighted_loss(logits_BK, labels_B.roll(1, 0), weights_K, label_smoothing), loss, own_share)


def balanced_weights(labels_N: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the weight of each class in the loss, float32 K: images / (classes x images of the class).

    Every class then has the same share of the loss, and the mean weight of an image is 1 (King and Zeng, 2001,
    "Logistic Regression in Rare Events Data").
    """
    images_K = torch.bincount(labels_N.cpu(), minlength=classes).clamp(min=1)  # a class without images has no effect
    return (len(labels_N) / (classes * images_K)).to(labels_N.device, torch.float32)
