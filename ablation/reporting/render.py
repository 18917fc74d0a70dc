"""The forms of a report: HTML page, markdown, and the note of its summary run."""

import base64
import dataclasses
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from ablation import __version__
from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.results import RunResult, StudyResult
from ablation.base.text import Table
from ablation.reporting.answer_sections import (
    accuracy_cells,
    arm_accuracy_table,
    difference_table,
    published_tables,
)
from ablation.reporting.content import ACCURACY_COLUMNS, Answer, Block, Code, Figure, Folded, HeatMap, Items, Section
from ablation.reporting.figures import Picture

NOTE_LIMIT = 8000  # characters, MLflow's limit for a tag


def short_tables(analysis: StudyAnalysis) -> list[Table]:
    """Return the tables for the terminal: the arms, published results, the tested differences."""
    arms = dataclasses.replace(arm_accuracy_table(analysis), title="Arms")
    published = [dataclasses.replace(table, title="Published results") for table in published_tables(analysis)]
    return [
        arms,
        *published,
        *(difference_table(factor) for factor in analysis.factors if factor.family),
    ]


def summary_note(analysis: StudyAnalysis) -> str:
    """Return the summary run's description: the answer, and the arms with as many links to their runs as fit."""
    result = analysis.result

    def link(run: RunResult) -> str:
        return f"[#{run.number}](#/experiments/{result.experiment_id}/runs/{run.run_id})"

    columns = ["arm", *ACCURACY_COLUMNS]
    title = f"{escape_markdown(result.spec.question)}\n\n**{escape_markdown(analysis.answer)}**"
    arms = [[escape_markdown(arm.name), *accuracy_cells(arm)] for arm in analysis.arms]
    best = [link(arm.result.best) if arm.result.best else "-" for arm in analysis.arms]
    confirmations = [" ".join(link(run) for run in arm.result.confirmations) or "-" for arm in analysis.arms]
    place = "The whole report is in the artifacts: report/report.html."
    ids = "The report lists the ids of all runs, which are too many for this note."
    forms = [
        Table(
            title,
            [*columns, "best trial", "confirmation runs"],
            [[*row, *links] for row, *links in zip(arms, best, confirmations, strict=True)],
            [place],
        ),
        Table(
            title, [*columns, "best trial"], [[*row, one] for row, one in zip(arms, best, strict=True)], [place, ids]
        ),
        Table(title, columns, arms, [place, ids]),
    ]
    texts = [form.markdown() for form in forms] + [f"{title}\n\n{place}"]
    return next((text for text in texts if len(text) <= NOTE_LIMIT), place)


def render_html(result: StudyResult, sections: list[Section], pictures: Mapping[str, Picture]) -> str:
    """Return the report as one self-contained page, which includes the pictures as data addresses."""
    environment = Environment(
        loader=PackageLoader("ablation.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    addresses = {
        name: f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
        for name, picture in pictures.items()
    }
    kinds = [(section, [(type(block).__name__, block) for block in section.blocks]) for section in sections]
    return template.render(result=result, sections=kinds, addresses=addresses, version=__version__)


def render_markdown(result: StudyResult, sections: list[Section]) -> str:
    """Return the report as markdown, which shows the PNG files beside it."""
    parts = [f"# {escape_markdown(result.spec.question)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_markdown(block) for block in section.blocks]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Folded | HeatMap):
        return _block_markdown(block.table)
    if isinstance(block, Table):
        title = f"**{escape_markdown(block.title)}**" if block.title else ""
        columns = [escape_markdown(column) for column in block.columns]
        rows = [[escape_markdown(cell) for cell in row] for row in block.rows]
        return Table(title, columns, rows, [escape_markdown(note) for note in block.notes]).markdown()
    if isinstance(block, Items):
        return "\n".join(f"- {escape_markdown(text)}" for text in block.texts)
    if isinstance(block, Code):
        return "\n".join(f"    {line}" for line in block.text.splitlines())
    if isinstance(block, Figure):
        return f"![{escape_markdown(block.alt)}]({block.name}.png)\n\n{escape_markdown(block.caption)}"
    text = escape_markdown(block.text)
    return f"**{text}**" if isinstance(block, Answer) else text


def escape_markdown(text: str) -> str:
    """Return markdown that shows a text unchanged, in one line; `Table.markdown` escapes `|`."""
    text = " ".join(text.split())
    for character in "\\`*[]<>~":
        text = text.replace(character, f"\\{character}")
    # An underscore inside a word has no meaning in markdown: names such as fine_tune_all stay readable.
    return "".join(
        f"\\{c}" if c == "_" and not (text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()) else c
        for i, c in enumerate(text)
    )
