"""Studies that differ in their seed alone, pooled."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablation.analysis.compared_repeats import repeats_of
from ablation.analysis.estimator import Estimator
from ablation.analysis.looks import this_look
from ablation.analysis.pooling import (
    analyse_pooled,
    analyse_study,
    check_repeats,
    right_of,
    summarise_arms,
)
from ablation.analysis.results import StudyResult
from ablation.base.command_line import run_command
from ablation.base.errors import InputError
from ablation.report import cli
from ablation.reporting import report
from ablation.reporting.exports import methods
from ablation.reporting.pooled_sections import pooled_sections
from ablation.spec.looks import Decision
from ablation.storage.store import find_store
from ablation.tracking.looks import decision_tags
from ablation.tracking.reading import LeftOut
from tests.fake_results import fake_result, store_study

CUTS = {"truncate_at": ["block3", "block4", "block5"]}
KINDS = ("trials", "confirmations")
ACCURACIES = {"block3": 0.90, "block4": 0.88, "block5": 0.80}


def repeat(seed: int, luck: float = 0.0, **changes: Any) -> StudyResult:
    """Return a study whose first arm is better by some luck."""
    accuracies = ACCURACIES | {"block3": ACCURACIES["block3"] + luck}
    return fake_result(CUTS, accuracies, **{"images": 800, "name": f"cuts-{seed}", "seed": seed, **changes})


@pytest.fixture(scope="module")
def three() -> list[StudyResult]:
    return [repeat(seed, luck) for seed, luck in enumerate((-0.02, 0.0, 0.03))]


def test_arms_are_means_over_repeats(three: list[StudyResult]) -> None:
    analysis = analyse_pooled(three)
    arm = analysis.arms[0]
    of_repeats = [float(result.arms[0].scores_SN.mean()) for result in three]
    assert arm.test is not None
    assert arm.test.mean == pytest.approx(np.mean(of_repeats))
    assert arm.test.standard_deviation == pytest.approx(np.std(of_repeats, ddof=1))
    assert (arm.test.seeds, arm.test.unit) == (3, "tuning")
    assert {d.seeds for d in analysis.factors[0].family} == {(3, 3)}


def test_the_answer_says_over_how_many_tunings(three: list[StudyResult]) -> None:
    analysis = analyse_pooled(three)
    assert "block3" in analysis.verdict[0]
    text = " ".join(analysis.evidence)
    assert "over 3 tunings" in text
    assert "3 tunings." in text
    assert "seeds " in text.split("Standard error of a difference")[1]
    assert "tuning and split" in text
    assert "Still missing" not in text


def test_luck_of_the_tuning_widens_the_interval(three: list[StudyResult]) -> None:
    widths = []
    for repeats in (three, [repeat(seed) for seed in range(3)]):
        estimate = analyse_pooled(repeats).factors[0].family[0].estimate
        assert estimate.high is not None
        assert estimate.low is not None
        widths.append(estimate.high - estimate.low)
    assert widths[0] > 2 * widths[1]


def test_two_repeats_are_not_tested(three: list[StudyResult]) -> None:
    analysis = analyse_pooled(three[:2])
    assert analysis.verdict == ["Too few tunings to compare; each arm needs three."]
    assert not any(difference.is_tested for difference in analysis.factors[0].family)


def test_an_arm_that_a_repeat_lacks_is_left_out_and_named(three: list[StudyResult]) -> None:
    lacking = replace(three[1], arms=[*three[1].arms[:2], replace(three[1].arms[2], confirmations=[])])
    analysis = analyse_pooled([three[0], lacking, three[2]])
    assert analysis.evidence[-1] == (
        "Left out of intervals and tests, because it is not confirmed in every repeat: block5 (in cuts-1)."
    )
    assert [(d.first, d.second) for d in analysis.factors[0].family] == [("block3", "block4")]


def test_the_leader_of_one_tuning_is_no_pivot(three: list[StudyResult]) -> None:
    led = [
        replace(r, spec=r.spec.model_copy(update={"confirm": r.spec.confirm.model_copy(update={"compare": "leader"})}))
        for r in three
    ]
    assert len(analyse_pooled(led).factors[0].family) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (repeat(1, epochs=5), "differ in epochs (4 and 5); repeats differ in seed alone"),
        (repeat(1, trials_per_arm=4), "differ in trials_per_arm (3 and 4)"),
        (repeat(1, images=801), "differ in the number of test images (800 and 801)"),
        (replace(repeat(1), data_digest="e" * 64), "differ in the images' digest"),
        (repeat(0, name="cuts-again"), "both have seed = 0"),
        (repeat(1, classes=5), "differ in classes"),
        (repeat(1, question="Why?", epochs=5), "differ in question (Which one is better? and Why?), and in 1 more;"),
        (replace(repeat(1), classes=[f"class {k}" for k in range(4, 24)]), "'class 3'] and 20 entries); repeats"),
        (replace(repeat(1), weights_digest=None), f"differ in the weights' digest ({'w' * 64} and none); repeats"),
    ],
)
def test_what_is_no_repeat_is_refused(other: StudyResult, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_repeats([repeat(0), other])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_test_images_of_the_same_number_are_refused() -> None:
    first, second = repeat(0, data={"limit": 500}), repeat(1, data={"limit": 500})
    check_repeats([first, replace(second, data_digest="e" * 64)])  # the digest is of the images that a seed draws
    for arm in second.arms:
        for run in arm.confirmations:
            assert run.predictions is not None
            run.predictions.labels_N[0] = 3
    with pytest.raises(InputError, match="their test images differ"):
        check_repeats([first, second])


def test_the_command_pools_what_the_store_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: {})
    store = find_store(str(tmp_path / "store"))
    results = [repeat(seed, images=200, seeds=2) for seed in range(3)]
    store_study(store, results[0])
    monkeypatch.setattr(report, "read_results", lambda store, name: next(r for r in results if r.spec.name == name))
    monkeypatch.setattr(report, "record_look", lambda store, result: result)
    names = [result.spec.name for result in results]
    monkeypatch.setattr(sys, "argv", ["report", *names, "--store", str(tmp_path / "store")])
    assert run_command(cli) == 0
    page = tmp_path / "store" / "reports" / "cuts-0+cuts-1+cuts-2" / "report.html"
    assert "3 repeats of one study" in page.read_text()
    assert "over 3 tunings" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", names[0], names[0], "--store", str(tmp_path / "store")])
    assert run_command(cli) == 2
    assert "cuts-0 is named twice" in capsys.readouterr().err


def test_what_planned_looks_stopped_is_not_missing() -> None:
    looks = {"seeds": 8, "looks": [3, 5, 8]}
    ended, stopped = Decision(3, (), is_sure=True), Decision(3, ("block5",), is_sure=False)
    studies = [
        replace(repeat(seed, images=200, confirm=looks), look=0, tags=decision_tags([decision]))
        for seed, decision in enumerate((ended, ended, stopped))
    ]
    missing = analyse_pooled(studies)
    assert missing.result.missing_confirmations == 2 * (8 - 3)  # of the third: two arms continue
    assert missing.verdict[0].startswith("Preliminary: ")
    studies[2] = replace(studies[2], tags=studies[0].tags)
    analysis = analyse_pooled(studies)
    assert analysis.result.missing_confirmations == 0
    assert not analysis.verdict[0].startswith("Preliminary: ")


def test_no_registration_of_pooled_studies_is_called_lost() -> None:
    analysis = analyse_pooled([repeat(seed, images=200, preregister=True) for seed in range(3)])
    assert not any("registration" in sentence for sentence in analysis.evidence)


# ------------------------------------------------------------------------------------------- repeats inside of a study


@pytest.fixture(scope="module")
def repeated() -> StudyResult:
    """Return a study of 7 trials per arm in 3 repeats, with 2 seeds each."""
    confirm = {"seeds": 2, "repeats": 3}
    return fake_result(CUTS, ACCURACIES, images=800, seeds=2, trials_per_arm=7, confirm=confirm, seed_deviation=0.01)


def test_repeats_of_a_study_are_its_unit(repeated: StudyResult) -> None:
    repeats = repeats_of(repeated)
    assert [[run.number for run in repeat.arms[0].trials] for repeat in repeats] == [[0, 3, 6], [1, 4], [2, 5]]
    for repeat in repeats:
        arm = repeat.arms[0]
        assert arm.best is not None
        assert {run.spec.confirms for run in arm.confirmations} == {arm.best.number}
        assert (repeat.missing_trials, repeat.missing_confirmations) == (0, 0)
    analysis = analyse_study(repeated)
    arm = analysis.arms[1]
    of_repeats = [float(repeat.arms[1].test_accuracies_S.mean()) for repeat in repeats]
    assert arm.test is not None
    assert (arm.test.mean, arm.test.standard_deviation) == pytest.approx(
        (np.mean(of_repeats), np.std(of_repeats, ddof=1))
    )
    assert (arm.test.seeds, arm.test.unit, arm.runs) == (3, "tuning", 6)
    y_RN = right_of(repeats)
    difference = analysis.factors[0].family[0].estimate
    alone = Estimator("tuning").contrast({"block3": 1.0, "block4": -1.0}, y_RN)
    assert (difference.value, difference.standard_error) == pytest.approx((alone.value, alone.standard_error))
    over = "All of this holds over 3 tunings, each with a split, tuning points and seeds of its own; what is compared "
    assert f"{over}is the best of 2 or 3 trials." in analysis.evidence
    assert not any("with these configurations" in sentence for sentence in analysis.evidence)


def test_repeats_inside_and_outside_give_the_same_numbers(repeated: StudyResult) -> None:
    """The studies that a study's repeats would be, pooled."""
    outside = [
        replace(repeat, spec=repeat.spec.model_copy(update={"seed": seed, "trials_per_arm": 7}))
        for seed, repeat in enumerate(repeats_of(repeated))
    ]
    inside, pooled = analyse_study(repeated), analyse_pooled(outside)
    assert [d.estimate for d in pooled.factors[0].family] == [d.estimate for d in inside.factors[0].family]
    assert [arm.estimate for arm in pooled.arms] == [arm.estimate for arm in inside.arms]
    assert pooled.verdict[0].removeprefix("Preliminary: ") == inside.verdict[0]  # two of them have too few trials


