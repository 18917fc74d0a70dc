"""The predictions of a confirmation run, read from its file.

Legend: N test images, K classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ablation.analysis.scores import image_scores
from ablation.base.errors import InputError
from ablation.data.samples import Mistakes
from ablation.spec.objective import Objective


@dataclass(frozen=True)
class Predictions:
    """A confirmation run's predictions for the test images, in the order of the data set.

    `probabilities_NK` is float16, `predicted_N` and `labels_N` are int64 numbers of classes. `mistakes` are some of the
    misclassified images; None in files of older versions. `groups_N` are numbers of what the images belong to, from 0,
    int64; None where they are independent. `validation` are those for the validation images, without mistakes; None in
    files of older versions. `losses_N` are cross-entropies in nats, float64; None unless the loss is the objective.
    """

    probabilities_NK: np.ndarray
    predicted_N: np.ndarray
    labels_N: np.ndarray
    mistakes: Mistakes | None = None
    groups_N: np.ndarray | None = None
    validation: "Predictions | None" = None
    losses_N: np.ndarray | None = None

    def scores_N(self, objective: Objective) -> np.ndarray:
        """Return what each image contributes to a metric, see `image_scores`."""
        return image_scores(objective, self.labels_N, self.predicted_N, self.losses_N, self.groups_N)


def _read(file: Any, kind: str) -> Predictions:
    """Return the predictions whose tensors' names begin with 'val_', or with nothing for those of the test images."""
    names = file.keys()
    found = {
        name: file.get_tensor(f"{kind}{name}") if f"{kind}{name}" in names else None for name in ("groups", "losses")
    }
    return Predictions(
        file.get_tensor(f"{kind}probabilities"),
        file.get_tensor(f"{kind}predicted").astype(np.int64),
        file.get_tensor(f"{kind}labels").astype(np.int64),
        groups_N=found["groups"],
        losses_N=found["losses"],
    )


def load_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names, mistakes = file.keys(), None
            if "mistakes" in names:
                mistakes = Mistakes(file.get_tensor("mistakes"), file.get_tensor("mistake_images"))
            validation = _read(file, "val_") if "val_predicted" in names else None
            predictions = replace(_read(file, ""), mistakes=mistakes, validation=validation)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
    labels_N, predicted_N = predictions.labels_N, predictions.predicted_N
    probabilities_NK = predictions.probabilities_NK
    fits = labels_N.shape == predicted_N.shape == probabilities_NK.shape[:1] and probabilities_NK.ndim == 2
    numbers = np.concatenate([labels_N.ravel(), predicted_N.ravel()])
    if not (fits and numbers.size and 0 <= numbers.min() <= numbers.max() < probabilities_NK.shape[1]):
        raise InputError(f"{path} is damaged (its numbers are no classes of its images)")  # of an older version
    return predictions
