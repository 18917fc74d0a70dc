import dataclasses
import json
from datetime import UTC, datetime

import pytest

from ablation.analysis.answer import analyse
from ablation.analysis.boundaries import planned_levels
from ablation.analysis.looks import PastLook, decide, level_of, look_number, look_sentences, past_looks, this_look
from ablation.analysis.results import StudyResult
from ablation.analysis.wording import ordinal
from ablation.spec.looks import Decision
from ablation.spec.tables import Confirm
from ablation.tracking.looks import DECISION_TAG, LOOK_TAG, decision_tags, decisions_in
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result

LOOKS = [3, 5, 8, 12]
CUTS = {"truncate_at": ["block1", "block2", "block3"]}


def looked(
    accuracies: tuple[float, float, float], seeds: int = 5, decisions: tuple[Decision, ...] = (), **confirm: object
) -> StudyResult:
    """Return three arms at a planned look; their runs are as alike as the seeds' deviation of 0.2 points lets them."""
    named = dict(zip(("block1", "block2", "block3"), accuracies, strict=True))
    result = fake_result(CUTS, named, seeds=seeds, images=2000, confirm={"seeds": 12, "looks": LOOKS, **confirm})
    return dataclasses.replace(result, look=LOOKS.index(seeds), tags=decision_tags(list(decisions)))


BEFORE = Decision(3, (), is_sure=False)


def test_arms_that_the_leader_beats_stop_and_others_continue() -> None:
    decision = decide(looked((0.70, 0.90, 0.90), decisions=(BEFORE,)))
    assert decision == Decision(5, ("block1",), is_sure=False)


def test_a_difference_that_is_not_sure_stops_nobody() -> None:
    result = looked((0.893, 0.900, 0.896), decisions=(BEFORE,))
    assert decide(result) == Decision(5, (), is_sure=False)
    # The same data would show one at 5 %: the look has a tenth of a per cent.
    assert level_of(result) == planned_levels(LOOKS)[1] < 0.002
    alone = dataclasses.replace(result, spec=result.spec.model_copy(update={"confirm": result.spec.confirm.model_copy(
        update={"looks": [], "seeds": 5})}))  # fmt: skip
    strict, free = analyse(result), analyse(alone)
    for narrow, wide in zip(free.factors[0].family, strict.factors[0].family, strict=True):
        assert narrow.estimate.value == wide.estimate.value
        assert wide.estimate.low < narrow.estimate.low < narrow.estimate.high < wide.estimate.high  # type: ignore[operator]
        assert wide.is_shown == (wide.estimate.low > 0 or wide.estimate.high < 0)  # type: ignore[operator]
    assert any(d.is_shown for d in free.factors[0].family)
    assert not any(d.is_shown for d in strict.factors[0].family)


def test_the_study_ends_where_one_arm_beats_all_others() -> None:
    assert decide(looked((0.70, 0.90, 0.80), decisions=(BEFORE,))) == Decision(
        5, ("block1", "block2", "block3"), is_sure=True
    )


def test_the_study_ends_where_the_rest_is_equivalent() -> None:
    accuracies = (0.70, 0.90, 0.90)
    assert decide(looked(accuracies, decisions=(BEFORE,), equivalence=5.0)).is_sure
    assert not decide(looked(accuracies, decisions=(BEFORE,), equivalence=0.01)).is_sure


def test_arms_that_were_stopped_are_not_stopped_again() -> None:
    before = Decision(3, ("block1",), is_sure=False)
    assert decide(looked((0.70, 0.90, 0.90), decisions=(before,))) == Decision(5, (), is_sure=False)


def test_with_a_control_an_arm_stops_when_its_comparison_is_decided() -> None:
    control = {"compare": "control", "control": {"truncate_at": "block2"}}
    assert decide(looked((0.70, 0.90, 0.90), decisions=(BEFORE,), **control)) == Decision(5, ("block1",), False)
    both = decide(looked((0.70, 0.90, 0.70), decisions=(BEFORE,), **control))
    assert both.is_sure
    # Better than the control is as sure as worse.
    assert decide(looked((0.95, 0.80, 0.70), decisions=(BEFORE,), **control)).is_sure


