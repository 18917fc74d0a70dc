"""The report's sections on the set of images: counts, contact sheet, near-duplicates, suspected label errors."""

from collections.abc import Mapping
from pathlib import PurePath

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.label_errors import FEWEST_RUNS, confirmed_runs, suspected_labels
from ablation.base.text import Table, one_line, plural
from ablation.data.near_duplicates import FEW
from ablation.data.set_summary import SetSummary
from ablation.reporting.charts import Picture
from ablation.reporting.content import Block, Folded, Gallery, Paragraph, Sheet, Tile, study_command
from ablation.reporting.images import data_address, png_address, shown_suspects, side_by_side

MOST_CLASSES = 20  # in a table that is not folded
MOST_ROWS = 50  # of suspected labels
NAMED_PARTS = 3  # of a file's path: its split, class and name


def data_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return how the set was read, its classes, and a contact sheet; of older stores, what they have."""
    result = analysis.result
    blocks: list[Block] = [Paragraph(f"Images as read: {result.data_reading}.")] if result.data_reading else []
    images = result.images
    if images is None:
        return blocks
    rows = [
        [name, *(f"{count:,}" for count in counts)]
        for name, counts in zip(result.classes, images.counts_DK.T.tolist(), strict=True)
    ]
    rows.append(["all", *(f"{count:,}" for count in images.counts_DK.sum(axis=1).tolist())])
    table = Table("Images of each class", ["class", "training", "validation", "test"], rows)
    blocks.append(table if len(result.classes) <= MOST_CLASSES else Folded(table))
    if "contact_sheet" in pictures:
        picture = pictures["contact_sheet"]
        caption = "Training images of a class in each row, evenly spaced in their order, as they are decoded."
        blocks.append(Sheet("contact_sheet", png_address(images.sheet), picture.alt, caption))
    return blocks


def has_near_duplicates(analysis: StudyAnalysis) -> bool:
    """Return whether some training and test pictures are known to be nearly the same."""
    images = analysis.result.images
    return images is not None and images.comparison is not None and images.comparison.across > 0


def duplicate_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the pairs of a training and a test picture that are nearly the same, or why nobody looked for them."""
    images = analysis.result.images
    if images is None:
        return []
    if images.comparison is None:
        return [Paragraph(_not_compared(analysis, images))]
    comparison = images.comparison
    found = plural(comparison.across, "pair") if comparison.across else "no pair"
    if comparison.across and comparison.represented:
        found = f"at least {found}"
    has_part = comparison.pictures != images.counts_DK.sum()
    text = (
        f"All {comparison.pictures:,} pictures {'of the whole set ' if has_part else ''}were compared with each other, "
        f"as they are and mirrored: {found} of a training and a test picture "
        f"{'are' if comparison.across > 1 else 'is'} nearly the same."
    )
    if not comparison.across or "near_duplicates" not in pictures:
        return [Paragraph(text)]
    text += " A network may remember such test images rather than recognise them."
    tiles = [
        Tile(
            data_address(side_by_side(thumbnails_2SSC)),
            f"{_short(pair.first)} beside {_short(pair.second)}",
            [_short(pair.first), _short(pair.second), f"differ by {pair.difference:.1f} of 255"]
            + (["mirrored"] if pair.is_mirrored else []),
        )
        for pair, thumbnails_2SSC in zip(comparison.pairs, comparison.thumbnails_P2SSC, strict=True)
    ]
    is_part = len(tiles) < comparison.across or comparison.represented
    which = f"The {len(tiles)} most similar pairs" if is_part else "All pairs"
    caption = f"{which}, by the mean difference of their grey levels."
    return [Paragraph(text), Gallery("near_duplicates", pictures["near_duplicates"].alt, [("", tiles)], caption)]


def _not_compared(analysis: StudyAnalysis, images: SetSummary) -> str:
    name = analysis.result.spec.name
    return (
        f"Near-duplicates across training and test were not looked for: {images.why_not}. Sets of up to {FEW:,} "
        f"images are compared when a study begins; of any other, python -m ablation.data check {name} keeps what it "
        "finds, and the study's command, run again, shows it here."
    )


def _short(name: str) -> str:
    return one_line("/".join(PurePath(name).parts[-NAMED_PARTS:]))


def suspect_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the test images that all confirmation runs call another class, as a figure and as a table."""
    result = analysis.result
    runs = confirmed_runs(result)
    if runs < FEWEST_RUNS:
        return []
    suspects = suspected_labels(result)
    text = (
        f"All {runs} confirmation runs of all arms call {plural(len(suspects), 'test image')} of "
        f"{result.test_images:,} the same other class. "
    )
    if not suspects:
        return [Paragraph(text.replace("0 test images", "no test image").strip())]
    text += "Among them are the likeliest errors of the labels; a hard image looks the same, so look at each."
    blocks: list[Block] = [Paragraph(text)]
    shown = shown_suspects(result, suspects)
    if shown and "suspects" in pictures:
        tiles = [
            Tile(
                data_address(image_SSC),
                f"Test image {each.number}: labelled {each.label}, called {each.called}",
                [each.label, f"\u2192 {each.called}", f"{each.probability:.3f}, image {each.number}"],
            )
            for each, image_SSC in shown
        ]
        caption = (
            "Each with its label, the class that all runs call it, and their mean probability of that; the most "
            "probable first, as far as the runs kept the images with their most confident mistakes."
        )
        blocks.append(Gallery("suspects", pictures["suspects"].alt, [("", tiles)], caption))
    rows = [[str(each.number), each.label, each.called, f"{each.probability:.3f}"] for each in suspects[:MOST_ROWS]]
    note = f"{study_command(result, 'ablation.data', 'suspects')} names the files" + (
        f", and all {len(suspects):,} of them." if len(suspects) > MOST_ROWS else "."
    )
    columns = ["test image", "label", "all runs say", "mean probability"]
    return [*blocks, Folded(Table("The same images as a table", columns, rows, [note]))]
