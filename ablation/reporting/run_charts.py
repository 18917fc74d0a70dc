"""The plots of the runs: learning curves, costs, tuning.

Legend: E epochs, T trials.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import ArmSummary
from ablation.analysis.results import ArmResult
from ablation.analysis.tuning import searched_params
from ablation.analysis.wording import axis_title
from ablation.base.text import plural
from ablation.reporting.charts import (
    INK,
    MOST_DOTS,
    ArmStyles,
    Picture,
    Row,
    estimate_fields,
    intervals,
    number_tip,
    of_arms,
    render,
    rounded,
    value_axis,
    values_text,
)
from ablation.spec.colours import COLOURS
from ablation.spec.objective import OBJECTIVES, Objective, ObjectiveName
from ablation.spec.parameters import Choices

MOST_EPOCHS, FEWEST_EPOCHS = 100, 20  # of a curve; a longer one is thinned
MOST_POINTS = 10_000  # of all curves together
MOST_PANELS = 40
FEWEST_TRIALS = 3  # of an arm whose search is drawn
PANEL_HEIGHT = 110  # pixels
COSTS = {  # plot -> a cost of an arm, what it is multiplied by, its title, its format in texts and on the axis
    "costs_parameters": ("trained_parameters", 1, "trained parameters (count, logarithmic)", ",.0f", "~s"),
    "costs_seconds": ("training_seconds", 1, "training time of a run (s, logarithmic)", ",.3g", "~g"),
    "costs_inference": ("inference_seconds", 1e3, "time to classify an image (ms, logarithmic)", ",.3g", "~g"),
}


def overlay_chart(analysis: StudyAnalysis, styles: ArmStyles) -> Picture | None:
    """Draw the validation metric of the objective of each arm against epochs: the mean over its runs."""
    rows: list[Row] = []
    texts: dict[str, str] = {}
    goal = analysis.result.spec.goal
    for arm in analysis.arms:
        curves_SE = curves(arm.result, goal.val_metric)
        if curves_SE.size:
            mean_E = curves_SE.mean(axis=0)
            rows.append({**styles.fields(arm.result), **_points(mean_E, MOST_EPOCHS), "runs": len(curves_SE)})
            texts[arm.name] = f"{mean_E[0]:.3f} to {mean_E[-1]:.3f}"
    if not rows:
        return None
    base = of_arms(rows).transform_flatten(["epoch", "value"])
    dots = base.mark_point(filled=True, size=28, opacity=1).properties(name="dots")
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("epoch:Q"), number_tip("value", "mean", ".4f"), alt.Tooltip("runs:Q")]
    chart = alt.layer(
        base.mark_line(strokeWidth=1.6).encode(strokeDash=styles.dash(), detail="arm:N"),
        dots.encode(shape=styles.shape(), tooltip=tips),
    ).encode(x=_epochs(), y=value_axis(f"{axis_title('validation', goal)}, mean over runs"), color=styles.colour())
    text = f"Mean validation {goal.label} by epoch, from the first to the last, of each arm: {values_text(texts)}."
    return render(chart.properties(height=280), text)


def curve_panels(analysis: StudyAnalysis, quantity: ObjectiveName, label: str) -> Picture | None:
    """Draw training and validation against epochs, for every run: a panel for each of the first arms."""
    arms, note = _first([arm for arm in analysis.arms if curves(arm.result, f"val_{quantity}").size])
    rows: list[Row] = []
    texts: dict[str, str] = {}
    runs = sum(len(arm.result.drawn_runs) for arm in arms)
    most_epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, MOST_POINTS // (2 * max(1, runs))))
    for arm in arms:
        for run in arm.result.drawn_runs:
            for kind, name in (("training", f"train_{quantity}"), ("validation", f"val_{quantity}")):
                if len(run.curves.get(name, ())):
                    rows.append(
                        {
                            "arm": arm.name,
                            "run": run.label,
                            "kind": kind,
                            **_points(run.curves[name], most_epochs),
                        }
                    )
        last_E = curves(arm.result, f"val_{quantity}").mean(axis=0)
        texts[arm.name] = f"{last_E[-1]:.3f}"
    if not rows:
        return None
    kinds = ["training", "validation"]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[COLOURS[1], COLOURS[0]]), title=None)
    dash = alt.StrokeDash("kind:N", scale=alt.Scale(domain=kinds, range=[[4, 2], [1, 0]]), title=None)
    tips = [alt.Tooltip("run:N"), alt.Tooltip("kind:N"), alt.Tooltip("epoch:Q"), number_tip("value", label, ".4f")]
    base = alt.Chart()
    lines = base.mark_line(strokeWidth=1.1, opacity=0.8).encode(strokeDash=dash, detail="run:N")
    dots = base.mark_point(filled=True, size=12, opacity=0.8).encode(tooltip=tips).properties(name="dots")
    unit = alt.layer(lines, dots).encode(x=_epochs(), y=value_axis(label), color=colour)
    unit = unit.transform_flatten(["epoch", "value"])
    kinds_text = "Training and validation" if any(row["kind"] == "training" for row in rows) else "Validation"
    words = OBJECTIVES[quantity].label
    text = f"{kinds_text} {words} by epoch of every run; validation at the end, mean of each arm: "
    return replace(render(_panels(unit, rows, arms), f"{text}{values_text(texts)}."), note=note)


def curves(arm: ArmResult, name: str) -> np.ndarray:
    """Return a curve of every confirmation run, else of the best trial, as far as all of them go (S x E)."""
    found = [run.curves[name] for run in arm.drawn_runs if len(run.curves.get(name, ()))]
    epochs = min((len(curve) for curve in found), default=0)
    return np.array([curve[:epochs] for curve in found], np.float64).reshape(len(found), epochs)


def _points(curve_E: np.ndarray, most_epochs: int) -> dict[str, list[float | None]]:
    """Return epochs and values of a curve with four digits, of which NaN is None."""
    count = len(curve_E)
    epochs = np.unique(np.linspace(0, count - 1, min(count, most_epochs)).round().astype(int))
    values = [float(f"{curve_E[e]:.4g}") if np.isfinite(curve_E[e]) else None for e in epochs]
    return {"epoch": [int(e) + 1 for e in epochs], "value": values}


def cost_charts(analysis: StudyAnalysis, styles: ArmStyles) -> dict[str, Picture]:
    """Draw the objective (test images) against costs: trained parameters, seconds of training and of inference."""
    measured = [name for name, *_ in COSTS.values()]
    arms = [arm for arm in analysis.arms if arm.estimate and all(getattr(arm, name) for name in measured)]
    if len(arms) < 2:  # nothing to compare
        return {}
    pictures = {}
    for plot, (name, factor, title, form, axis_form) in COSTS.items():
        costs = [(arm, factor * getattr(arm, name)) for arm in arms]
        pictures[plot] = _cost(costs, title, form, axis_form, styles, analysis.result.spec.goal)
    return pictures


def _cost(
    costs: Sequence[tuple[ArmSummary, float]],
    title: str,
    form: str,
    axis_form: str,  # "~s" would have milliseconds of seconds as '100m'
    styles: ArmStyles,
    goal: Objective,
) -> Picture:
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for arm, cost in costs:
        assert arm.estimate is not None
        rows.append({**styles.fields(arm.result), **estimate_fields(arm.estimate), "cost": rounded(cost)})
        texts[arm.name] = f"{arm.estimate.value:.4f} at {cost:{form}}"
    base = of_arms(rows)
    x = alt.X("cost:Q", title=title, scale=alt.Scale(type="log"), axis=alt.Axis(format=axis_form, tickCount=5))
    tips = [
        alt.Tooltip("arm:N"),
        number_tip("cost", title, form),
        number_tip("value", f"mean test {goal.label}", ".4f"),
    ]
    dots = base.mark_point(filled=True, size=80, opacity=1)
    chart = alt.layer(
        intervals(base),
        dots.encode(y=value_axis(axis_title("test", goal)), shape=styles.shape(), tooltip=tips),
    ).encode(x=x, color=styles.colour())
    return render(chart.properties(height=240), f"Test {goal.label} against {title} of each arm: {values_text(texts)}.")


def slice_charts(analysis: StudyAnalysis, styles: ArmStyles) -> dict[str, Picture]:
    """Draw the validation value of every trial against each searched parameter."""
    spec = analysis.result.spec
    trials = [
        (arm.result, run, searched_params(spec, run))
        for arm in analysis.arms
        for run in arm.result.trials
        if run.val_value is not None
    ]
    pictures = {}
    for name, searched in spec.search.entries().items():
        drawn = [(arm, run, params[name]) for arm, run, params in trials if name in params]
        if len({str(value) for _, _, value in drawn}) < 2:
            continue
        drawn = sorted(drawn, key=lambda trial: trial[1].goodness, reverse=True)[:MOST_DOTS]
        is_choice = isinstance(searched, Choices)
        rows = [
            {
                **styles.fields(arm),
                "parameter": str(value) if is_choice else rounded(float(value)),
                "value": rounded(run.val_value),
                "trial": run.number,
            }
            for arm, run, value in drawn
        ]
        pictures[f"search_{name}"] = _slice(rows, styles, (name, searched), spec.goal)
    return pictures


def _slice(rows: Sequence[Row], styles: ArmStyles, search: tuple[str, Any], goal: Objective) -> Picture:
    name, searched = search
    if isinstance(searched, Choices):
        x = alt.X(
            "parameter:N", title=name, sort=[str(choice) for choice in searched.choices], axis=alt.Axis(labelAngle=0)
        )
        tip = alt.Tooltip("parameter:N", title=name)
    else:
        scale = alt.Scale(type="log") if searched.log else alt.Scale(zero=False)
        x = alt.X("parameter:Q", title=name, scale=scale, axis=alt.Axis(format="~g", tickCount=5))
        tip = number_tip("parameter", name, ".4~g")
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("trial:Q"), tip, number_tip("value", f"validation {goal.label}", ".4f")]
    points = of_arms(rows).mark_point(filled=True, size=50, opacity=0.9)
    chart = points.encode(
        x=x, y=value_axis(axis_title("validation", goal)), color=styles.colour(), shape=styles.shape(), tooltip=tips
    )
    best = max(rows, key=lambda row: goal.goodness(row["value"]))
    text = (
        f"Validation {goal.label} of {plural(len(rows), 'trial')} against {name}. The best is {best['value']:.4f} at "
        f"{name} {best['parameter']}, in {best['arm']}."
    )
    return render(chart.properties(height=220), text)


def tuning_panels(analysis: StudyAnalysis) -> Picture | None:
    """Draw the first arms' trials in their order, the best so far, and what fewer of them would have found."""
    rows: list[Row] = []
    texts: dict[str, str] = {}
    searched = [arm for arm in analysis.arms if arm.best_of and len(arm.best_of.expected_T) >= FEWEST_TRIALS]
    arms, note = _first(searched)
    for arm in arms:
        rows += _tuning_rows(arm)
        texts[arm.name] = f"{arm.best_so_far_T[-1]:.4f} after {plural(len(arm.best_so_far_T), 'trial')}"
    if not rows:
        return None
    axis = axis_title("validation", analysis.result.spec.goal)
    labels = ["a trial", "known"] if analysis.result.spec.known else ["a trial"]
    tips = [alt.Tooltip("k:Q", title="trial"), *(number_tip(f, f, ".4f") for f in labels)]
    tips += [number_tip("best", "best so far", ".4f"), number_tip("expected", "expected best of as many", ".4f")]
    x = alt.X("k:Q", title="trial", axis=_count_axis(4))
    base = alt.Chart()

    dots: list[alt.Chart] = [
        base.mark_point(filled=True, size=26, opacity=1)
        .encode(x=x, y=value_axis(axis, label), color=alt.ColorDatum(label), tooltip=tips)
        .properties(name=f"dots_{number}")
        for number, label in enumerate(labels)
    ]
    found = base.mark_line(strokeWidth=1.5, interpolate="step-after")
    expected = base.mark_line(strokeWidth=1, strokeDash=[3, 2])
    layers = [
        base.mark_area(opacity=0.15, color=INK).encode(x=x, y=value_axis(axis, "low"), y2=alt.Y2("high:Q")),
        expected.encode(x=x, y=value_axis(axis, "expected"), color=alt.ColorDatum("expected best")),
        found.encode(x=x, y=value_axis(axis, "best"), color=alt.ColorDatum("best so far")),
        *dots,
    ]
    unit = alt.LayerChart(layer=layers)
    label = analysis.result.spec.goal.label
    text = f"Validation {label} of every trial in its order; the best of each arm: {values_text(texts)}."
    return replace(render(_panels(unit, rows, arms), text), note=note)


