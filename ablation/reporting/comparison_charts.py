"""The plots of the answer: arms, levels, differences, interaction."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.comparison import Difference, FactorAnalysis
from ablation.analysis.statistics import Estimate
from ablation.analysis.wording import axis_title, format_seeds, p_cell, points, unit_words
from ablation.base.text import plural
from ablation.reporting.charts import (
    COLOURS,
    INK,
    MUTED,
    PAPER,
    ROW_HEIGHT,
    SHAPES,
    ArmStyles,
    Picture,
    Row,
    as_json,
    estimate_fields,
    of_arms,
    of_rows,
    render,
    rounded,
    values_text,
)
from ablation.spec.objective import ACCURACY


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
    names = [row["arm"] for row in rows]
    label = f"datum.label === {as_json(winner)} ? datum.label + ' \u2605 champion' : datum.label"
    weight = {"condition": {"test": f"datum.value === {as_json(winner)}", "value": "bold"}, "value": "normal"}
    y = _row_axis("arm", names, labelExpr=label, labelFontWeight=weight)
    tips = [_tip("arm"), *_estimate_tips("mean", ".4f"), alt.Tooltip("n:N")]
    colour, shape = styles.colour(with_legend=False), styles.shape(with_legend=False)
    base = of_arms(rows)
    seeds = base.transform_flatten(["seeds"]).mark_tick(yOffset=11, size=8, thickness=1.5)
    layers = alt.layer(
        _interval(base).encode(color=colour),
        seeds.encode(alt.X("seeds:Q"), y, color=colour, tooltip=[_tip("arm"), _number_tip("seeds", "one seed", ".4f")]),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            _x("value", axis_title("test", goal)), y, color=colour, shape=shape, tooltip=tips
        ),
    )
    text = f"Mean test {goal.label} of {plural(len(rows), 'arm')} with 95 % intervals: {values_text(texts)}."
    if winner:
        text += f" The champion's arm is {winner}."
    return render(layers.encode(y=y).properties(height=alt.Step(ROW_HEIGHT)), text)


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
    y = _row_axis("level", labels)
    levels = [level.label for level in factor.levels]
    numbers = [levels.index(label) for label in labels]
    scale = alt.Scale(domain=labels, range=[COLOURS[number % len(COLOURS)] for number in numbers])
    shapes = alt.Scale(domain=labels, range=[SHAPES[number % len(SHAPES)] for number in numbers])
    colour = alt.Color("level:N", scale=scale, legend=None)
    tips = [_tip("level"), *_estimate_tips("marginal mean", ".4f"), alt.Tooltip("n:N")]
    base = of_rows(rows)
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(
        _x("value", f"{factor.factor}: marginal mean test {goal.label}{better}"),
        color=colour,
        shape=alt.Shape("level:N", scale=shapes, legend=None),
        tooltip=tips,
    )
    chart = alt.layer(_interval(base).encode(color=colour), dots).encode(y=y)
    text = (
        f"Marginal mean test {goal.label} of each level of {factor.factor} with 95 % intervals: {values_text(texts)}."
    )
    return render(chart.properties(height=alt.Step(ROW_HEIGHT)), text)


def _differences(factor: FactorAnalysis) -> Picture:
    goal = factor.objective
    unit = "percentage points" if goal.unit == "points" else unit_words(goal)
    of_metric = "" if goal == ACCURACY else f" of {goal.label}"
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for difference in factor.family:
        estimate, label = difference.estimate, f"{difference.first} \u2212 {difference.second}"
        shown = "shown" if difference.is_shown else "not shown" if difference.is_tested else "not tested"
        p = p_cell(estimate.p, none="not tested")
        rows.append({"difference": label, **estimate_fields(estimate, goal.per_unit), "p": p, "shown": shown})
        texts[label] = f"{points(estimate.value, goal)} ({_interval_text(difference)}{shown})"
    base = of_rows(rows)
    zero = of_rows([{"zero": 0}]).mark_rule(color=MUTED).encode(alt.X("zero:Q"))
    tips = [
        _tip("difference"),
        *_estimate_tips(goal.unit, ".2f" if goal.unit == "points" else ".4f"),
        alt.Tooltip("p:N"),
        alt.Tooltip("shown:N"),
    ]
    filled = alt.condition("datum.shown === 'shown'", alt.value(INK), alt.value(PAPER))
    dots = base.mark_point(shape="circle", size=80, opacity=1, stroke=INK, strokeWidth=1.8).encode(
        _x("value", f"{factor.factor}: difference{of_metric} ({unit})", with_zero=True),
        fill=filled,
        tooltip=tips,
    )
    y = _row_axis("difference", [row["difference"] for row in rows])
    chart = alt.layer(zero, _interval(base).encode(color=alt.value(INK), y=y), dots.encode(y=y))
    text = (
        f"Differences{of_metric} between levels of {factor.factor} in {unit}, with simultaneous 95 % intervals: "
        f"{values_text(texts)}."
    )
    return render(chart.properties(height=alt.Step(ROW_HEIGHT)), text)


def _interval_text(difference: Difference) -> str:
    estimate, goal = difference.estimate, difference.objective
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{points(estimate.low, goal)} to {points(estimate.high, goal)}, "


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
    y = alt.Y("value:Q", title=axis_title("test", goal), scale=alt.Scale(zero=False))
    offset = alt.XOffset("first:N", sort=styles.firsts, scale=alt.Scale(paddingOuter=1))
    shapes = [SHAPES[number % len(SHAPES)] for number in range(len(styles.firsts))]
    shape = alt.Shape("first:N", scale=alt.Scale(domain=styles.firsts, range=shapes), legend=styles.legend(0))
    tips = [_tip("arm"), *_estimate_tips("mean", ".4f")]
    bars = (
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    )
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y, color=styles.colour(), detail="first:N"),
        bars.encode(color=styles.colour()),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y, color=styles.colour(), shape=shape, tooltip=tips),
    ).encode(x=x, xOffset=offset)
    text = f"Mean test {goal.label} of each combination of {' and '.join(styles.titles[:2])}: {values_text(texts)}."
    return render(chart.properties(height=260), text)


def _row_axis(field: str, labels: Sequence[str], **options: Any) -> alt.Y:
    """Return the axis of rows, whose labels stand above the marks: a telephone has no room beside them."""
    axis = alt.Axis(
        ticks=False, domain=False, grid=False, labelAlign="left", labelPadding=0, labelOffset=-14, labelLimit=310,
        **options,
    )  # fmt: skip
    return alt.Y(f"{field}:N", sort=[*labels], title=None, axis=axis)


def _x(field: str, title: str, *, with_zero: bool = False) -> alt.X:
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(zero=with_zero, nice=True), axis=alt.Axis(tickCount=5))


def _interval(base: alt.Chart) -> alt.Chart:
    ends = {"x": alt.X("low:Q"), "x2": alt.X2("high:Q")}
    chart: alt.Chart = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2.5).encode(**ends)
    return chart


def _tip(field: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:N")


def _number_tip(field: str, title: str, form: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def _estimate_tips(title: str, form: str) -> list[alt.Tooltip]:
    fields = {"value": title, "low": "95 % interval from", "high": "to"}
    return [_number_tip(field, name, form) for field, name in fields.items()]
