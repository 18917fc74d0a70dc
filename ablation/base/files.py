"""Paths and files."""

import errno
import glob
import os
import platform
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ablation.base.errors import InputError, StoreError

HOME_OF_THE_HOMELESS = "/"  # for libraries that cannot do without; Docker chooses the same
NO_TEMPORARY_FOLDER = "no folder for temporary files can be written: set TMPDIR to one"
FULL = 1_000_000  # bytes left at most on a disk that is called full
LEFTOVER_SECONDS = 3600  # since a temporary file was last written: its process has died


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path with a leading ~ replaced by the home folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no such user


def file_system(path: Path) -> str:
    """Return the kind of file system that a path is on, such as 'ext4' or 'nfs4'; '' if it cannot be known."""
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder)).resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (existing, *existing.parents) if folder in mounts), "")


def is_home_known() -> bool:
    """Return whether this user has a home folder: by HOME or by an entry. Without one, `Path.home` raises."""
    return os.path.expanduser("~") != "~"  # noqa: PTH111


@contextmanager
def some_home() -> Iterator[None]:
    """Give a user without a home folder one for this context: some libraries cannot be imported without."""
    is_missing = not is_home_known()
    if is_missing:
        os.environ["HOME"] = HOME_OF_THE_HOMELESS
    try:
        yield
    finally:
        if is_missing:
            del os.environ["HOME"]


def has_temporary_folder() -> bool:
    """Return whether there is a folder for temporary files, such as /tmp, which can be written."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


def check_temporary_folder() -> None:
    """Refuse to run where no temporary file can be written.

    Raises:
        InputError: says what to do.
    """
    if not has_temporary_folder():
        raise InputError(NO_TEMPORARY_FOLDER)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for the time of this context.

    Raises:
        StoreError: no folder for temporary files can be written, or it is full.
    """
    if not has_temporary_folder():
        raise StoreError(NO_TEMPORARY_FOLDER)
    try:
        made = tempfile.TemporaryDirectory()
    except OSError as error:
        raise _unwritable(error) from None
    with made as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno != errno.ENOSPC or shutil.disk_usage(folder).free > FULL:
                raise
            raise _unwritable(error) from None


def _unwritable(error: OSError) -> StoreError:
    return StoreError(f"{tempfile.gettempdir()} cannot be written ({error.strerror}): set TMPDIR to another folder")


@contextmanager
def replacing(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file for the body to write; it becomes `path` if the body raises nothing.

    A reader of `path` sees the old file or the complete new one, whatever crashes. Several processes and threads may
    write `path` at once: each has a temporary file of its own, in the same folder, and the last one to finish wins;
    with `keep` the first one: a file that is there stays as it is.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_leftovers(path)
    temporary = path.with_name(f"{path.name}.{_writer()}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)  # Windows refuses to sync a file that is open for reading only
        if keep:
            _move_unless_there(temporary, path)
        else:
            temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync(path.parent, os.O_RDONLY)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise


def _move_unless_there(temporary: Path, path: Path) -> None:
    """Move a temporary file to its place unless a file is there; unlike a test before, a link leaves no gap."""
    try:
        path.hardlink_to(temporary)
    except OSError:  # a file is there, or the folder has no links, as on some network drives
        if not path.exists():
            temporary.replace(path)
    temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, keep: bool = False) -> None:
    """Write a file, and its folder where it is missing; see `replacing`.

    Raises:
        StoreError: the disk is full, or cannot be written.
    """
    try:
        with replacing(path, keep=keep) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{path.parent} cannot be written ({error.strerror})") from None


def write_over(path: Path, content: bytes) -> None:
    """Write a file of ours as `write_atomically` does, also where a folder has its name, which no file could replace.

    Raises:
        StoreError: the disk is full, or cannot be written.
    """
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    write_atomically(path, content)


def ensure_writable(folder: Path) -> None:
    """Create a folder where it is missing, and refuse one in which nothing can be written.

    Raises:
        StoreError: it cannot be created, or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror})") from None


def _writer() -> str:
    """Return what names this process in a temporary file: digits of its machine's name, and its number."""
    return f"{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}"


def _delete_leftovers(path: Path) -> None:
    """Delete temporary files of `path` whose processes were killed; nobody would overwrite them.

    A clock that jumps makes a file look old, so those of a process of this machine that lives are left alone.
    """
    machine = _writer().partition("-")[0]
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.tmp*"):  # SQLite's journals end with "-journal"
        writer = leftover.name.removeprefix(f"{path.name}.").partition(".")[0]
        host, _, number = writer.partition("-")
        if host == machine and number.isdecimal() and psutil.pid_exists(int(number)):
            continue
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


def _sync(path: Path, flags: int) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
