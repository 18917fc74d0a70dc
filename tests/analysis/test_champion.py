"""The rule that chooses the champion's arm, from validation alone. Legend: S seeds, N images."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablation.analysis.champion import choose_champion, distances_from_best, moments_of_repeats
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult
from ablation.spec.objective import ACCURACY
from tests.fake_results import draw_predictions, fake_predictions, fake_result

CUTS = {"truncate_at": ["block1", "block3", "block5"]}
OPERATIONS = {"block1": 1e6, "block3": 3e6, "block5": 5e6}
VAL_IMAGES = 4_000


def with_validation(
    arm: ArmResult, accuracy: float, operations: float, images: int = VAL_IMAGES, groups_N: np.ndarray | None = None
) -> ArmResult:
    """Return an arm whose runs have predictions of this accuracy for the validation images, and this cost."""
    runs = []
    for number, run in enumerate(arm.confirmations):
        assert run.predictions is not None
        labels_N = np.arange(images) % 4
        validation = draw_predictions(accuracy, labels_N, 4, seed=number)
        validation = replace(validation, groups_N=groups_N)
        is_right = float(validation.scores_N(ACCURACY).mean())
        predictions = replace(run.predictions, validation=validation)
        runs.append(replace(run, val_accuracy=is_right, predictions=predictions, inference_operations=operations))
    return replace(arm, confirmations=runs)


def study(
    accuracies: dict[str, float], margin: float | None = 2.0, operations: dict[str, float] = OPERATIONS, seeds: int = 3
) -> StudyResult:
    confirm = {"seeds": seeds, "equivalence": margin, "champion": "cheapest" if margin else "best"}
    result = fake_result(CUTS, dict.fromkeys(accuracies, 0.8), seeds=seeds, confirm=confirm)
    arms = [with_validation(arm, accuracies[arm.arm.name], operations[arm.arm.name]) for arm in result.arms]
    return replace(result, arms=arms)


def chosen(result: StudyResult) -> tuple[str, str]:
    choice = choose_champion(result)
    assert choice is not None
    return choice.arm.arm.name, choice.reason


def test_the_best_is_chosen_by_default() -> None:
    name, reason = chosen(study({"block1": 0.80, "block3": 0.90, "block5": 0.89}, margin=None))
    assert name == "block3"
    assert reason == "its arm has the highest mean validation accuracy (0.9000, n = 3 seeds)"


def with_values(result: StudyResult, values: dict[str, tuple[float, ...]]) -> StudyResult:
    """Return a study whose arms' confirmation runs have these validation accuracies."""
    arms = []
    for arm in result.arms:
        runs = [
            replace(run, val_accuracy=value) for run, value in zip(arm.confirmations, values[arm.arm.name], strict=True)
        ]
        arms.append(replace(arm, confirmations=runs))
    return replace(result, arms=arms)


def test_an_arm_that_others_equal_is_called_the_first_of_them() -> None:
    """The means of 0.1, 0.2 and 0.3 in two orders differ in the last bit."""
    assert (0.1 + 0.2 + 0.3) / 3 > (0.3 + 0.2 + 0.1) / 3
    result = study({"block1": 0.80, "block3": 0.90, "block5": 0.89}, margin=None)
    two = with_values(result, {"block1": (0.1, 0.1, 0.1), "block3": (0.3, 0.2, 0.1), "block5": (0.1, 0.2, 0.3)})
    assert chosen(two) == (
        "block3",
        "its arm and block5 share the highest mean validation accuracy (0.2000, n = 3 seeds); it comes first in the "
        "study",
    )
    three = with_values(result, dict.fromkeys(CUTS["truncate_at"], (0.5, 0.5, 0.5)))
    name, reason = chosen(three)
    assert name == "block1"
    assert reason.startswith("its arm, block3 and block5 share the highest")


