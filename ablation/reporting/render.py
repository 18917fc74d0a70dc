"""The forms of a report: HTML page, markdown, and the note of its summary run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ablation import __version__
from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import ArmSummary
from ablation.analysis.comparison import FactorAnalysis
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult
from ablation.analysis.statistics import Estimate
from ablation.analysis.wording import join, shown_question
from ablation.base.text import Table, escape_markdown, visible
from ablation.reporting.answer_sections import (
    arm_table,
    difference_table,
    published_tables,
)
from ablation.reporting.charts import LAYOUT, Picture, as_json, javascript, recoloured
from ablation.reporting.content import (
    Answer,
    Beside,
    Block,
    Code,
    Details,
    Figure,
    Folded,
    Gallery,
    Items,
    RichTable,
    Section,
    Sheet,
    behind_column,
    metric_columns,
)
from ablation.reporting.method_sections import early_ends
from ablation.spec.objective import Objective
from ablation.tracking.run_names import arm_title

PLOT_WIDTH = 21  # characters
INTERVAL_SIGNS = {"±": "±", "(": "brackets"}  # a sign of an interval in a cell -> what a note calls it
NOTE_LIMIT = 8000  # characters, MLflow's limit for a tag
Links = Literal["all", "best trials", "none"]
ALL_LINKS: tuple[Links, ...] = ("all", "best trials", "none")


def short_tables(analysis: StudyAnalysis) -> list[Table]:
    """Return the tables for the terminal: the arms, published results, the tested differences."""
    arms = short_arms_table(analysis)
    differences = [_tested_differences(analysis, factor) for factor in analysis.factors]
    published = [dataclasses.replace(table, title="Published results") for table in published_tables(analysis)]
    return [
        arms,
        *published,
        *(table for table in differences if table.rows),
    ]


def _tested_differences(analysis: StudyAnalysis, factor: FactorAnalysis) -> Table:
    """Return the table of differences without those that are not tested, of which [[arms]] may have very many."""
    table = difference_table(analysis, factor)
    rows = [row for row, difference in zip(table.rows, factor.family, strict=True) if difference.is_tested]
    return dataclasses.replace(table, rows=rows, optional=["n (seeds per arm)", "p", "equivalence"])


def short_arms_table(analysis: StudyAnalysis) -> Table:
    """Return the table of arms for the terminal, with the intervals also as a plot; the champion's arm is stressed.

    What only confirmation runs could fill is left out while no arm has any.
    """
    table, goal = arm_table(analysis), analysis.result.spec.goal
    winner = analysis.winner.arm.name if analysis.winner is not None else None
    bold_row = next((number for number, arm in enumerate(analysis.arms) if arm.name == winner), None)
    table = dataclasses.replace(table, title="Arms", bold_row=bold_row)
    estimates = [arm.estimate for arm in analysis.arms]
    test, _, _, val, _ = metric_columns(goal)
    merged = table.columns.index(test)  # and the two columns behind it
    if not any(estimates):
        cells = list(zip(*table.rows, strict=True))
        of_confirmations = range(merged, merged + len(metric_columns(goal)))
        shown = [n for n in range(len(cells)) if n not in of_confirmations or set(cells[n]) - {"-", "0"}]
        columns, rows = [table.columns[n] for n in shown], [[row[n] for n in shown] for row in table.rows]
        return dataclasses.replace(table, columns=columns, rows=rows, optional=["trials"])
    axis, plots = interval_plot(estimates)
    rows = [
        [*row[:merged], _with_margin(estimate), plot, *row[merged + 3 :]]
        for row, estimate, plot in zip(table.rows, estimates, plots, strict=True)
    ]
    signs = [name for sign, name in INTERVAL_SIGNS.items() if any(sign in row[merged] for row in rows)]
    return dataclasses.replace(
        table,
        columns=[*table.columns[:merged], test, axis, *table.columns[merged + 3 :]],
        rows=rows,
        notes=[
            *table.notes,
            *([f"{join([*signs, 'the plot']).capitalize()}: the 95 % interval."] if signs else []),
        ],
        optional=["trials", val, "chance to be best", behind_column(goal), axis],
    )


def _with_margin(estimate: Estimate | None) -> str:
    """Return a mean with half of its interval, such as '0.926 ±0.016', or with its ends where its halves differ."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    above, below = estimate.high - estimate.value, estimate.value - estimate.low
    decimals = 3 if max(above, below) >= 0.002 else 4
    if not math.isclose(above, below, abs_tol=1e-9):  # cut off at the end of the metric's range
        return f"{estimate.value:.{decimals}f} ({estimate.low:.{decimals}f} to {estimate.high:.{decimals}f})"
    return f"{estimate.value:.{decimals}f} ±{above:.{decimals}f}"