def test_in_a_study_of_two_factors_all_arms_continue_until_all_is_sure() -> None:
    confirm = {"seeds": 8, "looks": [5, 8]}
    accuracies = {"block3,feature_extraction": 0.6, "block3,fine_tune_all": 0.6, "block5,feature_extraction": 0.9,
                  "block5,fine_tune_all": 0.9}  # fmt: skip
    result = dataclasses.replace(fake_result(TWO_BY_TWO, accuracies, seeds=5, confirm=confirm), look=0)
    assert decide(result) == Decision(5, (), is_sure=False)  # the strategies do not differ
    accuracies |= {"block3,fine_tune_all": 0.75, "block5,fine_tune_all": 0.98}
    result = dataclasses.replace(fake_result(TWO_BY_TWO, accuracies, seeds=5, images=4000, confirm=confirm), look=0)
    assert decide(result) == Decision(5, (), is_sure=True)


def test_the_report_says_which_planned_look_it_is() -> None:
    level = 100 * planned_levels(LOOKS)[1]
    result = looked((0.70, 0.90, 0.90), decisions=(BEFORE,))
    assert look_sentences(result) == [f"Planned look 2 of 4, at 5 seeds: tested at {level:.3g} %."]
    ended = looked((0.70, 0.90, 0.80), decisions=(BEFORE, Decision(5, ("block1",), is_sure=True)))
    assert "the study ended here, because the answer is sure" in look_sentences(ended)[0]
    assert ended.missing_confirmations == 0
    assert result.missing_confirmations == 3 * 12 - 3 * 5
    first_stopped = looked((0.70, 0.90, 0.90), decisions=(BEFORE, Decision(5, ("block1",), is_sure=False)))
    assert first_stopped.missing_confirmations == 2 * (12 - 5)


def unplanned(seeds: int = 3, **confirm: object) -> StudyResult:
    accuracies = dict.fromkeys(("block1", "block2", "block3"), 0.9)
    return fake_result(CUTS, accuracies, seeds=seeds, confirm={"seeds": 12, **confirm})


def with_look(result: StudyResult, *earlier: StudyResult) -> StudyResult:
    """Return results whose store has the looks at these earlier ones."""
    tags: dict[str, str] = {}
    for each in earlier:
        look = this_look(dataclasses.replace(each, tags=tags))
        assert look is not None
        tags = {look.name: look.stored(), **tags}
    return dataclasses.replace(result, tags=tags)


def test_each_other_look_is_tested_at_less() -> None:
    three, five, eight = (unplanned(seeds) for seeds in (3, 5, 8))
    assert [level_of(three), look_sentences(three)] == [0.05, []]
    assert level_of(with_look(five, three)) == 0.0125
    third = with_look(eight, three, five)
    assert level_of(third) == 0.00625
    assert look_sentences(third) == ["Third look at this study: tested at 0.625 %."]
    # What was looked at before keeps its figures, whatever came after it.
    assert [look_number(with_look(each, three, five, eight)) for each in (three, five, eight)] == [1, 2, 3]


def test_the_level_reaches_the_intervals() -> None:
    first = analyse(unplanned(5)).factors[0].family[0].estimate
    third = analyse(with_look(unplanned(5), unplanned(3), unplanned(4))).factors[0].family[0].estimate
    assert third.value == first.value
    assert third.low < first.low < first.high < third.high  # type: ignore[operator]
    assert third.p == pytest.approx(min(1.0, 8 * first.p))  # type: ignore[operator]


def test_another_control_or_another_number_of_trials_is_another_look() -> None:
    plain = unplanned()
    with_control = unplanned(control={"truncate_at": "block2"})
    assert look_number(with_look(with_control, plain)) == 2
    more_trials = dataclasses.replace(
        plain, arms=[dataclasses.replace(arm, trials=[*arm.trials, arm.trials[0]]) for arm in plain.arms]
    )
    assert look_number(with_look(more_trials, plain)) == 2
    assert look_number(with_look(unplanned(), plain)) == 1


def test_what_tests_nothing_is_no_look() -> None:
    assert this_look(unplanned(2)) is None
    one_arm = dataclasses.replace(unplanned(3), arms=unplanned(3).arms[:1])
    assert this_look(one_arm) is None


def test_a_look_comes_after_those_before_whatever_the_clocks_say() -> None:
    future = datetime(2100, 1, 1, tzinfo=UTC)
    stored = {"time": future.isoformat(), "seeds": [1], "trials": [1], "control": {}, "compare": "all"}
    tags = {f"{LOOK_TAG}.x": json.dumps(stored)}
    look = this_look(dataclasses.replace(unplanned(), tags=tags))
    assert look is not None
    assert look.time > future


