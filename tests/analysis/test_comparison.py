"""Levels, differences and interactions, against contrasts worked out by hand. Legend: S seeds, N images."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from ablation.analysis.answer import analyse
from ablation.analysis.comparison import (
    Difference,
    compare,
    findable_differences,
    tuning_leader,
)
from ablation.analysis.contrasts import interactions, label_pairs, level_comparisons, places
from ablation.analysis.estimator import OVER_SEEDS, Estimator
from ablation.analysis.results import StudyResult
from ablation.analysis.statistics import Estimate
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result, fake_spec

CUTS = ["block3", "block4", "block5"]
ADDITIVE = FOUR | {"block5,fine_tune_all": 0.74}


def with_seeds(result: StudyResult, seeds: dict[str, int]) -> StudyResult:
    """Keep the first confirmation runs of some arms."""
    arms = [
        dataclasses.replace(arm, confirmations=arm.confirmations[: seeds.get(arm.arm.name, len(arm.confirmations))])
        for arm in result.arms
    ]
    return dataclasses.replace(result, arms=arms)


def names(differences: list[Difference]) -> list[tuple[str, str]]:
    return [(d.first, d.second) for d in differences]


def test_all_pairs_of_levels_are_tested_together() -> None:
    accuracies = {"block3": 0.90, "block4": 0.885, "block5": 0.70}
    result = fake_result({"truncate_at": CUTS}, accuracies, images=10000, seeds=4, seed_deviation=0.015)
    (factor,) = compare(result, result.scores).factors
    assert names(factor.family) == [("block3", "block4"), ("block3", "block5"), ("block4", "block5")]
    by_hand = OVER_SEEDS.simultaneous([{d.first: 1, d.second: -1} for d in factor.family], result.scores)
    assert [d.estimate for d in factor.family] == by_hand
    assert [d.is_shown for d in factor.family] == [False, True, True]
    means = [arm.test_accuracies_S.mean() for arm in result.arms]
    assert factor.family[0].estimate.value == pytest.approx(means[0] - means[1])
    assert factor.pivot is None


def test_levels_are_compared_with_a_declared_control_alone() -> None:
    confirm = {"seeds": 3, "control": {"truncate_at": "block5"}}
    result = fake_result({"truncate_at": CUTS}, {"block3": 0.90, "block4": 0.70, "block5": 0.80}, confirm=confirm)
    (factor,) = compare(result, result.scores).factors
    assert names(factor.family) == [("block3", "block5"), ("block4", "block5")]
    assert (factor.control, factor.pivot) == ("block5", "block5")


def test_the_leader_is_that_of_the_tuned_trials() -> None:
    """Confirmation runs, whose luck is in the differences, have no say in whom the others are compared with."""
    accuracies = {"block3": 0.90, "block4": 0.70, "block5": 0.80}
    result = fake_result({"truncate_at": CUTS}, accuracies, confirm={"seeds": 3, "compare": "leader"})
    arms = []
    for arm in result.arms:
        value = 0.99 if arm.arm.name == "block5" else 0.5
        trials = [dataclasses.replace(run, val_accuracy=value) for run in arm.trials]
        arms.append(dataclasses.replace(arm, trials=trials))
    tuned = dataclasses.replace(result, arms=arms)
    assert tuning_leader(tuned, "truncate_at") == "block5"
    (factor,) = compare(tuned, tuned.scores).factors
    assert names(factor.family) == [("block3", "block5"), ("block4", "block5")]
    assert (factor.control, factor.pivot, factor.ahead) == (None, "block5", "block3")
    narrower = factor.family[0].estimate
    wider = compare(fake_result({"truncate_at": CUTS}, accuracies), result.scores).factors[0].family[1].estimate
    assert wider.value == narrower.value
    assert wider.high is not None
    assert narrower.high is not None
    assert wider.high > narrower.high, "three tests need wider intervals than two"


def test_two_factors_by_hand() -> None:
    result = fake_result(TWO_BY_TWO, ADDITIVE, seeds=3, images=500)
    compared = compare(result, result.scores)
    a, b, c, d = (float(arm.test_accuracies_S.mean()) for arm in result.arms)
    cut, strategy = compared.factors
    assert [level.estimate.value for level in cut.levels if level.estimate] == pytest.approx([(a + b) / 2, (c + d) / 2])
    assert [level.arms for level in cut.levels] == [2, 2]
    assert cut.family[0].estimate.value == pytest.approx((a + b) / 2 - (c + d) / 2)
    assert strategy.family[0].estimate.value == pytest.approx((a + c) / 2 - (b + d) / 2)
    (interaction,) = compared.interactions
    assert interaction.estimate.value == pytest.approx((a - c) - (b - d))
    assert (interaction.first, interaction.first_base) == ("block3", "block5")
    assert (interaction.second, interaction.second_base) == ("feature_extraction", "fine_tune_all")
    # one family: both factors and the interaction
    arms = [arm.arm.name for arm in result.arms]
    by_hand = [(0.5, 0.5, -0.5, -0.5), (0.5, -0.5, 0.5, -0.5), (1, -1, -1, 1)]
    estimates = OVER_SEEDS.simultaneous([dict(zip(arms, weights, strict=True)) for weights in by_hand], result.scores)
    found = [cut.family[0].estimate, strategy.family[0].estimate, interaction.estimate]
    assert [e.value for e in found] == pytest.approx([e.value for e in estimates])
    assert [e.low for e in found] == pytest.approx([e.low for e in estimates])
    assert compared.tested_together == 3
    assert not interaction.is_shown
    assert cut.by_level == strategy.by_level == {}


def test_a_shown_interaction_opens_the_effects_at_each_level() -> None:
    result = fake_result(TWO_BY_TWO, FOUR, seeds=3, images=500)
    compared = compare(result, result.scores)
    a, b, c, d = (float(arm.test_accuracies_S.mean()) for arm in result.arms)
    (interaction,) = compared.interactions
    assert interaction.is_shown
    cut, strategy = compared.factors
    assert {other: [(x.at, *names([x])[0]) for x in each] for other, each in cut.by_level.items()} == {
        "strategy": [("feature_extraction", "block3", "block5"), ("fine_tune_all", "block3", "block5")]
    }
    at_cut, at_strategy = cut.by_level["strategy"], strategy.by_level["truncate_at"]
    assert [x.estimate.value for x in at_cut] == pytest.approx([a - c, b - d])
    assert [x.estimate.value for x in at_strategy] == pytest.approx([a - b, c - d])
    arms = [arm.arm.name for arm in result.arms]
    rows = [(1, 0, -1, 0), (0, 1, 0, -1), (1, -1, 0, 0), (0, 0, 1, -1)]
    by_hand = OVER_SEEDS.simultaneous([dict(zip(arms, row, strict=True)) for row in rows], result.scores)
    assert [x.estimate for x in [*at_cut, *at_strategy]] == by_hand


def test_interactions_of_three_factors_are_averages_over_the_third() -> None:
    factors: dict[str, list[Any]] = {
        "truncate_at": ["block3", "block5"],
        "strategy": ["feature_extraction", "fine_tune_all"],
        "head_norm": ["none", "layer"],
    }
    spec = fake_spec(factors)
    pairs = label_pairs(spec, {})
    found, missing = interactions(places(spec), pairs)
    assert missing == []
    assert [i.factors for i in found] == [
        ("truncate_at", "strategy"), ("truncate_at", "head_norm"), ("strategy", "head_norm"),
    ]  # fmt: skip
    for arm, weight in found[0].weights.items():
        cut, strategy, _ = arm.split(",")
        assert weight == 0.5 * (1 if cut == "block3" else -1) * (1 if strategy == "feature_extraction" else -1)
    main = level_comparisons(places(spec), pairs)
    assert [len(c.pairs) for c in main] == [4, 4, 4]


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
    assert len(analysis.compared.interaction_missing) == 1
    assert "Left out, because no trial of it finished: block5,fine_tune_all." in analysis.evidence


def test_an_arm_with_one_seed_takes_only_its_own_pairs_out() -> None:
    """Row 9 of the audit: the other arms were 8.9 points apart with p = 8e-16, and nothing was said of them."""
    accuracies = {"block3": 0.90, "block4": 0.85, "block5": 0.70}
    whole = fake_result({"truncate_at": CUTS}, accuracies, seeds=5, images=2000)
    result = with_seeds(whole, {"block4": 1})
    (factor,) = analyse(result).factors
    assert [d.is_tested for d in factor.family] == [False, True, False]
    assert factor.family[1].is_shown
    assert factor.family[0].estimate == Estimate(factor.family[0].estimate.value)
    alone = fake_result({"truncate_at": ["block3", "block5"]}, accuracies, seeds=5, images=2000)
    two = {name: whole.scores[name] for name in ("block3", "block5")}
    assert factor.family[1].estimate == compare(alone, two).factors[0].family[0].estimate, "as without the third"
    gap = f"{100 * factor.family[1].estimate.value:.1f}"
    assert analyse(result).verdict == [
        f"Preliminary: block3 is ahead; block5 is clearly worse, by {gap} points; block4 has too few seeds."
    ]


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_not_tested(seeds: int) -> None:
    accuracies = {"block3": 0.9, "block4": 0.85, "block5": 0.8}
    analysis = analyse(fake_result({"truncate_at": CUTS}, accuracies, seeds=seeds))
    (factor,) = analysis.factors
    assert all(d.estimate == Estimate(d.estimate.value) for d in factor.family)
    assert analysis.compared.tested_together == 0
    assert analysis.verdict == ["Too few seeds to compare; each arm needs three."]
    assert "arms with fewer than 3 seeds are not tested" in analysis.evidence[0]
    assert analysis.chances_of_best == {}


def test_a_level_is_compared_over_the_arms_with_seeds_enough() -> None:
    result = with_seeds(fake_result(TWO_BY_TWO, FOUR, seeds=4), {"block5,fine_tune_all": 2})
    cut, strategy = analyse(result).factors
    a, b, c, _ = (float(arm.test_accuracies_S.mean()) for arm in result.arms)
    assert cut.family[0].estimate.value == pytest.approx(a - c)
    assert strategy.family[0].estimate.value == pytest.approx(a - b)
    assert cut.family[0].is_tested
    assert "over 1 of 2 combinations (block3,feature_extraction against block5,feature_extraction)" in cut.partial[0]


def test_levels_without_a_common_combination_are_not_compared() -> None:
    failed = ("block3,fine_tune_all", "block5,feature_extraction")
    analysis = analyse(fake_result(TWO_BY_TWO, FOUR, failed_arms=failed))
    assert analysis.factors[0].family == []
    assert len(analysis.factors[0].not_compared) == 1
    assert analysis.verdict == ["truncate_at: nothing can be compared.", "strategy: nothing can be compared."]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_level_that_shares_no_combination_is_said_to_be_incomparable(seeds: int) -> None:
    """One cut is confirmed with one strategy alone, the two others with the other alone."""
    factors = {"truncate_at": ["block1", "block2", "block3"], "strategy": ["feature_extraction", "fine_tune_all"]}
    failed = ("block1,fine_tune_all", "block2,feature_extraction", "block3,feature_extraction")
    accuracies = {"block1,feature_extraction": 0.9, "block2,fine_tune_all": 0.6, "block3,fine_tune_all": 0.7}
    analysis = analyse(fake_result(factors, accuracies, seeds=seeds, failed_arms=failed))
    assert analysis.verdict[0] == "truncate_at: nothing can be compared with block1 yet."


def test_the_leader_is_found_where_all_levels_are_present() -> None:
    # block5 lacks its worse arm, so its plain mean would be the highest
    result = fake_result(TWO_BY_TWO, FOUR, failed_arms=("block5,feature_extraction",))
    factor = analyse(result).factors[0]
    assert factor.ahead == "block3"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.009, 0.008, "equivalent"), (0.002, 0.009, "equivalent"), (0.011, 0.03, "not equivalent"),
        (-0.03, -0.012, "not equivalent"), (-0.011, 0.004, "undecided"), (None, None, "undecided"),
    ],
)  # fmt: skip
def test_equivalence_is_where_the_interval_lies(low: float | None, high: float | None, expected: str) -> None:
    value = 0.0 if low is None or high is None else (low + high) / 2
    estimate = Estimate(value, low=low, high=high, p=None if low is None else 0.5)
    assert Difference("a", "b", estimate, (3, 3), 1).equivalence(0.01) == expected


def test_what_more_seeds_would_find() -> None:
    result = fake_result(TWO_BY_TWO, FOUR, seeds=3)
    compared = compare(result, result.scores)
    found = findable_differences(compared)
    assert list(found) == ["truncate_at", "strategy"]
    for once, twice, four_times, with_images in found.values():
        assert once > twice > four_times > with_images > 0
    strict = compare(result, result.scores, Estimator(level=0.001))
    for factor, at_strict_level in findable_differences(strict).items():
        assert all(1.2 * usual < more for usual, more in zip(found[factor], at_strict_level, strict=True))


def test_what_more_repeats_would_find_depends_on_the_level() -> None:
    result = fake_result(TWO_BY_TWO, FOUR, seeds=3)
    right = {arm: y_SN.astype(np.float64) for arm, y_SN in result.scores.items()}
    usual, strict = (
        findable_differences(compare(result, right, Estimator("tuning", level=level))) for level in (0.05, 0.001)
    )
    for factor, each in usual.items():
        assert all(1.2 * one < other for one, other in zip(each, strict[factor], strict=True))


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
    assert names(factor.family) == [
        ("frozen", "block3,fine_tune_all"), ("frozen", "block5,fine_tune_all"),
        ("block3,fine_tune_all", "block5,fine_tune_all"),
    ]  # fmt: skip
    by_hand = OVER_SEEDS.simultaneous([{d.first: 1, d.second: -1} for d in factor.family], analysis.result.scores)
    assert [d.estimate for d in factor.family] == by_hand
    assert factor.confounded == {("frozen", "block3,fine_tune_all"): ["truncate_at", "strategy"]}
    assert analysis.interactions == []
    assert analysis.answer.startswith("block3,fine_tune_all is best")
    assert any("Some arms differ in several parameters at once" in text for text in analysis.evidence)

    control = analyse(fake_result({}, accuracies, arms=listed, confirm={"seeds": 3, "control": {"arm": "frozen"}}))
    assert names(control.factors[0].family) == [
        ("block3,fine_tune_all", "frozen"), ("block5,fine_tune_all", "frozen"),
    ]  # fmt: skip


def test_two_listed_arms_that_differ_in_all_share_the_difference() -> None:
    listed = [{"truncate_at": "block5", "strategy": "feature_extraction"},
              {"truncate_at": "block3", "strategy": "fine_tune_all"}]  # fmt: skip
    accuracies = {"block5,feature_extraction": 0.7, "block3,fine_tune_all": 0.9}
    caution = "differ in truncate_at and strategy at once: a difference cannot be put down to one of them alone."
    assert any(text.endswith(caution) for text in analyse(fake_result({}, accuracies, arms=listed)).evidence)
    changed = [listed[0], {"truncate_at": "block3", "strategy": "feature_extraction"}]
    one_change = fake_result({}, {"block5,feature_extraction": 0.7, "block3,feature_extraction": 0.9}, arms=changed)
    assert not any("differ in" in text for text in analyse(one_change).evidence)


def test_no_number_is_lost_in_a_large_study() -> None:
    """Five cuts with three strategies: 10 + 3 differences and 30 interactions in one family."""
    factors = {
        "truncate_at": [f"block{n}" for n in range(1, 6)],
        "strategy": ["feature_extraction", "fine_tune_all", "from_scratch"],
    }
    spec = fake_spec(factors)
    result = fake_result(factors, dict.fromkeys(places(spec), 0.9), images=200)
    compared = compare(result, result.scores)
    assert compared.tested_together == 10 + 3 + 30
    assert all(d.estimate.p is not None and 0 < d.estimate.p <= 1 for f in compared.factors for d in f.family)


def test_a_control_is_the_level_however_its_number_is_written() -> None:
    levels = {"weight_decay": [0, 5e-4, 1e-2]}
    accuracies = {"weight_decay=0.0": 0.8, "weight_decay=0.0005": 0.9, "weight_decay=0.01": 0.85}
    result = fake_result(levels, accuracies, images=800, confirm={"seeds": 3, "control": {"weight_decay": 0}})
    (factor,) = analyse(result).factors
    assert (factor.control, len(factor.family)) == ("weight_decay=0.0", 2)
    assert all(difference.is_shown for difference in factor.family)


def test_a_factor_with_a_single_level_is_not_averaged_over() -> None:
    accuracies = {"block3,fine_tune_all": 0.9, "block5,fine_tune_all": 0.8}
    factors = {"truncate_at": ["block3", "block5"], "strategy": ["fine_tune_all"]}
    evidence = analyse(fake_result(factors, accuracies, seeds=3, images=100)).evidence
    assert evidence[0].startswith("truncate_at: block3 minus block5 ")


def test_the_best_level_is_no_level_that_another_clearly_beats() -> None:
    """block2 has the best mean, but over the strategy in which all cuts are better."""
    cuts = {"block2": 0.0, "block3": 0.03, "block4": -0.10, "block5": -0.05}
    strategies = {"feature_extraction": 0.6, "fine_tune_all": 0.9}
    accuracies = {f"{cut},{s}": base + by for cut, by in cuts.items() for s, base in strategies.items()}
    failed = ("block2,feature_extraction", "block4,fine_tune_all")
    factors = {"truncate_at": list(cuts), "strategy": list(strategies)}
    analysis = analyse(fake_result(factors, accuracies, seeds=5, images=2000, failed_arms=failed))
    assert analysis.factors[0].ahead == "block3"
    assert "truncate_at: block3 is " in analysis.verdict[0]
    assert "better" not in analysis.verdict[0]
    assert analysis.evidence[0].startswith("truncate_at, averaged over strategy: block3 minus ")
    assert analysis.evidence[0].endswith("5 seeds."), "nor does block2 lead in validation"
