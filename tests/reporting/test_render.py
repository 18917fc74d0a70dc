"""The short forms of a report: intervals in the terminal, and the page's subtitle."""

from typing import Any

import pytest

from ablation.analysis.answer import StudyAnalysis, analyse
from ablation.analysis.statistics import Estimate
from ablation.reporting.render import render_html, short_arms_table
from tests.fake_results import fake_result

CUTS = {"truncate_at": ["block3", "block5"]}


def with_estimates(*ends: tuple[float, float, float]) -> StudyAnalysis:
    """Return the analysis of two arms with these means and ends of intervals."""
    analysis = analyse(fake_result(CUTS, {"block3": 0.9, "block5": 0.8}, images=50))
    for arm, (value, low, high) in zip(analysis.arms, ends, strict=True):
        object.__setattr__(arm, "estimate", Estimate(value, 0.1, 2.0, low, high))
    return analysis


@pytest.mark.parametrize(
    ("ends", "cells", "note"),
    [
        (((0.9, 0.84, 0.96), (0.8, 0.799, 0.801)), ["0.900 ±0.060", "0.8000 ±0.0010"],
         "± and the plot: the 95 % interval."),
        (((0.867, 0.0, 1.0), (0.8, 0.7, 0.9)), ["0.867 (0.000 to 1.000)", "0.800 ±0.100"],
         "±, brackets and the plot: the 95 % interval."),
        (((0.867, 0.0, 1.0), (0.999, 0.9975, 1.0)), ["0.867 (0.000 to 1.000)", "0.9990 (0.9975 to 1.0000)"],
         "Brackets and the plot: the 95 % interval."),
    ],
)  # fmt: skip
def test_an_interval_that_is_cut_has_its_ends(
    ends: tuple[tuple[float, float, float], ...], cells: list[str], note: str
) -> None:
    table = short_arms_table(with_estimates(*ends))
    assert [row[table.columns.index("test accuracy")] for row in table.rows] == cells
    assert table.notes[-1] == note


@pytest.mark.parametrize(
    ("changes", "tuning"),
    [
        ({}, "an ablation with equal tuning for every arm"),
        ({"fixed": {"patience": 2}}, "an ablation with equally many trials, which may end early, for every arm"),
        ({"search": {"pruner": "median", "lr": {"low": 1e-4, "high": 1e-1}}},
         "an ablation with equally many trials, which may end early, for every arm"),
    ],
)  # fmt: skip
def test_the_subtitle_claims_equal_tuning_where_it_is(changes: dict[str, Any], tuning: str) -> None:
    result = fake_result(CUTS, {"block3": 0.9, "block5": 0.8}, images=50, **changes)
    assert f"Study fake: {tuning}</p>" in render_html(result, [], {})