def test_studies_with_repeats_are_pooled_over_all_of_them(repeated: StudyResult) -> None:
    other = fake_result(
        CUTS, ACCURACIES, images=800, seeds=2, trials_per_arm=7, confirm={"seeds": 2, "repeats": 3}, seed=1,
        seed_deviation=0.01,
    )  # fmt: skip
    analysis = analyse_pooled([repeated, other])
    assert analysis.arms[0].test is not None
    assert (analysis.arms[0].test.seeds, analysis.arms[0].runs) == (6, 12)
    assert "over 6 tunings" in " ".join(analysis.evidence)
    assert not any("Still missing" in sentence for sentence in analysis.evidence)


def test_what_a_repeat_lacks_is_missing(repeated: StudyResult) -> None:
    arm = repeated.arms[0]
    lacking = replace(arm, confirmations=arm.confirmations[:5])
    result = replace(repeated, arms=[lacking, *repeated.arms[1:]])
    assert result.missing_confirmations == 1
    assert analyse_study(result).verdict[0].startswith("Preliminary: ")
    untuned = replace(arm, trials=[run for run in arm.trials if run.number % 3 != 1], confirmations=[])
    early = replace(repeated, arms=[untuned])
    assert (early.missing_trials, early.missing_confirmations, early.planned_confirmations) == (2, 6, 6)
    failed = [replace(run, val_accuracy=None, state="failed") if run.number % 3 == 1 else run for run in arm.trials]
    without = replace(repeated, arms=[replace(arm, trials=failed, confirmations=[])])  # nothing to confirm in a repeat
    assert (without.missing_trials, without.missing_confirmations, without.planned_confirmations) == (0, 4, 4)


