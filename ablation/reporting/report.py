"""The report of a study: built from results, written, shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.pooling import analyse_pooled, analyse_study, check_repeats
from ablation.analysis.results import StudyResult, read_results
from ablation.analysis.tuning import searched_params
from ablation.analysis.wording import shown_question
from ablation.base.errors import InputError
from ablation.base.files import ensure_writable, write_atomically
from ablation.base.terminal import say, say_prose, show_table
from ablation.base.text import Table
from ablation.reporting.answer_sections import (
    answer_blocks,
    arm_links,
    arm_table,
    comparison_sections,
    missing_runs_text,
    published_tables,
)
from ablation.reporting.change_section import change_blocks
from ablation.reporting.charts import Picture
from ablation.reporting.content import RichTable, Section, figure_block
from ablation.reporting.data_section import data_blocks, duplicate_blocks, has_near_duplicates, suspect_blocks
from ablation.reporting.environment_section import environment_blocks
from ablation.reporting.exports import paper_block
from ablation.reporting.figures import draw_figures, figure_files
from ablation.reporting.forecast_section import forecast_blocks
from ablation.reporting.looks_section import look_blocks, record_look
from ablation.reporting.method_sections import meaning_blocks, power_blocks
from ablation.reporting.pooled_sections import POOLED_FIGURES, pooled_sections
from ablation.reporting.registration_section import registration_blocks
from ablation.reporting.render import render_html, render_markdown, short_tables, summary_note
from ablation.reporting.run_sections import (
    class_blocks,
    cost_table,
    edge_texts,
    learning_blocks,
    mistake_blocks,
    run_blocks,
    sample_blocks,
    tuning_blocks,
)
from ablation.search.space import parameter_importances
from ablation.storage.store import Store
from ablation.tracking.client import is_server, ui_command, ui_server
from ablation.tracking.reading import log_report
from ablation.tracking.saved_views import BEST_ARM_VIEW, view_address

FEWEST_FOR_IMPORTANCES = 10  # trials of an arm
LONGEST_NAME = 200  # characters of a folder's name, which file systems allow


@dataclass(frozen=True)
class Report:
    """A study's report.

    Attributes:
        analysis: all of its numbers.
        warnings: what tuning may have missed: chosen values at an end of their range.
        html: the self-contained page.
        markdown: the same content as text, which shows the PNG files in `figures`.
        figures: file name -> content, plots as .svg, images as .png.
        short: the tables for the terminal.
        note: markdown for the summary run's description, with links to the runs; empty without such a run.
        folder: the folder with the report's files; None if they were not written.
        is_logged: whether the summary run in MLflow has it, too.
        ui: the command that shows the study in the MLflow UI, or its address on a server.
    """

    analysis: StudyAnalysis
    warnings: list[str]
    html: str
    markdown: str
    figures: dict[str, bytes]
    short: list[Table]
    note: str
    folder: Path | None = None
    is_logged: bool = False
    ui: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> content of its files."""
        return {"report.html": self.html.encode(), "report.md": self.markdown.encode(), **self.figures}

    def saved(self, folder: Path) -> "Report":
        """Return the report after its files were written into a folder.

        Raises:
            StoreError: they cannot be written.
        """
        for file, content in self.files.items():
            write_atomically(folder / file, content)
        return replace(self, folder=folder)


def report_folder(store: Store, name: str, output: Path | None) -> Path:
    """Return the folder of a report: `output`, else the one of this name in the store.

    Raises:
        InputError: `output` is a file; or it is needed: the store cannot be written, or the name is too long.
    """
    folder = output or store.root / "reports" / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is not a folder")
    if output is None and (store.is_read_only or len(name) > LONGEST_NAME):
        reason = f"{store.root} cannot be written" if store.is_read_only else "the names make too long a name of one"
        raise InputError(f"--output: name a folder for the report, because {reason}")
    return folder


