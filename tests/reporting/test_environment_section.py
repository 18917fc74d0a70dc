"""The section on the environment: what the study set, and what its runs had."""

from dataclasses import replace
from typing import Any

import pytest

from ablation.analysis.answer import analyse
from ablation.base.text import Table
from ablation.reporting.environment_section import environment_blocks
from tests.fake_results import fake_result

CUTS = {"truncate_at": ["block3", "block5"]}


def study_rows(**changes: Any) -> dict[str, str]:
    """Return the table of a study's settings; its runs computed in float32."""
    table = environment_blocks(analyse(fake_result(CUTS, {"block3": 0.9, "block5": 0.8}, images=50, **changes)))[0]
    assert isinstance(table, Table)
    return {row[0]: row[1] for row in table.rows}


def test_the_precision_is_that_of_the_runs() -> None:
    assert study_rows()["precision"] == "float32 (auto)"
    assert study_rows(precision="float32")["precision"] == "float32"
    result = fake_result(CUTS, {"block3": 0.9, "block5": 0.8}, images=50)
    first = result.arms[0]
    other = replace(first.trials[0], spec=first.trials[0].spec.model_copy(update={"precision": "bfloat16"}))
    mixed = replace(result, arms=[replace(first, trials=[other, *first.trials[1:]]), *result.arms[1:]])
    table = environment_blocks(analyse(mixed))[0]
    assert isinstance(table, Table)
    assert ["precision", "bfloat16 and float32 (auto)"] in table.rows


@pytest.mark.parametrize(
    ("search", "sampler", "pruner"),
    [({}, "quasi-random (auto)", "none"), ({"sampler": "tpe", "pruner": "median"}, "TPE", "median")],
)
def test_the_environment_names_sampler_and_pruner(search: dict[str, str], sampler: str, pruner: str) -> None:
    rows = study_rows(search={"lr": {"low": 1e-4, "high": 1e-1, "log": True}, **search})
    assert (rows["sampler"], rows["pruner"]) == (sampler, pruner)
    assert "sampler" not in study_rows(search={})


def test_a_budget_that_may_have_grown_says_what_would_have_drawn_the_first_trials() -> None:
    """Trials of a study that had 20 for each arm stay quasi-random when it gets 21."""
    assert study_rows(trials_per_arm=20)["sampler"] == "quasi-random (auto)"
    grown = "TPE (auto: trials made while at most 20 per arm were planned are quasi-random)"
    assert study_rows(trials_per_arm=21)["sampler"] == grown
