"""The sections of a report on studies that differ in their seed alone, pooled."""

from collections.abc import Mapping

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import confirmations_of_arms, trials_of_arms
from ablation.analysis.wording import format_seeds
from ablation.base.text import plural
from ablation.reporting.answer_sections import arm_table, comparison_sections
from ablation.reporting.charts import Picture
from ablation.reporting.content import Answer, Block, Items, Paragraph, Section, figure_block
from ablation.reporting.exports import paper_block
from ablation.reporting.method_sections import early_ends_sentence, meaning_over_repeats, most_epochs, power_blocks
from ablation.reporting.run_sections import repeat_table

POOLED_FIGURES = ("arms", "effects", "interaction")


def pooled_sections(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Section]:
    """Return the sections of a report on pooled studies; some may be empty."""
    return [
        Section("answer", "Answer", _answer_blocks(analysis, pictures)),
        Section("arms", "Arms", [arm_table(analysis)]),
        *comparison_sections(analysis, pictures),
        Section("power", "What more would find", power_blocks(analysis)),
        Section("repeats", "The repeats", [repeat_table(analysis)]),
        Section("meaning", "What the intervals mean", meaning_over_repeats(analysis)),
        Section("paper", "For a paper", [paper_block(analysis)]),
    ]


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
