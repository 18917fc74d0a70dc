"""The verdict's words, from made-up differences."""

import itertools

import pytest

from ablation.analysis.comparison import Difference, FactorAnalysis, LevelMean
from ablation.analysis.statistics import Estimate
from ablation.analysis.verdict import MOST_WORDS, factor_lines, reference


def difference(first: str, second: str, value: float, margin: float = 0.01, at: str | None = None) -> Difference:
    """Return a difference with an interval of this half width; not tested where that is 0."""
    if margin == 0:
        return Difference(first, second, Estimate(value), (2, 2), 1, at)
    p = 0.001 if abs(value) > margin else 0.3
    return Difference(first, second, Estimate(value, 1.0, 1.0, value - margin, value + margin, p), (3, 3), 1, at)


def factor(name: str, family: list[Difference], pivot: str | None = None, **changes: object) -> FactorAnalysis:
    labels = dict.fromkeys(label for d in family for label in (d.first, d.second))
    levels = [LevelMean(label, None, 1, (3, 3), []) for label in labels]
    ahead = max(labels, key=lambda label: _score(label, family), default=None)
    return FactorAnalysis(name, None, pivot, levels, family, [], [], ahead, {}, **changes)  # type: ignore[arg-type]


def _score(label: str, family: list[Difference]) -> float:
    return sum(d.estimate.value * ((d.first == label) - (d.second == label)) for d in family)


A_FIRST = [difference("a", "b", 0.002), difference("a", "c", 0.05), difference("b", "c", 0.048)]


@pytest.mark.parametrize(
    ("family", "pivot", "margin", "expected"),
    [
        (A_FIRST, None, None,
         "a is ahead; b might be as good (0.20 behind, at most 1.2); c is clearly worse, by 5.0 points."),
        (A_FIRST, None, 0.02, "a is ahead; b is as good; c is clearly worse, by 5.0 points."),
        ([difference("a", "b", 0.02), difference("a", "c", 0.05), difference("b", "c", 0.03)], None, None,
         "a is best; b and c are clearly worse, by 2.0 to 5.0 points."),
        ([difference("a", "b", -0.02)], None, None, "b is clearly better than a, by 2.0 points."),
        ([difference("a", "b", 0.004)], None, None,
         "a and b might be equally good: any difference is below 1.4 points."),
        ([difference("a", "b", 0.004)], None, 0.02, "a and b are equally good, within 2 points."),
        ([difference("a", "b", 0.004), difference("a", "c", 0.005), difference("b", "c", 0.001)], None, None,
         "no clear winner among a, b and c: any difference from a is below 1.5 points."),
        ([difference("a", "b", 0.05, margin=0)], None, None, "too few seeds to compare; each arm needs three."),
        ([difference("a", "c", 0.02), difference("b", "c", -0.03)], "c", None,
         "compared with c, which led the tuning: a is clearly better, by 2.0 points; b is clearly worse, by 3.0 "
         "points."),
        ([], None, None, "nothing can be compared."),
    ],
)  # fmt: skip
def test_a_line_says_what_is_best_as_good_and_worse(
    family: list[Difference], pivot: str | None, margin: float | None, expected: str
) -> None:
    (line,) = factor_lines([factor("x", family, pivot)], margin)
    assert line.lower() == expected


@pytest.mark.parametrize(("name", "what"), [("arm", "arms"), ("lr", "levels")])
def test_many_arms_are_no_levels(name: str, what: str) -> None:
    family = [difference(a, b, 0.001) for a, b in itertools.combinations("abcdef", 2)]
    (line,) = factor_lines([factor(name, family)], None)
    assert line.startswith(f"No clear winner among 6 {what}: any difference from a is below")


