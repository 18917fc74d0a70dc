"""Caches on disk: which files have to go before a new one is stored."""

import shutil
from collections.abc import Mapping
from pathlib import Path

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