def test_a_lost_registration_is_said_of_repeats_too(repeated: StudyResult) -> None:
    registered = replace(repeated, spec=repeated.spec.model_copy(update={"preregister": True}))
    lost = "This study was to be registered, but its registration is lost."
    assert lost in analyse_study(registered).evidence


def test_who_is_best_is_said_of_the_arms_that_every_repeat_has_confirmed(three: list[StudyResult]) -> None:
    lacking = replace(three[1], arms=[replace(three[1].arms[0], confirmations=[]), *three[1].arms[1:]])
    evidence = analyse_pooled([three[0], lacking, three[2]]).evidence
    assert any(
        sentence.startswith("Of the arms that every repeat has confirmed, chance to be the best: block4 ")
        for sentence in evidence
    )


def test_a_repeat_that_is_not_confirmed_yet_is_left_out(repeated: StudyResult) -> None:
    """The third repeat lacks an arm: the arms are compared over two, and none is left out."""
    arms = [replace(repeated.arms[0], confirmations=[r for r in repeated.arms[0].confirmations if r.spec.repeat != 2])]
    analysis = analyse_study(replace(repeated, arms=[*arms, *repeated.arms[1:]]))
    assert [arm.test.seeds for arm in analysis.arms if arm.test is not None] == [2, 2, 2]
    assert analysis.verdict == ["Preliminary: Too few tunings to compare; each arm needs three."]
    assert analysis.evidence[0] == "Still missing: 2 confirmation runs."
    left_out = [sentence for sentence in analysis.evidence if "Left out" in sentence]
    assert left_out == [
        "Left out of means over tunings, intervals and tests: repeat 3, in which block3 is not confirmed."
    ]
    one_repeat = [
        replace(arm, **{kind: [r for r in getattr(arm, kind) if r.spec.repeat == 0] for kind in KINDS})
        for arm in repeated.arms
    ]
    assert "over 1 tuning, " in " ".join(analyse_study(replace(repeated, arms=one_repeat)).evidence)
    untuned = [replace(arm, trials=[], confirmations=[]) for arm in repeated.arms[:1]]
    analysis = analyse_study(replace(repeated, arms=[*untuned, *repeated.arms[1:]]))
    assert "over 3 tunings" in " ".join(analysis.evidence)


