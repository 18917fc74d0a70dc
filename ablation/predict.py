"""Classify image files with a study's champion: python -m ablation.predict NAME IMAGE...

torch and MLflow take seconds to import, so they are imported inside the functions that need them; `--help` and a
refused argument answer at once.

Legend: N images, S their side in pixels, K classes.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ablation import __version__
from ablation.base.command_line import (
    FAULT,
    REFUSED,
    patience_option,
    refusing_unreachable_paths,
    run_command,
    store_option,
)
from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import Table, defused, one_line
from ablation.spec.reading import check_name
from ablation.storage.store import find_store, sqlite_path

if TYPE_CHECKING:
    import numpy as np

    from ablation.spec.tables import Resize
    from ablation.tracking.registry import Champion

BATCH_SIZE = 64  # images in memory at once


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("study", metavar="NAME")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@store_option("Folder with the study's results.")
@click.option(
    "--top", type=click.IntRange(1), default=5, metavar="K", help="Number of classes to print per image.  [default: 5]"
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    help="How to print them; json and csv are for other programs.  [default: text]",
)
@patience_option("Time to wait for a server that is away.  [default: 2]")
@click.version_option(__version__)
def cli(
    study: str,
    images: tuple[str, ...],
    store_folder: str | None,
    top: int,
    output_format: str,
    patience: float | None,
) -> None:
    """Print the most probable classes of each IMAGE, according to the champion of the study NAME.

    Files are read like the study's own images: as RGB, and scaled as its `data.resize` says. A folder stands for the
    images in it, at any depth, sorted by path.

    Files that cannot be read are named on the standard error, and the exit status is 1; where none can be, it is 2.
    """
    name = check_name(study)
    with refusing_unreachable_paths():
        paths = check_files(images)
        store = find_store(store_folder)
        if store.has_own_tracking and not sqlite_path(store.tracking_uri).is_file():
            raise InputError(f"{store.root}: is no store, or an empty one")

    from ablation.base.retries import wait_out
    from ablation.base.terminal import loading, show_table

    with loading("torch and MLflow"):
        import torch  # noqa: F401 - which the champion would import

        from ablation.tracking.registry import load_champion

    champion = wait_out(lambda: load_champion(name, store=store_folder), patience)
    faults: list[InputError] = []
    predictions: list[Prediction] = []

    def note(fault: InputError) -> None:
        faults.append(fault)
        click.echo(f"error: {one_line(str(fault))}", err=True)

    for batch in predict_files(champion, paths, top, note):
        if output_format == "csv":
            click.echo(as_csv(batch, with_heading=not predictions), nl=False)
        predictions += batch
    if output_format == "text" and predictions:
        show_table(prediction_table(champion, predictions, top))
    if output_format == "json" and predictions:
        click.echo(as_json(champion, predictions), nl=False)
    if faults:
        sys.exit(FAULT if predictions else REFUSED)


def check_files(images: tuple[str, ...]) -> list[Path]:
    """Return the paths of image files, and of those in folders at any depth; whether they can be read shows later.

    Raises:
        InputError: a path is neither file nor folder, or a folder cannot be read or holds no images; names the first.
    """
    paths: list[Path] = []
    for path in map(expand, images):
        if path.is_dir():
            paths += files_below(path)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path}: no such file")
    return paths


def files_below(folder: Path) -> list[Path]:
    """Return the paths of the images in a folder at any depth, sorted, by the rules for image folders of studies.

    Raises:
        InputError: the folder, or one in it, cannot be read, or there are none.
    """
    from ablation.data.folder_walk import FolderWalk

    try:
        below = FolderWalk(skips_unreadable=True).below(folder)
    except InputError as error:
        raise InputError(str(error).removeprefix("data.root: ")) from None
    paths = sorted([path for path, _ in below.images] + below.unreadable)
    if not paths:
        raise InputError(f"{folder}: holds no images")
    return list(map(Path, paths))


def read_image(path: Path, size: int, resize: "Resize") -> "np.ndarray":
    """Return an image file's RGB pixels as training sees them, uint8 size x size x 3; `resize` as for `fit_image`.

    Raises:
        InputError: it cannot be read as an image; says why.
    """
    from ablation.data.decoding import fault
    from ablation.data.image_files import decode_file

    try:
        if path.is_fifo():
            raise ValueError("a pipe")  # which would keep its reader waiting
        return decode_file(str(path), size, resize)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise InputError(f"{path}: cannot be read as an image ({fault(error)})") from None


@dataclass(frozen=True)
class Prediction:
    """An image file's most probable classes with their probabilities, the first of equals first."""

    path: Path
    classes: list[tuple[str, float]]


def predict_files(
    champion: "Champion", paths: list[Path], top: int, note: Callable[[InputError], None]
) -> Iterator[list[Prediction]]:
    """Yield the `top` most probable classes of each image that can be read, a batch after the other.

    Args:
        champion: classifies them.
        paths: of the images.
        top: number of classes.
        note: is told of each image that cannot be read.
    """
    import numpy as np

    for start in range(0, len(paths), BATCH_SIZE):
        images: dict[int, np.ndarray] = {}
        for number, path in enumerate(paths[start : start + BATCH_SIZE], start):
            try:
                images[number] = read_image(path, champion.image_size, champion.resize)
            except InputError as fault:
                note(fault)
        if not images:
            continue
        predictions = []
        probabilities_NK = champion.probabilities(np.stack(list(images.values())))
        for number, probabilities_K in zip(images, probabilities_NK, strict=True):
            best = np.argsort(-probabilities_K, kind="stable")[:top]
            classes = [(champion.classes[k], float(probabilities_K[k])) for k in best]
            predictions.append(Prediction(paths[number], classes))
        yield predictions


def prediction_table(champion: "Champion", predictions: list[Prediction], top: int) -> Table:
    """Return a table of each image's classes."""
    rows = [[str(p.path), name, f"{probability:.4f}"] for p in predictions for name, probability in p.classes]
    registered = champion.registered
    title = f"{registered.name}: champion, version {registered.version} (arm {champion.arm}, run {registered.run_id})"
    hidden = len(champion.classes) - top
    notes = [f"The champion was chosen by validation: {registered.reason}."] if registered.reason else []
    notes += [f"{hidden} less probable classes are not shown; --top shows more."] if hidden > 0 else []
    return Table(title, ["image", "class", "probability"], rows, notes)


def as_json(champion: "Champion", predictions: list[Prediction]) -> str:
    """Return one JSON object: the champion, and for each image its classes with their probabilities."""
    registered = champion.registered
    images = [
        {
            "image": str(prediction.path),
            "classes": [{"class": name, "probability": probability} for name, probability in prediction.classes],
        }
        for prediction in predictions
    ]
    model = {"name": registered.name, "version": registered.version, "arm": champion.arm, "run": registered.run_id}
    model["chosen"] = registered.reason
    return json.dumps({"champion": model, "images": images}, indent=2) + "\n"


def as_csv(predictions: list[Prediction], *, with_heading: bool) -> str:
    """Return a line for each image and class; no cell is one that a spreadsheet would compute."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    if with_heading:
        writer.writerow(["image", "rank", "class", "probability"])
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            writer.writerow([defused(str(prediction.path)), rank, defused(name), probability])
    return lines.getvalue()


if __name__ == "__main__":
    sys.exit(run_command(cli))
