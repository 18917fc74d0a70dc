"""The cache of decoded images: where it is, that it stays below its limit, and what it deletes."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ablation.base import files
from ablation.base.disk_cache import KEPT_FREE
from ablation.base.errors import InputError
from ablation.data.image_cache import DecodedImages, cache_folder, cache_limit, read_decoded

IMAGE_BYTES = 100_000
LIMIT = "0.00025"  # GB: room for two files


def images(name: str, fingerprint: str, calls: list[str]) -> DecodedImages:
    """Return images whose decoding is recorded; the name gives the pixels away."""

    def decode(part: str) -> Iterator[np.ndarray]:
        if part == "train":
            calls.append(name)
        yield np.full((IMAGE_BYTES if part == "train" else 1,), ord(name), np.uint8)

    return DecodedImages(name, fingerprint, {"train": (1, IMAGE_BYTES), "test": (1, 1)}, decode)


def read(name: str, fingerprint: str, calls: list[str]) -> np.ndarray:
    return read_decoded(images(name, fingerprint, calls))["train"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "decoded"
    monkeypatch.setenv("ABLATION_CACHE", str(path))
    return path


# --------------------------------------------------------------------------------------------------------- its folder


def test_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"  # ABLATION_CACHE, which all tests have
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ABLATION_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "ablation"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "home" / ".cache" / "ablation"


@pytest.mark.skipif(os.name != "posix", reason="only there can a user lack a name")
def test_a_home_folder_may_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number: HOME is not set, and the user is not in /etc/passwd."""
    import pwd  # noqa: PLC0415 - Windows has none

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    calls: list[str] = []
    for _ in range(2):  # with ABLATION_CACHE
        read("a", "1", calls)
    assert (calls, names(tmp_path / "cache")) == (["a"], ["imagefolder-a.safetensors"])
    monkeypatch.delenv("ABLATION_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cache_folder() is None
    for _ in range(2):
        read("a", "1", calls)
    assert calls == ["a"] * 3
    assert names(tmp_path) == ["cache"], "no folder '~' is made"


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_several_users_may_share_the_folder(folder: Path) -> None:
    read("a", "1", [])
    assert (folder / "lock").stat().st_mode & 0o777 == 0o666


# ------------------------------------------------------------------------------------------------------------- bounds


def test_the_limit_is_10_gb_or_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_limit() == 10_000_000_000
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", "2.5")
    assert cache_limit() == 2_500_000_000
    for text in ("2GB", "-1", "nan", "inf"):
        monkeypatch.setenv("ABLATION_CACHE_LIMIT", text)
        with pytest.raises(InputError, match=f"ABLATION_CACHE_LIMIT: must be a number of GB, got '{text}'"):
            read("a", "1", [])


def test_the_files_stay_below_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two: the one that was used least recently goes; a use is reading, too."""
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", LIMIT)
    calls: list[str] = []

    def use(name: str) -> None:
        assert read(name, "1", calls)[0, 0] == ord(name)
        for number, path in enumerate(sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (number, number))  # far enough apart for any file system's clock
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 250_000

    for name in "abacab":
        use(name)
    assert calls == ["a", "b", "c", "b"], "b had to go for c, because a had been read since"
    assert names(folder) == ["imagefolder-a.safetensors", "imagefolder-b.safetensors"]


def test_a_changed_folder_replaces_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes room for itself: nothing else has to go."""
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", LIMIT)
    calls: list[str] = []
    read("a", "1", calls)
    read("b", "1", calls)
    read("b", "2", calls)
    assert names(folder) == ["imagefolder-a.safetensors", "imagefolder-b.safetensors"]
    read("b", "2", calls)
    read("a", "1", calls)
    assert calls == ["a", "b", "b"]


def test_images_that_exceed_the_limit_are_decoded_every_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And cost no file that is of use."""
    calls: list[str] = []
    read("a", "1", calls)
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", "0.00009")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert read("b", "1", calls)[0, 0] == ord("b")
    assert calls == ["a", "b", "b"]
    assert "the limit is 9e-05 GB (ABLATION_CACHE_LIMIT)" in caplog.text
    assert names(folder) == ["imagefolder-a.safetensors"]


def test_room_is_kept_on_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    read("a", "1", calls)
    free = shutil._ntuple_diskusage(10**12, 10**12, KEPT_FREE - IMAGE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    read("b", "1", calls)
    assert names(folder) == ["imagefolder-a.safetensors"]


def test_a_full_disk_is_no_reason_to_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, flags: int) -> None:
        assert path.stat().st_size > IMAGE_BYTES
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    assert read("a", "1", [])[0, 0] == ord("a")
    assert names(folder) == []


# ------------------------------------------------------------------------------------------------------------ cleaning


def test_files_of_no_use_are_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of crashed writers (of this version and before), and damaged ones; no others.

    An audit or a comparison may be in the making: who writes it does not hold the lock.
    """
    calls: list[str] = []
    for name in "ab":
        read(name, "1", calls)
    (folder / "imagefolder-e.safetensors").write_bytes(b"half")
    others = ["audit-a.1.tmp", "mine.safetensors", "mine.tmp", "near-b.2.tmp"]
    for name in ("imagefolder-f.tmp", "imagefolder-f.4711.tmp", *others):
        (folder / name).write_bytes(b"half")
    read("g", "1", calls)
    kept = [f"imagefolder-{name}.safetensors" for name in "abg"]
    assert names(folder) == sorted([*kept, *others])


def test_a_file_that_cannot_be_deleted_is_no_reason_to_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where another process reads it."""
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", LIMIT)
    calls: list[str] = []
    for name in "ab":
        read(name, "1", calls)

    def in_use(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "The process cannot access the file")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", in_use)
        assert read("c", "1", calls)[0, 0] == ord("c")
    assert names(folder) == ["imagefolder-a.safetensors", "imagefolder-b.safetensors"]
