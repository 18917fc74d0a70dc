"""Test images whose label may be wrong: all confirmation runs of all arms call them the same other class.

Legend: R runs, N test images, K classes, M mistakes of a run or of all, S pixels (a side).
"""

from dataclasses import dataclass

import numpy as np

from ablation.analysis.predictions import Predictions
from ablation.analysis.results import StudyResult
from ablation.base.errors import InputError

FEWEST_RUNS = 3  # whose agreement says something


@dataclass(frozen=True)
class SuspectedLabel:
    """A test image by its number, its label, the class that all runs call it, and their mean probability of that."""

    number: int
    label: str
    called: str
    probability: float


def confirmed_runs(result: StudyResult) -> int:
    """Return the number of confirmation runs whose predictions the store has."""
    return len(_predictions(result))


def _predictions(result: StudyResult) -> list[Predictions]:
    return [run.predictions for arm in result.arms for run in arm.confirmed if run.predictions is not None]


def mistake_pictures(result: StudyResult) -> dict[int, np.ndarray]:
    """Return the pictures of test images by their numbers, uint8, as far as confirmation runs kept them as mistakes."""
    kept = [predictions.mistakes for predictions in _predictions(result)]
    return {
        int(number): image_SSC
        for mistakes in kept
        if mistakes is not None
        for number, image_SSC in zip(mistakes.numbers_M, mistakes.images_MSSC, strict=True)
    }


def suspected_labels(result: StudyResult) -> list[SuspectedLabel]:
    """Return the test images that all confirmation runs call the same other class, the most probable ones first.

    Among a set's own errors they are the likeliest, though a hard image looks the same (Northcutt, Athalye and Mueller,
    2021, found 3.3 % wrong labels in the test sets of ten benchmarks, by models that agree against the label).

    Raises:
        InputError: fewer than three runs have predictions.
    """
    runs = _predictions(result)
    if len(runs) < FEWEST_RUNS:
        raise InputError(f"{result.spec.name}: has {len(runs)} confirmation runs, but needs {FEWEST_RUNS} that agree")
    called_RN = np.stack([run.predicted_N for run in runs])
    called_N, labels_N = called_RN[0], runs[0].labels_N
    agreed_N = (called_RN == called_N).all(axis=0) & (called_N != labels_N)
    numbers_M = np.flatnonzero(agreed_N)
    called_M = called_N[numbers_M]
    mean_M = sum(run.probabilities_NK[numbers_M, called_M].astype(np.float64) for run in runs) / len(runs)
    found = [
        SuspectedLabel(int(n), result.classes[labels_N[n]], result.classes[called], float(probability))
        for n, called, probability in zip(numbers_M, called_M, mean_M, strict=True)
    ]
    return sorted(found, key=lambda each: (-each.probability, each.number))
