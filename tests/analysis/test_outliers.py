"""Runs that stand apart. Legend: S seeds, N images."""

from dataclasses import replace

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


def test_runs_of_an_arm_that_agree_are_measured_by_those_of_all_arms() -> None:
    # Distances from 0.9: 0.01, 0.01, 0.02, 0.02; from 0.8: 0.0005 three times, and 0.1. The median of all is 0.01.
    result = study({"block3": [0.88, 0.89, 0.9, 0.91, 0.92], "block5": [0.7995, 0.8, 0.8005, 0.8005, 0.7]})
    (outlier,) = outlying_runs(result)
    assert (outlier.arm, outlier.run.number) == ("block5", 4)
    assert outlier.deviations == pytest.approx(0.1 / 0.01)


def test_runs_without_any_mistake_are_measured_by_one_image() -> None:
    assert outlying_runs(study({"block3": [1.0, 1.0, 1.0]})) == []
    (outlier,) = outlying_runs(study({"block3": [1.0, 1.0, 0.9994, 1.0]}))
    assert outlier.run.number == 2
    assert outlier.deviations == pytest.approx(6)  # six images of 10,000


def test_losses_are_measured_by_the_standard_error_of_their_mean() -> None:
    spec = fake_spec({"truncate_at": ["block3", "block4"]}, objective="loss", confirm={"seeds": 4})
    labels_N = np.arange(100) % 4
    losses_N = 0.5 + 0.4 * (-1.0) ** np.arange(100)  # standard deviation 0.4, of the mean 0.04
    means = [0.5, 0.5, 0.75, 0.5]
    drawn = [replace(fake_predictions(labels_N, labels_N, 4), losses_N=losses_N + mean - 0.5) for mean in means]
    first, second = arms(spec)
    results = [fake_arm(spec, first, [0.5], means, drawn), fake_arm(spec, second, [None], [], [])]
    result = fake_study(spec, results, list("abcd"))
    (outlier,) = outlying_runs(result)
    assert outlier.run.number == 2
    assert outlier.deviations == pytest.approx(0.25 / 0.04)
