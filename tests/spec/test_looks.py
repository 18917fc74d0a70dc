import pytest

from ablation.spec.looks import (
    Decision,
    current_look,
    decision_from,
    decision_texts,
    is_open,
    most_seeds_of_arms,
    seeds_of_arms,
)
from ablation.spec.tables import Confirm
from tests.fake_results import fake_spec

ARMS = ("a", "b", "c")
PLANNED = Confirm(seeds=12, looks=[3, 5, 12])


def test_without_looks_every_arm_has_all_seeds() -> None:
    plain = Confirm(seeds=4)
    assert seeds_of_arms(plain, ARMS, []) == most_seeds_of_arms(plain, ARMS, []) == dict.fromkeys(ARMS, 4)
    assert not is_open(plain, [])
    assert decision_texts(plain, []) == []


def test_decisions_say_how_many_seeds_each_arm_gets() -> None:
    first, second = Decision(3, ("b",), is_sure=False), Decision(5, (), is_sure=False)
    assert seeds_of_arms(PLANNED, ARMS, []) == dict.fromkeys(ARMS, 3)
    assert most_seeds_of_arms(PLANNED, ARMS, []) == dict.fromkeys(ARMS, 12)
    assert seeds_of_arms(PLANNED, ARMS, [first]) == {"a": 5, "b": 3, "c": 5}
    assert most_seeds_of_arms(PLANNED, ARMS, [first]) == {"a": 12, "b": 3, "c": 12}
    assert is_open(PLANNED, [first])
    assert seeds_of_arms(PLANNED, ARMS, [first, second]) == {"a": 12, "b": 3, "c": 12}
    assert not is_open(PLANNED, [first, second])  # at the last look nothing is decided


def test_no_look_follows_the_last_one_whose_runs_have_ended() -> None:
    decisions = [Decision(3, (), is_sure=False), Decision(5, (), is_sure=False)]
    decided = ["Look at 3 seeds: all arms continue.", "Look at 5 seeds: all arms continue."]
    assert decision_texts(PLANNED, decisions) == [*decided, "The next look is at 12 seeds, the last one."]
    assert decision_texts(PLANNED, decisions, has_ended=True) == decided


def test_a_sure_answer_ends_the_study() -> None:
    decisions = [Decision(3, ("b",), is_sure=False), Decision(5, ("a",), is_sure=True)]
    assert not is_open(PLANNED, decisions)
    assert current_look(PLANNED, decisions) == 5
    assert seeds_of_arms(PLANNED, ARMS, decisions) == most_seeds_of_arms(PLANNED, ARMS, decisions)
    assert seeds_of_arms(PLANNED, ARMS, decisions) == {"a": 5, "b": 3, "c": 5}
    assert decision_texts(PLANNED, decisions) == [
        "Look at 3 seeds: no further seeds for b.",
        "Look at 5 seeds: the answer is sure, no further seeds.",
    ]
    assert [decision_from(decision.stored()) for decision in decisions] == decisions


@pytest.mark.parametrize(
    ("confirm", "fault"),
    [
        ({"seeds": 5, "looks": [3, 4]}, "the last one is all seeds"),
        ({"seeds": 5, "looks": [2, 5]}, "rising numbers of seeds from 3"),
        ({"seeds": 5, "looks": [4, 3, 5]}, "rising numbers of seeds from 3"),
        ({"seeds": 5, "looks": [3, 3, 5]}, "rising numbers of seeds from 3"),
        ({"seeds": 31, "looks": [3, 31]}, "the first one needs a tenth of all 31 seeds"),
        ({"seeds": 5, "looks": [3, 5], "repeats": 3}, "with repeats the unit is a tuning"),
    ],
)
def test_looks_that_make_no_sense_are_refused(confirm: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        fake_spec({"truncate_at": ["block1", "block2"]}, confirm=confirm)


def test_a_study_with_one_arm_has_no_looks() -> None:
    with pytest.raises(ValueError, match="one arm compares nothing"):
        fake_spec({}, confirm={"seeds": 5, "looks": [3, 5]})


def test_what_older_studies_stored_stays_as_it_was() -> None:
    factors = {"truncate_at": ["block1", "block2"]}
    plain, new = fake_spec(factors), fake_spec(factors, preregister=True, confirm={"seeds": 5, "looks": [3, 5]})
    assert "preregister" not in plain.content()
    assert "looks" not in plain.content()["confirm"]
    assert new.content()["preregister"] is True
    assert new.content()["confirm"]["looks"] == [3, 5]
