"""Look at a set of images: python -m ablation.data [check | suspects] NAME, or python -m ablation.data cache

The folder's command: `ablation/data.py` cannot stand beside `ablation/data/`. Heavy imports are inside functions.
"""

import csv
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from ablation import __version__
from ablation.base.command_line import refusing_unreachable_paths, run_command
from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import defused, nearest, one_line, plural
from ablation.spec.files import find_study_file
from ablation.spec.reading import WithoutEffect, check_name, load_study, parse_override, validation_message
from ablation.spec.tables import MANIFEST_FILES, SAVED_BY_DATASETS, Data
from ablation.study import load_backbone

MOST_SHOWN = 50  # pairs of near-duplicates; all are in the file of --out


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", metavar="[check | suspects] NAME | cache", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File for the contact sheet (PNG) [default: contact-sheet.png]; for pairs or suspects (CSV) [default: none, "
    "they are printed].",
)
@click.option(
    "--store",
    metavar="DIR",
    help="With suspects: folder with the results.  [default: MLFLOW_TRACKING_URI and OPTUNA_STORAGE, else mlruns]",
)
@click.option("--clear", is_flag=True, help="With cache: delete the decoded images that no process uses.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a field of the file; repeatable.")
@click.version_option(__version__)
def cli(words: tuple[str, ...], out: Path | None, store: str | None, clear: bool, settings: tuple[str, ...]) -> None:
    """Show the images of NAME: classes, sizes, modes, and a contact sheet.

    NAME is a study, or the path of an image folder, a manifest or a set of Hugging Face.

    check NAME looks for pictures that are nearly the same, mirrored ones included. suspects NAME lists the test images
    of a study that all its confirmation runs call another class. cache lists the decoded images that are kept on disk.
    """
    kind = words[0] if words[:1] in (("check",), ("suspects",), ("cache",)) else "NAME"
    if len(words) != (1 if kind in ("NAME", "cache") else 2):
        raise InputError("which images? NAME, check NAME, suspects NAME or cache")
    for option, is_given, kinds in (
        ("--set", bool(settings), ("NAME", "check")),
        ("--out", out is not None, ("NAME", "check", "suspects")),
        ("--store", store is not None, ("suspects",)),
        ("--clear", clear, ("cache",)),
    ):
        if is_given and kind not in kinds:
            raise InputError(f"{option}: is for {', '.join(kinds)}")
    if kind == "cache":
        show_cache(clear)
    elif kind == "suspects":
        show_suspects(words[1], store, out)
    elif kind == "check":
        check(read_data(words[1], settings), out)
    else:
        show(read_data(words[0], settings), out or Path("contact-sheet.png"))


def read_data(name: str, settings: tuple[str, ...]) -> Data:
    """Return the `[data]` of a study, or of an image folder, a manifest or a set that is named by its path.

    Raises:
        InputError: there is no such study, folder or file.
    """
    with refusing_unreachable_paths():
        path, overrides = expand(name), [parse_override(setting) for setting in settings]
        keys = {".".join(keys).removeprefix("data."): value for keys, value in overrides}
        own: dict[str, str] | None = None
        if name.lower().endswith(MANIFEST_FILES):
            own = {"source": "manifest", "manifest": name}
            holds = "huggingface" if _has_images(path, keys.get("image_column", "image")) else "manifest"
            if keys.get("source", holds) == "huggingface":
                own = {"source": "huggingface", "root": name}
        elif path.is_dir() and not name.endswith(".toml"):
            is_saved = any((path / file).is_file() for file in SAVED_BY_DATASETS)
            own = {"source": "huggingface" if is_saved else "imagefolder", "root": name}
        elif len(path.parts) > 1 and not path.exists():
            raise InputError(f"{name}: no such folder or file")
        if own is not None:
            for key in keys.keys() - Data.model_fields.keys():
                raise InputError(f"--set: data.{key}: unknown key{nearest(key, Data.model_fields)}")
            try:
                return Data.model_validate({**own, **keys})
            except ValidationError as error:
                raise InputError(f"--set: {validation_message(error)}") from None
        try:
            return load_study(find_study_file(name), overrides=overrides, load_backbone=load_backbone).data
        except WithoutEffect as error:  # the images are described all the same
            return error.spec.data


def _has_images(path: Path, column: Any) -> bool:
    """Return whether a file is a Parquet file with its images inside: a structure of bytes and a path in each row."""
    if path.suffix.lower() != ".parquet" or not isinstance(column, str):  # which is refused later
        return False
    import pyarrow
    import pyarrow.parquet

    with suppress(OSError, KeyError, pyarrow.ArrowException):  # said when it is read
        kind = pyarrow.parquet.read_schema(path).field(column).type
        return pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}
    return False


def show(data: Data, sheet: Path) -> None:
    """Print the classes, sizes and modes of a set, and write its contact sheet."""
    from ablation.base.terminal import say, say_prose, show_table, track_progress
    from ablation.data.overview import class_table, contact_sheet, kinds_text
    from ablation.data.reading import list_images, read_listing

    listing = list_images(data, track_progress)
    images = read_listing(listing, track_progress)  # which refuses images that cannot be read
    if listing.files is not None:
        say_prose(kinds_text([path for files in listing.files.values() for path, _ in files], listing.open_image))
    if images.reading:
        say_prose(images.reading)
    show_table(class_table(images))
    try:
        contact_sheet(images).save(sheet, "PNG")
    except (OSError, ValueError) as error:
        raise InputError(f"--out: {sheet} cannot be written ({error})") from None
    say(f"{sheet} shows pictures of each class.")


