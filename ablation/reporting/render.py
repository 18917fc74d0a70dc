"""A report as HTML, as markdown, and as the summary run's note."""

import dataclasses
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ablation import __version__
from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.results import RunResult, StudyResult
from ablation.base.text import Table
from ablation.reporting.answer_sections import accuracy_cells, arm_accuracy_table, difference_table
from ablation.reporting.content import ACCURACY_COLUMNS, Answer, Block, Code, Figure, Folded, Items, Section
from ablation.reporting.figures import Picture

NOTE_LIMIT = 8000  # characters, of a tag in MLflow


def short_tables(analysis: StudyAnalysis) -> list[Table]:
    """Return the arms and the tested differences."""
    arms = dataclasses.replace(arm_accuracy_table(analysis), title="Arms")
    return [arms, *(difference_table(factor) for factor in analysis.factors if factor.family)]


def summary_note(analysis: StudyAnalysis) -> str:
    """Return the summary run's description: the answer, and the arms with links to their runs, as many as fit."""
    result = analysis.result

    def link(run: RunResult) -> str:
        return f"[#{run.number}](#/experiments/{result.experiment_id}/runs/{run.run_id})"

    columns = ["arm", *ACCURACY_COLUMNS]
    title = f"{escape_markdown(result.spec.question)}\n\n**{escape_markdown(analysis.answer)}**"
    arms = [[escape_markdown(arm.name), *accuracy_cells(arm)] for arm in analysis.arms]
    best = [link(arm.result.best) if arm.result.best else "-" for arm in analysis.arms]
    confirmations = [" ".join(link(run) for run in arm.result.confirmations) or "-" for arm in analysis.arms]
    whole = "The whole report is among the artifacts: report/report.html."
    names = "The runs' ids are in the report, too many for here."
    forms = [
        Table(
            title,
            [*columns, "best trial", "confirmation runs"],
            [[*row, *links] for row, *links in zip(arms, best, confirmations, strict=True)],
            [whole],
        ),
        Table(
            title, [*columns, "best trial"], [[*row, one] for row, one in zip(arms, best, strict=True)], [whole, names]
        ),
        Table(title, columns, arms, [whole, names]),
    ]
    texts = [form.markdown() for form in forms] + [f"{title}\n\n{whole}"]
    return next((text for text in texts if len(text) <= NOTE_LIMIT), whole)


def render_html(result: StudyResult, sections: list[Section], pictures: Mapping[str, Picture]) -> str:
    environment = Environment(
        loader=PackageLoader("ablation.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    svgs = {name: Markup(picture.svg) for name, picture in pictures.items()}  # drawn by us: texts in it are outlines
    kinds = [(section, [(type(block).__name__, block) for block in section.blocks]) for section in sections]
    return template.render(result=result, sections=kinds, svgs=svgs, version=__version__)


def render_markdown(result: StudyResult, sections: list[Section]) -> str:
    parts = [f"# {escape_markdown(result.spec.question)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_markdown(block) for block in section.blocks]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Folded):
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
    """Return a text as markdown that shows it as it is, in one line; `|` is left to `Table.markdown`."""
    text = " ".join(text.split())
    for character in "\\`*[]<>~":
        text = text.replace(character, f"\\{character}")
    # Inside a word an underscore means nothing: names such as fine_tune_all stay readable.
    return "".join(
        f"\\{c}" if c == "_" and not (text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()) else c
        for i, c in enumerate(text)
    )
