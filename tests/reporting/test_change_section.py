"""The report's heat maps of where the networks changed."""

import math
from dataclasses import replace

import pytest

from ablation.analysis.pooling import analyse_study
from ablation.analysis.results import StudyResult
from ablation.reporting.change_section import arm_changes, change_blocks
from ablation.reporting.content import RichTable
from ablation.reporting.report import build_report
from tests.fake_results import fake_result

pytestmark = pytest.mark.usefixtures("plots_are_not_drawn")
ARMS = ("block1", "block2")


def changed_result() -> StudyResult:
    """Return a study in which block 2 of the second arm moved by 0.25 and 0.75 in two seeds, and nothing else."""
    result = fake_result({"truncate_at": list(ARMS)}, dict.fromkeys(ARMS, 0.5), images=40, seeds=2)
    first, second = result.arms
    changes = [
        {name: {"block2": value} for name in ("distance_moved", "mean_relative_gradient_norm", "similarity_to_start")}
        for value in (0.25, 0.75)
    ]
    runs = [replace(run, changes=of_run) for run, of_run in zip(second.confirmations, changes, strict=True)]
    return replace(result, arms=[first, replace(second, confirmations=runs)])


def test_changes_are_means_over_seeds_and_frozen_blocks_did_not_change() -> None:
    moved = {"block1": 0.0, "block2": 0.5}
    expected = {"distance_moved": moved, "mean_relative_gradient_norm": moved}
    assert arm_changes(changed_result().arms[1]) == expected | {"similarity_to_start": {"block1": 1.0, "block2": 0.5}}


def test_a_heat_map_has_a_row_for_each_arm_and_no_value_where_the_cut_is_before_the_block() -> None:
    _, moved, _, similarity = change_blocks(changed_result())
    assert isinstance(moved, RichTable)
    assert isinstance(similarity, RichTable)
    assert moved.table.columns == ["arm", "block1", "block2"]
    assert moved.table.rows == [["block1", "0", "-"], ["block2", "0", "0.5"]]
    assert moved.shades == [[0.0, 0.0], [0.0, 1.0]]  # of the largest value
    assert similarity.table.rows == [["block1", "1", "-"], ["block2", "1", "0.5"]]
    assert similarity.shades == [[1.0, 0.0], [1.0, 0.5]]


def test_values_that_are_no_numbers_shade_nothing() -> None:
    """An older version stored NaN for the features of a dead network; in float16 a gradient may overflow."""
    result = changed_result()
    first, second = result.arms
    values = {"distance_moved": math.inf, "mean_relative_gradient_norm": math.nan, "similarity_to_start": math.nan}
    changes = {name: {"block2": value} for name, value in values.items()}
    runs = [replace(run, changes=changes) for run in second.confirmations]
    _, *maps = change_blocks(replace(result, arms=[first, replace(second, confirmations=runs)]))
    assert [heat.shades[1] for heat in maps if isinstance(heat, RichTable)] == [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert [heat.table.rows[1][2] for heat in maps if isinstance(heat, RichTable)] == ["nan", "nan", "nan"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_run_without_a_finite_value_hides_no_other(value: float) -> None:
    result = changed_result()
    overflowing, other = result.arms[1].confirmations
    changes = overflowing.changes | {"mean_relative_gradient_norm": {"block2": value}}
    arm = replace(result.arms[1], confirmations=[replace(overflowing, changes=changes), other])
    changed = arm_changes(arm)
    assert changed["mean_relative_gradient_norm"]["block2"] == 0.75
    assert changed["distance_moved"]["block2"] == 0.5


def test_the_page_shades_the_cells() -> None:
    report = build_report(analyse_study(changed_result()))
    assert "## Where the networks changed" in report.markdown
    assert report.html.count('style="--s:1"') == 4  # two maps have one largest value, one has two


@pytest.mark.parametrize("changes", [{}, {"distance_moved": {}}])
def test_a_study_of_heads_alone_has_no_such_section(changes: dict[str, dict[str, float]]) -> None:
    result = fake_result({"truncate_at": list(ARMS)}, dict.fromkeys(ARMS, 0.5), images=40, seeds=2)
    arms = [replace(a, confirmations=[replace(run, changes=changes) for run in a.confirmations]) for a in result.arms]
    assert change_blocks(replace(result, arms=arms)) == []
