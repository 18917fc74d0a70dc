"""The report of studies that differ in their seed alone, pooled."""

from collections.abc import Sequence
from pathlib import Path

from ablation.analysis.answer import StudyAnalysis, analyse
from ablation.analysis.pooling import PooledAnalysis, analyse_pooled
from ablation.analysis.results import read_results
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.tuning import searched_params
from ablation.base.errors import InputError
from ablation.base.files import write_atomically
from ablation.base.text import Table, format_params, plural
from ablation.reporting.answer_sections import (
    arm_accuracy_table,
    difference_blocks,
    interaction_blocks,
    level_tables,
)
from ablation.reporting.content import Answer, Block, Items, Paragraph, Section, figure_block, optional_number
from ablation.reporting.exports import paper_block
from ablation.reporting.figures import draw_figures
from ablation.reporting.render import render_html, render_markdown, short_tables
from ablation.reporting.report import Report
from ablation.storage.store import Store

FIGURES = ("arms", "effects", "differences", "interaction")
LONGEST_NAME = 200  # characters of a folder's name, which file systems allow


def read_pooled(store: Store, names: Sequence[str]) -> PooledAnalysis:
    """Read studies from a store, and pool them.

    Raises:
        InputError: a study cannot be read, is named twice, or they differ in anything but their seed.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice")
    return analyse_pooled([read_results(store, name) for name in names])


def read_analysis(store: Store, names: Sequence[str]) -> StudyAnalysis:
    """Read a study from a store, or pool several; see `read_pooled` for errors."""
    return analyse(read_results(store, names[0])) if len(names) == 1 else read_pooled(store, names).analysis


def write_pooled_report(store: Store, names: Sequence[str], output: Path | None = None) -> Report:
    """Write report.html, report.md and figures of pooled studies; nothing is logged to MLflow.

    Args:
        store: the store with the studies' results.
        names: of the studies.
        output: a folder, created if needed; `reports/NAME-1+NAME-2` in the store by default.

    Raises:
        InputError: as `read_pooled`; `output` is a file; or it is needed: the store cannot be written, or the names
            are too long for a folder.
        StoreAway: the tracking server does not answer.
        StoreError: the folder or MLflow's store cannot be written.
    """
    name = "+".join(names)
    folder = output or store.root / "reports" / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is not a folder")
    if output is None and (store.is_read_only or len(name) > LONGEST_NAME):
        reason = f"{store.root} cannot be written" if store.is_read_only else "the names make too long a name of one"
        raise InputError(f"--output: name a folder for the report, because {reason}")
    report = build_pooled_report(read_pooled(store, names), folder)
    files = {"report.html": report.html.encode(), "report.md": report.markdown.encode(), **report.figures}
    for file, content in files.items():
        write_atomically(folder / file, content)
    return report


def build_pooled_report(pooled: PooledAnalysis, folder: Path | None = None) -> Report:
    """Return the report of pooled studies, which stands in a folder or nowhere."""
    analysis = pooled.analysis
    pictures = draw_figures(analysis, {}, FIGURES)
    sections = [
        Section("answer", "Answer", _answer_blocks(pooled)),
        Section("arms", "Arms", [arm_accuracy_table(analysis), *figure_block("arms", pictures)]),
        Section("effects", "Effect of each factor", [*figure_block("effects", pictures), *level_tables(analysis)]),
        Section("differences", "Differences", [*figure_block("differences", pictures), *difference_blocks(analysis)]),
        Section("interaction", "Interactions", interaction_blocks(analysis, pictures)),
        Section("repeats", "The repeats", [_repeat_table(pooled)]),
        Section("meaning", "What the intervals mean", [_meaning(pooled)]),
        Section("paper", "For a paper", [paper_block(analysis)]),
    ]
    sections = [section for section in sections if section.blocks]
    figures = {f"{name}.png": picture.png for name, picture in pictures.items()}
    figures |= {f"{name}.svg": picture.svg for name, picture in pictures.items()}
    return Report(
        result=analysis.result,
        verdict=analysis.verdict,
        evidence=analysis.evidence,
        warnings=[],
        html=render_html(analysis.result, sections, pictures),
        markdown=render_markdown(analysis.result, sections),
        figures=figures,
        short=short_tables(analysis),
        note="",
        folder=folder,
    )


def _answer_blocks(pooled: PooledAnalysis) -> list[Block]:
    analysis, first = pooled.analysis, pooled.repeats[0]
    seeds = ", ".join(f"{result.spec.name}: seed {result.spec.seed}" for result in pooled.repeats)
    method = (
        f"Method: {plural(len(pooled.repeats), 'repeat')} of one study, which differ in their seed alone ({seeds}). "
        f"In each, every arm was tuned with {plural(first.spec.trials_per_arm, 'trial')} of "
        f"{plural(first.spec.epochs, 'epoch')}, and its best configuration was retrained with "
        f"{plural(first.spec.confirm.seeds, 'fresh seed')}. Arms are compared paired by repeat, on the same "
        f"{first.test_images:,} test images."
    )
    return [Answer(analysis.verdict), Items(analysis.evidence), Paragraph(method)]


def _repeat_table(pooled: PooledAnalysis) -> Table:
    """Return the configuration that each repeat chose for each arm, and its results."""
    rows = [
        [
            arm.arm.name,
            result.spec.name,
            "-" if arm.best is None else format_params(searched_params(result.spec, arm.best)) or "nothing searched",
            optional_number(arm.best.val_accuracy if arm.best else None),
            optional_number(float(arm.test_accuracies_S.mean()) if arm.confirmed else None),
            str(len(arm.confirmed)),
        ]
        for of_repeats in zip(*(result.arms for result in pooled.repeats), strict=True)
        for result, arm in zip(pooled.repeats, of_repeats, strict=True)
    ]
    columns = ["arm", "study", "chosen configuration", "tuned val. accuracy", "test accuracy", "n (seeds)"]
    return Table("", columns, rows, ["Test accuracy: mean over n confirmation runs."])


def _meaning(pooled: PooledAnalysis) -> Items:
    R = len(pooled.repeats)
    tests = plural(pooled.analysis.compared.tested_together, "test")
    few = [] if R >= FEWEST_SEEDS else [f"{plural(R, 'repeat')} are too few to test anything; three are needed."]
    return Items(
        [
            *few,
            "The intervals say where differences would lie if the whole study were done again very often: with other "
            "splits, tuning points, seeds and test images.",
            "The variance of a difference is that of its values in the repeats over their number, plus that of the "
            "test images, which all repeats share. The first part has Student's t distribution with one degree of "
            "freedom less than repeats, the second a normal one; the interval combines both.",
            f"Intervals and p-values of differences allow for {tests} together, as in the report of a single study. "
            "Where a study compares every level with the leader of its tuning, all pairs are compared here.",
            "The test images are taken as independent: several images of one patient or one camera would make the "
            "intervals too narrow.",
        ]
    )