def _tuning_rows(arm: ArmSummary) -> list[Row]:
    assert arm.best_of is not None
    ended = [run for run in arm.result.trials if run.state != "unfinished"]
    rows: list[Row] = []
    for index, (run, best) in enumerate(zip(ended, arm.best_so_far_T, strict=True)):
        field = "a trial" if run.spec.known is None else "known"
        row = {"arm": arm.name, "k": index + 1, field: rounded(run.val_value)}
        row["best"] = rounded(float(best)) if np.isfinite(best) else None
        if index < len(arm.best_of.expected_T):  # which counts finished trials alone
            of_T = {"expected": arm.best_of.expected_T, "low": arm.best_of.low_T, "high": arm.best_of.high_T}
            row |= {name: rounded(float(values_T[index])) for name, values_T in of_T.items()}
        rows.append(row)
    return rows


def _first(arms: list[ArmSummary]) -> tuple[list[ArmSummary], str]:
    """Return the arms that there is room for, and that the others are missing, as a sentence; '' where none are."""
    note = f"Only the first {MOST_PANELS} of {len(arms)} arms are drawn." if len(arms) > MOST_PANELS else ""
    return arms[:MOST_PANELS], note


def _panels(unit: alt.LayerChart, rows: Sequence[Row], arms: Sequence[ArmSummary]) -> alt.FacetChart:
    """Return a panel for each arm."""
    facet = alt.Facet("arm:N", sort=[arm.name for arm in arms], title=None)
    return unit.properties(height=PANEL_HEIGHT).facet(facet, data=alt.InlineData(values=list(rows)))


def _epochs() -> alt.X:
    return alt.X(
        "epoch:Q", title="epoch", scale=alt.Scale(zero=False, nice=False),
        axis=_count_axis(5),
    )  # fmt: skip


def _count_axis(ticks: int) -> alt.Axis:
    """Return an axis of whole numbers; Vega also has ticks between them where they are few, which stay unlabelled."""
    return alt.Axis(tickMinStep=1, tickCount=ticks, format="d", labelExpr="datum.value % 1 ? '' : datum.label")