def test_the_report_of_a_study_with_repeats_says_what_its_unit_is(
    repeated: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: {})
    text = report.build_report(analyse_study(repeated)).markdown
    assert "7 trials of 4 epochs each" in text
    assert "divided among 3 repeats of the tuning" in text
    assert "n (tunings)" in text
    assert "| block4 | 2 | " in text
    assert "late rise" not in text
    assert "if the whole study were done again very often" in text
    assert "conditional on the configurations" not in text
    assert "of 9 tunings" in text or "Warning: " not in text


def test_a_repeat_in_which_an_arm_is_not_confirmed_is_left_out_of_what_is_compared() -> None:
    """In MLflow's pages of the arms as well as in the report, which says so."""
    two = {"truncate_at": ["block3", "block5"]}
    confirm = {"seeds": 1, "repeats": 4}
    whole = fake_result(two, ACCURACIES, images=200, seeds=1, trials_per_arm=4, confirm=confirm)
    failed = {"state": "failed", "reason": "out of memory", "predictions": None}
    arm = whole.arms[1]
    lost = [
        replace(run, **failed, val_accuracy=None, test_accuracy=None) if run.spec.repeat == 3 else run  # type: ignore[arg-type]
        for run in arm.confirmations
    ]
    result = replace(whole, arms=[whole.arms[0], replace(arm, confirmations=lost)])
    analysis = analyse_study(result)
    assert [arm.test.seeds for arm in analysis.arms if arm.test is not None] == [3, 3]
    assert [arm.test for arm in summarise_arms(result)] == [arm.test for arm in analysis.arms]
    left_out = "Left out of means over tunings, intervals and tests: repeat 4, in which block5 is not confirmed."
    assert left_out in analysis.evidence


def without_repeats(result: StudyResult, failed: dict[str, set[int]]) -> StudyResult:
    """Return a study in which the confirmation runs of some repeats failed: those of `failed`, by arm."""
    lost: dict[str, Any] = {"state": "failed", "reason": "out of memory", "predictions": None,
                            "val_accuracy": None, "test_accuracy": None}  # fmt: skip
    return replace(
        result,
        arms=[
            replace(
                arm,
                confirmations=[
                    replace(run, **lost) if run.spec.repeat in failed.get(arm.arm.name, ()) else run
                    for run in arm.confirmations
                ],
            )
            for arm in result.arms
        ],
    )


@pytest.mark.parametrize(
    ("failed", "is_tested"),
    [({}, True), ({"block5": {2}}, False), ({"block5": {0, 1, 2}}, True), ({"block3": {0}, "block5": {1, 2}}, False),
     ({"block3": {1}, "block4": {1}}, False)],
)  # fmt: skip
def test_a_report_over_repeats_is_a_look_where_it_tests_something(failed: dict[str, set[int]], is_tested: bool) -> None:
    confirm = {"seeds": 1, "repeats": 3}
    whole = fake_result(CUTS, ACCURACIES, images=60, seeds=1, trials_per_arm=3, confirm=confirm)
    result = without_repeats(whole, failed)
    assert (analyse_study(result).compared.tested_together > 0) is is_tested
    assert (this_look(result) is not None) is is_tested


