"""Manifests: a CSV or Parquet file with a row for each image: its path and label, and perhaps its split and group."""

import csv
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import first_line, one_line, plural
from ablation.data.decoding import File, ImageListing
from ablation.data.folder_walk import Passed
from ablation.data.groups import groups_in
from ablation.data.image_tables import Columns, cell_text, rows_of_classes
from ablation.data.own_images import OwnImages, own_listing
from ablation.spec.tables import Data


def manifest_listing(data: Data) -> ImageListing:
    """List the images of a manifest, in the order of its rows.

    Raises:
        InputError: the manifest cannot be read; a column is missing; a row is wrong, which is named; or as
            `own_listing`.
    """
    manifest = expand(str(data.manifest)).resolve()
    root = expand(data.root).resolve() if data.root is not None else manifest.parent
    columns = read_columns(manifest)
    rows, passed = rows_of_classes(columns, data)
    columns, files = _found_files(columns.chosen(rows), data, root, passed)
    if data.groups and "(" in data.groups and data.groups not in columns.values:  # an expression, for a column
        names = [Path(path).relative_to(root).as_posix() for path, _ in files]
        columns.values[data.groups] = groups_in(names, data.groups)
    is_test_N, how = columns.test_rows(data)
    where = f"{manifest}: images in {root}{how}"
    images = OwnImages(files, columns.labels(data), is_test_N, columns.groups(data), where, manifest, passed)
    return own_listing(images, data)


def _found_files(columns: Columns, data: Data, root: Path, passed: Passed) -> tuple[Columns, list[File]]:
    """Return the rows whose files are there, and the files.

    Raises:
        InputError: a file is missing, unless unreadable ones are skipped; it is outside the root, or listed twice.
    """
    rows: list[int] = []
    files: list[File] = []
    seen: dict[str, int] = {}
    for row, path in enumerate(columns.take("image_column", data.image_column or "path")):
        full = os.path.normpath(root / path)
        if "\\" in path and not os.path.exists(full):  # noqa: PTH110 - written on Windows
            full = os.path.normpath(root / path.replace("\\", "/"))
        if not Path(full).is_relative_to(root):
            raise columns.fault(row, f"{one_line(path)} is outside data.root ({root})")
        if seen.setdefault(full, row) != row:
            raise columns.fault(row, f"{one_line(path)} is on {columns.places[seen[full]]} already")
        try:
            status = os.stat(full)  # noqa: PTH116 - there may be millions
        except (OSError, ValueError) as error:
            if data.unreadable == "skip":
                passed["unreadable image", ""] += 1
                continue
            reason = error.strerror if isinstance(error, OSError) else "no name of a file"
            raise columns.fault(row, f"{one_line(full)} cannot be read ({reason}){_meant(full)}") from None
        if not stat.S_ISREG(status.st_mode):
            raise columns.fault(row, f"{one_line(full)} is no file")
        rows.append(row)
        files.append((full, status))
    return columns.chosen(rows), files


def _meant(path: str) -> str:
    """Return a hint at a file that has the path and a suffix, as where a manifest lists bare numbers of images."""
    folder, name = os.path.split(path)
    try:
        files = sorted(each for each in os.listdir(folder) if name and each.startswith(f"{name}."))  # noqa: PTH208
    except (OSError, ValueError):
        return ""
    return f"; did you mean {one_line(files[0])!r}?" if files else ""


def read_columns(path: Path) -> Columns:
    """Read a CSV file (commas, UTF-8) or a Parquet file.

    Raises:
        InputError: it is no such file, a column is there twice, a line has too many fields, or there is no row.
    """
    table = f"data.manifest: {one_line(path.name)}"
    try:
        columns = _csv_columns(path, table) if path.suffix.lower() == ".csv" else _parquet_columns(path, table)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else first_line(error)
        raise InputError(f"{table}: cannot be read ({reason})") from None
    if not columns.places:
        raise InputError(f"{table}: has no rows")
    return columns


def _csv_columns(path: Path, table: str) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        names = [name.strip() for name in next(reader, [])]
        _check_names(names, table)
        places, rows = [], []
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                raise InputError(
                    f"{table}, line {reader.line_num}: has {plural(len(fields), 'field')}, but the first line has "
                    f"{len(names)}"
                )
            places.append(f"line {reader.line_num}")
            rows.append([value.strip() for value in fields])
    return Columns(table, places, {name: [row[n] for row in rows] for n, name in enumerate(names)})


def _parquet_columns(path: Path, table: str) -> Columns:
    content = pyarrow.parquet.read_table(path)
    _check_names(content.column_names, table)
    kinds = {name: content.schema.field(name).type for name in content.column_names}
    nested = {name: str(kind) for name, kind in kinds.items() if pyarrow.types.is_nested(kind)}
    values = {name: [cell_text(value) for value in content[name].to_pylist()] for name in kinds if name not in nested}
    return Columns(table, [f"row {number}" for number in range(1, content.num_rows + 1)], values, nested)


def _check_names(names: Sequence[str], table: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{table}: has two columns {twice[0]!r}")
    if len(names) == 1 and {";", "\t"} & set(names[0]):
        raise InputError(f"{table}: must have commas between its columns, not {names[0]!r}")