def test_a_record_that_somebody_edited_still_counts() -> None:
    whole = {"time": "2026-11-27T10:00:00", "seeds": [3, 3], "trials": [1, 1], "control": {}, "compare": "all"}
    edited = [whole, whole | {"control": None}, whole | {"seeds": ["x", 3]}, {}, []]
    tags = {f"{LOOK_TAG}.{number}": json.dumps(stored) for number, stored in enumerate(edited)}
    tags[f"{LOOK_TAG}.x"] = "nonsense"
    assert len(past_looks(tags)) == 6
    assert level_of(dataclasses.replace(unplanned(), tags=tags)) == 0.05 / 2**7


def test_decisions_and_looks_of_very_many_arms_fit_into_tags() -> None:
    """MLflow cuts a longer tag without a word, and the study would decide the same look for ever."""
    confirm = Confirm(seeds=8, looks=[3, 5, 8])
    names = tuple(f"block{n % 5 + 1},fine_tune_all,{n}" for n in range(1500))
    decisions = [Decision(3, names, is_sure=False), Decision(5, (), is_sure=False)]
    tags = decision_tags(decisions)
    assert len(tags) > 2
    assert all(len(value) <= 5000 for value in tags.values())
    assert decisions_in(confirm, tags) == decisions
    *first, last = [name for name in tags if name.startswith(f"{DECISION_TAG}.3")]
    assert last == f"{DECISION_TAG}.3"
    # A process that died between two of them has decided nothing.
    assert decisions_in(confirm, {name: tags[name] for name in first}) == []
    look = PastLook(f"{LOOK_TAG}.x", datetime(2026, 11, 27, tzinfo=UTC), (3,) * 1499 + (5,), (8,) * 1500, {}, "all")
    assert len(look.stored()) <= 5000
    (read,) = past_looks({look.name: look.stored()})
    assert (read.seeds, read.trials, read.time) == ((3, 5), (8, 8), look.time)


@pytest.mark.parametrize("damage", ["x", "[]", '{"seeds": 5}', '{"seeds": "x", "stopped": [], "sure": true}'])
def test_decisions_are_believed_up_to_one_that_is_damaged(damage: str) -> None:
    confirm = Confirm(seeds=8, looks=[3, 5, 8])
    decisions = [Decision(3, ("block1",), is_sure=False), Decision(5, (), is_sure=False)]
    tags = decision_tags(decisions)
    assert decisions_in(confirm, tags) == decisions
    assert decisions_in(confirm, {**tags, f"{DECISION_TAG}.5": damage}) == decisions[:1]
    assert decisions_in(confirm, {**tags, f"{DECISION_TAG}.3": damage}) == []


def without_confirmations(result: StudyResult, *names: str) -> StudyResult:
    """Return a study in which all confirmation runs of these arms failed."""
    failed = {"state": "failed", "predictions": None, "val_accuracy": None, "test_accuracy": None}
    return dataclasses.replace(
        result,
        arms=[
            dataclasses.replace(arm, confirmations=[dataclasses.replace(run, **failed) for run in arm.confirmations])  # type: ignore[arg-type]
            if arm.arm.name in names
            else arm
            for arm in result.arms
        ],
    )


def test_an_answer_without_any_comparison_is_not_sure() -> None:
    confirm = {"seeds": 6, "looks": [3, 6]}
    two = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.8, "block5": 0.9}, confirm=confirm)
    assert decide(dataclasses.replace(without_confirmations(two, "block5"), look=0)) == Decision(3, (), is_sure=False)
    four = fake_result(TWO_BY_TWO, FOUR, confirm=confirm)
    only_first = without_confirmations(four, *list(FOUR)[1:])
    assert decide(dataclasses.replace(only_first, look=0)) == Decision(3, (), is_sure=False)


def test_a_factor_with_a_single_level_leaves_decisions_as_they_are() -> None:
    confirm = {"seeds": 12, "looks": LOOKS}
    accuracies = {"block1": 0.70, "block2": 0.90, "block3": 0.90}
    named = {f"{cut},fine_tune_all": accuracy for cut, accuracy in accuracies.items()}
    factors = {**CUTS, "strategy": ["fine_tune_all"]}
    result = fake_result(factors, named, seeds=5, images=2000, confirm=confirm)
    result = dataclasses.replace(result, look=1, tags=decision_tags([BEFORE]))
    assert decide(result) == Decision(5, ("block1,fine_tune_all",), is_sure=False)


@pytest.mark.parametrize(
    ("number", "name"), [(2, "second"), (10, "tenth"), (11, "11th"), (13, "13th"), (21, "21st"), (22, "22nd"),
                         (103, "103rd"), (111, "111th")]
)  # fmt: skip
def test_ordinals(number: int, name: str) -> None:
    assert ordinal(number) == name
