"""Tables with a row for each image: its label, and perhaps its split and group. Manifests and sets of Hugging Face.

Legend: N rows.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ablation.base.errors import InputError
from ablation.base.text import nearest, one_line
from ablation.data.class_names import refuse_unknown
from ablation.data.folder_walk import Passed
from ablation.data.split_names import split_of
from ablation.spec.tables import Data


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

    def fault(self, row: int, text: str) -> InputError:
        """Return the error of a row, to be raised."""
        return InputError(f"{self.table}, {self.places[row]}: {text}")

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
        if "" in self.values[name]:
            raise self.fault(self.values[name].index(""), f"has no {name}")
        return self.values[name]

    def labels(self, data: Data) -> list[str]:
        """Return the labels; see `take`."""
        return self.take("label_column", data.label_column or "label")

    def test_rows(self, data: Data) -> tuple[np.ndarray | None, str]:
        """Return which rows are the test, bool N, and how that was understood, for people; None where nothing says it.

        Where some rows are for validation and none for the test, the test are these; otherwise they count as training
        images, because a study makes a split of its own.

        Raises:
            InputError: as `take`; or a word is no split.
        """
        column = "split" if data.split_column is None and "split" in self.values else data.split_column
        words = self.take("split_column", column) if column else []
        kinds = [split_of(word) for word in words]
        if None in kinds:
            word = one_line(words[kinds.index(None)])
            advice = "say train, val or test, or set data.split_column = ''"
            raise self.fault(kinds.index(None), f"{word!r} is no split; {advice}")
        test = "test" if "test" in kinds else "val"
        if test not in kinds:
            return None, ""
        named = {one_line(word) for word, kind in zip(words, kinds, strict=True) if kind == test}
        how = f", the test images are those of {' and '.join(map(repr, sorted(named)))}"
        return np.array([kind == test for kind in kinds]), how

    def groups(self, data: Data) -> list[str] | None:
        """Return what the images belong to, None without groups; see `take`."""
        column = "group" if data.groups is None and "group" in self.values else data.groups
        return self.take("groups", column) if column else None

    def chosen(self, rows: Iterable[int]) -> "Columns":
        """Return some of the rows."""
        rows = list(rows)
        values = {name: [column[row] for row in rows] for name, column in self.values.items()}
        return Columns(self.table, [self.places[row] for row in rows], values, self.unusable)


def rows_of_classes(columns: Columns, data: Data) -> tuple[list[int], Passed]:
    """Return the rows of the classes that the study asks for, and what is passed over: the others, unused columns.

    A column of patients, say, is unused unless `data.groups` names it.

    Raises:
        InputError: there is no such class, or a row has no label.
    """
    labels = columns.labels(data)
    refuse_unknown(data.classes or [], sorted(set(labels)))
    chosen = set(data.classes or labels)
    rows = [row for row, label in enumerate(labels) if label in chosen]
    for row in rows:
        if labels[row].lower() == "nan":
            reason = "stands for none: leave the row out, or call the class otherwise"
            raise columns.fault(row, f"label {labels[row]!r} {reason}")
    used = {
        data.label_column or "label", data.image_column or "path", data.split_column or "split", data.groups or "group",
    }  # fmt: skip
    passed: Passed = Counter(("unused column", one_line(name)) for name in columns.values if name not in used)
    if len(rows) < len(labels):
        passed["left-out image", "of other classes"] = len(labels) - len(rows)
    return rows, passed


def cell_text(value: Any) -> str:
    """Return a value of a typed table as a CSV file would have it: whole numbers without a point, '' for none."""
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, bytes):  # words, from programs that do not say so
        return value.decode(errors="replace").strip()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
