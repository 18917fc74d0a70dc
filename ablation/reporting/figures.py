"""The report's plots and images, by name."""

from collections.abc import Callable, Collection, Mapping

from ablation.analysis.answer import StudyAnalysis
from ablation.reporting.charts import ArmStyles, Picture
from ablation.reporting.comparison_charts import arms_chart, effect_charts, interaction_chart
from ablation.reporting.images import (
    mistakes_picture,
    near_duplicates_picture,
    samples_picture,
    sheet_picture,
    suspects_picture,
)
from ablation.reporting.run_charts import cost_charts, curve_panels, overlay_chart, slice_charts, tuning_panels
from ablation.spec.objective import ObjectiveName

CURVES: dict[ObjectiveName, str] = {
    "accuracy": "accuracy (fraction)",
    "balanced_accuracy": "balanced accuracy (fraction)",
    "macro_f1": "macro F1 (fraction)",
    "loss": "loss (nats)",
}


def draw_figures(analysis: StudyAnalysis, kinds: Collection[str] | None = None) -> dict[str, Picture]:
    """Draw every plot that the study has data for: name -> picture, in the report's order.

    Args:
        analysis: of the study.
        kinds: of the plots wanted: 'arms', 'effects', ...; all by default.
    """
    styles = ArmStyles(analysis)
    drawers: dict[str, Callable[[], Mapping[str, Picture | None]]] = {
        "arms": lambda: {"arms": arms_chart(analysis, styles)},
        "effects": lambda: effect_charts(analysis),
        "interaction": lambda: {"interaction": interaction_chart(analysis, styles)},
        "curves": lambda: {
            "curves": overlay_chart(analysis, styles),
            **{f"panels_{name}": curve_panels(analysis, name, label) for name, label in CURVES.items()},
        },
        "costs": lambda: cost_charts(analysis, styles),
        "search": lambda: {**slice_charts(analysis, styles), "tuning": tuning_panels(analysis)},
        "images": lambda: {
            "contact_sheet": sheet_picture(analysis),
            "near_duplicates": near_duplicates_picture(analysis),
            "samples": samples_picture(analysis),
            "mistakes": mistakes_picture(analysis),
            "suspects": suspects_picture(analysis),
        },
    }
    drawn = [draw() for kind, draw in drawers.items() if kinds is None or kind in kinds]
    return {name: picture for pictures in drawn for name, picture in pictures.items() if picture is not None}


def figure_files(pictures: dict[str, Picture]) -> dict[str, bytes]:
    """Return the files beside the text of a report: plots as SVG, images as PNG."""
    return {
        f"{name}.png" if picture.png else f"{name}.svg": picture.png or picture.svg.encode()
        for name, picture in pictures.items()
    }
