"""Where the networks changed: a heat map of blocks against arms for each measure."""

from collections.abc import Mapping
from math import isfinite, nan
from statistics import fmean

from ablation.analysis.results import ArmResult, StudyResult
from ablation.base.text import Table
from ablation.reporting.content import Block, Paragraph, RichTable
from ablation.spec.architectures import block_names, kept_blocks

MEASURES = {  # metric -> its value in a frozen block, title, what it is
    "distance_moved": (
        0.0,
        "How far the weights moved",
        "The distance between a block's weights at the end and at the start, over their norm at the start.",
    ),
    "mean_relative_gradient_norm": (
        0.0,
        "How large the gradients were",
        "The norm of a block's gradients over that of its weights at the last step of an epoch, averaged over the "
        "epochs in which it is finite. A block that asks for a large change has a large value (Lee et al., 2023).",
    ),
    "similarity_to_start": (
        1.0,
        "How similar the features stayed",
        "Linear centred kernel alignment of a block's features before training and at the best epoch, on up to 1,000 "
        "validation images: 1 is the same up to a rotation, 0 has nothing in common (Kornblith et al., 2019).",
    ),
}


def change_blocks(result: StudyResult) -> list[Block]:
    """Return a heat map of blocks against arms for each measure; nothing where no pretrained block learned."""
    rows = {arm.arm.name: arm_changes(arm) for arm in result.arms if arm.drawn_runs}
    if not any(run.changes.get("distance_moved") for arm in result.arms for run in arm.drawn_runs):
        return []
    about = (
        "Means over the confirmation runs of each arm, or its best trial; values that are not finite are left out. "
        "Blocks that are cut off have no value."
    )
    names = {name for measures in rows.values() for values in measures.values() for name in values}
    blocks = [name for name in block_names(result.spec.backbone.name) if name in names]
    maps = [
        _heat_map(measure, {arm: changes[measure] for arm, changes in rows.items()}, blocks) for measure in MEASURES
    ]
    return [Paragraph(about), *maps]


def arm_changes(arm: ArmResult) -> dict[str, dict[str, float]]:
    """Return each measure by name, with the mean over the arm's runs for each block that is kept.

    Runs without a finite value are left out: one gradient that overflows must not hide those of all others. NaN if
    there is no other.
    """
    changes: dict[str, dict[str, float]] = {}
    for measure, (of_frozen, _, _) in MEASURES.items():
        values: dict[str, list[float]] = {}
        for run in arm.drawn_runs:
            spec = run.spec
            for block in block_names(spec.backbone)[: kept_blocks(spec.backbone, spec.truncate_at)]:
                values.setdefault(block, []).append(run.changes.get(measure, {}).get(block, of_frozen))
        changes[measure] = {
            block: fmean([value for value in of_runs if isfinite(value)] or [nan]) for block, of_runs in values.items()
        }
    return changes


def _heat_map(measure: str, rows: Mapping[str, Mapping[str, float]], blocks: list[str]) -> RichTable:
    _, title, meaning = MEASURES[measure]
    cells = [
        [arm, *(f"{values[block]:.3g}" if block in values else "-" for block in blocks)] for arm, values in rows.items()
    ]
    # A gradient can overflow in every epoch, and older versions stored NaN for the features of a dead network.
    finite = [value for values in rows.values() for value in values.values() if isfinite(value)]
    largest = max(finite, default=0.0) or 1.0
    shades = [
        [min(value / largest, 1.0) if value >= 0 else 0.0 for value in (values.get(block, 0.0) for block in blocks)]
        for values in rows.values()
    ]
    return RichTable(Table(title, ["arm", *blocks], cells, [meaning]), shades)
