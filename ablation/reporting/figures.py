"""The report's figures, drawn without Matplotlib's global state. No other module uses Matplotlib.

Colours are Okabe and Ito's (2008), which colour-blind readers can tell apart. Every colour has its own marker or line
style, so that figures can be read in grey print. The same analysis gives the same bytes.

Legend: S confirmation runs (seeds), E epochs, K classes, T trials, V views of an image; SSC pixels of an image.
"""

import io
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import ArmSummary
from ablation.analysis.comparison import Difference
from ablation.analysis.results import ArmResult
from ablation.analysis.statistics import Estimate
from ablation.analysis.wording import format_seeds
from ablation.base.text import plural
from ablation.data.samples import DRAWS, VIEWS_PER_CLASS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
GREY = "#666666"
DOTS_PER_INCH = 150  # of PNG
WIDTH = 8.0  # inches, of every figure
PANELS_PER_ROW = 4
MOST_MARKERS = 20  # on a curve; more would touch
MOST_CLASSES_NAMED = 20  # more names would be illegible beside a confusion matrix
MISTAKES_PER_ROW = 6

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "image.composite_image": False,  # else an SVG resamples images to its own resolution
    "svg.hashsalt": "ablation",
    "svg.fonttype": "path",  # text looks the same without the font
    "text.hinting": "no_hinting",  # else the width of text depends on the resolution, and the layout is made at another
    "text.parse_math": False,  # a $ in a class name is a dollar
}


@dataclass(frozen=True)
class Picture:
    """A figure as the content of an SVG file and of a PNG file."""

    svg: bytes
    png: bytes


def draw_figures(
    analysis: StudyAnalysis, importances: Mapping[str, Mapping[str, float]], names: Collection[str] | None = None
) -> dict[str, Picture]:
    """Draw every figure that the study has data for: name -> picture, in the report's order.

    Args:
        analysis: of the study.
        importances: arm -> parameter -> share of the variation of its trials' validation accuracies.
        names: of the figures wanted; all by default.
    """
    figures = {
        "arms": _arms,
        "differences" if analysis.result.spec.arms else "effects": _effects,
        "interaction": _interaction,
        "curves_accuracy": lambda a: _learning_curves(a, "accuracy", "accuracy (fraction)"),
        "curves_loss": lambda a: _learning_curves(a, "loss", "loss (nats)"),
        "costs": _costs,
        "tuning": _tuning,
        "best_of": _best_of,
        "importances": lambda a: _importances(a, importances),
        "samples": _samples,
        "confusion": _confusion,
        "confusion_arms": _confusion_arms,
        "mistakes": _mistakes,
    }
    pictures = {}
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font")  # an emoji in a class name is a box
        for name, draw in figures.items():
            figure = draw(analysis) if names is None or name in names else None
            if figure is not None:
                pictures[name] = _render(figure)
    return pictures


def _render(figure: Figure) -> Picture:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is made, and making it again takes longer than drawing
    svg, png = io.BytesIO(), io.BytesIO()
    # savefig would draw everything twice. The SVG comes last, because it changes the figure's resolution.
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return Picture(svg.getvalue(), png.getvalue())


def _figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def _style(arm: ArmResult, analysis: StudyAnalysis) -> tuple[str, str]:
    """Return an arm's colour, by its level of the first factor, and its marker, by its other levels."""
    levels = list(arm.arm.compared_levels.values())
    if not levels:
        return COLOURS[0], MARKERS[0]
    first_levels = next(iter(analysis.result.spec.compared_levels().values()))
    first = first_levels.index(levels[0])
    others = list(dict.fromkeys(tuple(a.arm.compared_levels.values())[1:] for a in analysis.result.arms))
    other = others.index(tuple(levels[1:])) if len(levels) > 1 else first
    return COLOURS[first % len(COLOURS)], MARKERS[other % len(MARKERS)]


def _short(text: str, limit: int = 34) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _panel_title(name: str, n: int) -> str:
    """Return an arm's name with n, one line per level."""
    return f"{_short(name, 60)} (n = {n})".replace(",", ",\n")