def test_arms_that_fail_in_different_repeats() -> None:
    """All runs that finished have their predictions, but no repeat and no arm is complete."""
    two, confirm = {"truncate_at": ["block3", "block5"]}, {"seeds": 1, "repeats": 3}
    whole = fake_result(two, ACCURACIES, images=60, seeds=1, trials_per_arm=3, confirm=confirm)
    analysis = analyse_study(without_repeats(whole, {"block3": {0}, "block5": {1, 2}}))
    (verdict,) = analysis.verdict
    assert verdict.endswith("), but no answer is possible: no arm is confirmed in every repeat of the tuning.")
    (said,) = [sentence for sentence in analysis.evidence if sentence.startswith("block3: ")]
    assert said.startswith("block3: 1 confirmation run failed (#")
    assert said.endswith("out of memory); it is not confirmed in every repeat.")
    analysis = analyse_study(without_repeats(whole, {"block3": {0, 1, 2}}))
    (said,) = [sentence for sentence in analysis.evidence if sentence.startswith("block3: ")]
    assert said.endswith("out of memory); it is not confirmed.")


def held_back(result: StudyResult, seeds: int) -> StudyResult:
    """Return a study whose first planned look is not complete."""
    arms = [replace(arm, confirmations=[], held_back=arm.confirmations[:seeds]) for arm in result.arms]
    return replace(result, arms=arms)


def test_pooled_studies_with_planned_looks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: {})
    looks = {"seeds": 6, "looks": [3, 6]}
    ended = decision_tags([Decision(3, (), is_sure=True)])
    three = [replace(repeat(seed, images=200, confirm=looks), look=0, tags=ended) for seed in range(3)]
    analysis = analyse_pooled(three)
    assert "retrained with 3 fresh seeds" in report.build_report(analysis).markdown
    assert "(3 runs per arm and repeat)" in methods(analysis)
    assert "planned looks at the results decided which arms got further seeds" in methods(analysis)
    assert analysis.compared.estimator.level == 0.05
    assert not any("look" in sentence for sentence in analysis.evidence)
    early = analyse_pooled([held_back(result, 2) for result in three])
    assert early.verdict[0].endswith("the first planned look, at 3 seeds, is not complete.")
    assert early.result.test_evaluations == 3 * 3 * 2


def test_the_method_of_pooled_studies_with_repeats_names_studies(
    repeated: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: {})
    other = replace(repeated, spec=repeated.spec.model_copy(update={"name": "other", "seed": 9}))
    text = report.build_report(analyse_pooled([repeated, other])).markdown
    assert "Method: 6 repeats in 2 studies, which differ in their seed alone (fake: seed 0, other: seed 9)." in text


def test_repeats_without_any_confirmation_run_leave_no_arm_out() -> None:
    confirm = {"seeds": 0, "repeats": 3}
    analysis = analyse_study(fake_result(CUTS, ACCURACIES, seeds=0, trials_per_arm=3, confirm=confirm))
    assert analysis.verdict[0].endswith("no answer is possible: [confirm] seeds is 0.")
    assert analysis.evidence == []


def test_the_best_trial_of_a_pooled_arm_may_have_been_deleted() -> None:
    """What it found best stays confirmed, in one study as in pooled ones."""
    studies = [repeat(seed, trials_per_arm=1) for seed in range(3)]
    studies = [
        replace(study, arms=[replace(study.arms[0], trials=[], deleted=study.arms[0].trials), *study.arms[1:]])
        for study in studies
    ]
    analysis = analyse_pooled(studies)
    assert analysis.verdict[0].startswith("block3 is best")
    assert not any("no trial of it finished" in sentence for sentence in analysis.evidence)
    assert analysis.result.arms[0].best is analysis.result.arms[0].deleted[0]


def test_each_pooled_study_says_what_it_leaves_out(three: list[StudyResult]) -> None:
    damaged = replace(three[1], left_out=[LeftOut("confirmation run #2 of block3: its file is damaged", False)])
    arm = three[2].arms[0]
    without = replace(arm, trials=arm.trials[1:], deleted=arm.trials[:1])
    lacking = replace(three[2], arms=[without, *three[2].arms[1:]])
    evidence = analyse_pooled([three[0], damaged, lacking]).evidence
    assert "cuts-1: Left out: confirmation run #2 of block3: its file is damaged." in evidence
    assert "cuts-2: Left out, because deleted in MLflow: trial #0 of block3." in evidence


def test_pooled_trainings_that_may_end_early_have_at_most_their_epochs() -> None:
    search = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "pruner": "median"}
    analysis = analyse_pooled([repeat(seed, search=search) for seed in range(3)])
    method = str(pooled_sections(analysis, {})[0].blocks[-1])
    assert "with 3 trials of at most 4 epochs, and its best" in method
    assert "The median pruner could end poor trials early, so that arms" in method
