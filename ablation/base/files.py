"""Paths and files."""

import os
from contextlib import suppress
from pathlib import Path

from ablation.base.errors import StoreError


def expand(path: str) -> Path:
    """Return a path with a leading ~ replaced by the home folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no such user


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or complete: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StoreError: the disk is full, or cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise StoreError(f"{path.parent} cannot be written ({error.strerror})") from None
