"""What is said of a study, against values worked out by hand. Legend: S seeds, N images, K classes."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ablation.analysis import statistics
from ablation.analysis.answer import analyse, interval_points, points
from ablation.analysis.comparison import best_so_far, champion_run, confusion_matrix, late_rise, winning_arm
from ablation.analysis.results import ArmResult, RunResult, StudyResult
from ablation.spec.arms import arms
from tests.fake_results import (
    draw_predictions,
    fake_arm,
    fake_predictions,
    fake_result,
    fake_run,
    fake_spec,
    fake_study,
)

LABELS_N = np.array([0, 0, 1, 1])
CUTS = ["block3", "block4", "block5"]
TWO_BY_TWO = {"truncate_at": ["block3", "block5"], "strategy": ["feature_extraction", "fine_tune_all"]}
FOUR = {
    "block3,feature_extraction": 0.90,
    "block3,fine_tune_all": 0.94,
    "block5,feature_extraction": 0.70,
    "block5,fine_tune_all": 0.86,
}


def test_an_arm_by_hand() -> None:
    spec = fake_spec({"truncate_at": ["block3", "block5"]}, confirm={"seeds": 2})
    arm = arms(spec)[0]
    predictions_S = [
        fake_predictions(np.array([0, 0, 1, 0]), LABELS_N, 2),
        fake_predictions(np.array([0, 0, 0, 0]), LABELS_N, 2),
    ]
    found = fake_arm(spec, arm, [0.6, 0.9, None], [0.8, 0.7], predictions_S)
    empty = fake_arm(spec, arms(spec)[1], [None, None, None], [], [])
    summary, without = analyse(fake_study(spec, [found, empty], ["cat", "dog"])).arms

    assert summary.test is not None
    assert summary.val is not None
    assert (summary.test.mean, summary.test.seeds) == (0.625, 2)
    assert summary.test.standard_deviation == pytest.approx(0.125 * np.sqrt(2))
    # t(0.975, 1) = 12.7062 times 0.125 is more than fits between 0 and 1
    assert (summary.test.estimate.low, summary.test.estimate.high) == (0.0, 1.0)
    assert summary.val.mean == pytest.approx(0.75)
    assert summary.selection_bias == pytest.approx(0.9 - 0.75)
    assert summary.class_accuracies_K is not None
    assert summary.confusion_KK is not None
    np.testing.assert_allclose(summary.class_accuracies_K, [1.0, 0.25])
    np.testing.assert_allclose(summary.confusion_KK, [[1.0, 0.0], [0.75, 0.25]])
    assert [run.number for run in summary.failed] == [2]
    assert summary.training_runs == 2

    assert without.test is None
    assert without.selection_bias is None
    assert without.confusion_KK is None
    assert len(without.failed) == 3


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = confusion_matrix(np.array([1, 1, 0]), np.array([0, 0, 1]), 3)
    np.testing.assert_array_equal(matrix, [[0, 1, 0], [1, 0, 0], [np.nan, np.nan, np.nan]])


def trials_of(values: list[float | None], state: str = "finished") -> list[RunResult]:
    spec = fake_spec({})
    return [
        fake_run(spec, arms(spec)[0], n, value, state=state if value is not None else "failed")
        for n, value in enumerate(values)
    ]


def test_best_so_far_skips_what_failed() -> None:
    curve = best_so_far(trials_of([None, 0.5, 0.4, 0.6, 0.6, 0.7]))
    np.testing.assert_array_equal(curve, [np.nan, 0.5, 0.5, 0.6, 0.6, 0.7])
    assert late_rise(curve) == pytest.approx(0.1)  # from 0.6 after four of six trials


@pytest.mark.parametrize(
    ("curve", "rise"),
    [([0.5, 0.5], None), ([np.nan, np.nan, 0.5], None), ([0.5, 0.7, 0.7], 0.0), ([0.1, 0.2, 0.3, 0.4], 0.4 - 0.3)],
)
def test_late_rise(curve: list[float], rise: float | None) -> None:
    assert late_rise(np.array(curve)) == (None if rise is None else pytest.approx(rise))


def test_all_pairs_of_levels_are_one_family() -> None:
    accuracies = {"block3": 0.90, "block4": 0.885, "block5": 0.70}
    result = fake_result({"truncate_at": CUTS}, accuracies, images=10000, seeds=4, seed_deviation=0.015)
    (factor,) = analyse(result).factors
    assert [(d.first, d.second) for d in factor.family] == [
        ("block3", "block4"),
        ("block3", "block5"),
        ("block4", "block5"),
    ]
    correct = {arm.arm.name: arm.correct_SN for arm in result.arms}
    by_hand = [statistics.contrast({d.first: 1, d.second: -1}, correct) for d in factor.family]
    assert [d.estimate for d in factor.family] == by_hand
    assert [d.corrected_p for d in factor.family] == statistics.holm([e.p for e in by_hand if e.p is not None])
    assert [d.is_shown for d in factor.family] == [False, True, True]
    assert [d.seeds_needed is not None for d in factor.family] == [True, False, False]
    assert factor.family[0].seeds_needed == statistics.seeds_needed({"block3": 1, "block4": -1}, correct, family=3)
    means = [arm.test_accuracies_S.mean() for arm in result.arms]
    assert factor.family[0].estimate.value == pytest.approx(means[0] - means[1])
    assert analyse(result).arm_pairs == []  # they would be the same once more


def test_levels_are_compared_with_a_declared_control_alone() -> None:
    result = fake_result(
        {"truncate_at": CUTS},
        {"block3": 0.90, "block4": 0.70, "block5": 0.80},
        confirm={"seeds": 3, "control": {"truncate_at": "block5"}},
    )
    (factor,) = analyse(result).factors
    assert [(d.first, d.second) for d in factor.family] == [("block3", "block5"), ("block4", "block5")]
    p_values = [d.estimate.p for d in factor.family if d.estimate.p is not None]
    assert [d.corrected_p for d in factor.family] == statistics.holm(p_values)
    assert analyse(result).answer.startswith("The control block5 beats block4 by 9.9 points (95 % CI ")
    assert " and loses to block3 by " in analyse(result).answer


def test_two_factors_by_hand() -> None:
    result = fake_result(TWO_BY_TWO, FOUR, seeds=3, images=500)
    analysis = analyse(result)
    a, b, c, d = (float(arm.test_accuracies_S.mean()) for arm in result.arms)
    cut, strategy = analysis.factors
    assert [level.estimate.value for level in cut.levels if level.estimate] == pytest.approx([(a + b) / 2, (c + d) / 2])
    assert [level.arms for level in cut.levels] == [2, 2]
    assert cut.family[0].estimate.value == pytest.approx((a + b) / 2 - (c + d) / 2)
    assert strategy.family[0].estimate.value == pytest.approx((a + c) / 2 - (b + d) / 2)
    (interaction,) = analysis.interactions
    assert interaction.estimate.value == pytest.approx((d - b) - (c - a))
    assert (interaction.first, interaction.first_base) == ("block5", "block3")
    assert (interaction.second, interaction.second_base) == ("fine_tune_all", "feature_extraction")
    assert len(analysis.arm_pairs) == 6
    assert all(pair.corrected_p is None for pair in analysis.arm_pairs)
    clauses = analysis.answer.split("; ")
    assert clauses[0].startswith("truncate_at: block3 beats block5 by 13.9 points (95 % CI ")
    assert clauses[1].startswith("strategy: fine_tune_all beats feature_extraction by ")


def test_the_interaction_is_seen_from_the_controls() -> None:
    control = {"truncate_at": "block5", "strategy": "fine_tune_all"}
    result = fake_result(TWO_BY_TWO, FOUR, confirm={"seeds": 3, "control": control})
    (interaction,) = analyse(result).interactions
    a, b, c, d = (float(arm.test_accuracies_S.mean()) for arm in result.arms)
    assert (interaction.first, interaction.second) == ("block3", "feature_extraction")
    assert interaction.estimate.value == pytest.approx((a - c) - (b - d))


def test_an_arm_that_failed_is_left_out_and_said() -> None:
    result = fake_result(TWO_BY_TWO, FOUR, failed_arms=("block5,fine_tune_all",))
    analysis = analyse(result)
    cut, strategy = analysis.factors
    a, b, c = (float(arm.test_accuracies_S.mean()) for arm in result.arms[:3])
    assert cut.family[0].estimate.value == pytest.approx(a - c)  # where both cuts are there
    assert strategy.family[0].estimate.value == pytest.approx(a - b)
    assert (cut.family[0].arms, len(cut.partial)) == (1, 1)
    assert "over 1 of 2 combinations" in cut.partial[0]
    assert cut.levels[1].missing == ["block5,fine_tune_all"]
    assert analysis.interactions == []
    assert "block5,fine_tune_all is not confirmed" in analysis.interaction_missing[0]
    assert "Left out, because no trial of it finished: block5,fine_tune_all." in analysis.answer
    assert len(analysis.arm_pairs) == 3


def test_levels_without_a_common_combination_are_not_compared() -> None:
    failed = ("block3,fine_tune_all", "block5,feature_extraction")
    analysis = analyse(fake_result(TWO_BY_TWO, FOUR, failed_arms=failed))
    assert analysis.factors[0].family == []
    assert len(analysis.factors[0].not_compared) == 1
    assert analysis.answer.startswith("truncate_at: nothing can be compared; strategy: nothing can be compared.")


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_leader_that_shares_no_combination_is_said_to_be_incomparable(seeds: int) -> None:
    """One cut is confirmed with one strategy alone, the two others with the other alone."""
    factors = {"truncate_at": ["block1", "block2", "block3"], "strategy": ["feature_extraction", "fine_tune_all"]}
    failed = ("block1,fine_tune_all", "block2,feature_extraction", "block3,feature_extraction")
    accuracies = {"block1,feature_extraction": 0.9, "block2,fine_tune_all": 0.6, "block3,fine_tune_all": 0.7}
    analysis = analyse(fake_result(factors, accuracies, seeds=seeds, failed_arms=failed))
    assert analysis.answer.startswith("truncate_at: nothing can be compared with block")


def test_the_leader_is_found_where_all_levels_are_present() -> None:
    # block5 lacks its worse arm, so its plain mean would be the highest
    result = fake_result(TWO_BY_TWO, FOUR, failed_arms=("block5,feature_extraction",))
    assert analyse(result).factors[0].leader == "block3"


def test_one_seed_proves_nothing() -> None:
    analysis = analyse(fake_result({"truncate_at": CUTS}, {"block3": 0.9, "block4": 0.85, "block5": 0.8}, seeds=1))
    (factor,) = analysis.factors
    assert all(d.estimate.low is None and d.corrected_p is None and d.seeds_needed is None for d in factor.family)
    assert [summary.test.estimate.low for summary in analysis.arms if summary.test] == [None] * 3
    assert [summary.test.standard_deviation for summary in analysis.arms if summary.test] == [None] * 3
    assert analysis.answer.startswith("block3 is ")
    assert "points above block4 and " in analysis.answer
    assert analysis.answer.endswith("one seed proves nothing.")


def test_without_confirmation_there_is_no_answer() -> None:
    analysis = analyse(fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8}, seeds=0))
    assert analysis.winner is None
    assert analysis.answer == (
        "The best tuned arm is block3 (validation accuracy 0.9040, the best of 3 trials), but without confirmation "
        "runs no answer is possible: [confirm] seeds is 0."
    )
    assert analysis.factors[0].family == []


def test_without_factors_the_answer_is_the_accuracy() -> None:
    analysis = analyse(fake_result({}, {"all": 0.9}, seeds=3))
    (arm,) = analysis.arms
    assert arm.test is not None
    low, high = arm.test.estimate.low, arm.test.estimate.high
    assert analysis.answer == (
        f"The only arm reaches a mean test accuracy of {arm.test.mean:.4f} "
        f"(95 % CI over seeds {low:.4f} to {high:.4f}, 3 seeds)."
    )


def test_no_difference_is_said_to_be_none() -> None:
    analysis = analyse(fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.9}))
    assert analysis.answer.startswith("No difference could be shown between block")
    assert "Holm p = " in analysis.answer


def test_the_answer_quotes_the_smallest_difference_from_the_same_figures() -> None:
    accuracies = {"block3": 0.9, "block4": 0.8, "block5": 0.7}
    analysis = analyse(fake_result({"truncate_at": CUTS}, accuracies, seeds=5, images=2000))
    difference = analysis.factors[0].family[0]  # block3 minus block4
    low, high = difference.estimate.low, difference.estimate.high
    assert low is not None
    assert high is not None
    assert analysis.answer == (
        f"block3 beats block4 and block5; the smallest gap, to block4, is {100 * difference.estimate.value:.1f} points "
        f"(95 % CI {100 * low:.1f} to {100 * high:.1f}, Holm p < 0.001, 5 seeds)."
    )


def test_the_answer_quotes_a_smallest_gap_for_each_verb_with_several_objects() -> None:
    accuracies = {"block1": 0.5, "block2": 0.6, "block3": 0.7, "block4": 0.8, "block5": 0.9}
    confirm = {"seeds": 5, "control": {"truncate_at": "block3"}}
    answer = analyse(fake_result({"truncate_at": list(accuracies)}, accuracies, seeds=5, confirm=confirm)).answer
    assert answer.startswith(
        "The control block3 beats block1 and block2 and loses to block4 and block5; the smallest gaps, to block2 and "
        "block4, are "
    )
    few = analyse(fake_result({"truncate_at": CUTS}, {"block3": 0.9, "block4": 0.9, "block5": 0.7}, seeds=5)).answer
    assert " beats block5 by " in few
    assert "smallest" not in few


def with_validation(result: StudyResult, accuracies: dict[str, float]) -> StudyResult:
    """Replace the validation accuracies of the confirmation runs."""

    def change(arm: ArmResult) -> ArmResult:
        runs = [dataclasses.replace(run, val_accuracy=accuracies[arm.arm.name]) for run in arm.confirmations]
        return dataclasses.replace(arm, confirmations=runs)

    return dataclasses.replace(result, arms=[change(arm) for arm in result.arms])


def test_the_answer_is_truthful_where_the_test_images_say_the_opposite() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8})
    analysis = analyse(with_validation(result, {"block3": 0.7, "block5": 0.75}))
    assert analysis.winner is not None
    assert analysis.winner.arm.name == "block5"
    assert analysis.answer.startswith("block5 loses to block3 by 9.9 points (95 % CI ")
    assert analysis.answer.endswith(", though block5 leads on validation.")


def test_the_first_of_equals_wins() -> None:
    result = fake_result({"truncate_at": CUTS}, {"block3": 0.7, "block4": 0.8, "block5": 0.9})
    even = with_validation(result, dict.fromkeys(CUTS, 0.5))
    chosen = winning_arm(even)
    assert chosen is not None
    assert chosen.arm.name == "block3"
    assert champion_run(chosen).number == 0


def spoil(change: Callable[[RunResult, np.random.Generator], RunResult], result: StudyResult) -> StudyResult:
    random = np.random.default_rng(3)
    found = [
        dataclasses.replace(arm, confirmations=[change(run, random) for run in arm.confirmations])
        for arm in result.arms
    ]
    return dataclasses.replace(result, arms=found)


def nonsense(run: RunResult, random: np.random.Generator) -> RunResult:
    labels_N = run.predictions.labels_N if run.predictions else LABELS_N
    drawn = draw_predictions(float(random.uniform()), labels_N, 4, seed=int(random.integers(1000)))
    return dataclasses.replace(run, test_accuracy=float(random.uniform()), test_loss=-1.0, predictions=drawn)


def without(run: RunResult, _: np.random.Generator) -> RunResult:
    return dataclasses.replace(run, test_accuracy=None, test_loss=None, predictions=None)


@pytest.mark.parametrize("change", [nonsense, without])
def test_no_test_figure_has_a_say_in_what_is_chosen(
    change: Callable[[RunResult, np.random.Generator], RunResult],
) -> None:
    result = fake_result(TWO_BY_TWO, FOUR, seed_deviation=0.01)
    spoilt = spoil(change, result)
    chosen, again = winning_arm(result), winning_arm(spoilt)
    assert chosen is not None
    assert again is not None
    assert chosen.arm == again.arm == arms(result.spec)[1]
    assert champion_run(chosen).run_id == champion_run(again).run_id
    assert champion_run(chosen).val_accuracy == max(run.val_accuracy or 0 for run in chosen.confirmations)
    if change is nonsense:
        assert [f.leader for f in analyse(spoilt).factors] == [f.leader for f in analyse(result).factors]


def test_an_unfinished_study_says_that_it_is_preliminary() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8}, seeds=3)
    first = dataclasses.replace(result.arms[0], confirmations=result.arms[0].confirmations[:2])
    second = dataclasses.replace(result.arms[1], trials=result.arms[1].trials[:2], best=result.arms[1].trials[0])
    answer = analyse(dataclasses.replace(result, arms=[first, second])).answer
    assert answer.startswith("Preliminary, 1 trial and 1 confirmation run still missing: block3 beats block5 by ")
    assert "2 to 3 seeds" in answer


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0474, "4.7"), (0.0012, "0.12"), (-0.0095, "-0.95"), (-0.00001, "0.00"), (0.0951, "9.5")]
)
def test_points(difference: float, text: str) -> None:
    assert points(difference) == text


def test_interval_points() -> None:
    assert interval_points(0.041, 0.053) == "4.1 to 5.3"
    assert interval_points(-0.004, 0.0112) == "-0.40 to 1.12"
    assert interval_points(None, None) == "-"


# ------------------------------------------------------------------------------------------------------------ [[arms]]


def test_listed_arms_are_the_levels_of_one_factor() -> None:
    listed = [
        {"name": "frozen", "truncate_at": "block5"},
        {"truncate_at": "block3", "strategy": "fine_tune_all"},
        {"truncate_at": "block5", "strategy": "fine_tune_all"},
    ]
    accuracies = {"frozen": 0.7, "block3,fine_tune_all": 0.9, "block5,fine_tune_all": 0.8}
    analysis = analyse(fake_result({}, accuracies, arms=listed))
    (factor,) = analysis.factors
    assert [(level.label, level.arms) for level in factor.levels] == [(name, 1) for name in accuracies]
    assert [(d.first, d.second) for d in factor.family] == [
        ("frozen", "block3,fine_tune_all"), ("frozen", "block5,fine_tune_all"),
        ("block3,fine_tune_all", "block5,fine_tune_all"),
    ]  # fmt: skip
    correct = {arm.arm.name: arm.correct_SN for arm in analysis.result.arms}
    by_hand = [statistics.contrast({d.first: 1, d.second: -1}, correct) for d in factor.family]
    assert [d.estimate for d in factor.family] == by_hand
    assert [d.corrected_p for d in factor.family] == statistics.holm([e.p for e in by_hand if e.p is not None])
    assert factor.confounded == {("frozen", "block3,fine_tune_all"): ["truncate_at", "strategy"]}
    assert (analysis.interactions, analysis.arm_pairs) == ([], [])
    assert analysis.answer.startswith("block3,fine_tune_all beats")
    assert "Some arms differ in several parameters at once" in analysis.answer

    control = analyse(fake_result({}, accuracies, arms=listed, confirm={"seeds": 3, "control": {"arm": "frozen"}}))
    assert [(d.first, d.second) for d in control.factors[0].family] == [
        ("block3,fine_tune_all", "frozen"), ("block5,fine_tune_all", "frozen"),
    ]  # fmt: skip


def test_two_listed_arms_that_differ_in_all_share_the_difference() -> None:
    listed = [{"truncate_at": "block5", "strategy": "feature_extraction"},
              {"truncate_at": "block3", "strategy": "fine_tune_all"}]  # fmt: skip
    accuracies = {"block5,feature_extraction": 0.7, "block3,fine_tune_all": 0.9}
    answer = analyse(fake_result({}, accuracies, arms=listed)).answer
    assert answer.endswith(
        "differ in truncate_at and strategy at once: a difference cannot be put down to one of them alone."
    )
    changed = [listed[0], {"truncate_at": "block3", "strategy": "feature_extraction"}]
    one_change = fake_result({}, {"block5,feature_extraction": 0.7, "block3,feature_extraction": 0.9}, arms=changed)
    assert "differ in" not in analyse(one_change).answer
