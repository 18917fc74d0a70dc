"""The colours of arms."""

import itertools
import math

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


def lab(colour: str) -> tuple[float, float, float]:
    """Return a colour of sRGB in CIE Lab (D65)."""
    shares = [channel / 255 for channel in bytes.fromhex(colour[1:])]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def test_hues_and_their_lightest_shades_can_be_told_apart() -> None:
    """By their distance in Lab (CIE76); a just noticeable one is 2.3."""
    # White, and green of (0, 255, 0), by Lindbloom's calculator.
    assert lab("#ffffff") == pytest.approx((100, 0, 0), abs=0.1)
    assert lab("#00ff00") == pytest.approx((87.73, -86.18, 83.18), abs=0.1)
    pairs = [Arm(f"{n},{m}", {"lr": n, "seed": m}) for n in range(len(COLOURS)) for m in range(2)]
    distances = {
        (one, other): math.dist(lab(one), lab(other))
        for one, other in itertools.combinations(arm_colours(pairs).values(), 2)
    }
    assert min(distances.values()) > 12, min(distances, key=distances.__getitem__)