def read_studies(store: Store, names: Sequence[str]) -> list[StudyResult]:
    """Read a study, or several that differ in their seed alone.

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


def analyse_looked_at(store: Store, results: Sequence[StudyResult]) -> StudyAnalysis:
    """Return the analysis of a study, or of several pooled, and record that each was looked at; see `record_look`."""
    looked_at = [record_look(store, result) for result in results]
    return analyse_study(looked_at[0]) if len(looked_at) == 1 else analyse_pooled(looked_at)


def write_report(store: Store, names: Sequence[str], output: Path | None = None) -> Report:
    """Write report.html, report.md and figures of a study, or of several pooled.

    Those of a single study are logged to its summary run in MLflow, too.

    Args:
        store: the store with the studies' results.
        names: of the studies.
        output: a folder, created if needed; `reports/NAME`, or `reports/NAME-1+NAME-2`, in the store by default.

    Raises:
        InputError: as `read_studies`; `output` is a file; or it is needed: the store cannot be written, or the names
            are too long for a folder.
        StoreAway: the tracking server does not answer.
        StoreError: the folder or MLflow's store cannot be written.
    """
    folder = report_folder(store, "+".join(names), output)
    results = read_studies(store, names)
    ensure_writable(folder)
    server = ui_server(store) if is_server(store) else ""
    report = build_report(analyse_looked_at(store, results), server).saved(folder)
    if len(results) > 1:
        return report
    (result,) = results
    if not store.is_read_only:
        log_report(store, result.summary_run_id, report.files, report.note)
    ui = view_address(server, result.experiment_id, BEST_ARM_VIEW) if server else ui_command(store, result.spec.name)
    return replace(report, is_logged=not store.is_read_only, ui=ui)


def show_report(report: Report) -> None:
    """Print the question, the short tables, evidence and warnings; then the answer, the report's path, the UI."""
    say("")
    say_prose(shown_question(report.analysis.result.spec.question))
    for table in report.short:
        say("")
        show_table(table)
    if report.analysis.evidence or report.warnings:
        say("")
    for sentence in report.analysis.evidence:
        say_prose(sentence, "- ")
    for warning in report.warnings:
        say_prose(warning)
    say("")
    say_prose(report.analysis.answer, "Answer  ")
    if report.folder is not None:
        is_kept = report.is_logged or not report.note
        only_here = "" if is_kept else "  (not logged to MLflow, because the store cannot be written)"
        say(f"Report  {report.folder / 'report.html'}{only_here}")
    if report.ui:
        say(f"UI      {report.ui}")


def build_report(analysis: StudyAnalysis, server: str = "") -> Report:
    """Return the report of a study, or of pooled ones; the same results give the same report, byte for byte.

    Args:
        analysis: of the study.
        server: the address of the MLflow UI, to which arms are linked; empty where there is none.
    """
    is_pooled = bool(analysis.result.studies)
    pictures = draw_figures(analysis, POOLED_FIGURES if is_pooled else None)
    sections = pooled_sections(analysis, pictures) if is_pooled else _sections(analysis, pictures, server)
    sections = [section for section in sections if section.blocks]
    return Report(
        analysis=analysis,
        warnings=[] if is_pooled else edge_texts(analysis),
        html=render_html(analysis.result, sections, pictures),
        markdown=render_markdown(analysis.result, sections),
        figures=figure_files(pictures),
        short=short_tables(analysis),
        note="" if is_pooled else summary_note(analysis),
    )


def _importances(result: StudyResult) -> dict[str, dict[str, float]]:
    """Return arm -> parameter -> share of the variation of its trials' values, where they are enough."""
    importances = {}
    for arm in result.arms:
        trials = [(searched_params(result.spec, t), t.val_value) for t in arm.trials if t.val_value is not None]
        if len(trials) >= FEWEST_FOR_IMPORTANCES:
            importances[arm.arm.name] = parameter_importances(result.spec, trials)
    return importances


def _sections(analysis: StudyAnalysis, pictures: Mapping[str, Picture], server: str) -> list[Section]:
    """Return the report's sections; some may be empty."""
    arms, goal = arm_table(analysis), analysis.result.spec.goal
    return [
        Section("missing", "What is missing", missing_runs_text(analysis)),
        Section("answer", "Answer", answer_blocks(analysis, pictures)),
        Section("arms", "Arms", [RichTable(arms, links=arm_links(analysis, server))]),
        Section("published", "Published results", [*published_tables(analysis)]),
        *comparison_sections(analysis, pictures),
        Section("power", "What more would find", power_blocks(analysis), is_folded=True),
        Section("learning", "How each arm learned", learning_blocks(pictures, goal)),
        Section("changes", "Where the networks changed", change_blocks(analysis.result), is_folded=True),
        Section("costs", "What each arm costs", [*figure_block("costs", pictures, goal), cost_table(analysis)]),
        Section("tuning", "Tuning", tuning_blocks(analysis, pictures, _importances(analysis.result)), is_folded=True),
        Section("forecast", "Forecast before training", forecast_blocks(analysis.result), is_folded=True),
        Section("set", "Images", data_blocks(analysis, pictures), is_folded=True),
        Section(
            "duplicates",
            "Near-duplicates across training and test",
            duplicate_blocks(analysis, pictures),
            is_folded=not has_near_duplicates(analysis),
        ),
        Section("data", "Data as the network sees it", sample_blocks(analysis, pictures), is_folded=True),
        Section("classes", "Classes", class_blocks(analysis, pictures)),
        Section("mistakes", "Most confident mistakes", mistake_blocks(analysis, pictures)),
        Section("suspects", "Suspected label errors", suspect_blocks(analysis, pictures), is_folded=True),
        Section("runs", "Runs", run_blocks(analysis), is_folded=True),
        Section("registration", "Registration", registration_blocks(analysis.result), is_folded=True),
        Section("looks", "Looks at this study", look_blocks(analysis.result), is_folded=True),
        Section("meaning", "What the intervals mean", meaning_blocks(analysis), is_folded=True),
        Section("paper", "For a paper", [paper_block(analysis)], is_folded=True),
        Section("environment", "Environment", environment_blocks(analysis), is_folded=True),
    ]
