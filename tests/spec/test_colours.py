"""The colours of arms."""

import pytest

from ablation.spec.arms import Arm, arms
from ablation.spec.colours import COLOURS, arm_colours
from ablation.spec.files import study_files
from ablation.spec.reading import load_study


def test_a_hue_for_each_level_of_the_first_factor_and_a_shade_for_the_others() -> None:
    cuts, strategies = ("block1", "block2"), ("a", "b", "c")
    study = [Arm(f"{cut},{way}", {"truncate_at": cut, "strategy": way}) for cut in cuts for way in strategies]
    assert arm_colours(study) == {
        "block1,a": "#0072b2",
        "block1,b": "#4c9cc9",  # 30 % white: 0 + 0.3 * 255 = 76.5, 114 + 0.3 * 141 = 156.3, 178 + 0.3 * 77 = 201.1
        "block1,c": "#99c7e0",  # 60 % white: 153, 198.6, 224.2
        "block2,a": "#d55e00",
        "block2,b": "#e28e4c",
        "block2,c": "#eebf99",
    }


def test_one_factor_and_listed_arms_have_a_hue_each() -> None:
    assert list(arm_colours([Arm(f"lr={n}", {"lr": n}) for n in range(7)]).values()) == list(COLOURS)
    listed = [Arm("tuned", {"lr": 0.1}, is_listed=True), Arm("fixed", {"lr": 0.1}, is_listed=True)]
    assert list(arm_colours(listed).values()) == list(COLOURS[:2])
    assert arm_colours([Arm("all", {})]) == {"all": COLOURS[0]}


def test_more_levels_than_hues_share_them_in_shades() -> None:
    colours = arm_colours([Arm(f"lr={n}", {"lr": n}) for n in range(10)])
    assert colours["lr=0"] == COLOURS[0]
    assert colours["lr=7"] == "#99c7e0"
    assert colours["lr=3"] == COLOURS[3]


@pytest.mark.parametrize("name", sorted(study_files()))
def test_no_two_arms_of_a_bundled_study_look_the_same(name: str) -> None:
    study = arms(load_study(study_files()[name]))
    assert len(set(arm_colours(study).values())) == len(study)