@pytest.mark.parametrize("factors", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("levels", [2, 5, 12])
def test_forty_words_are_never_exceeded(factors: int, levels: int) -> None:
    labels = [f"level{n}" for n in range(levels)]
    family = [
        difference(first, second, 0.01 * (j - i) * (-1) ** (i == 0 and j == 1))
        for i, first in enumerate(labels)
        for j, second in enumerate(labels[i + 1 :], i + 1)
    ]
    at = [difference(d.first, d.second, d.estimate.value, at=f"y{n}") for n in range(5) for d in family]
    many = [factor(f"x{n}", family, by_level={"y": at} if n == 0 else {}) for n in range(factors)]
    lines = factor_lines(many, None)
    assert sum(len(line.split()) for line in lines) <= MOST_WORDS
    if factors < 7:
        assert [line.split(":")[0] for line in lines] == [f"x{n}" for n in range(factors)] or factors == 1


def test_a_level_with_too_few_seeds_is_the_one_that_has_too_few() -> None:
    """Also where its mean is the best: the others are compared, with the best of them."""
    family = [difference("a", "b", 0.01, margin=0), difference("a", "c", 0.05, margin=0), difference("b", "c", 0.04)]
    few = factor("x", family)
    assert few.ahead == "a"
    assert reference(few) == "b"
    assert factor_lines([few], None) == ["b is ahead; c is clearly worse, by 4.0 points; a has too few seeds."]


def test_an_effect_that_depends_on_two_factors_is_not_told_at_the_levels_of_one() -> None:
    """At each level of y, a wins; at those of z, each of them wins once."""
    at_y = [difference("a", "b", 0.03, at="y1"), difference("a", "b", 0.09, at="y2")]
    at_z = [difference("a", "b", 0.17, at="z1"), difference("a", "b", -0.05, at="z2")]
    (line,) = factor_lines([factor("x", [difference("a", "b", 0.06)], by_level={"y": at_y, "z": at_z})], None)
    assert line == "The effect depends on y and z."


@pytest.mark.parametrize("factors", [1, 2])
def test_an_answer_with_long_names_is_still_an_answer(factors: int) -> None:
    """Above forty words, the first line stays."""
    control, *others = (f"trained from scratch with a wide head and strong augmentation for long {n}" for n in "abcd")
    family = [difference(name, control, value) for name, value in zip(others, (0.1, 0.001, -0.1), strict=True)]
    many = [factor(f"x{n}", family, control) for n in range(factors)]
    first, *rest = factor_lines(many, None)
    assert sum(len(line.split()) for line in [first, *rest]) > MOST_WORDS
    assert f"{others[0]} is clearly better" in first
    assert rest == ["More below."] * (factors - 1)


def test_several_levels_beat_a_control() -> None:
    at = [difference(name, "a", value, at=y) for y, value in (("y1", -0.05), ("y2", 0.05)) for name in "bc"]
    average = [difference("b", "a", 0.0), difference("c", "a", 0.0)]
    (line,) = factor_lines([factor("x", average, "a", by_level={"y": at})], None)
    assert line == "With y1 a is best, by 5.0 points; with y2 b and c beat a, by 5.0 points."


def test_the_same_winner_at_every_level_is_said_once() -> None:
    at = [difference("a", "b", 0.143, at="low"), difference("a", "b", 0.029, at="high")]
    (line,) = factor_lines([factor("x", [difference("a", "b", 0.086)], by_level={"y": at})], None)
    assert line == "a is best, by 14.3 points with low and by 2.9 points with high."


def test_another_winner_at_another_level() -> None:
    at = [difference("a", "b", value, at=level) for value, level in ((0.05, "low"), (-0.03, "high"), (0.001, "mid"))]
    (line,) = factor_lines([factor("x", [difference("a", "b", 0.007)], by_level={"y": at})], None)
    assert line == "With low a is best, by 5.0 points; with high b is best, by 3.0 points; with mid nothing is clear."


def test_levels_that_are_equivalent_at_a_level_are_called_equally_good() -> None:
    at = [difference("a", "b", 0.002, at="y1"), difference("a", "b", 0.05, at="y2")]
    average = [difference("a", "b", 0.026)]
    (line,) = factor_lines([factor("x", average, by_level={"y": at})], 0.03)
    assert line == "With y1 a and b are equally good; with y2 a is best, by 5.0 points."
    (line,) = factor_lines([factor("x", average, by_level={"y": at})], None)
    assert line == "With y1 nothing is clear; with y2 a is best, by 5.0 points."


def test_a_margin_of_one_point_is_in_the_singular() -> None:
    (line,) = factor_lines([factor("x", [difference("a", "b", 0.001, margin=0.002)])], 0.01)
    assert line == "a and b are equally good, within 1 point."


@pytest.mark.parametrize(
    ("values", "margin", "expected"),
    [
        ([0.001, -0.002, 0.003, -0.098, 0.0], None,
         "x: d is better with y4 (by 9.8 points); elsewhere no difference is shown."),
        ([0.05, -0.002, 0.003, -0.098, 0.0], None,
         "x: d is better with y4 (by 9.8 points); elsewhere other differences are shown."),
        ([0.02, -0.098, 0.07, 0.08, 0.09], None,
         "x: d is better with y2 (by 9.8 points); elsewhere other differences are shown."),
        ([0.001, -0.002, 0.003, -0.015, 0.0], 0.03, "x: the effect depends on y."),  # shown, but within the margin
        ([0.001, -0.002, 0.003, -0.004, 0.0], None, "x: the effect depends on y."),
    ],
)  # fmt: skip
def test_a_line_without_room_for_all_levels_says_the_largest_shown_effect_and_where(
    values: list[float], margin: float | None, expected: str
) -> None:
    at = [difference("c", "d", value, at=f"y{n + 1}") for n, value in enumerate(values)]
    x = factor("x", [difference("c", "d", 0.0)], by_level={"y": at})
    lines = factor_lines([factor("z", A_FIRST), x], margin)
    assert lines[1] == expected
    assert sum(len(line.split()) for line in lines) <= MOST_WORDS


def test_the_largest_shown_effect_of_several_levels_names_both() -> None:
    gaps = {"y1": 0.0, "y2": 0.0, "y3": 0.02, "y4": 0.0, "y5": -0.03}  # of each level from the next
    at = [difference(a, b, gap * (ord(b) - ord(a)), at=y) for y, gap in gaps.items() for a, b in ("ab", "ac", "bc")]
    x = factor("x", A_FIRST, by_level={"y": at})
    lines = factor_lines([x, factor("z", A_FIRST)], None)
    assert lines[0] == "x: c is better than a with y5 (by 6.0 points); elsewhere other differences are shown."


def test_a_few_levels_are_all_named_rather_than_one_of_them() -> None:
    at = [difference("a", "b", 0.05, at="y1"), difference("a", "b", -0.03, at="y2")]
    x = factor("x", [difference("a", "b", 0.01)], by_level={"y": at})
    lines = factor_lines([x, *(factor(f"z{n}", A_FIRST) for n in range(3))], None)
    assert lines[0] == "x: with y1 a is best; with y2 b is best."
