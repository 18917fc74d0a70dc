"""Tables with a row for each image: its label, and perhaps its split and group. Manifests and sets of Hugging Face.

Legend: N rows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ablation.base.errors import InputError
from ablation.base.text import listed, nearest, one_line, plural
from ablation.data.class_names import refuse_look_alikes
from ablation.data.decoding import DECODING_VERSION, File, ImageListing, OpenImage
from ablation.data.folder_walk import Passed, passed_text
from ablation.data.groups import groups_in
from ablation.data.held_out import Rows, held_out_rows
from ablation.data.image_files import file_readers
from ablation.spec.tables import Data

CLASS_LEFT_OUT = ("left-out image", "of other classes")  # as it is counted among what is passed over
MOST_COLUMNS = 6  # that are named


@dataclass(frozen=True)
class Columns:
    """A table's columns as text, a value for each row.

    Attributes:
        table: what messages call it, such as 'data.manifest: labels.csv'.
        places: what messages call each row, such as 'line 3'.
        values: name -> the rows' values, without spaces around them; '' where there is none.
        unusable: the columns that hold no words or numbers: name -> what they hold.
    """

    table: str
    places: list[str]
    values: dict[str, list[str]]
    unusable: dict[str, str] = field(default_factory=dict)

    def take(self, key: str, name: str) -> list[str]:
        """Return a column that a key of the study file names, in which no row is empty.

        Raises:
            InputError: there is no such column, or a row has no value.
        """
        if name in self.unusable:
            raise InputError(
                f"{self.table}: column {name!r} (data.{key}) must hold words or numbers, not {self.unusable[name]}"
            )
        if name not in self.values:
            raise InputError(f"{self.table}: has no column {name!r} (data.{key}){nearest(name, self.values)}")
        for place, value in zip(self.places, self.values[name], strict=True):
            if not value:
                raise InputError(f"{self.table}, {place}: has no {name}")
        return self.values[name]

    def labels(self, data: Data) -> list[str]:
        """Return the labels; see `take`."""
        return self.take("label_column", data.label_column or "label")

    def chosen(self, rows: Iterable[int]) -> "Columns":
        """Return some of the rows."""
        rows = list(rows)
        values = {name: [column[row] for row in rows] for name, column in self.values.items()}
        return Columns(self.table, [self.places[row] for row in rows], values, self.unusable)


@dataclass
class TableImages:
    """The rows of a table whose images are there, and these images.

    Attributes:
        columns: the table.
        files: the images; their names are what `open_image` takes.
        where: where the table and the images are, for people.
        source: the table's place, which identifies the set in the cache.
        names: what an expression for groups is searched in; None if groups can only be a column.
        open_image: opens one.
        passed: what was passed over.
    """

    columns: Columns
    files: Sequence[File]
    where: str
    source: Path
    names: Sequence[str] | None = None
    open_image: OpenImage = PIL.Image.open
    passed: Passed = field(default_factory=Counter)


def rows_of_classes(columns: Columns, data: Data, passed: Passed) -> list[int]:
    """Return the rows of the classes that the study asks for, and count the others.

    Raises:
        InputError: there is no such class, or a row has no label.
    """
    labels = columns.labels(data)
    if data.classes is None:
        return list(range(len(labels)))
    known, chosen = set(labels), set(data.classes)
    unknown = [name for name in data.classes if name not in known]
    if unknown:
        raise InputError(f"data.classes: no class {unknown[0]!r}; known: {', '.join(sorted(known))}")
    rows = [row for row, label in enumerate(labels) if label in chosen]
    passed[CLASS_LEFT_OUT] += len(labels) - len(rows)
    return rows


def table_listing(images: TableImages, data: Data) -> ImageListing:
    """List the images of a table, in the order of its rows.

    Raises:
        InputError: a column is missing, a row is wrong, or the images cannot be split.
    """
    rows = _rows(images, data)
    for row, label in enumerate(rows.labels):
        if label.lower() == "nan":
            raise rows.fault(row, f"label {label!r} stands for none: leave the row out, or call the class otherwise")
    if data.classes is None:
        refuse_look_alikes(dict.fromkeys(rows.labels))
    is_test_N, how = held_out_rows(rows)
    classes = sorted(set(rows.labels))
    label_numbers = {name: number for number, name in enumerate(classes)}
    labels_N = np.array([label_numbers[label] for label in rows.labels], np.int64)
    numbers = {"train": np.flatnonzero(~is_test_N).tolist(), "test": np.flatnonzero(is_test_N).tolist()}
    files = {split: [images.files[n] for n in chosen] for split, chosen in numbers.items()}
    groups = None
    if rows.groups is not None:
        groups = {split: [rows.groups[n] for n in chosen] for split, chosen in numbers.items()}
        how += f"; {plural(len(set(rows.groups)), 'group')} of images"
    over = passed_text(images.passed)
    if unused := _unused_columns(images.columns, data):
        how += f"; columns not used: {listed(unused, MOST_COLUMNS)}"
    reading = one_line(
        f"{images.where}, {how}; {len(files['train']):,} training and {plural(len(files['test']), 'test image')} of "
        f"{len(classes)} classes; {f'passed over: {over}' if over else 'nothing passed over'}"
    )
    read, map_ = file_readers(files, data, images.source, images.open_image)
    return ImageListing(
        labels_N[~is_test_N],
        labels_N[is_test_N],
        classes,
        data.image_size,
        read,
        map=map_,
        decoding=DECODING_VERSION,
        files=files,
        reading=reading,
        groups=groups,
        open_image=images.open_image,
    )


def _unused_columns(columns: Columns, data: Data) -> list[str]:
    """Return the names of columns that nothing is read from, such as one of patients that `data.groups` leaves out."""
    read = {
        data.label_column or "label", data.image_column or "path", data.split_column or "split", data.groups or "group",
    }  # fmt: skip
    return [name for name in columns.values if name not in read]


def _rows(images: TableImages, data: Data) -> Rows:
    """Return what decides which rows are the test."""
    columns, splits, groups = images.columns, None, None
    split_column = "split" if data.split_column is None and "split" in columns.values else data.split_column
    if split_column:
        splits = columns.take("split_column", split_column)
    group_column = "group" if data.groups is None and "group" in columns.values else data.groups
    if group_column and images.names is not None and "(" in group_column and group_column not in columns.values:
        groups = groups_in(images.names, group_column)
    elif group_column:
        groups = columns.take("groups", group_column)
    return Rows(columns.table, columns.places, columns.labels(data), splits, groups)


def cell_text(value: Any) -> str:
    """Return a value of a typed table as a CSV file would have it: whole numbers without a point, '' for none."""
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, bytes):  # words, from programs that do not say so
        return value.decode(errors="replace").strip()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
