"""What all plots share: colours, layout, the way from a chart to a picture.

A plot is one Vega-Lite definition, which gives the static SVG of files, print and pages without scripts, and the plot
that a page with scripts draws. With `figures.py` and the `*_charts.py`, this is what knows Altair and vl-convert.

Every colour has its own marker, so that plots can be read in grey print.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert as vlc

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.results import ArmResult
from ablation.analysis.statistics import Estimate
from ablation.spec.colours import COLOURS

INK, MUTED, GRID, PAPER = "#1b1f24", "#57606a", "#dfe3e8", "#ffffff"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [12, 4])
FONT = "'DejaVu Sans', Verdana, Arial, sans-serif"  # the widest first: space is measured with it
WIDE, NARROW = 640, 320  # pixels, of a static plot: on paper and on most screens; on a telephone
NARROWEST_PANEL, PANEL_MARGIN, AXIS_WIDTH = 150, 20, 50  # pixels
LEGEND_COLUMN, LONGEST_LABEL = 150, 260  # pixels, of a legend: a column at least, a label's text at most
SYMBOL, LETTER = 30, 7  # pixels, in a legend: a symbol with the space around it, about a letter
ROW_MARGIN = 30  # pixels, beside rows: half of the labels at the ends of their axis
ROW_HEIGHT = 38  # pixels, of a row with its label above the mark
MOST_DOTS = 1500  # in a static plot; more would weigh megabytes
MOST_VALUES_NAMED = 12  # in a text alternative

Row = dict[str, Any]  # of a plot's data: field -> value

CONFIG: dict[str, Any] = {
    "aria": False,  # the page gives each plot a text alternative
    "background": None,
    "font": FONT,
    "padding": 4,
    "range": {"category": [*COLOURS]},
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
    },
    "legend": {
        "orient": "bottom",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": INK,
        "labelLimit": LONGEST_LABEL,
        "symbolBaseFillColor": INK,
        "symbolBaseStrokeColor": INK,
        "layout": {"bottom": {"anchor": "start", "direction": "vertical"}},
    },
    "header": {"labelFontSize": 12, "labelColor": INK, "labelAnchor": "start", "titleColor": INK},
    "text": {"color": INK},
}


@dataclass(frozen=True)
class Picture:
    """A plot, or an image.

    Attributes:
        alt: what it says, for readers who cannot see it.
        svg: of a plot, `WIDE` pixels wide.
        narrow: the same, `NARROW` pixels wide.
        spec: the plot's Vega-Lite definition without a width.
        png: of an image.
        note: a sentence for its caption.
    """

    alt: str
    svg: str = ""
    narrow: str = ""
    spec: Mapping[str, Any] | None = None
    png: bytes = b""
    note: str = ""

    def _repr_svg_(self) -> str | None:
        return self.svg or None  # in a notebook

    def _repr_png_(self) -> bytes | None:
        return self.png or None


def render(chart: alt.TopLevelMixin, text: str) -> Picture:
    """Return a chart with its text alternative as a picture."""
    drawn = chart.to_dict()
    column = max(_legend_column(part) for name, part in drawn.items() if name != "datasets")
    spec = {**drawn, "config": CONFIG, "usermeta": {"legendColumn": column}}
    static = _without_dots(spec) if _values(spec) > MOST_DOTS else spec
    svg, narrow = (vlc.vegalite_to_svg(fit(static, width)) for width in (WIDE, NARROW))
    return Picture(text, svg, narrow, spec)


def _legend_column(part: Any) -> int:
    """Return how many pixels a column of a definition's legends needs, by the longest name in its scales."""
    if isinstance(part, dict):
        domain = part.get("domain")
        names = [name for name in domain if isinstance(name, str)] if isinstance(domain, list) else []
        own = max((SYMBOL + min(LETTER * len(name), LONGEST_LABEL) for name in names), default=LEGEND_COLUMN)
        return max(LEGEND_COLUMN, own, *map(_legend_column, part.values()))
    return max(map(_legend_column, part), default=LEGEND_COLUMN) if isinstance(part, list) else LEGEND_COLUMN


