"""Sets of Hugging Face's `datasets` on the local disk: a folder of `save_to_disk`, or Parquet files with their images.

The library is optional: it is imported once a study names such a set. Images have to be inside the files.
"""

import importlib
import io
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import first_line, nearest, one_line
from ablation.data.decoding import File, ImageListing, Status
from ablation.data.image_tables import Columns, cell_text, rows_of_classes
from ablation.data.own_images import OwnImages, own_listing
from ablation.spec.tables import SAVED_BY_DATASETS, Data

USUAL_COLUMN = "image"


@dataclass(frozen=True)
class EmbeddedImages:
    """Opens an image by its name, such as 'train row 12', or 'mask: train row 12' of another column than `image`.

    Attributes:
        splits: split -> its column of images, not decoded.
    """

    splits: dict[str, Any]

    def __call__(self, name: str) -> PIL.Image.Image:
        """Return an image that is not decoded yet.

        Raises:
            ValueError: the row has no image in it.
        """
        split, _, row = name.rpartition(": ")[2].rpartition("row ")
        (image,) = self.splits[split.strip()][int(row)].values()
        if image is None or image["bytes"] is None:
            raise ValueError("no image in the row")
        return PIL.Image.open(io.BytesIO(image["bytes"]))


def hugging_face_listing(data: Data) -> ImageListing:
    """List the images of a set, split by split.

    Raises:
        InputError: the library is missing; the set cannot be read; a column is missing, or has no images; a row is
            wrong; or as `own_listing`.
    """
    root = expand(str(data.root)).resolve()
    table = f"data.root: {one_line(root.name)}"
    splits = _splits(root, table)
    image_column = data.image_column or USUAL_COLUMN
    images = EmbeddedImages({split: _images(content, image_column, table) for split, content in splits.items()})
    columns = _columns(splits, image_column, table)
    rows, passed = rows_of_classes(columns, data)
    statuses = [status for content in splits.values() for status in [_status(content)] * len(content)]
    prefix = "" if image_column == USUAL_COLUMN else f"{image_column}: "  # because names identify images in the cache
    files: list[File] = [(f"{prefix}{columns.places[row]}", statuses[row]) for row in rows]
    columns = columns.chosen(rows)
    is_test_N, how = columns.test_rows(data)
    labels, groups = columns.labels(data), columns.groups(data)
    return own_listing(OwnImages(files, labels, is_test_N, groups, f"{root}{how}", root, passed, images), data)


def _splits(root: Path, table: str) -> dict[str, Any]:
    """Return the set's splits; one without splits has a single one, called ''."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError("data.source = 'huggingface' needs datasets: python -m pip install datasets") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are raised, too
    try:
        if any((root / name).is_file() for name in SAVED_BY_DATASETS):
            content = datasets.load_from_disk(str(root))
        else:
            files = {"path": "parquet", "data_files": str(root)} if root.is_file() else {"path": str(root)}
            content = datasets.load_dataset(**files)
    except Exception as error:  # the library raises many kinds for files that it does not understand
        raise InputError(
            f"{table}: is no folder of save_to_disk and has no Parquet files that can be read ({first_line(error)})"
        ) from None
    if not isinstance(content, dict):
        return {"": content}
    return dict(content)


def _columns(splits: dict[str, Any], image_column: str, table: str) -> Columns:
    """Return the columns of words, numbers and classes as text; the names of splits are one where there are several."""
    places = [f"{split} row {row}".strip() for split, content in splits.items() for row in range(len(content))]
    if not places:
        raise InputError(f"{table}: has no rows")
    names = set.intersection(
        *(set(filter(partial(_is_text, content), content.features)) for content in splits.values())
    )
    values = {name: [text for content in splits.values() for text in _texts(content, name)]
              for name in sorted(names - {image_column})}  # fmt: skip
    if len(splits) > 1 and "split" not in values:
        values["split"] = [split for split, content in splits.items() for _ in range(len(content))]
    kinds = {name: type(kind).__name__ for content in splits.values() for name, kind in content.features.items()}
    return Columns(table, places, values, {name: kinds[name] for name in kinds.keys() - names - {image_column}})


def _is_text(content: Any, name: str) -> bool:
    """Return whether a column holds words, numbers or classes, and no images, bytes or lists, which may be large."""
    datasets = importlib.import_module("datasets")
    kind = content.features[name]
    return isinstance(kind, datasets.Value | datasets.ClassLabel) and "binary" not in kind.dtype


def _texts(content: Any, name: str) -> list[str]:
    """Return a column as text: the name of a class for its number, '' for a number that stands for none."""
    values, classes = content.select_columns([name])[:][name], getattr(content.features[name], "names", None)
    if classes is None:
        return list(map(cell_text, values))
    return ["" if value is None or value < 0 else classes[value].strip() for value in values]


def _images(content: Any, image_column: str, table: str) -> Any:
    """Return a split's column of images, each of which is the bytes of a file."""
    if image_column not in content.column_names:
        known = nearest(image_column, content.column_names)
        raise InputError(f"{table}: has no column {image_column!r} (data.image_column){known}")
    datasets = importlib.import_module("datasets")
    try:
        return content.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    except Exception:  # the library and Arrow raise several kinds for other types
        kind = type(content.features[image_column]).__name__
        raise InputError(f"{table}: column {image_column!r} holds no images (it is {kind})") from None


def _status(content: Any) -> Status:
    """Return what changes with a split's files: their sizes together, and the latest time."""
    statuses = [os.stat(file["filename"]) for file in content.cache_files]  # noqa: PTH116
    return Status(sum(each.st_size for each in statuses), max((each.st_mtime_ns for each in statuses), default=0))