def test_the_cheapest_that_is_not_worse_by_the_margin_is_chosen() -> None:
    result = study({"block1": 0.80, "block3": 0.895, "block5": 0.90})
    name, reason = chosen(result)
    ends, obstacle = distances_from_best(result)
    assert not obstacle
    assert -0.02 < ends["block3"].low < -0.005
    assert name == "block3"
    assert reason == (
        "its arm is the cheapest that is shown to be less than 2 points worse than the best, block5: on validation it "
        f"is at most {-100 * ends['block3'].low:.{1 if ends['block3'].low < -0.01 else 2}f} points behind (95 %), and "
        "classifying an image takes 60 % of the operations"
    )


def test_a_small_margin_leaves_the_best() -> None:
    accuracies = {"block1": 0.80, "block3": 0.895, "block5": 0.90}
    name, reason = chosen(study(accuracies, margin=0.3))
    assert (name, reason.partition(", and ")[2]) == (
        "block5",
        "no cheaper arm is shown to be less than 0.3 points worse",
    )
    assert chosen(study(accuracies, margin=15.0))[0] == "block1"
    assert "to be less than 1 point worse than the best, block5" in chosen(study(accuracies, margin=1.0))[1]


def test_where_the_best_cannot_be_compared_it_is_chosen() -> None:
    """Two of its three runs have lost their predictions: the others alone do not say how far behind they are."""
    result = study({"block1": 0.60, "block3": 0.605, "block5": 0.90})
    best = result.arms[2]
    lost = [replace(run, predictions=None) for run in best.confirmations[1:]]
    arms = [*result.arms[:2], replace(best, confirmations=[best.confirmations[0], *lost])]
    name, reason = chosen(replace(result, arms=arms))
    assert name == "block5"
    assert reason.endswith("because the best arm has no 3 runs with validation predictions")


def test_of_equal_costs_the_one_that_trains_less_and_then_the_better_one_is_chosen() -> None:
    same = dict.fromkeys(OPERATIONS, 2e6)
    result = study({"block1": 0.894, "block3": 0.895, "block5": 0.90}, operations=same)

    def training(parameters: dict[str, int]) -> StudyResult:
        arms = [
            replace(arm, trials=[replace(run, trained_parameters=parameters[arm.arm.name]) for run in arm.trials])
            for arm in result.arms
        ]
        return replace(result, arms=arms)

    assert chosen(training({"block1": 30, "block3": 10, "block5": 20}))[0] == "block3"
    assert chosen(training({"block1": 10, "block3": 10, "block5": 10}))[0] == "block5"


def mapped(result: StudyResult, change: object) -> StudyResult:
    return replace(
        result, arms=[replace(arm, confirmations=[change(run) for run in arm.confirmations]) for arm in result.arms]
    )  # type: ignore[operator]


def test_no_test_result_plays_a_part() -> None:
    """Other test predictions, of any accuracy, change neither the arm nor the reason."""
    result = study({"block1": 0.80, "block3": 0.895, "block5": 0.90})
    before = chosen(result)

    def spoilt(run: RunResult) -> RunResult:
        assert run.predictions is not None
        wrong_N = (run.predictions.labels_N + (run.spec.arm == "block3")) % 4
        predictions = replace(
            fake_predictions(wrong_N, run.predictions.labels_N, 4), validation=run.predictions.validation
        )
        return replace(run, predictions=predictions, test_accuracy=float(run.spec.arm != "block3"), test_loss=9.0)

    spoilt_result = mapped(result, spoilt)
    assert spoilt_result.arms[1].test_accuracies_S.max() == 0
    assert chosen(spoilt_result) == before
    one_by_default = study({"block1": 0.80, "block3": 0.9, "block5": 0.89}, margin=None)
    assert chosen(mapped(one_by_default, spoilt)) == chosen(one_by_default)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("predictions", "confirmation runs of an older version have no validation predictions"),
        ("seeds", "two arms with 3 seeds are needed"),
        ("arms", "only one arm is confirmed"),
    ],
)
def test_where_the_cheapest_cannot_be_found_the_best_is_chosen_and_the_reason_said(spoil: str, why: str) -> None:
    accuracies = {"block1": 0.80, "block3": 0.895, "block5": 0.90}
    result = study(accuracies, seeds=2 if spoil == "seeds" else 3)

    def spoilt(run: RunResult) -> RunResult:
        assert run.predictions is not None
        if spoil == "predictions":
            return replace(run, predictions=replace(run.predictions, validation=None))
        return run

    result = mapped(result, spoilt)
    if spoil == "arms":
        result = replace(result, arms=[*(replace(arm, confirmations=[]) for arm in result.arms[:2]), result.arms[2]])
    name, reason = chosen(result)
    assert name == "block5"
    assert reason.startswith("its arm has the highest mean validation accuracy")
    assert reason.endswith(f"; no cheaper arm could be chosen, because {why}")


