"""Runs that stand apart. Legend: S seeds, N images."""

import numpy as np
import pytest

from ablation.analysis.outliers import outlying_runs, without_runs
from ablation.analysis.results import StudyResult
from ablation.spec.arms import arms
from tests.fake_results import fake_arm, fake_predictions, fake_spec, fake_study

N = 10_000


def study(accuracies: dict[str, list[float]]) -> StudyResult:
    """Return a study whose arms have runs of exactly these accuracies."""
    spec = fake_spec({"truncate_at": list(accuracies)}, confirm={"seeds": 3})
    labels_N = np.arange(N) % 4
    results = []
    for arm in arms(spec):
        wrong = [np.arange(N) >= round(accuracy * N) for accuracy in accuracies[arm.name]]
        drawn = [fake_predictions(np.where(wrong_N, (labels_N + 1) % 4, labels_N), labels_N, 4) for wrong_N in wrong]
        results.append(fake_arm(spec, arm, [0.5], accuracies[arm.name], drawn))
    return fake_study(spec, results, list("abcd"))


def test_five_deviations_by_hand() -> None:
    # Distances from block3's median 0.9: 0.004, 0.006; from block5's 0.8: 0.005, 0.005, 0.006 and 0.05.
    result = study({"block3": [0.894, 0.9, 0.904], "block5": [0.795, 0.8, 0.805, 0.806, 0.75]})
    (outlier,) = outlying_runs(result)
    assert (outlier.arm, outlier.run.number, outlier.median) == ("block5", 4, 0.8)
    own, pooled, of_images = 0.0055, 0.0055, 0.004  # 0.8 has standard error 0.004 on 10,000 images
    assert outlier.deviations == pytest.approx(0.05 / max(own, pooled, of_images))


def test_two_runs_that_nearly_agree_make_no_outlier_of_the_third() -> None:
    result = study({"block3": [0.9, 0.9001, 0.904], "block4": [0.896, 0.9, 0.904], "block5": [0.795, 0.8, 0.804]})
    assert outlying_runs(result) == []
    assert outlying_runs(study({"block3": [0.9, 0.9, 0.905]})) == [], "within what 10,000 images can tell"


def test_without_the_runs_the_others_stay() -> None:
    result = study({"block3": [0.9, 0.901, 0.902, 0.3, 0.9], "block5": [0.8, 0.801, 0.802, 0.8, 0.8]})
    outliers = outlying_runs(result)
    assert [(o.arm, o.run.number) for o in outliers] == [("block3", 3)]
    rest = without_runs(result, outliers)
    assert [run.number for run in rest.arms[0].confirmations] == [0, 1, 2, 4]
    assert rest.arms[1] == result.arms[1]


def test_two_seeds_cannot_say_which_one_is_apart() -> None:
    assert outlying_runs(study({"block3": [0.9, 0.2], "block5": [0.8, 0.81]})) == []
