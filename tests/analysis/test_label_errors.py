"""Labels that all runs contradict: found, in order, and by the names of their files."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from ablation.analysis.label_errors import SuspectedLabel, suspected_labels
from ablation.analysis.predictions import Predictions
from ablation.analysis.results import StudyResult
from ablation.base.errors import InputError
from tests.fake_results import fake_result


def with_calls(result: StudyResult, calls: list[list[int]], sure: list[float]) -> StudyResult:
    """Return a study whose runs call four images of labels 0 0 1 1 as the lists say, each so sure."""
    rows = iter(zip(calls, sure, strict=True))
    arms = []
    for arm in result.arms:
        confirmations = []
        for run in arm.confirmations:
            called, probability = next(rows)
            probabilities_NK = np.full((4, 3), (1 - probability) / 2, np.float16)
            probabilities_NK[np.arange(4), called] = probability
            predictions = Predictions(probabilities_NK, np.array(called), np.array([0, 0, 1, 1]))
            confirmations.append(replace(run, predictions=predictions))
        arms.append(replace(arm, confirmations=confirmations))
    return replace(result, arms=arms, classes=["cat", "dog", "cow"], test_images=4)


@pytest.fixture
def result() -> StudyResult:
    return fake_result({"truncate_at": ["block1", "block2"]}, {"block1": 0.6, "block2": 0.7}, seeds=2)


def test_all_runs_have_to_agree_on_another_class(result: StudyResult) -> None:
    # Image 0: dog for all. 1: wrong for all, not the same. 2: right for one. 3: cow for all.
    calls = [[1, 1, 0, 2], [1, 2, 0, 2], [1, 1, 1, 2], [1, 1, 0, 2]]
    study = with_calls(result, calls, [0.5, 0.6, 0.7, 0.8])
    assert suspected_labels(study) == [
        SuspectedLabel(0, "cat", "dog", pytest.approx(0.65, abs=1e-3)),
        SuspectedLabel(3, "dog", "cow", pytest.approx(0.65, abs=1e-3)),
    ]
    agreed = with_calls(result, [[0, 0, 1, 1]] * 4, [0.9] * 4)
    assert suspected_labels(agreed) == []


def test_the_probabilities_of_all_images_are_not_copied(result: StudyResult) -> None:
    """Four runs of 2,000 images and 500 classes: one copy in float64 would have 8 MB, and ImageNet's many gigabytes."""
    images, classes = 2000, 500
    predictions = Predictions(
        np.full((images, classes), 0.002, np.float16), np.arange(images) % 3, np.zeros(images, np.int64)
    )
    arms = [
        replace(arm, confirmations=[replace(run, predictions=predictions) for run in arm.confirmations])
        for arm in result.arms
    ]
    study = replace(result, arms=arms, classes=[f"class {k}" for k in range(classes)], test_images=images)
    tracemalloc.start()
    try:
        found = suspected_labels(study)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == images - len(range(0, images, 3))
    assert peak < 8e6


def test_few_runs_say_nothing(result: StudyResult) -> None:
    first = result.arms[0]
    with pytest.raises(InputError, match="has 2 confirmation runs, but needs 3 that agree"):
        suspected_labels(replace(result, arms=[first]))
