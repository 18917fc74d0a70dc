"""The cache of decoded images: one file per image folder, size and subset, all of them below a limit."""

import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ablation.base.disk_cache import files_to_evict
from ablation.base.errors import InputError
from ablation.storage.locks import file_lock

# Version of the decoding. Raise it to invalidate all decoded images; their files are then deleted.
DECODING_VERSION = 3
UNNAMED_VERSION = 3  # the latest version whose files do not name it
DEFAULT_LIMIT = 10  # GB
logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Return the folder of decoded images: ABLATION_CACHE, else `ablation` in the user's cache folder.

    None where no variable names it and the home folder is unknown, such as that of a container's user without a name.
    """
    if own_folder := os.environ.get("ABLATION_CACHE"):
        return Path(own_folder)
    if user_folder := os.environ.get("XDG_CACHE_HOME"):  # on every system
        return Path(user_folder) / "ablation"
    try:
        folder = Path(user_cache_dir("ablation", appauthor=False))
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None  # older versions of platformdirs leave "~" where home is unknown


def cache_limit() -> int:
    """Return the bytes that all files may take together: ABLATION_CACHE_LIMIT (in GB), else 10 GB.

    Raises:
        InputError: the variable is not a number of GB.
    """
    text = os.environ.get("ABLATION_CACHE_LIMIT") or str(DEFAULT_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise InputError(f"ABLATION_CACHE_LIMIT: must be a number of GB, got {text!r}")
    return round(limit * 1e9)


def decoded_once(name: str, fingerprint: str, decode: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the pixels that `decode` returns, from a cache file where it has the same fingerprint.

    Without a cache (no folder, no room, a disk that cannot be written), the next process decodes again.

    Args:
        name: identifies the cache file.
        fingerprint: changes with the images and with their decoding.
        decode: returns arrays by name.

    Raises:
        InputError: see `cache_limit`; or from `decode`.
    """
    folder, limit = cache_folder(), cache_limit()
    if folder is None:
        return decode()
    file = folder / f"imagefolder-{name}.safetensors"
    cached = _read(file, fingerprint)
    if cached is not None:
        return cached
    pixels = decode()
    with suppress(OSError, SafetensorError, NotImplementedError):  # the last: a file system without locks
        _store(file, fingerprint, pixels, limit)
    return pixels


def _read(file: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """Return the pixels of a cache file; None if it is missing, damaged or has another fingerprint."""
    try:
        with safe_open(file, framework="numpy") as cached:
            if (cached.metadata() or {})["fingerprint"] != fingerprint:
                return None
            pixels = {name: cached.get_tensor(name) for name in cached.keys()}  # noqa: SIM118 - it is not a dict
    except (OSError, SafetensorError, KeyError):
        return None
    with suppress(OSError):  # the file may be another user's
        os.utime(file)  # records the use
    return pixels


def _store(file: Path, fingerprint: str, pixels: dict[str, np.ndarray], limit: int) -> None:
    """Write a cache file, after deleting useless files and, if it needs their room, the least recently used."""
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock"):  # nobody else writes, so unfinished files are those of crashed writers
        with suppress(OSError):
            (folder / "lock").chmod(0o666)  # several users may share the folder
        for other in [*folder.glob("imagefolder-*.tmp"), *folder.glob("imagefolder-*.safetensors")]:
            if other == file or other.suffix == ".tmp" or _is_useless(other):
                with suppress(OSError):  # on Windows, while another process reads it
                    other.unlink()
        last_used = {other: other.stat().st_mtime for other in folder.glob("imagefolder-*.safetensors")}
        size = sum(array.nbytes for array in pixels.values())
        evicted = files_to_evict(folder, last_used, size, limit)
        if evicted is None:
            logger.warning(
                "%.1f GB of decoded images are not cached, so that every start decodes them again: the limit is %g GB "
                "(ABLATION_CACHE_LIMIT), or the disk of %s is full", size / 1e9, limit / 1e9, folder
            )  # fmt: skip
            return
        for other in evicted:
            other.unlink()
        unfinished = file.with_suffix(".tmp")
        try:
            save_file(pixels, unfinished, {"fingerprint": fingerprint, "version": str(DECODING_VERSION)})
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)  # a full disk needs the room


def _is_useless(file: Path) -> bool:
    """Return whether a cache file is damaged, or of an older version of the decoding."""
    try:
        with safe_open(file, framework="numpy") as cached:
            return int((cached.metadata() or {}).get("version", UNNAMED_VERSION)) < DECODING_VERSION
    except (SafetensorError, ValueError):
        return True
    except OSError:  # another user's, which may be fine
        return False
