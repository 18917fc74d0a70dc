"""Caches on disk: which files have to go before a new one is stored, and which are in use."""

import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

KEPT_FREE = 1_000_000_000  # bytes of the disk that checkpoints and databases may need


def files_to_evict(folder: Path, last_used: Mapping[Path, float], needed: int, limit: int) -> list[Path] | None:
    """Return the files of a cache to delete before a new one is stored: the least recently used first.

    Args:
        folder: where the cache is; `KEPT_FREE` bytes of its disk stay free.
        last_used: the time at which each file of the cache was last used.
        needed: bytes of the new file.
        limit: bytes that all files may take together.

    Returns:
        None if deleting all of them would not suffice.
    """
    sizes = {path: path.stat().st_size for path in last_used}
    used, free = sum(sizes.values()), shutil.disk_usage(folder).free - KEPT_FREE
    evicted = []
    for path in sorted(last_used, key=lambda path: last_used[path]):
        if used + needed <= limit and needed <= free:
            break
        evicted.append(path)
        used, free = used - sizes[path], free + sizes[path]
    return evicted if used + needed <= limit and needed <= free else None


def mark_in_use(file: BinaryIO) -> None:
    """Mark an open file as in use, for `is_in_use`, until it and all memory maps made of it are closed."""
    if sys.platform != "win32":  # which does not delete a file that is open
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)


def is_in_use(path: Path) -> bool:
    """Return whether any process has marked a file; False where that cannot be known."""
    if sys.platform != "win32":
        with suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False
