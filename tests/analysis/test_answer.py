"""The answer: verdict and evidence of made-up studies."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from ablation.analysis.answer import analyse, chance_sentences, is_shown_by_pairs
from ablation.analysis.best_arms import FromBest
from ablation.analysis.comparison import Difference
from ablation.analysis.outliers import outlying_runs
from ablation.analysis.results import StudyResult
from ablation.analysis.statistics import Estimate
from ablation.analysis.verdict import MOST_WORDS
from ablation.analysis.wording import interval_points, join, points
from ablation.spec.arms import arms
from ablation.spec.objective import OBJECTIVES
from tests.fake_results import (
    FOUR,
    TWO_BY_TWO,
    draw_predictions,
    fake_arm,
    fake_result,
    fake_run,
    fake_spec,
    fake_study,
    with_validation,
)

CUTS = ["block3", "block4", "block5"]


def test_without_confirmation_there_is_no_answer() -> None:
    analysis = analyse(fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8}, seeds=0))
    assert analysis.winner is None
    assert analysis.answer == (
        "The best tuned arm is block3 (validation accuracy 0.9040, the best of 3 trials), but without confirmation "
        "runs no answer is possible: [confirm] seeds is 0."
    )
    assert analysis.factors[0].family == []
    assert analysis.evidence == []


def tuned_to(values: dict[str, float], **changes: Any) -> StudyResult:
    """Return a study without confirmation runs, in which all trials of an arm have this validation accuracy."""
    result = fake_result({"truncate_at": list(values)}, values, seeds=0, **changes)
    arms = []
    for arm in result.arms:
        trials = [dataclasses.replace(run, val_accuracy=values[arm.arm.name]) for run in arm.trials]
        arms.append(dataclasses.replace(arm, trials=trials))
    return dataclasses.replace(result, arms=arms)


def test_what_confirmed_earlier_configurations_is_no_answer_and_is_not_forgotten() -> None:
    result = fake_result(TWO_BY_TWO, FOUR)
    arms = [dataclasses.replace(arm, confirmations=[], superseded=arm.confirmations) for arm in result.arms]
    (line,) = analyse(dataclasses.replace(result, arms=arms)).verdict
    assert line.endswith(
        "no answer is possible: none has finished of the configurations that are now the best (12 of others have)."
    )


def test_equal_arms_of_the_tuning_are_no_winner() -> None:
    two = analyse(tuned_to({"block2": 0.2, "block3": 0.5, "block4": 0.5}))
    assert two.answer == (
        "The best tuned arms, block3 and block4, are equal (validation accuracy 0.5000, the best of 3 trials each), "
        "but without confirmation runs no answer is possible: [confirm] seeds is 0."
    )
    four = analyse(tuned_to(dict.fromkeys(("block1", "block2", "block3", "block4"), 0.1)))
    assert four.answer.startswith("The best tuned arms, 4 arms, are equal (validation accuracy 0.1000")


def test_a_plain_searchs_answer_is_the_configuration_that_was_found() -> None:
    analysis = analyse(fake_result({}, {"all": 0.9}, seeds=3))
    (arm,) = analysis.arms
    assert arm.estimate is not None
    assert arm.result.best is not None
    best = arm.result.best.spec
    assert analysis.answer == (
        f"The search found head_width {best.head_width}, lr {best.lr:.3g}: test accuracy {arm.estimate.value:.4f} "
        f"({arm.estimate.low:.4f} to {arm.estimate.high:.4f}, 3 seeds)."
    )
    alone = analyse(fake_result({}, {"all": 0.9}, seeds=1, search={}))
    assert alone.answer.startswith("The only arm has test accuracy 0.8975")
    assert alone.answer.endswith(", of one seed, which proves nothing.")


def test_the_evidence_has_the_numbers_of_the_verdict() -> None:
    accuracies = {"block3": 0.9, "block4": 0.8, "block5": 0.7}
    analysis = analyse(fake_result({"truncate_at": CUTS}, accuracies, seeds=5, images=2000))
    first, second, _ = analysis.factors[0].family  # block3 minus block4, minus block5
    low, high = 100 * first.estimate.value, 100 * second.estimate.value
    assert analysis.verdict == [
        f"block3 is best; block4 and block5 are clearly worse, by {low:.1f} to {high:.1f} points."
    ]
    cells = [
        f"{d.second} {points(d.estimate.value)} ({interval_points(d.estimate.low, d.estimate.high)}, p < 0.001)"
        for d in (first, second)
    ]
    assert analysis.evidence[0] == f"truncate_at: block3 minus {cells[0]} and {cells[1]}, in points, 5 seeds."
    assert analysis.evidence[1] == "Chance to be the best arm: block3 > 99 %. At 95 %, block3 is the best."
    assert "with these configurations" in analysis.evidence[-1]


def test_who_is_best_is_said_of_the_arms_that_could_be_tested() -> None:
    """block3 has two seeds, and is far ahead of the others, which have three."""
    result = fake_result({"truncate_at": CUTS}, {"block3": 0.9, "block4": 0.75, "block5": 0.6}, images=2000)
    ahead, *others = result.arms
    few = dataclasses.replace(ahead, confirmations=ahead.confirmations[:2])
    evidence = analyse(dataclasses.replace(result, arms=[few, *others])).evidence
    assert (
        "Of the arms with 3 seeds or more, chance to be the best: block4 > 99 %. Of these, at 95 %, block4 is the best."
    ) in evidence
    assert not any("At 95 %, block4 is the best" in sentence for sentence in evidence)


def test_what_is_not_shown_is_a_bound() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.9})
    analysis = analyse(result)
    (difference,) = analysis.factors[0].family
    assert difference.estimate.low is not None
    assert difference.estimate.high is not None
    bound = 100 * max(-difference.estimate.low, difference.estimate.high)
    assert analysis.verdict == [f"block5 and block3 might be equally good: any difference is below {bound:.1f} points."]
    for margin, expected in ((bound + 0.1, "are equally good, within"), (bound - 0.1, "might be equally good")):
        confirm = {"seeds": 3, "equivalence": margin}
        spec = fake_spec({"truncate_at": ["block3", "block5"]}, confirm=confirm)
        again = analyse(dataclasses.replace(result, spec=spec))
        assert expected in again.answer
        assert ("equivalent" in again.evidence[0]) == ("within" in expected)


def test_where_an_interaction_is_shown_the_effect_stands_at_each_level() -> None:
    """Row 10 of the audit: an average of 14.3 and 2.9 points hid the finding."""
    analysis = analyse(fake_result(TWO_BY_TWO, FOUR, seeds=3, images=500))
    a, b, c, d = (100 * float(arm.test_accuracies_S.mean()) for arm in analysis.result.arms)
    assert analysis.verdict == [
        f"truncate_at: block3 is best, by {a - c:.1f} points with feature_extraction and by {b - d:.1f} points with "
        "fine_tune_all.",
        f"strategy: fine_tune_all is best, by {b - a:.1f} points with block3 and by {d - c:.1f} points with block5.",
    ]
    assert f"{(a + b - c - d) / 2:.1f} points" not in analysis.answer
    assert any("these averages hide an interaction with strategy" in text for text in analysis.evidence)
    (at_levels,) = [text for text in analysis.evidence if text.startswith("strategy at each level of truncate_at")]
    assert at_levels.count("seeds") == 1
    assert at_levels.endswith("); all in points, 3 seeds.")
    assert any(text.startswith("1 of 1 interaction shown; the largest: block3 minus") for text in analysis.evidence)


def test_the_best_can_differ_between_levels() -> None:
    crossed = {"block3,feature_extraction": 0.9, "block3,fine_tune_all": 0.7, "block5,feature_extraction": 0.8}
    analysis = analyse(fake_result(TWO_BY_TWO, crossed | {"block5,fine_tune_all": 0.85}, images=1000))
    assert analysis.verdict[0].startswith("truncate_at: with feature_extraction block3 is best, by 9.")
    assert "; with fine_tune_all block5 is best, by 1" in analysis.verdict[0]


def test_the_answer_is_truthful_where_the_test_images_say_the_opposite() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8})
    analysis = analyse(with_validation(result, {"block3": 0.7, "block5": 0.75}))
    assert analysis.winner is not None
    assert analysis.winner.arm.name == "block5"
    assert analysis.answer.startswith("block3 is clearly better than block5, by 9.")


def test_an_unfinished_study_says_that_it_is_preliminary() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8}, seeds=4)
    first = dataclasses.replace(result.arms[0], confirmations=result.arms[0].confirmations[:3])
    second = dataclasses.replace(result.arms[1], trials=result.arms[1].trials[:2])
    analysis = analyse(dataclasses.replace(result, arms=[first, second]))
    assert analysis.answer.startswith("Preliminary: block3 is clearly better than block5")
    assert analysis.evidence[0] == "Still missing: 1 trial and 1 confirmation run."
    assert "3 to 4 seeds" in analysis.evidence[1]


def diverged(accuracy: float, seeds: int = 5) -> StudyResult:
    """Return two equal arms, of which the first has a run of this accuracy."""
    spec = fake_spec({"truncate_at": ["block3", "block5"]}, confirm={"seeds": seeds})
    labels_N = np.arange(2000) % 4
    results = []
    for index, arm in enumerate(arms(spec)):
        accuracies = [0.9 + 0.002 * (seed % 3) for seed in range(seeds)]
        if index == 0:
            accuracies[1] = accuracy
        drawn = [draw_predictions(a, labels_N, 4, seed=10 * index + s) for s, a in enumerate(accuracies)]
        results.append(fake_arm(spec, arm, [0.8, 0.9, 0.85], accuracies, drawn))
    return fake_study(spec, results, list("abcd"))


def test_a_run_that_diverged_is_named_with_the_result_without_it() -> None:
    analysis = analyse(diverged(0.25))
    (outlier,) = outlying_runs(analysis.result)
    assert (outlier.arm, outlier.run.number) == ("block3", 1)
    rest = diverged(0.25)
    runs = [run for run in rest.arms[0].confirmations if run.number != 1]
    without = analyse(
        dataclasses.replace(rest, arms=[dataclasses.replace(rest.arms[0], confirmations=runs), rest.arms[1]])
    )
    expected = without.answer.removeprefix("Preliminary: ")
    median = np.median(analysis.result.arms[0].test_accuracies_S)
    assert analysis.evidence[-1] == (
        f"Outlying run: block3 confirmation run #1 (test accuracy 0.2500, its arm's median {median:.4f}). Without it, "
        f"the verdict would be: {expected}"
    )
    assert outlying_runs(diverged(0.902)) == []


def test_failed_runs_are_named() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8}, seeds=4)
    spec, first = result.spec, result.arms[0]
    lost = fake_run(spec, first.arm, 3, None, confirms=first.confirmations[0].spec.confirms, state="failed",
                    reason="the loss was NaN")  # fmt: skip
    arm = dataclasses.replace(first, confirmations=[*first.confirmations[:3], lost])
    analysis = analyse(dataclasses.replace(result, arms=[arm, result.arms[1]]))
    expected = "block3: 1 confirmation run failed (#3: the loss was NaN); its figures are those of the others."
    assert expected in analysis.evidence
    assert analysis.verdict[0].startswith("block3 is clearly better")


def test_the_verdict_of_a_large_study_is_short() -> None:
    factors = {
        "truncate_at": [f"block{n}" for n in range(1, 6)],
        "strategy": ["feature_extraction", "fine_tune_all"],
        "head_norm": ["none", "layer"],
    }
    names = [arm.name for arm in arms(fake_spec(factors))]
    random = np.random.default_rng(1)
    result = fake_result(factors, {name: float(random.uniform(0.6, 0.95)) for name in names}, images=200)
    verdict = analyse(result).verdict
    assert len(" ".join(verdict).split()) <= MOST_WORDS
    assert [line.split(":")[0] for line in verdict] == list(factors)


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0474, "4.7"), (0.0012, "0.12"), (-0.0095, "-0.95"), (-0.00001, "0.00"), (0.0951, "9.5")]
)
def test_points(difference: float, text: str) -> None:
    assert points(difference) == text


def test_interval_points() -> None:
    assert interval_points(0.041, 0.053) == "4.1 to 5.3"
    assert interval_points(-0.004, 0.0112) == "-0.40 to 1.12"
    assert interval_points(None, None) == "-"


def test_verdict_and_evidence_compare_with_the_same_level() -> None:
    """Also where the level with the best mean has too few seeds to be compared."""
    cuts = {"truncate_at": ["block3", "block4", "block5"]}
    result = fake_result(cuts, {"block3": 0.9, "block4": 0.7, "block5": 0.88})
    first, *others = result.arms
    few = dataclasses.replace(first, confirmations=first.confirmations[:1])
    analysis = analyse(dataclasses.replace(result, arms=[few, *others]))
    assert analysis.factors[0].ahead == "block3"
    assert analysis.answer.startswith("Preliminary: block5 is ahead; block4 is clearly worse, by ")
    assert analysis.answer.endswith("; block3 has too few seeds.")
    (said,) = [sentence for sentence in analysis.evidence if sentence.startswith("truncate_at: ")]
    assert said.startswith("truncate_at: block5 minus block3 -")


def test_only_an_end_of_zero_is_printed_as_zero() -> None:
    """An interval that ends at 0 is that of a difference that is shown, or of an arm that is not the best."""
    assert interval_points(-0.0001, 0.043) == "-0.01 to 4.30"
    assert interval_points(-0.03, 0.0004) == "-3.00 to 0.04"
    assert interval_points(-0.03, 0.0) == "-3.0 to 0.0"
    assert interval_points(-0.01, 2e-6) == "-1.0000 to 0.0002"
    assert interval_points(-0.01, 1e-9) == "-1.00000 to 0.00000"
    assert interval_points(-0.0001, 0.5, OBJECTIVES["loss"]) == "-0.0001 to 0.5000"


def test_the_best_by_the_one_sided_comparison_alone_is_called_so() -> None:
    """By both tests; by the one-sided one alone (the two-sided p is 0.08), and among three arms."""
    said = "At 95 %, block3 is the best by the one-sided comparison with the best alone (the two-sided tests of "
    two = {"truncate_at": ["block3", "block5"]}
    options = {"seeds": 3, "images": 400, "seed_deviation": 0.01}
    clear = analyse(fake_result(two, {"block3": 0.9, "block5": 0.7}, **options))  # type: ignore[arg-type]
    assert clear.evidence[1].endswith("At 95 %, block3 is the best.")
    close = analyse(fake_result(two, {"block3": 0.88, "block5": 0.85}, **options))  # type: ignore[arg-type]
    assert close.answer.startswith("block3 and block5 might be equally good")
    assert said in close.evidence[1]


def test_arms_that_no_difference_compares_with_the_leader_do_not_contradict_it() -> None:
    """With a control, a is compared with b but not with c, and is shown to be better than b, or is not."""
    result = fake_result({"truncate_at": CUTS}, dict.fromkeys(CUTS, 0.8), images=200)
    best = {"block3": FromBest(0, 0.2), "block4": FromBest(-0.2, 0), "block5": FromBest(-0.2, 0)}
    compared = analyse(result).compared
    (factor,) = compared.factors

    def agrees(p: float) -> bool:
        family = [Difference("block4", "block3", Estimate(-0.1, 0.01, 9.0, -0.2, 0.1, p), (3, 3), 1)]
        factors = [dataclasses.replace(factor, family=family)]
        return is_shown_by_pairs(result, dataclasses.replace(compared, factors=factors), best)

    assert (agrees(0.01), agrees(0.06)) == (True, False)


def test_of_several_factors_one_is_enough_that_shows_an_arm_to_be_worse() -> None:
    """Of FOUR, block3,fine_tune_all leads; the cut decides against block5, but not between the strategies of block3."""
    result = fake_result(TWO_BY_TWO, FOUR)
    compared = analyse(result).compared
    best = {name: FromBest(0, 0.2) if name == "block3,fine_tune_all" else FromBest(-0.2, 0) for name in FOUR}

    def agrees(*ps: float) -> bool:
        labels = (("block3", "block5"), ("feature_extraction", "fine_tune_all"))
        values = (0.1, -0.1)
        factors = [
            dataclasses.replace(
                factor,
                family=[Difference(*pair, Estimate(value, 0.01, 9.0, value - 0.2, value + 0.2, p), (3, 3), 2)],
                by_level={},
            )
            for factor, pair, value, p in zip(compared.factors, labels, values, ps, strict=True)
        ]
        return is_shown_by_pairs(result, dataclasses.replace(compared, factors=factors), best)

    assert (agrees(0.01, 0.01), agrees(0.01, 0.06), agrees(0.06, 0.01)) == (True, False, False)
    assert is_shown_by_pairs(result, compared, {})


def test_join() -> None:
    assert [join(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_chances_of_very_many_equal_arms() -> None:
    names = [f"arm {n}" for n in range(40)]
    (sentence,) = chance_sentences(dict.fromkeys(names, 0.025), dict.fromkeys(names, FromBest(-0.012, 0.012)))
    assert sentence == (
        "Chance to be the best arm: below 5 % each. At 95 %, 40 of 40 arms may be the best; each is at most 1.2 points "
        "behind the best."
    )


def test_an_arm_whose_confirmation_runs_all_failed_is_called_unconfirmed() -> None:
    result = fake_result({"truncate_at": CUTS}, dict.fromkeys(CUTS, 0.8), images=200)
    failed = {"state": "failed", "reason": "out of memory", "predictions": None}
    lost = [
        dataclasses.replace(run, **failed, val_accuracy=None, test_accuracy=None)  # type: ignore[arg-type]
        for run in result.arms[1].confirmations
    ]
    arms = [result.arms[0], dataclasses.replace(result.arms[1], confirmations=lost), result.arms[2]]
    expected = "block4: 3 confirmation runs failed (#0, #1 and #2: out of memory); it is not confirmed."
    assert expected in analyse(dataclasses.replace(result, arms=arms)).evidence


def test_an_arm_whose_trials_are_lost_but_which_is_confirmed_is_not_left_out() -> None:
    """Its confirmation runs stay, as if its lost trial were still the best."""
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8})
    lost = dataclasses.replace(result.arms[0], trials=[])
    analysis = analyse(dataclasses.replace(result, arms=[lost, result.arms[1]]))
    assert analysis.verdict[0].startswith("Preliminary: block3 is clearly better")
    assert not any("no trial of it finished" in sentence for sentence in analysis.evidence)
