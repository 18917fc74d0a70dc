"""Confirmation runs that stand apart from the others of their arm."""

from dataclasses import dataclass, replace

import numpy as np

from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult
from ablation.analysis.simultaneous import FEWEST_SEEDS

MOST_DEVIATIONS = 5  # median absolute deviations


@dataclass(frozen=True)
class Outlier:
    """A confirmation run whose objective on the test images is far from its arm's median.

    Attributes:
        arm: its arm's name.
        run: the run.
        median: of the arm's runs.
        deviations: the distance from it in median absolute deviations.
    """

    arm: str
    run: RunResult
    median: float
    deviations: float


def outlying_runs(result: StudyResult) -> list[Outlier]:
    """Return the confirmation runs more than five median absolute deviations from their arm's median.

    The deviation is the largest of the arm's own, that of all arms together, and the standard error of a run's metric
    on these images: of three seeds, two that nearly agree would make an outlier of the third.
    """
    arms = [arm for arm in result.arms if len(arm.confirmed) >= FEWEST_SEEDS]
    if not arms:
        return []
    pooled = float(np.median(np.concatenate([_distances(arm) for arm in arms])))
    outliers = []
    for arm in arms:
        values_S, scores_SN = arm.test_values_S, arm.scores_SN
        median = float(np.median(values_S))
        images = scores_SN.shape[1]
        is_share = result.spec.goal.counts_images
        variance = median * (1 - median) if is_share else float(np.median(scores_SN.var(axis=1)))
        of_images = float(np.sqrt(variance / images))
        deviation = max(float(np.median(_distances(arm))), pooled, of_images, 1 / images)
        for run, value in zip(arm.confirmed, values_S, strict=True):
            deviations = abs(float(value) - median) / deviation
            if deviations > MOST_DEVIATIONS:
                outliers.append(Outlier(arm.arm.name, run, median, deviations))
    return outliers


def without_runs(result: StudyResult, outliers: list[Outlier]) -> StudyResult:
    """Return the study without these runs."""
    ids = {outlier.run.run_id for outlier in outliers}
    arms = [
        replace(arm, confirmations=[run for run in arm.confirmations if run.run_id not in ids]) for arm in result.arms
    ]
    return replace(result, arms=arms)


def _distances(arm: ArmResult) -> np.ndarray:
    """Return the distances from the median, without that of the median itself where it is one of the runs."""
    values_S = arm.test_values_S
    distances_S = np.sort(np.abs(values_S - np.median(values_S)))
    return distances_S[1:] if len(values_S) % 2 else distances_S
