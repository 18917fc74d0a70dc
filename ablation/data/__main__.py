"""Look at a set of images: python -m ablation.data [check] NAME, or python -m ablation.data cache

The folder's command: `ablation/data.py` cannot stand beside `ablation/data/`. Heavy imports are inside functions.
"""

import csv
import sys
from pathlib import Path

import click

from ablation import __version__
from ablation.base.command_line import refusing_unreachable_paths, run_command
from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import one_line, plural
from ablation.spec.files import find_study_file
from ablation.spec.reading import load_study, parse_override
from ablation.spec.tables import Data

MOST_SHOWN = 50  # pairs of near-duplicates; all are in the file of --out


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", metavar="[check] NAME | cache", nargs=-1)
@click.option("--out", metavar="FILE", help="Where the contact sheet (PNG), or the pairs of check (CSV), go.")
@click.option("--clear", is_flag=True, help="With cache: delete the decoded images that no process uses.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a field of the file; repeatable.")
@click.version_option(__version__)
def cli(words: tuple[str, ...], out: str | None, clear: bool, settings: tuple[str, ...]) -> None:
    """Show the images of NAME: a study, or an image folder by its path. Classes, sizes, modes, and a contact sheet.

    check NAME looks for pictures that are nearly the same, mirrored ones included. cache lists the decoded images that
    are kept on disk.
    """
    if words == ("cache",):
        return show_cache(clear)
    if clear:
        raise InputError("--clear: is for `cache`")
    if len(words) == 1 and words != ("check",):
        return show(read_data(words[0], settings), Path(out or "contact-sheet.png"))
    if len(words) == 2 and words[0] == "check":
        return check(read_data(words[1], settings), Path(out) if out else None)
    raise InputError("which images? NAME, check NAME or cache")


def read_data(name: str, settings: tuple[str, ...]) -> Data:
    """Return the `[data]` of a study, or of an image folder that is named by its path.

    Raises:
        InputError: there is no such study or folder.
    """
    with refusing_unreachable_paths():
        folder = expand(name)
        if folder.is_dir() and not name.endswith(".toml"):
            keys = {".".join(keys).removeprefix("data."): value for keys, value in map(parse_override, settings)}
            try:
                return Data.model_validate({"source": "imagefolder", "root": name, **keys})
            except ValueError as error:
                raise InputError(f"--set: {' '.join(str(error).split())}") from None
        path = find_study_file(name)
        return load_study(path, name=path.stem, overrides=[parse_override(setting) for setting in settings]).data


def show(data: Data, sheet: Path) -> None:
    """Print the classes, sizes and modes of a set, and write its contact sheet."""
    from ablation.base.terminal import say, show_table, track_progress
    from ablation.data.overview import class_table, kinds_text, write_contact_sheet
    from ablation.data.reading import list_images, load_images

    listing = list_images(data)
    if listing.files is not None:
        say(kinds_text([path for files in listing.files.values() for path, _ in files]))
    images = load_images(data, track_progress)
    if images.reading:
        say(images.reading)
    show_table(class_table(images))
    try:
        write_contact_sheet(images, sheet)
    except (OSError, ValueError) as error:
        raise InputError(f"--out: {sheet} cannot be written ({error})") from None
    say(f"{sheet} shows pictures of each class.")


def check(data: Data, out: Path | None) -> None:
    """Print the pairs of pictures that are nearly the same."""
    from ablation.base.terminal import say, waiting
    from ablation.data.reading import list_images

    try:
        from ablation.data.near_duplicates import find_near_duplicates
    except ImportError:
        raise InputError("check: needs imagehash: pip install 'ablation[check]'") from None
    listing = list_images(data)
    if listing.files is None:
        raise InputError(f"check: data.source = {data.source!r} has no image files")
    splits = [(path, split) for split, files in listing.files.items() for path, _ in files]
    labels = [*listing.train_labels_N, *listing.test_labels_N]
    with waiting(f"Comparing {plural(len(splits), 'picture')}"):
        pairs = find_near_duplicates([path for path, _ in splits], lambda count: None)
    lines = []
    for pair in pairs:
        first, second = splits[pair.first], splits[pair.second]
        notes = ["mirrored"] if pair.is_mirrored else []
        notes += ["training and test"] if first[1] != second[1] else []
        notes += ["two classes"] if labels[pair.first] != labels[pair.second] else []
        lines.append((first[0], second[0], f"{pair.difference:.1f}", " and ".join(notes)))
    if listing.reading:
        say(listing.reading)
    for one, other, difference, note in lines[:MOST_SHOWN]:
        say(f"{one_line(one)} = {one_line(other)} (grey levels differ by {difference} of 255{note and f'; {note}'})")
    across = sum("training and test" in line[3] for line in lines)
    labelled = sum("two classes" in line[3] for line in lines)
    say(f"{plural(len(lines), 'pair')} of pictures nearly the same: {across} across training and test, {labelled} in "
        "two classes")  # fmt: skip
    if out is not None:
        write_pairs(out, lines)


def write_pairs(path: Path, lines: list[tuple[str, str, str, str]]) -> None:
    """Write pairs to a CSV file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("first", "second", "difference", "note"), *lines])
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written ({error.strerror})") from None


def show_cache(clear: bool) -> None:
    """Print the files of the cache of decoded images, and delete those that no process uses."""
    from ablation.base.terminal import say, show_table
    from ablation.base.text import Table
    from ablation.data.image_cache import cache_files, cache_folder, clear_cache

    if clear:
        say(f"{plural(clear_cache(), 'file')} deleted")
    rows = [[file.name, f"{size / 1e6:,.1f}", "yes" if in_use else "no"] for file, size, in_use in cache_files()]
    show_table(Table(f"Decoded images in {cache_folder()}", ["file", "MB", "in use"], rows))


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(cli)


if __name__ == "__main__":
    sys.exit(main())