def interval_plot(estimates: Sequence[Estimate | None]) -> tuple[str, list[str]]:
    """Return the ends of the axis that all intervals share, and a row of `PLOT_WIDTH` characters for each."""
    known = [estimate for estimate in estimates if estimate is not None]
    low = min(estimate.value if estimate.low is None else estimate.low for estimate in known)
    high = max(estimate.value if estimate.high is None else estimate.high for estimate in known)

    def column(value: float) -> int:
        return round((value - low) / (high - low) * (PLOT_WIDTH - 1)) if high > low else PLOT_WIDTH // 2

    plots = []
    for estimate in estimates:
        cells = ["·"] * PLOT_WIDTH
        if estimate is not None:
            if estimate.low is not None and estimate.high is not None:
                first, last = column(estimate.low), column(estimate.high)
                cells[first : last + 1] = "─" * (last + 1 - first)
            cells[column(estimate.value)] = "●"
        plots.append("".join(cells))
    return f"plot, {low:.3f} to {high:.3f}", plots


def summary_note(analysis: StudyAnalysis) -> str:
    """Return the summary run's description: question, answer, and a line per arm with as many links as fit."""
    result = analysis.result
    title = f"**{escape_markdown(shown_question(result.spec.question))}** {escape_markdown(analysis.answer)}"
    place = "The whole report is in the artifacts: report/report.html."

    def link(text: str, run: RunResult) -> str:
        # The UI opens in its GenAI mode without the workflow.
        return f"[{text}](#/experiments/{result.experiment_id}/runs/{run.run_id}?workflowType=machine_learning)"

    def lines(links: Links) -> str:
        texts = []
        for arm in analysis.arms:
            text = f"- {escape_markdown(arm_title(arm.result.arm))}: {_arm_result(arm, result.spec.goal)}"
            if arm.result.best is not None and links != "none":
                text += f"; {link('best trial', arm.result.best)}"
            if links == "all":
                text += "".join(f", {link(f'seed {run.number + 1}', run)}" for run in arm.result.confirmations)
            texts.append(text)
        return "\n".join(texts)

    notes = (f"{title}\n\n{lines(links)}\n\n{place}" for links in ALL_LINKS)
    return next((note for note in notes if len(note) <= NOTE_LIMIT), f"{title[: NOTE_LIMIT // 2]}\n\n{place}")


def _arm_result(arm: ArmSummary, goal: Objective) -> str:
    if arm.test is None:
        best = arm.result.best
        return f"validation {goal.label} {best.val_value:.4f} (the best trial)" if best is not None else "no result"
    spread = "" if arm.test.standard_deviation is None else f" ± {arm.test.standard_deviation:.4f}"
    return f"test {goal.label} {arm.test.mean:.4f}{spread} (n = {arm.test.seeds})"


def render_html(result: StudyResult, sections: list[Section], pictures: Mapping[str, Picture]) -> str:
    """Return the report as one self-contained page.

    Without scripts it shows the plots as SVG; its scripts draw them from their definitions.
    """
    specs = {name: picture.spec for name, picture in pictures.items() if picture.spec is not None}
    data = {
        "specs": specs,
        "arms": [{"name": arm.arm.name, "levels": _levels(arm)} for arm in result.arms],
        "layout": LAYOUT,
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            result=result,
            question=shown_question(result.spec.question),
            tuning="equally many trials, which may end early," if early_ends(result.spec) else "equal tuning",
            sections=sections,
            pictures=pictures,
            recoloured=lambda text: Markup(recoloured(text)),
            data=Markup(recoloured(as_json(data))),
            library=Markup(javascript().replace("</script", "<\\/script") if specs else ""),
            version=__version__,
        )
    )


@cache
def _environment() -> Environment:
    """Return what compiles the page's templates, once per process."""
    environment = Environment(
        loader=PackageLoader("ablation.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment


def _levels(arm: ArmResult) -> dict[str, str]:
    return {factor: str(level) for factor, level in arm.arm.compared_levels.items()}


def render_markdown(result: StudyResult, sections: list[Section]) -> str:
    """Return the report as markdown, which shows the files of plots and images beside it."""
    parts = [f"# {escape_markdown(shown_question(result.spec.question))}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_markdown(block) for block in section.blocks]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Folded | RichTable):
        return _block_markdown(block.table)
    if isinstance(block, Table):
        title = f"**{escape_markdown(block.title)}**" if block.title else ""
        columns = [escape_markdown(column) for column in block.columns]
        rows = [[escape_markdown(cell) for cell in row] for row in block.rows]
        return Table(title, columns, rows, [escape_markdown(note) for note in block.notes]).markdown()
    if isinstance(block, Beside):
        return "\n\n".join(map(_block_markdown, [*block.wide, *block.narrow]))
    if isinstance(block, Details):
        return "\n\n".join([f"**{escape_markdown(block.title)}**", *map(_block_markdown, block.blocks)])
    if isinstance(block, Items):
        return "\n".join(f"- {escape_markdown(text)}" for text in block.texts)
    if isinstance(block, Code):
        return "\n".join(f"    {visible(line)}" for line in block.text.split("\n"))
    if isinstance(block, Figure):
        images = [f"![{escape_markdown(text)}]({name}.svg)" for name, text in block.alts.items()]
        return "\n\n".join([*images, escape_markdown(block.caption)])
    if isinstance(block, Gallery | Sheet):
        return f"![{escape_markdown(block.alt)}]({block.picture}.png)\n\n{escape_markdown(block.caption)}"
    if isinstance(block, Answer):
        return "  \n".join(f"**{escape_markdown(line)}**" for line in block.lines)
    return escape_markdown(block.text)
