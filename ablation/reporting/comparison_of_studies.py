"""Studies of one question on several data sets or networks, as tables, sentences and JSON."""

import dataclasses
import json
from collections.abc import Sequence

from ablation.analysis.across_studies import (
    FEWEST_STUDIES,
    MeanDifference,
    arms_across,
    check_same_question,
    differences_across,
)
from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.pooling import analyse_study
from ablation.analysis.results import read_results
from ablation.analysis.wording import interval_points, p_cell, points, unit_words
from ablation.base.text import Table
from ablation.reporting.looks_section import record_look
from ablation.storage.store import Store


def read_studies(store: Store, names: Sequence[str]) -> list[StudyAnalysis]:
    """Read studies of one question from a store, and record that each was looked at.

    Raises:
        InputError: a study cannot be read, or they do not compare the same levels.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    results = [read_results(store, name) for name in names]
    check_same_question(results)
    return [analyse_study(record_look(store, result)) for result in results]


def across_tables(analyses: Sequence[StudyAnalysis]) -> list[Table]:
    """Return the tables of arms and of differences over all studies."""
    studies, goal = [analysis.result.spec.name for analysis in analyses], analyses[0].result.spec.goal
    arms = [
        [arm.name, f"{arm.mean:.4f}", f"{len(arm.best_in)} of {len(studies)}",
         *(f"{arm.values[study]:.4f}" for study in studies)]
        for arm in arms_across(analyses)
    ]  # fmt: skip
    tables = [
        Table(
            f"Test {goal.label} of each arm, over studies",
            ["arm", "mean", "best in", *studies],
            arms,
            ["an arm that a study has not confirmed is left out"] if len(arms) < len(analyses[0].arms) else [],
            optional=studies[::-1],
            bold_row=0 if arms else None,
        )
    ]
    rows = [
        [
            f"{difference.first} - {difference.second}",
            points(difference.mean.value, goal),
            interval_points(difference.mean.low, difference.mean.high, goal),
            p_cell(difference.mean.p),
            f"{difference.wins} of {len(difference.of_studies)}",
            "-" if difference.spread is None else points(difference.spread, goal),
        ]
        for difference in differences_across(analyses)
    ]
    few = [f"intervals need {FEWEST_STUDIES} studies"] if len(analyses) < FEWEST_STUDIES else []
    notes = [
        f"{unit_words(goal)}: the mean over studies; interval: for the mean over other data sets or networks like "
        "these, by a random-effects model (Hartung and Knapp); p: corrected for all rows by Holm's method",
        "ahead: in how many studies the first level is better; spread: standard deviation of the true difference "
        f"between studies, in {goal.unit}",
    ]
    columns = ["difference", goal.unit, "95 % interval", "p", "ahead", "spread"]
    return [*tables, Table("Differences over studies", columns, rows, few or notes, optional=["spread", "p"])]


def across_sentences(analyses: Sequence[StudyAnalysis]) -> list[str]:
    """Return what holds over all studies, a sentence per difference that is shown."""
    differences = differences_across(analyses)
    shown = [_sentence(difference) for difference in differences if difference.is_shown]
    if shown or not differences:
        return shown or ["No two levels could be compared in two studies: each arm needs three seeds."]
    if len(analyses) < FEWEST_STUDIES:
        return [f"What holds of other data sets or networks needs at least {FEWEST_STUDIES} studies."]
    return ["No difference is shown to hold over other data sets or networks like these."]


def _sentence(difference: MeanDifference) -> str:
    better, worse, value, wins = difference.first, difference.second, difference.mean, difference.wins
    low, high, goal = value.low, value.high, difference.objective
    if goal.sign * value.value < 0:
        better, worse, wins = worse, better, difference.losses
    if value.value < 0:
        low, high = (None if end is None else -end for end in (high, low))
    return (
        f"{better} is better than {worse} over studies like these, by {points(abs(value.value), goal)} {goal.unit} "
        f"({interval_points(low, high, goal)}); it is ahead in {wins} of {len(difference.of_studies)}."
    )


def across_json(analyses: Sequence[StudyAnalysis]) -> str:
    """Return all figures of the comparison as JSON; metrics and differences are fractions, of a loss nats."""
    goal = analyses[0].result.spec.goal
    values = "accuracies" if goal.name == "accuracy" else "values"
    content = {
        "studies": [
            {
                "study": analysis.result.spec.name,
                "backbone": analysis.result.spec.backbone.name,
                "data": analysis.result.spec.data.source,
                "verdict": analysis.verdict,
            }
            for analysis in analyses
        ],
        "arms": [
            {"name": arm.name, values: arm.values, "best_in": arm.best_in, "mean": arm.mean}
            for arm in arms_across(analyses)
        ],
        "differences": [
            dataclasses.asdict(difference)
            | {"objective": goal.name, "wins": difference.wins, "shown": difference.is_shown}
            for difference in differences_across(analyses)
        ],
        "sentences": across_sentences(analyses),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
