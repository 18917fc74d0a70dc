"""The plots of the answer: arms, levels, differences, interaction."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.comparison import Difference, FactorAnalysis
from ablation.analysis.statistics import Estimate
from ablation.analysis.verdict import reference
from ablation.analysis.wording import axis_title, format_seeds, interval_points, p_cell, points, unit_words
from ablation.base.text import plural
from ablation.reporting.charts import (
    INK,
    MUTED,
    PAPER,
    ROW_HEIGHT,
    SHAPES,
    ArmStyles,
    Picture,
    Row,
    as_json,
    cycle,
    estimate_fields,
    intervals,
    number_tip,
    of_arms,
    of_rows,
    render,
    rounded,
    value_axis,
    values_text,
)
from ablation.spec.colours import COLOURS
from ablation.spec.objective import ACCURACY

MOST_DIFFERENCES = 60  # of a factor in a plot; of more, only those from one level are drawn
LONGEST_LINE, LINE_HEIGHT = 38, 15  # characters and pixels, of a line of a row's label: it fits on a telephone


@dataclass(frozen=True)
class _Rows:
    """The axis of rows whose labels stand above the marks, and where the marks are: a telephone has no room beside.

    Attributes:
        y: the axis.
        step: pixels from row to row.
        below: pixels by which marks are below the middle of their row, because labels have several lines.
    """

    y: alt.Y
    step: int
    below: float


def estimate_text(estimate: Estimate) -> str:
    """Return a mean as '0.8891 (0.8447 to 0.9335)'."""
    interval = "" if estimate.low is None else f" ({estimate.low:.4f} to {estimate.high:.4f})"
    return f"{estimate.value:.4f}{interval}"


def arms_chart(analysis: StudyAnalysis, styles: ArmStyles) -> Picture | None:
    """Draw the objective (test images) of each arm: its seeds, their mean with its interval."""
    rows: list[Row] = []
    texts: dict[str, str] = {}
    goal = analysis.result.spec.goal
    for arm in analysis.arms:
        if arm.estimate is None or arm.test is None:
            continue
        seeds = [rounded(float(value)) for value in arm.result.test_values_S]
        n = format_seeds((arm.test.seeds, arm.test.seeds), arm.test.unit)
        rows.append({**styles.fields(arm.result), **estimate_fields(arm.estimate), "n": n, "seeds": seeds})
        texts[arm.name] = estimate_text(arm.estimate)
    if not rows:
        return None
    winner = analysis.winner.arm.name if analysis.winner is not None and len(rows) > 1 else ""
    weight = {"condition": {"test": f"datum.value === {as_json(winner)}", "value": "bold"}, "value": "normal"}
    names = [row["arm"] for row in rows]
    labels = {name: _lines(f"{name} \u2605 champion" if name == winner else name) for name in names}
    placed = _rows("arm", labels, sort=names, labelFontWeight=weight)  # no domain: hidden arms leave no gap
    y = placed.y
    tips = [_tip("arm"), *_estimate_tips("mean", ".4f"), alt.Tooltip("n:N")]
    colour, shape = styles.colour(with_legend=False), styles.shape(with_legend=False)
    base = of_arms(rows)
    seeds = base.transform_flatten(["seeds"]).mark_tick(yOffset=placed.below + 11, size=8, thickness=1.5)
    layers = alt.layer(
        _interval(base, placed.below).encode(color=colour),
        seeds.encode(alt.X("seeds:Q"), y, color=colour, tooltip=[_tip("arm"), number_tip("seeds", "one seed", ".4f")]),
        base.mark_point(filled=True, size=80, opacity=1, yOffset=placed.below).encode(
            _x("value", axis_title("test", goal)), y, color=colour, shape=shape, tooltip=tips
        ),
    )
    text = f"Mean test {goal.label} of {plural(len(rows), 'arm')} with 95 % intervals: {values_text(texts)}."
    if winner:
        text += f" The champion's arm is {winner}."
    return render(layers.encode(y=y).properties(height=alt.Step(placed.step)), text)


def effect_charts(analysis: StudyAnalysis) -> dict[str, Picture]:
    """Draw the marginal means of each factor's levels, and their differences, with their intervals.

    With one factor, or with [[arms]], the means are those of the plot of arms, and only differences are drawn.
    """
    pictures = {}
    compared = [factor for factor in analysis.factors if len(factor.levels) > 1]
    for factor in compared:
        if len(compared) > 1 and any(level.estimate for level in factor.levels):
            pictures[f"means_{factor.factor}"] = _means(analysis, factor)
        if factor.family:
            pictures[f"differences_{factor.factor}"] = _differences(factor)
    return pictures


def _means(analysis: StudyAnalysis, factor: FactorAnalysis) -> Picture:
    unit, goal = analysis.compared.estimator.unit, analysis.result.spec.goal
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for level in factor.levels:
        if level.estimate is not None:
            n = f"{plural(level.arms, 'arm')}, {format_seeds(level.seeds, unit)} each"
            rows.append({"level": level.label, **estimate_fields(level.estimate), "n": n})
            texts[level.label] = estimate_text(level.estimate)
    better = "" if goal.higher_is_better else f" ({goal.unit}, lower is better)"
    labels = [row["level"] for row in rows]
    placed = _rows("level", {label: _lines(label) for label in labels})
    levels = [level.label for level in factor.levels]
    colours, shapes = (dict(zip(levels, cycle(values, levels), strict=True)) for values in (COLOURS, SHAPES))
    scale = alt.Scale(domain=labels, range=[colours[label] for label in labels])
    colour = alt.Color("level:N", scale=scale, legend=None)
    tips = [_tip("level"), *_estimate_tips("marginal mean", ".4f"), alt.Tooltip("n:N")]
    base = of_rows(rows)
    dots = base.mark_point(filled=True, size=80, opacity=1, yOffset=placed.below).encode(
        _x("value", f"{factor.factor}: marginal mean test {goal.label}{better}"),
        color=colour,
        shape=alt.Shape(
            "level:N", scale=alt.Scale(domain=labels, range=[shapes[label] for label in labels]), legend=None
        ),
        tooltip=tips,
    )
    chart = alt.layer(_interval(base, placed.below).encode(color=colour), dots).encode(y=placed.y)
    text = (
        f"Marginal mean test {goal.label} of each level of {factor.factor} with 95 % intervals: {values_text(texts)}."
    )
    return render(chart.properties(height=alt.Step(placed.step)), text)


def _differences(factor: FactorAnalysis) -> Picture:
    goal = factor.objective
    unit = "percentage points" if goal.unit == "points" else unit_words(goal)
    of_metric = "" if goal == ACCURACY else f" of {goal.label}"
    rows: list[Row] = []
    texts: dict[str, str] = {}
    labels: dict[str, list[str]] = {}
    drawn, note = _drawn(factor)
    for difference in drawn:
        estimate, label = difference.estimate, f"{difference.first} \u2212 {difference.second}"
        shown = "shown" if difference.is_shown else "not shown" if difference.is_tested else "not tested"
        p = p_cell(estimate.p, none="not tested")
        rows.append({"difference": label, **estimate_fields(estimate, goal.per_unit), "p": p, "shown": shown})
        labels[label] = [label]
        if len(label) > LONGEST_LINE:
            *lines, last = _lines(difference.first)
            labels[label] = [*lines, f"{last} \u2212", *_lines(difference.second)]
        ends = f"{interval_points(estimate.low, estimate.high, goal)}, " if difference.is_tested else ""
        texts[label] = f"{points(estimate.value, goal)} ({ends}{shown})"
    base = of_rows(rows)
    zero = of_rows([{"zero": 0}]).mark_rule(color=MUTED).encode(alt.X("zero:Q"))
    tips = [
        _tip("difference"),
        *_estimate_tips(goal.unit, ".2f" if goal.unit == "points" else ".4f"),
        alt.Tooltip("p:N"),
        alt.Tooltip("shown:N"),
    ]
    filled = alt.condition("datum.shown === 'shown'", alt.value(INK), alt.value(PAPER))
    placed = _rows("difference", labels)
    point = base.mark_point(shape="circle", size=80, opacity=1, stroke=INK, strokeWidth=1.8, yOffset=placed.below)
    dots = point.encode(
        _x("value", f"{factor.factor}: difference{of_metric} ({unit})", with_zero=True),
        fill=filled,
        tooltip=tips,
    )
    intervals = _interval(base, placed.below).encode(color=alt.value(INK), y=placed.y)
    chart = alt.layer(zero, intervals, dots.encode(y=placed.y))
    text = (
        f"Differences{of_metric} between levels of {factor.factor} in {unit}, with simultaneous 95 % intervals: "
        f"{values_text(texts)}.{note and ' '}{note}"
    )
    return replace(render(chart.properties(height=alt.Step(placed.step)), text), note=note)


def _drawn(factor: FactorAnalysis) -> tuple[list[Difference], str]:
    """Return the differences that a plot has room for, and what it leaves out, as a sentence; '' where it has all."""
    if len(factor.family) <= MOST_DIFFERENCES:
        return factor.family, ""
    level = reference(factor)
    drawn = [difference for difference in factor.family if level in (difference.first, difference.second)]
    if len(drawn) in (0, len(factor.family)):
        return factor.family, ""
    return drawn, f"Of {factor.factor}, only the differences from {level} are drawn; the table has all."


def interaction_chart(analysis: StudyAnalysis, styles: ArmStyles) -> Picture | None:
    """Draw the objective (test images) at each level of the second factor, a line for each level of the first."""
    factors, goal = analysis.result.spec.factors.entries(), analysis.result.spec.goal
    if len(factors) != 2 or not (analysis.interactions or analysis.compared.interaction_missing):
        return None
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for arm in analysis.arms:
        if arm.estimate is not None:
            rows.append({**styles.fields(arm.result), **estimate_fields(arm.estimate)})
            texts[arm.name] = f"{arm.estimate.value:.4f}"
    if not rows:
        return None
    base = of_arms(rows)
    x = alt.X("other:N", sort=styles.others, title=styles.titles[1], axis=alt.Axis(labelAngle=0))
    y = value_axis(axis_title("test", goal))
    offset = alt.XOffset("first:N", sort=styles.firsts, scale=alt.Scale(paddingOuter=1))
    shapes = alt.Scale(domain=styles.firsts, range=cycle(SHAPES, styles.firsts))
    shape = alt.Shape("first:N", scale=shapes, legend=styles.legend(0))
    tips = [_tip("arm"), *_estimate_tips("mean", ".4f")]
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y, color=styles.colour(), detail="first:N"),
        intervals(base).encode(color=styles.colour()),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y, color=styles.colour(), shape=shape, tooltip=tips),
    ).encode(x=x, xOffset=offset)
    text = f"Mean test {goal.label} of each combination of {' and '.join(styles.titles[:2])}: {values_text(texts)}."
    return render(chart.properties(height=260), text)


def _rows(field: str, labels: Mapping[str, Sequence[str]], sort: Sequence[str] | None = None, **options: Any) -> _Rows:
    """Return the axis of rows in the order of their labels.

    Args:
        field: of the labels.
        labels: label -> its lines.
        sort: the order of labels of which some may be missing: an expression nested as deep as there are labels.
        options: of the axis.
    """
    if any([label] != lines for label, lines in labels.items()):
        options["labelExpr"] = f"{as_json(labels)}[datum.label]"
    below = LINE_HEIGHT / 2 * (max(map(len, labels.values())) - 1)
    axis = alt.Axis(
        ticks=False, domain=False, grid=False, labelAlign="left", labelPadding=0, labelOffset=-14 - below,
        labelLineHeight=LINE_HEIGHT, **options,
    )  # fmt: skip
    order = {"scale": alt.Scale(domain=[*labels])} if sort is None else {"sort": [*sort]}
    return _Rows(alt.Y(f"{field}:N", title=None, axis=axis, **order), ROW_HEIGHT + round(2 * below), below)


def _lines(text: str) -> list[str]:
    """Return a label in lines of `LONGEST_LINE` characters, broken after commas and spaces, else within words."""
    lines = [""]
    for part in re.findall(rf"[^, ]{{1,{LONGEST_LINE}}}[, ]?|[, ]", text):
        if lines[-1] and len((lines[-1] + part).rstrip()) > LONGEST_LINE:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _x(field: str, title: str, *, with_zero: bool = False) -> alt.X:
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(zero=with_zero, nice=True), axis=alt.Axis(tickCount=5))


def _interval(base: alt.Chart, below: float) -> alt.Chart:
    known, ends = base.transform_filter("isValid(datum.low)"), {"x": alt.X("low:Q"), "x2": alt.X2("high:Q")}
    chart: alt.Chart = known.mark_rule(strokeWidth=2.5, yOffset=below).encode(**ends)
    return chart


def _tip(field: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:N")


def _estimate_tips(title: str, form: str) -> list[alt.Tooltip]:
    fields = {"value": title, "low": "95 % interval from", "high": "to"}
    return [number_tip(field, name, form) for field, name in fields.items()]
