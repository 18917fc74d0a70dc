"""Files that are old or complete, however many write them and whatever crashes."""

import errno
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablation.base import files
from ablation.base.errors import InputError, StoreError
from ablation.base.files import LEFTOVER_SECONDS, replacing, write_atomically
from ablation.storage.store import find_store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_writer_in_the_middle_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writer begins and ends while the first one waits for the disk."""
    path = tmp_path / "report.html"
    real_fsync = os.fsync
    steps = []

    def fsync(descriptor: int) -> None:
        steps.append(descriptor)
        if len(steps) == 1:
            write_atomically(path, b"second")
            assert path.read_bytes() == b"second"
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, b"the first one")
    assert path.read_bytes() == b"the first one"
    assert names(tmp_path) == ["report.html"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file while another process reads it")
@pytest.mark.parametrize("has_links", [True, False])
def test_the_first_of_two_writers_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    """The second finds no file at first; then the first one ends. Some network folders have no hard links."""
    path, sync = tmp_path / "folder" / "file", files._sync

    def sync_late(temporary: Path, flags: int) -> None:
        monkeypatch.setattr(files, "_sync", sync)
        write_atomically(path, b"first", keep=True)
        sync(temporary, flags)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(files, "_sync", sync_late)
    write_atomically(path, b"second", keep=True)
    write_atomically(path, b"third", keep=True)
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_two_threads_write_one_file_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    contents = {b"a" * 100_000, b"b" * 200_000}
    write_atomically(path, b"a" * 100_000)
    errors: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(40):
                write_atomically(path, content)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert errors == []
    assert names(tmp_path) == ["report.html"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def write() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_created_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file cannot be written"):
        write_atomically(tmp_path / "file" / "below", b"")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask for others")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_temporary_files_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    old, recent, other = (tmp_path / f"{name}.tmp" for name in ("[a].1", "[a].2", "b.1"))
    for file in (old, recent, other):
        file.touch()
    long_ago = time.time() - LEFTOVER_SECONDS - 10
    for file in (old, other):
        os.utime(file, (long_ago, long_ago))
    write_atomically(tmp_path / "[a]", b"new")
    assert names(tmp_path) == ["[a]", "[a].2.tmp", "b.1.tmp"]


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_clock_that_jumps_deletes_no_file_that_is_being_written(tmp_path: Path, is_alive: bool) -> None:
    """Another writer comes while the file looks as if it were from 1970."""
    path = tmp_path / "database"
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        seen = temporary if is_alive else temporary.rename(str(temporary).replace(f"-{os.getpid()}.", "-999999999."))
        os.utime(seen, (0, 0))
        write_atomically(path, b"another")
        assert seen.exists() == is_alive
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"


def test_without_a_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only container, say. TMPDIR may name a folder that does not exist: Python takes /tmp then."""

    def find() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    files.check_temporary_folder()
    monkeypatch.setattr(tempfile, "gettempdir", find)
    with pytest.raises(InputError, match="^no folder for temporary files can be written: set TMPDIR to one$"):
        find_store(str(tmp_path / "store")).check_writable()
    with pytest.raises(StoreError, match="set TMPDIR to one$"), files.temporary_folder():
        pass
    assert names(tmp_path) == []


def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for free in (0, 10**9):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        expected = (
            StoreError,
            f"^{tmp_path} cannot be written .No space left on device.: set TMPDIR to another folder$",
        )
        another = (OSError, "No space left")  # of another disk: who wrote there names it
        error, text = expected if free == 0 else another
        with pytest.raises(error, match=text), files.temporary_folder():
            raise OSError(errno.ENOSPC, "No space left on device")
        assert names(tmp_path) == []


def test_a_folder_in_which_no_other_can_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    text = f"^{tmp_path} cannot be written .No space left on device.: set TMPDIR to another folder$"
    with pytest.raises(StoreError, match=text), files.temporary_folder():
        pass


def test_an_unknown_home_folder_is_left_as_it_is() -> None:
    assert files.expand("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.skipif(os.name != "posix", reason="only there can a user lack a name")
def test_a_user_without_a_home_folder_has_one_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd  # noqa: PLC0415 - Windows has none

    monkeypatch.setenv("HOME", "/home/me")
    with files.some_home():
        assert Path.home() == Path("/home/me")
    assert os.environ["HOME"] == "/home/me"

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    with files.some_home():
        assert Path.home() == Path("/")
    assert "HOME" not in os.environ