def check(data: Data, out: Path | None) -> None:
    """Print the pairs of pictures that are nearly the same, and keep those across training and test for the report."""
    import numpy as np

    from ablation.base.terminal import say, say_prose, track_progress, waiting
    from ablation.data.kept_duplicates import comparison_of, keep_comparison
    from ablation.data.near_duplicates import MOST_EQUAL, Picture, find_near_duplicates, hashing_library
    from ablation.data.reading import image_names, list_images, listing_key, read_listing

    hashing_library()  # refused before the images are read
    listing = list_images(data, track_progress)
    labels_N, train = np.concatenate([listing.train_labels_N, listing.test_labels_N]), len(listing.train_labels_N)
    names = image_names(listing)
    pictures: list[Picture]
    if listing.files is not None:
        pictures, key = [*names], listing_key(listing)
    else:
        images = read_listing(listing, track_progress)
        pictures, key = [*images.train_images_NHWC, *images.test_images_NHWC], images.listing_key
    with waiting(f"Comparing {plural(len(names), 'picture')}"):
        found = find_near_duplicates(pictures, listing.open_image)
    keep_comparison(comparison_of(found, pictures, names, train, listing.open_image), key)
    is_across_P = (found.first_P < train) & (found.second_P >= train)
    is_labelled_P = labels_N[found.first_P] != labels_N[found.second_P]

    def line(pair: int) -> tuple[str, str, str, str]:
        kinds = ((found.is_mirrored_P, "mirrored"), (is_across_P, "training and test"), (is_labelled_P, "two classes"))
        note = " and ".join(kind for is_kind_P, kind in kinds if is_kind_P[pair])
        return names[found.first_P[pair]], names[found.second_P[pair]], f"{found.difference_P[pair]:.1f}", note

    count = len(found.first_P)
    if listing.reading:
        say_prose(listing.reading)
    if found.unreadable:
        say(f"not compared: {plural(found.unreadable, 'picture')} that cannot be read")
    if found.represented:
        others = plural(found.represented, "picture")
        say(f"paired only with the first of more than {MOST_EQUAL} equal ones: {others}")
    for one, other, difference, note in map(line, range(min(count, MOST_SHOWN))):
        say(f"{one_line(one)} = {one_line(other)} (grey levels differ by {difference} of 255{note and f'; {note}'})")
    say(f"{plural(count, 'pair')} of pictures nearly the same: {is_across_P.sum()} across training and test, "
        f"{is_labelled_P.sum()} in two classes")  # fmt: skip
    if out is not None:
        write_lines(out, [("first", "second", "difference", "note"), *map(line, range(count))])


def show_suspects(name: str, store: str | None, out: Path | None) -> None:
    """Print the test images of a study whose label all confirmation runs contradict."""
    from ablation.base.terminal import loading, say, show_table, track_progress
    from ablation.base.text import Table
    from ablation.storage.store import find_store

    with loading("torch and MLflow"):
        from ablation.analysis.label_errors import suspected_labels
        from ablation.analysis.results import read_results
        from ablation.data.reading import image_names, list_images, load_split
        from ablation.data.split import split_seed
        from ablation.tracking import configure_mlflow

    configure_mlflow()
    result = read_results(find_store(store), check_name(name))
    suspects = suspected_labels(result)
    data = result.spec.data
    images, _ = load_split(data, split_seed(result.spec.seed), track=track_progress, is_begun=True)
    if images.digest != result.data_digest:
        raise InputError("data: the images have changed since the study, or another version of ablation decoded them")
    names = image_names(list_images(data))[-len(images.test_labels_N) :]
    lines = [(names[each.number], each.label, each.called, f"{each.probability:.3f}") for each in suspects]
    columns = ["test image", "label", "all runs say", "mean probability"]
    if lines:
        rows = [list(map(one_line, line)) for line in lines[:MOST_SHOWN]]
        show_table(
            Table("Suspected labels", columns, rows, ["A hard image looks the same as a wrong label: look at it."])
        )
    say(f"{plural(len(lines), 'test image')} of {result.test_images:,} that all confirmation runs call another class")
    if out is not None:
        write_lines(out, [tuple(columns), *lines])


def write_lines(path: Path, lines: list[tuple[str, ...]]) -> None:
    """Write lines to a CSV file; cells that a spreadsheet would compute begin with an apostrophe.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names as they are
            csv.writer(file).writerows([list(map(defused, line)) for line in lines])
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written ({error.strerror})") from None


def show_cache(clear: bool) -> None:
    """Print the files of the cache of decoded images, and delete those that no process uses."""
    from ablation.base.terminal import say, show_table
    from ablation.base.text import Table
    from ablation.data.image_cache import cache_files, cache_folder, cache_limit, clear_cache, is_damaged

    if clear:
        say(f"{plural(clear_cache(), 'file')} deleted")
    if (folder := cache_folder()) is None:
        say("There is no cache of decoded images: the home folder is unknown; ABLATION_CACHE names a folder")
        return
    files = cache_files()
    rows = [
        [file.name, f"{size / 1e6:,.1f}", "in use" if in_use else "damaged" if is_damaged(file) else "not in use"]
        for file, size, in_use in files
    ]
    total = sum(size for _, size, _ in files) / 1e9
    note = (
        f"{total:.1f} of {cache_limit() / 1e9:g} GB (ABLATION_CACHE_LIMIT). Damaged files are made again when needed."
    )
    show_table(Table(f"Decoded images in {folder}", ["file", "MB", "state"], rows, [note]))


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(cli)


if __name__ == "__main__":
    sys.exit(main())
