"""Folders of image files: what one holds, level by level or at any depth, and what is passed over."""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ablation.base.errors import InputError
from ablation.base.text import listed, one_line, plural
from ablation.data.decoding import File, is_image_name

SYSTEM_NAMES = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir",
    "lost+found", "__pycache__",
}  # fmt: skip
PLURALS = {  # of what is passed over, where the noun does not stand at the end
    "class left out": "classes left out",
    "folder beside the splits": "folders beside the splits",
    "folder met twice": "folders met twice",
    "image outside class folders": "images outside class folders",
    "link that leads back": "links that lead back",
}
MOST_DETAILS = 6  # of the names and formats that are passed over for one reason, in the line about them

Passed = Counter[tuple[str, str]]  # (what, its name or format) -> how many were passed over


@dataclass
class Found:
    """What stands directly in a folder, or at any depth below it.

    Attributes:
        images: the paths and statuses of image files, sorted by path.
        folders: the names of the folders that count, sorted; only of what stands directly in a folder.
        passed: what does not count.
        unreadable: the paths of image files that are passed over because they cannot be read.
    """

    images: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed: Passed = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


class FolderWalk:
    """The folders of a set, each read once.

    Args:
        skips_unreadable: whether a file that cannot be reached is passed over, and not refused.
    """

    def __init__(self, *, skips_unreadable: bool):
        self._skips_unreadable = skips_unreadable
        self._levels: dict[Path, Found] = {}
        self._below: dict[Path, Found] = {}

    def level(self, folder: Path) -> Found:
        """Return what stands directly in a folder.

        Raises:
            InputError: the folder, or a file in it, cannot be read or has a name that is not UTF-8.
        """
        if folder not in self._levels:
            self._levels[folder] = self._read_level(folder)
        return self._levels[folder]

    def below(self, folder: Path) -> Found:
        """Return the images in a folder at any depth. Links to folders are followed; no folder is read twice.

        Raises:
            InputError: as `level`.
        """
        if folder not in self._below:
            self._below[folder] = self._read_below(folder)
        return self._below[folder]

    def _read_level(self, folder: Path) -> Found:
        level = Found()
        with _reading_errors(), os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            try:
                with _reading_errors():
                    _add(level, entry)
            except InputError:
                if not self._skips_unreadable:
                    raise
                if is_image_name(entry.name):
                    level.passed["unreadable image", ""] += 1
                    level.unreadable.append(entry.path)
                else:
                    level.passed["other file", ""] += 1
        for name in level.folders:
            _check_name(os.path.join(folder, name))  # noqa: PTH118 - a folder is not passed over
        return level

    def _read_below(self, folder: Path) -> Found:
        below = Found()
        above = {os.path.realpath(place) for place in (folder, *folder.absolute().parents)}
        seen, waiting = set(above), [folder]
        while waiting:
            place = waiting.pop()
            level = self.level(place)
            below.images += level.images
            below.passed += level.passed
            below.unreadable += level.unreadable
            if not level.images and not level.folders:
                below.passed["empty folder", place.name] += 1
            for name in level.folders:
                real = os.path.realpath(place / name)
                if real in seen:
                    below.passed["link that leads back" if real in above else "folder met twice", name] += 1
                    continue
                seen.add(real)
                waiting.append(place / name)
        below.images.sort(key=lambda file: file[0])
        return below


def passed_text(passed: Passed) -> str:
    """Return what was passed over as text: "3 other files (.heic, .txt), 1 empty folder (birds)"; empty for nothing."""
    parts = []
    for what in sorted({what for what, _ in passed}):
        count = sum(number for (other, _), number in passed.items() if other == what)
        names = sorted(name for other, name in passed if other == what and name)
        counted = plural(count, what, PLURALS.get(what, ""))
        parts.append(f"{counted} ({listed(names, MOST_DETAILS)})" if names else counted)
    return ", ".join(parts)


def _add(level: Found, entry: os.DirEntry[str]) -> None:
    """Add an entry of a folder.

    Raises:
        InputError: an image's name is not UTF-8, or it is no file.
        OSError: a link leads nowhere, or to itself.
    """
    is_folder = entry.is_dir()
    kind = "folder" if is_folder else "file"
    if entry.name.startswith("."):  # .ipynb_checkpoints, or ._1.jpg of macOS
        level.passed[f"hidden {kind}", ""] += 1
    elif entry.name.lower() in SYSTEM_NAMES:
        level.passed[f"system {kind}", entry.name] += 1
    elif is_folder:
        level.folders.append(entry.name)
    elif is_image_name(entry.name):
        _check_name(entry.path)
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep its reader waiting
            raise InputError(f"data.root: {one_line(entry.path)} is no file")
        level.images.append((entry.path, status))
    else:
        level.passed["other file", one_line(Path(entry.name).suffix.lower()) or "no suffix"] += 1


def _check_name(path: str) -> None:
    """Refuse a name that no database, report or digest could hold.

    Raises:
        InputError: the name's bytes are not UTF-8; shows them.
    """
    try:
        os.path.basename(path).encode()  # noqa: PTH119 - there may be millions
    except UnicodeEncodeError:
        raise InputError(f"data.root: the name of {one_line(path)} is not UTF-8: rename it") from None


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Raise errors of folders and links as InputError."""
    try:
        yield
    except OSError as error:  # a link to nowhere, a folder that may not be read
        raise InputError(f"data.root: {one_line(str(error.filename))} cannot be read ({error.strerror})") from None
