"""The cache of decoded images: one file per set of image files, size and subset, all of them below a limit.

The files are in the format of safetensors. Sets that do not fit into memory are decoded straight into their file and
read through memory maps of it; such a file may exceed the limit, and is not deleted while it is in use.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open

from ablation.base.disk_cache import files_to_evict, is_in_use, mark_in_use
from ablation.base.errors import InputError
from ablation.base.files import replacing
from ablation.data.decoding import in_memory
from ablation.storage.locks import file_lock

DEFAULT_LIMIT = 10  # GB
LOCK_SECONDS = 10  # to wait for a process that decodes a set into its file, before images are not cached
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImages:
    """Images that are decoded unless the cache has them.

    Attributes:
        name: identifies their file.
        fingerprint: changes with the images and with their decoding.
        shapes: array name -> shape NHWC.
        decode: yields the images of an array in order, uint8 HWC; raises InputError for unreadable ones.
    """

    name: str
    fingerprint: str
    shapes: Mapping[str, tuple[int, ...]]
    decode: Callable[[str], Iterator[np.ndarray]]

    @property
    def file_name(self) -> str:
        """The name of their file."""
        return f"imagefolder-{self.name}.safetensors"

    @property
    def size(self) -> int:
        """Bytes of all pixels."""
        return sum(map(math.prod, self.shapes.values()))


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


def cache_file(name: str) -> Path | None:
    """Return the path of a file in the cache; None without a cache."""
    folder = cache_folder()
    return None if folder is None else folder / name


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


def read_decoded(images: DecodedImages) -> dict[str, np.ndarray]:
    """Return pixels in memory, by array name.

    Without a cache (no folder, no room, a disk that cannot be written), the next process decodes again.

    Raises:
        InputError: see `cache_limit`; or from decoding.
    """
    file, limit = cache_file(images.file_name), cache_limit()
    if file is not None and _is_of(file, images):
        with suppress(OSError, SafetensorError), safe_open(file, framework="numpy") as cached:
            return {name: cached.get_tensor(name) for name in images.shapes}
    pixels = {name: in_memory(images.decode(name), shape) for name, shape in images.shapes.items()}
    if file is not None:
        with suppress(OSError, NotImplementedError), _locked(file.parent, timeout=LOCK_SECONDS):
            if _make_room(file, images.size, limit):
                _write(file, images, pixels.values())
            else:
                logger.warning(
                    "%.1f GB of decoded images are not cached, so that every start decodes them again: the limit is "
                    "%g GB (ABLATION_CACHE_LIMIT), or the disk of %s is full",
                    images.size / 1e9, limit / 1e9, file.parent
                )  # fmt: skip
    return pixels


def map_decoded(images: DecodedImages) -> dict[str, np.memmap]:
    """Return read-only memory maps of pixels by array name; they are decoded straight into the file if necessary.

    Raises:
        InputError: the disk has no room, or cannot be written; see `cache_limit`; or from decoding.
    """
    size = f"{images.size / 1e9:.1f} GB of decoded images, which do not fit into memory"
    file, limit = cache_file(images.file_name), cache_limit()
    if file is None:
        raise InputError(f"ABLATION_CACHE: must name a folder on a disk with room for {size}")
    try:
        with _locked(file.parent, timeout=-1):
            if not _is_of(file, images):
                if not _make_room(file, images.size, limit if images.size <= limit else sys.maxsize):
                    raise InputError(
                        f"data: {size}, do not fit on the disk of {file.parent} either; set ABLATION_CACHE to a folder "
                        "on another disk, set data.limit, or make data.image_size smaller"
                    )
                _write(file, images, (image for name in images.shapes for image in images.decode(name)))
            return _memory_maps(file)
    except (OSError, NotImplementedError) as error:  # the last: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"ABLATION_CACHE: {file.parent} cannot take {size} ({reason})") from None


def cache_files() -> list[tuple[Path, int, bool]]:
    """Return the files of the cache, the largest first: path, bytes, and whether a process uses it."""
    folder = cache_folder()
    kinds = ("imagefolder-*", "audit-*", "near-*")
    files = [] if folder is None else [file for kind in kinds for file in folder.glob(kind)]
    return sorted(
        ((file, file.stat().st_size, is_in_use(file)) for file in files), key=lambda file: (-file[1], file[0])
    )


def is_damaged(file: Path) -> bool:
    """Return whether a file of the cache cannot be used; it is made again when a study needs it."""
    if file.suffix == ".tmp":
        return True  # of a process that died, unless it is being written
    try:
        if file.suffix == ".json":
            json.loads(file.read_bytes())
            return False
        with safe_open(file, framework="numpy"):
            return False
    except (SafetensorError, ValueError):
        return True
    except OSError:  # another user's, which may be fine
        return False


def clear_cache() -> int:
    """Delete the files of the cache that no process uses; return how many.

    Raises:
        InputError: the cache cannot be written.
    """
    folder = cache_folder()
    if folder is None or not folder.is_dir():
        return 0
    try:
        with _locked(folder, timeout=LOCK_SECONDS):
            unused = [file for file, _, in_use in cache_files() if not in_use]
            for file in unused:
                file.unlink()
    except (OSError, NotImplementedError) as error:
        raise InputError(f"ABLATION_CACHE: {folder} cannot be cleaned ({error})") from None
    return len(unused)


def _is_of(file: Path, images: DecodedImages) -> bool:
    """Return whether a cache file is there, undamaged and of these images, and record its use.

    Shapes are compared, too: the same images, one of which has moved from one split to the other, are other arrays.
    """
    try:
        with safe_open(file, framework="numpy") as cached:
            shapes = {name: tuple(cached.get_slice(name).get_shape()) for name in cached.keys()}  # noqa: SIM118
            is_same = (cached.metadata() or {}).get("fingerprint") == images.fingerprint and shapes == images.shapes
    except (OSError, SafetensorError):
        return False
    if is_same:
        with suppress(OSError):  # the file may be another user's
            os.utime(file)
    return is_same


def _memory_maps(file: Path) -> dict[str, np.memmap]:
    """Return memory maps of the arrays in a valid safetensors file, which is in use until all of them are gone."""
    with file.open("rb") as opened:
        mark_in_use(opened)
        header_size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_size))
        start = 8 + header_size
        return {
            name: np.memmap(opened, np.uint8, "r", start + about["data_offsets"][0], tuple(about["shape"]))
            for name, about in header.items()
            if name != "__metadata__"
        }


def _write(file: Path, images: DecodedImages, parts: Iterable[np.ndarray]) -> None:
    """Write a cache file, a part of its pixels after the other; unless all are there, there is no file."""
    header: dict[str, object] = {"__metadata__": {"fingerprint": images.fingerprint}}
    end = 0
    for name, shape in images.shapes.items():
        start, end = end, end + math.prod(shape)
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format asks for alignment
    with replacing(file) as unfinished, unfinished.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            opened.write(np.ascontiguousarray(part).data)


@contextmanager
def _locked(folder: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of the cache, which a process holds that writes a file or deletes one.

    Raises:
        OSError: the folder cannot be written; or TimeoutError after this many seconds, never with -1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock").acquire(timeout=timeout):
        with suppress(OSError):
            (folder / "lock").chmod(0o666)  # several users may share the folder
        yield


def _make_room(file: Path, size: int, limit: int) -> bool:
    """Delete damaged files and, if a new one needs their room, the least recently used; return whether it has room.

    Files in use are neither deleted nor counted. One that exceeds the limit goes first once it is not in use.
    """
    folder = file.parent
    others = []
    for other in folder.glob("imagefolder-*"):
        if other != file and is_in_use(other):
            continue
        if other == file or is_damaged(other):  # nobody else writes such a file: its writer has crashed
            with suppress(OSError):  # on Windows, while another process reads it
                other.unlink()
        else:
            others.append(other)
    others += [*folder.glob("audit-*"), *folder.glob("near-*")]
    status = {other: other.stat() for other in others}
    last_used = {other: 0 if status[other].st_size > limit else status[other].st_mtime for other in others}
    evicted = files_to_evict(folder, last_used, size, limit)
    for other in evicted or []:
        other.unlink()
    return evicted is not None
