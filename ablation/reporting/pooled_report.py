"""The report of studies that differ in their seed alone, pooled."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import confirmations_of_arms, trials_of_arms
from ablation.analysis.pooling import analyse_pooled, analyse_study, check_repeats
from ablation.analysis.results import StudyResult, read_results
from ablation.analysis.wording import format_seeds
from ablation.base.errors import InputError
from ablation.base.files import ensure_writable
from ablation.base.text import plural
from ablation.reporting.answer_sections import (
    arm_table,
    difference_blocks,
    interaction_blocks,
    level_tables,
)
from ablation.reporting.charts import Picture
from ablation.reporting.content import Answer, Block, Items, Paragraph, Section, figure_block
from ablation.reporting.exports import paper_block
from ablation.reporting.figures import draw_figures
from ablation.reporting.looks_section import look_at, record_look
from ablation.reporting.method_sections import early_ends_sentence, meaning_over_repeats, most_epochs, power_blocks
from ablation.reporting.report import Report, as_report, report_folder
from ablation.reporting.run_sections import repeat_table
from ablation.storage.store import Store

FIGURES = ("arms", "effects", "interaction")


def read_repeats(store: Store, names: Sequence[str]) -> list[StudyResult]:
    """Read studies that differ in their seed alone.

    Raises:
        InputError: a study cannot be read, is named twice, or they differ in anything but their seed.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice")
    results = [read_results(store, name) for name in names]
    check_repeats(results)
    return results


def read_analysis(store: Store, names: Sequence[str]) -> StudyAnalysis:
    """Read a study, or pool several, and record that each was looked at; see `read_repeats` for errors."""
    if len(names) == 1:
        return analyse_study(look_at(store, names[0]))
    return analyse_pooled([record_look(store, result) for result in read_repeats(store, names)])


def write_pooled_report(store: Store, names: Sequence[str], output: Path | None = None) -> Report:
    """Write report.html, report.md and figures of pooled studies; nothing is logged to MLflow.

    Args:
        store: the store with the studies' results.
        names: of the studies.
        output: a folder, created if needed; `reports/NAME-1+NAME-2` in the store by default.

    Raises:
        InputError: as `read_repeats`; `output` is a file; or it is needed: the store cannot be written, or the names
            are too long for a folder.
        StoreAway: the tracking server does not answer.
        StoreError: the folder or MLflow's store cannot be written.
    """
    folder = report_folder(store, "+".join(names), output)
    results = read_repeats(store, names)
    ensure_writable(folder)
    return build_pooled_report(analyse_pooled([record_look(store, result) for result in results])).saved(folder)


def build_pooled_report(analysis: StudyAnalysis) -> Report:
    """Return the report of pooled studies."""
    pictures, goal = draw_figures(analysis, FIGURES), analysis.result.spec.goal
    sections = [
        Section("answer", "Answer", _answer_blocks(analysis, pictures)),
        Section("arms", "Arms", [arm_table(analysis)]),
        Section("effects", "Effect of each factor", [*figure_block("means", pictures, goal), *level_tables(analysis)]),
        Section(
            "differences", "Differences", [*figure_block("differences", pictures, goal), *difference_blocks(analysis)]
        ),
        Section("interaction", "Interactions", interaction_blocks(analysis, pictures)),
        Section("power", "What more would find", power_blocks(analysis)),
        Section("repeats", "The repeats", [repeat_table(analysis)]),
        Section("meaning", "What the intervals mean", meaning_over_repeats(analysis)),
        Section("paper", "For a paper", [paper_block(analysis)]),
    ]
    return as_report(analysis, sections, pictures)


def _answer_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    first, repeats = analysis.repeats[0], len(analysis.repeats)
    studies = analysis.result.studies
    of_studies = ", ".join(f"{study.spec.name}: seed {study.spec.seed}" for study in studies)
    where = "of one study" if repeats == len(studies) else f"in {len(studies)} studies"
    trials = [count for result in analysis.repeats for count in trials_of_arms(result)]
    method = (
        f"Method: {plural(repeats, 'repeat')} {where}, which differ in their seed alone ({of_studies}). "
        f"In each, every arm was tuned with {format_seeds((min(trials), max(trials)), 'trial')} of "
        f"{most_epochs(first.spec)}, and its best configuration was retrained with "
        f"{format_seeds(confirmations_of_arms(analysis.result), 'fresh seed')}. Arms are compared paired by repeat, on "
        f"the same {first.test_images:,} test images.{early_ends_sentence(first.spec)}"
    )
    return [
        Answer(analysis.verdict),
        *figure_block("arms", pictures, first.spec.goal),
        Items(analysis.evidence),
        Paragraph(method),
    ]