def _plain_number(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _error(axes: Axes, estimate: Estimate, y: float, colour: str, marker: str, *, hollow: bool = False) -> None:
    """Draw an estimate with its interval, if it has one."""
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    face = "white" if hollow else colour
    axes.plot([estimate.value], [y], marker=marker, color=colour, markerfacecolor=face, linestyle="none", markersize=6)


@contextmanager
def _rows(axes: Axes, labels: Sequence[str]) -> Iterator[None]:
    """Label one row per thing on an axis, the first on top, once the rows are drawn."""
    yield
    axes.set_yticks(range(len(labels)), [_short(label, 60) for label in labels], fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _arms(analysis: StudyAnalysis) -> Figure | None:
    """Draw the test accuracy of each arm: its seeds, their mean with its interval."""
    arms = [arm for arm in analysis.arms if arm.test is not None]
    if not arms:
        return None
    figure, grid = _figure(0.9 + 0.32 * len(arms))
    axes = grid[0, 0]
    with _rows(axes, [f"{arm.name}  (n = {arm.test.seeds if arm.test else 0})" for arm in arms]):
        for y, arm in enumerate(arms):
            colour, marker = _style(arm.result, analysis)
            accuracies_S = arm.result.test_accuracies_S
            axes.plot(accuracies_S, np.full(len(accuracies_S), y + 0.22), "|", color=colour, markersize=6)
            if arm.accuracy is not None:
                _error(axes, arm.accuracy, y, colour, marker)
    unit = analysis.compared.estimator.unit
    axes.set_xlabel(f"test accuracy (fraction); n = {unit}s; strokes: single seeds; lines: 95 % interval")
    return figure


def _effects(analysis: StudyAnalysis) -> Figure | None:
    """Draw the marginal means of every factor's levels and their differences, with their intervals."""
    factors = [factor for factor in analysis.factors if any(level.estimate for level in factor.levels)]
    if analysis.result.spec.arms:  # whose means alone are in the figure of the arms
        factors = [factor for factor in factors if factor.family]
    if not factors:
        return None
    unit = analysis.compared.estimator.unit
    rows = [max(len(factor.levels), len(factor.family), 2) for factor in factors]
    height = sum(0.34 * n + 1.0 for n in rows)
    figure, grid = _figure(height, len(factors), 2, gridspec_kw={"height_ratios": [n + 2.5 for n in rows]})
    for factor, (left, right) in zip(factors, grid, strict=True):
        levels = [level for level in factor.levels if level.estimate is not None]
        labels = [
            f"{level.label}\n{plural(level.arms, 'arm')}, n = {format_seeds(level.seeds, unit)}" for level in levels
        ]
        with _rows(left, labels):
            for y, level in enumerate(levels):
                if level.estimate is not None:
                    index = [each.label for each in factor.levels].index(level.label)
                    _error(left, level.estimate, y, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        means = "means" if analysis.result.spec.arms else "marginal means"
        left.set_title(f"{factor.factor}: {means}", loc="left")
        left.set_xlabel("test accuracy (fraction)")
        if not factor.family:
            right.set_axis_off()
            continue
        with _rows(right, [_minus(difference) for difference in factor.family]):
            right.axvline(0, color=GREY, linewidth=1)
            for y, difference in enumerate(factor.family):
                _error(right, _in_points(difference), y, COLOURS[6], "o", hollow=not difference.is_shown)
        right.set_title("differences", loc="left")
        right.set_xlabel("difference (percentage points)")
    figure.supxlabel(
        "lines: 95 % intervals, those of differences simultaneous; filled circle: shown (p < 0.05)", fontsize=9
    )
    return figure


def _minus(difference: Difference) -> str:
    """Return the difference as 'first \u2212 second', on two lines if it is long."""
    gap = "\n" if len(difference.first + difference.second) > 24 else " "
    return f"{difference.first} \u2212{gap}{difference.second}"


def _in_points(difference: Difference) -> Estimate:
    estimate = difference.estimate
    if estimate.low is None or estimate.high is None:
        return Estimate(100 * estimate.value)
    return Estimate(100 * estimate.value, low=100 * estimate.low, high=100 * estimate.high)


def _interaction(analysis: StudyAnalysis) -> Figure | None:
    """Draw the test accuracy at each level of the first factor, one line per level of the second."""
    factors = list(analysis.result.spec.factors.entries().items())
    confirmed = [arm for arm in analysis.arms if arm.accuracy is not None]
    if len(factors) != 2 or not (analysis.interactions or analysis.compared.interaction_missing):
        return None
    (first, first_levels), (second, second_levels) = factors
    figure, grid = _figure(3.4)
    axes = grid[0, 0]
    for index, level in enumerate(second_levels):
        line = [arm for arm in confirmed if arm.result.arm.levels[second] == level]
        offset = 0.06 * (index - (len(second_levels) - 1) / 2)
        x = [first_levels.index(arm.result.arm.levels[first]) + offset for arm in line]
        seeds = [arm.test.seeds for arm in line if arm.test is not None] or [0]
        n = format_seeds((min(seeds), max(seeds)), analysis.compared.estimator.unit)
        means = [arm.accuracy for arm in line if arm.accuracy is not None]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        dashes = ("-", "--", "-.", ":")[index % 4]
        axes.plot(
            x, [mean.value for mean in means], color=colour, marker=marker, linestyle=dashes, label=f"{level} (n = {n})"
        )
        for at, mean in zip(x, means, strict=True):
            if mean.low is not None:
                axes.plot([at, at], [mean.low, mean.high], color=colour, linewidth=1.5)
    axes.set_xticks(range(len(first_levels)), [_short(str(level), 16) for level in first_levels])
    axes.set_xlabel(first)
    axes.set_ylabel("test accuracy (fraction)")
    axes.legend(title=f"{second}; bars: 95 % interval", loc="best", alignment="left")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per arm, with shared axes, and the panels."""
    columns = min(PANELS_PER_ROW, count)
    rows = -(-count // columns)
    figure, grid = _figure(height * rows + 0.7, rows, columns, sharex=True, sharey=True)
    panels = list(grid.flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    for axes in panels[max(0, count - columns) : count]:  # the lowest panel of each column
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _learning_curves(analysis: StudyAnalysis, quantity: str, label: str) -> Figure | None:
    """Draw training and validation against epochs: mean and range over each arm's runs."""
    arms = [(arm, curves_SE) for arm in analysis.arms if (curves_SE := _curves(arm.result, f"val_{quantity}")).size]
    if not arms:
        return None
    figure, panels = _panels(len(arms), 1.5)
    for axes, (arm, val_SE) in zip(panels, arms, strict=True):
        train_SE = _curves(arm.result, f"train_{quantity}")
        for name, curves_SE, colour, dashes, marker in (
            ("training", train_SE, COLOURS[1], "--", "s"),
            ("validation", val_SE, COLOURS[0], "-", "o"),
        ):
            epochs = np.arange(1, curves_SE.shape[1] + 1)
            axes.fill_between(
                epochs, curves_SE.min(axis=0), curves_SE.max(axis=0), color=colour, alpha=0.25, linewidth=0
            )
            (line,) = axes.plot(epochs, curves_SE.mean(axis=0), color=colour, linestyle=dashes, label=name)
            if len(epochs) <= MOST_MARKERS:
                line.set(marker=marker, markersize=2.5)
        axes.set_title(_panel_title(arm.name, len(val_SE)), loc="left", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("epoch; lines: mean over n runs, bands: lowest to highest run", fontsize=9)
    figure.supylabel(label, fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _curves(arm: ArmResult, name: str) -> np.ndarray:
    """Return a curve of every confirmation run, else of the best trial, as far as all of them go (S x E)."""
    curves = [run.curves[name] for run in arm.drawn_runs if len(run.curves.get(name, ()))]
    epochs = min((len(curve) for curve in curves), default=0)
    return np.array([curve[:epochs] for curve in curves], np.float64).reshape(len(curves), epochs)


def _costs(analysis: StudyAnalysis) -> Figure | None:
    """Draw test accuracy against an arm's costs: trained parameters and seconds."""
    arms = [a for a in analysis.arms if a.accuracy is not None and a.trained_parameters and a.training_seconds]
    if not arms:
        return None
    figure, grid = _figure(3.0 + 0.2 * (-(-len(arms) // 3)), 1, 2, sharey=True)
    left, right = grid[0]
    for arm in arms:
        if arm.accuracy is None:
            continue
        colour, marker = _style(arm.result, analysis)
        label = f"{arm.name} (n = {len(arm.result.confirmed)})"
        low, high = arm.accuracy.low, arm.accuracy.high
        for axes, x in ((left, arm.trained_parameters), (right, arm.training_seconds)):
            if low is not None:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.5)
            axes.plot(
                [x], [arm.accuracy.value], marker=marker, color=colour, linestyle="none", markersize=7, label=label
            )
    left.set_xlabel("trained parameters (count, logarithmic)")
    left.set_ylabel("test accuracy (fraction)\nbars: 95 % interval")
    right.set_xlabel("training time of a run (seconds, logarithmic)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_plain_number)
        axes.xaxis.set_minor_formatter(NullFormatter())
        _widen_log(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _widen_log(axes: Axes) -> None:
    """Widen a short logarithmic axis to about a factor of ten, so that it has labels."""
    low, high = axes.get_xlim()
    if high / low < 20:
        axes.set_xlim(low / 3, high * 3)


def _tuning(analysis: StudyAnalysis) -> Figure | None:
    """Draw the validation accuracy of every trial, in order, and the best so far."""
    arms = [arm for arm in analysis.arms if np.isfinite(arm.best_so_far_T).any()]
    if not arms:
        return None
    figure, panels = _panels(len(arms), 1.5)
    for axes, arm in zip(panels, arms, strict=True):
        ended = [run for run in arm.result.trials if run.state != "unfinished"]
        order_T = np.arange(1, len(ended) + 1)
        values_T = np.array([np.nan if run.val_accuracy is None else run.val_accuracy for run in ended], np.float64)
        axes.plot(order_T, arm.best_so_far_T, color=COLOURS[0], drawstyle="steps-post", label="best so far")
        axes.plot(order_T, values_T, "o", color=COLOURS[1], markersize=4, markerfacecolor="white", label="a trial")
        is_known_T = np.array([run.spec.known is not None for run in ended], bool)
        if analysis.result.spec.known:
            axes.plot(order_T[is_known_T], values_T[is_known_T], "D", color=COLOURS[2], markersize=4, label="known")
        n = int(np.isfinite(values_T).sum())
        axes.set_title(_panel_title(arm.name, n), loc="left", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("trial, in the order of the search; n = finished trials", fontsize=9)
    figure.supylabel("validation accuracy (fraction)", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _best_of(analysis: StudyAnalysis) -> Figure | None:
    """Draw the expected best validation accuracy of k trials, with its band."""
    arms = [(arm, arm.best_of) for arm in analysis.arms if arm.best_of is not None]
    if not any(len(best.expected_T) > 1 for _, best in arms):
        return None
    figure, panels = _panels(len(arms), 1.5)
    for axes, (arm, best) in zip(panels, arms, strict=True):
        k_T = np.arange(1, len(best.expected_T) + 1)
        axes.fill_between(k_T, best.low_T, best.high_T, color=COLOURS[0], alpha=0.25, linewidth=0)
        axes.plot(k_T, best.expected_T, color=COLOURS[0])
        axes.set_title(_panel_title(arm.name, len(k_T)), loc="left", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("k trials; line: expected best, band: 10th to 90th percentile; n = finished trials", fontsize=9)
    figure.supylabel("validation accuracy (fraction)", fontsize=9)
    return figure


def _importances(analysis: StudyAnalysis, importances: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Draw the share of each parameter in the variation of an arm's trials."""
    arms = [arm for arm in analysis.arms if importances.get(arm.name)]
    if not arms:
        return None
    parameters = list(dict.fromkeys(name for arm in arms for name in importances[arm.name]))
    shares = np.array([[importances[arm.name].get(name, np.nan) for name in parameters] for arm in arms])
    figure, grid = _figure(0.9 + 0.32 * len(arms))
    axes = grid[0, 0]
    _annotated_grid(axes, shares, 8)
    axes.set_xticks(range(len(parameters)), parameters)
    labels = [f"{_short(arm.name)} (n = {_finished(arm)})" for arm in arms]
    axes.set_yticks(range(len(arms)), labels)
    axes.set_aspect("auto")
    axes.set_xlabel("share of the variation of validation accuracy (fraction); n = finished trials")
    return figure


def _finished(arm: ArmSummary) -> int:
    return sum(run.val_accuracy is not None for run in arm.result.trials)


def _annotated_grid(axes: Axes, values: np.ndarray, font_size: int, *, annotate: bool = True) -> None:
    """Draw fractions as shades of blue, darker for larger ones, with their values."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if not annotate:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=font_size)


def _confusion(analysis: StudyAnalysis) -> Figure | None:
    """Draw the winner's confusion matrix."""
    arm = _winner_summary(analysis)
    if arm is None or arm.confusion_KK is None or arm.test is None:
        return None
    classes = analysis.result.classes
    is_named = len(classes) <= MOST_CLASSES_NAMED
    figure, grid = _figure(1.5 + 0.42 * min(len(classes), 14))
    axes = grid[0, 0]
    _annotated_grid(axes, arm.confusion_KK, 8 if len(classes) <= 12 else 6, annotate=is_named)
    if is_named:
        names = [_short(name, 18) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
    images = analysis.result.test_images
    axes.set_title(
        f"{arm.name} (mean of n = {format_seeds((arm.test.seeds,) * 2)}, {images:,} test images)", loc="left"
    )
    noun = "class" if is_named else "class (its number)"
    axes.set_xlabel(f"predicted {noun}; each row sums to 1")
    axes.set_ylabel(f"true {noun}")
    return figure


def _confusion_arms(analysis: StudyAnalysis) -> Figure | None:
    """Draw a small confusion matrix of every arm."""
    arms = [arm for arm in analysis.arms if arm.confusion_KK is not None]
    if len(arms) < 2:
        return None
    figure, panels = _panels(len(arms), 2.0)
    for axes, arm in zip(panels, arms, strict=True):
        if arm.confusion_KK is not None and arm.test is not None:
            _annotated_grid(axes, arm.confusion_KK, 5, annotate=False)
            axes.set_title(_panel_title(arm.name, arm.test.seeds), loc="left", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.supxlabel("predicted class, in the order of the matrix above; n = seeds", fontsize=9)
    figure.supylabel("true class", fontsize=9)
    return figure


def _winner_summary(analysis: StudyAnalysis) -> ArmSummary | None:
    return next((arm for arm in analysis.arms if arm.result is analysis.winner), None)


def _empty(axes: Axes, columns: float, rows: float) -> None:
    """Turn an axis into an empty page of columns and rows, the first row on top."""
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


def _place(axes: Axes, image_SSC: np.ndarray, x: float, y: float) -> None:
    """Draw an image with its own pixels, one unit wide, with the upper left corner at (x, y)."""
    axes.imshow(image_SSC, extent=(x, x + 1, y + 1, y), interpolation="none")


def _samples(analysis: StudyAnalysis) -> Figure | None:
    """Draw one row per class: each image unchanged, then its augmentations."""
    samples = analysis.result.samples
    if samples is None:
        return None
    classes, images, views = samples.images_RIVSSC.shape[:3]
    pitch = 1.08
    header, gap = (0.25, 0.2) if views > 1 else (0.0, 0.0)
    height = header + classes * pitch
    figure, grid = _figure(0.4 + 0.74 * height)
    axes = grid[0, 0]
    for image in range(images):
        left_V = [image * (views * pitch + gap) + view * pitch for view in range(views)]
        for row, view in np.ndindex(classes, views):
            _place(axes, samples.images_RIVSSC[row, image, view], left_V[view], header + row * pitch)
        if views > 1:
            axes.text(left_V[0] + 0.5, 0, "unchanged", ha="center", va="top", fontsize=8)
        for number, kind in enumerate(samples.augmentations):
            middle = left_V[1 + number * DRAWS] + DRAWS * pitch / 2
            axes.text(middle, 0, kind, ha="center", va="top", fontsize=8)
    _empty(axes, VIEWS_PER_CLASS * pitch + 0.2, height)
    names = [textwrap.fill(analysis.result.classes[k], 18, max_lines=2, placeholder="...") for k in samples.classes_R]
    axes.set_yticks([header + row * pitch + 0.5 for row in range(classes)], names)
    size = samples.normalisation.image_size
    axes.set_xlabel(f"training images, {size} x {size} pixels", loc="left", fontsize=8)
    return figure


def _mistakes(analysis: StudyAnalysis) -> Figure | None:
    """Draw the champion's most confident mistakes with true class, predicted class and probability."""
    mistakes = analysis.mistakes
    if not mistakes:
        return None
    rows = -(-len(mistakes) // MISTAKES_PER_ROW)
    width, height = 1.25, 1.5  # of an image with its text, in widths of an image
    figure, grid = _figure(0.3 + rows * height * WIDTH / (MISTAKES_PER_ROW * width))
    axes = grid[0, 0]
    for index, mistake in enumerate(mistakes):
        x, y = index % MISTAKES_PER_ROW * width, index // MISTAKES_PER_ROW * height
        _place(axes, mistake.image_SSC, x, y)
        classes = f"{_short(mistake.true, 20)}\n\u2192 {_short(mistake.predicted, 20)}"
        text = f"{classes}\n{mistake.probability:.3f}, test image {mistake.number}"
        label = axes.text(x, y + 1.03, text, va="top", fontsize=7, clip_on=True)
        # Names of wide letters, such as W, would run into the next image.
        label.set_clip_path(Rectangle((x, y), width - 0.05, height, transform=axes.transData))
    _empty(axes, MISTAKES_PER_ROW * width, rows * height)
    axes.set_xlabel("true class \u2192 predicted class, with its probability", loc="left", fontsize=8)
    return figure