def test_validation_images_that_belong_together_make_the_bound_wider() -> None:
    result = study({"block1": 0.80, "block3": 0.895, "block5": 0.90})
    groups_N = np.arange(VAL_IMAGES) // 400
    grouped = [
        with_validation(arm, a, 1e6, groups_N=groups_N) for arm, a in zip(result.arms, (0.8, 0.895, 0.9), strict=True)
    ]
    alone, together = (distances_from_best(r)[0]["block3"].low for r in (result, replace(result, arms=grouped)))
    assert together < alone


def test_over_repeats_arms_are_compared_by_the_accuracies_of_each() -> None:
    confirm = {"seeds": 2, "repeats": 3, "equivalence": 4.0, "champion": "cheapest"}
    two = {"truncate_at": ["block1", "block5"]}
    result = fake_result(two, {"block1": 0.80, "block5": 0.80}, seeds=2, confirm=confirm)
    values = {"block1": [0.80, 0.81, 0.80], "block5": [0.81, 0.818, 0.812]}

    def validated(run: RunResult) -> RunResult:
        accuracy = values[run.spec.arm][run.spec.repeat or 0] + (0.001 if run.number % 2 else -0.001)
        return replace(run, val_accuracy=accuracy, inference_operations=OPERATIONS[run.spec.arm])

    result = mapped(result, validated)
    means = {
        arm.arm.name: [
            np.mean([run.val_accuracy or 0 for run in arm.confirmations if run.spec.repeat == repeat])
            for repeat in range(3)
        ]
        for arm in result.arms
    }
    difference_R = np.subtract(means["block1"], means["block5"])
    margin = stats.t.ppf(0.95, 2) * stats.sem(difference_R)
    ends, obstacle = distances_from_best(result)
    assert not obstacle
    assert ends["block1"].low == pytest.approx(difference_R.mean() - margin, rel=0.05)
    assert chosen(result)[0] == "block1"
    one_repeat_short = mapped(result, lambda run: replace(run, val_accuracy=None) if run.spec.repeat == 2 else run)
    assert chosen(one_repeat_short)[1].endswith("3 repeats in which all arms are confirmed are needed")


def test_moments_of_repeats_are_sample_moments() -> None:
    repeats = [{"a": 0.8, "b": 0.7}, {"a": 0.82, "b": 0.71}, {"a": 0.81, "b": 0.75}]
    moments = moments_of_repeats(repeats)
    assert moments.means_A == pytest.approx([0.81, 0.72])
    assert moments.repeats_AA[0, 0] == pytest.approx(np.var([0.8, 0.82, 0.81], ddof=1))


def test_validation_images_of_a_single_group_choose_no_cheaper_arm() -> None:
    result = study({"block1": 0.50, "block3": 0.80, "block5": 0.90})
    groups_N = np.zeros(VAL_IMAGES, np.int64)
    accuracies = (0.50, 0.80, 0.90)
    one_group = [
        with_validation(arm, accuracy, OPERATIONS[arm.arm.name], groups_N=groups_N)
        for arm, accuracy in zip(result.arms, accuracies, strict=True)
    ]
    name, reason = chosen(replace(result, arms=one_group))
    assert name == "block5"
    assert reason.endswith("; no cheaper arm could be chosen, because validation has a single image or group")