def _values(spec: Mapping[str, Any]) -> int:
    """Return how many values a definition's data have; a row may hold a list of them."""
    rows = max(spec["datasets"].values(), key=len)
    return sum(len(row["value"]) if isinstance(row.get("value"), list) else 1 for row in rows)


def _without_dots(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a definition without layers named 'dots...', as `report.js` does where a page has too many."""
    if "spec" in spec:
        return {**spec, "spec": _without_dots(spec["spec"])}
    layers = [layer for layer in spec.get("layer", []) if not layer.get("name", "").startswith("dots")]
    return {**spec, "layer": layers} if layers else spec


def fit(spec: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return a definition laid out in a width in pixels, as `report.js` does for the page's."""
    panels = len(spec["facet"]["sort"]) if "facet" in spec else 1
    columns = min(panels, max(1, (width - AXIS_WIDTH) // (NARROWEST_PANEL - PANEL_MARGIN)))
    panel = (width - AXIS_WIDTH) // columns - PANEL_MARGIN
    legend = {**CONFIG["legend"], "columns": max(1, width // spec["usermeta"]["legendColumn"])}
    config = {**CONFIG, "legend": legend, "header": {**CONFIG["header"], "labelLimit": panel}}
    if "facet" in spec:
        return {**spec, "config": config, "columns": columns, "spec": {**spec["spec"], "width": panel}}
    if isinstance(spec["height"], dict):  # rows, whose labels are inside; Vega-Lite would warn of their height
        inside = width - ROW_MARGIN
        return {**spec, "config": {**config, "axisY": {"labelLimit": inside}}, "width": inside}
    return {**spec, "config": config, "width": width, "autosize": {"type": "fit-x", "contains": "padding"}}


# What `report.js` needs for the same layout.
LAYOUT = {
    "narrowestPanel": NARROWEST_PANEL,
    "panelMargin": PANEL_MARGIN,
    "axisWidth": AXIS_WIDTH,
    "rowMargin": ROW_MARGIN,
    "mostDots": 2 * MOST_DOTS,  # a page draws them where it is opened
}
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
_VARIABLES |= {colour: f"c{number}" for number, colour in enumerate(COLOURS)}


def recoloured(text: str) -> str:
    """Return an SVG or a definition whose colours are variables of the page's style, which has them light and dark."""
    for colour, variable in _VARIABLES.items():
        text = text.replace(f'"{colour}"', f'"var(--{variable})"')
    return text


def javascript() -> str:
    """Return the scripts that draw plots in a page: Vega, Vega-Lite and Vega-Embed, about 0.9 MB; takes a second."""
    bundle: str = vlc.javascript_bundle()  # type: ignore[call-arg]  # its stub knows no default
    return bundle


class ArmStyles:
    """The colour of each arm, by its level of the first factor, and its marker, by its other levels.

    Attributes:
        titles: of the two.
        firsts: the labels of the levels of the first factor.
        others: the labels of the combinations of the other levels; empty below two factors.
    """

    def __init__(self, analysis: StudyAnalysis):
        factors = analysis.result.spec.compared_levels()
        names = list(factors)
        self.titles = (names[0] if names else "arm", ", ".join(names[1:]))
        labels = {}
        for arm in analysis.result.arms:
            first, *others = map(str, arm.arm.compared_levels.values() or [arm.arm.name])
            labels[arm.arm.name] = (first, ", ".join(others))
        both = {first for first, _ in labels.values()} & {other for _, other in labels.values()}
        self._fields = {
            arm: {"arm": arm, "first": self._label(0, first, both), "other": self._label(1, other, both)}
            for arm, (first, other) in labels.items()
        }
        self.firsts = list(dict.fromkeys(fields["first"] for fields in self._fields.values()))
        self.others = list(dict.fromkeys(fields["other"] for fields in self._fields.values())) if names[1:] else []

    def _label(self, place: int, label: str, both: Collection[str]) -> str:
        """Return a label that says which legend it is from where both have it."""
        return f"{self.titles[place]} {label}" if label in both else label

    def fields(self, arm: ArmResult) -> dict[str, str]:
        """Return an arm's name and its labels, as a row of data has them."""
        return self._fields[arm.arm.name]

    def colour(self, *, with_legend: bool = True) -> alt.Color:
        """Return the channel of colours."""
        scale = alt.Scale(domain=self.firsts, range=cycle(COLOURS, self.firsts))
        return alt.Color("first:N", scale=scale, legend=self.legend(0) if with_legend else None)

    def shape(self, *, with_legend: bool = True) -> alt.Shape:
        """Return the channel of markers."""
        field, labels, place = self._second()
        scale = alt.Scale(domain=labels, range=cycle(SHAPES, labels))
        return alt.Shape(f"{field}:N", scale=scale, legend=self.legend(place) if with_legend else None)

    def dash(self) -> alt.StrokeDash:
        """Return the channel of dashes; lines of one factor are all solid."""
        field, labels, place = self._second()
        dashes = DASHES if self.others else DASHES[:1]
        scale = alt.Scale(domain=labels, range=cycle(dashes, labels))
        return alt.StrokeDash(f"{field}:N", scale=scale, legend=self.legend(place))

    def _second(self) -> tuple[str, list[str], int]:
        return ("other", self.others, 1) if self.others else ("first", self.firsts, 0)

    def legend(self, place: int) -> alt.Legend | None:
        """Return the legend of colours (0) or of markers (1); None where there is a single one."""
        if len((self.firsts, self.others)[place]) < 2:
            return None
        # `hidden_labels` is set by the page.
        label = "indexof(hidden_labels, datum.label) < 0 ? datum.label : datum.label + ' (hidden)'"
        return alt.Legend(title=self.titles[place], labelExpr=label)


def cycle(values: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    """Return a value for each label; where there are too few, again from the first."""
    return [values[number % len(values)] for number in range(len(labels))]


def of_arms(rows: Sequence[Row]) -> alt.Chart:
    """Return a chart without marks, of rows with a field `arm`; the page hides arms by its two parameters."""
    parameters = [alt.param(name=name, value=[]) for name in ("hidden", "hidden_labels")]
    return of_rows(rows).add_params(*parameters).transform_filter("indexof(hidden, datum.arm) < 0")


def of_rows(rows: Sequence[Row]) -> alt.Chart:
    """Return a chart without marks."""
    return alt.Chart(alt.InlineData(values=[*rows]))


def value_axis(title: str, field: str = "value") -> alt.Y:
    """Return the vertical axis of numbers, which need not contain 0."""
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False))


def intervals(base: alt.Chart) -> alt.Chart:
    """Return a vertical line from `low` to `high` for each row that has them."""
    lines: alt.Chart = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
    return lines.encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))


def rounded(value: float | None) -> float | None:
    """Return a number with six significant digits, which are more than a plot shows."""
    return None if value is None else float(f"{value:.6g}")


def estimate_fields(estimate: Estimate, scale: float = 1) -> dict[str, float | None]:
    """Return value and ends of the interval of an estimate, times a factor, as a row of data has them."""
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if end is None else rounded(scale * end) for name, end in ends.items()}


def number_tip(field: str, title: str, form: str) -> alt.Tooltip:
    """Return what hovering shows of a number."""
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def values_text(values: Mapping[str, str]) -> str:
    """Return 'a 0.91, b 0.85 and 3 more' for a text alternative."""
    texts = [f"{name} {value}" for name, value in values.items()]
    more = len(texts) - MOST_VALUES_NAMED
    return "; ".join(texts[:MOST_VALUES_NAMED]) + (f"; and {more} more, listed in the table" if more > 0 else "")


def as_json(value: Any) -> str:
    """Return JSON that can stand in a script element of a page."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
