"""Image files: sets that do not fit into memory are decoded into a file and read through memory maps of it."""

import gc
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from ablation.base import files
from ablation.base.disk_cache import KEPT_FREE, is_in_use
from ablation.base.errors import InputError
from ablation.data import image_cache, image_files, reading
from ablation.data.image_cache import DecodedImages, map_decoded, read_decoded
from ablation.data.images import to_device
from ablation.data.reading import load_images, load_split
from ablation.spec.study import Data

IMAGES = 10
BYTES = 10_000  # of an image


def images(name: str, calls: list[str] | None = None) -> DecodedImages:
    """Return 10 images of 10,000 bytes whose decoding is recorded; the name gives the pixels away."""

    def decode(part: str) -> Iterator[np.ndarray]:
        if calls is not None:
            calls.append(name)
        for number in range(IMAGES if part == "train" else 1):
            yield np.full(BYTES, ord(name) + number, np.uint8)

    return DecodedImages(name, f"of {name}", {"train": (IMAGES, BYTES), "test": (1, BYTES)}, decode)


def names(folder: Path) -> list[str]:
    """Return the names of the sets that have a file, and of what else there is."""
    found = (path.name for path in folder.iterdir() if path.name != "lock")
    return sorted(name.removeprefix("imagefolder-").removesuffix(".safetensors") for name in found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"  # ABLATION_CACHE, which all tests have


# -------------------------------------------------------------------------------------------------------- its one file


def test_a_map_is_decoded_once_and_read_from_the_same_file_as_pixels_in_memory(folder: Path) -> None:
    calls: list[str] = []
    mapped = map_decoded(images("a", calls))
    assert calls == ["a", "a"], "train and test"
    for pixels in (mapped, map_decoded(images("a", calls)), read_decoded(images("a", calls)),
                   load_file(folder / "imagefolder-a.safetensors")):  # fmt: skip
        assert pixels["train"][:, 0].tolist() == [ord("a") + number for number in range(IMAGES)]
        assert (pixels["train"] == pixels["train"][:, :1]).all()
        assert pixels["test"].tolist() == [[ord("a")] * BYTES]
    assert isinstance(mapped["train"], np.memmap)
    assert not mapped["train"].flags.writeable
    assert len(calls) == 2
    read_decoded(images("b", calls))
    assert map_decoded(images("b", calls))["train"][3, 0] == ord("b") + 3
    assert len(calls) == 4


def test_two_processes_decode_once() -> None:
    """The second waits for the first; threads stand for them."""
    calls: list[str] = []
    maps: list[dict[str, np.memmap]] = []
    threads = [threading.Thread(target=lambda: maps.append(map_decoded(images("a", calls)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(maps) == 3
    assert calls == ["a", "a"]


# ------------------------------------------------------------------------------------------------------------- its room


def test_a_map_may_exceed_the_limit_and_then_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", "0.00025")  # GB: room for two sets
    for name in "ab":
        read_decoded(images(name))
    count = {"train": IMAGES, "test": 40}
    large = replace(
        images("c"),
        shapes={part: (count[part], BYTES) for part in count},
        decode=lambda part: (np.zeros(BYTES, np.uint8) for _ in range(count[part])),
    )
    maps = map_decoded(large)
    assert names(folder) == ["a", "b", "c"], "nothing that is of use went, because the disk has room"
    read_decoded(images("d"))
    assert names(folder) == ["b", "c", "d"], "c is in use, and not counted"
    del maps
    gc.collect()
    time.sleep(0.02)  # the clock of files advances every few milliseconds
    read_decoded(images("b"))
    read_decoded(images("e"))
    assert names(folder) == ["b", "e"]


def test_a_set_in_use_is_not_evicted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATION_CACHE_LIMIT", "0.00025")
    file = folder / "imagefolder-a.safetensors"
    train_NX = map_decoded(images("a"))["train"]  # the map of the test images is gone
    assert is_in_use(file)
    for name in "bcdef":
        read_decoded(images(name))
    assert names(folder) == ["a", "e", "f"]
    rows = train_NX[2:4]
    del train_NX
    gc.collect()
    assert is_in_use(file), "a part of the map is enough"
    assert rows[0, 0] == ord("a") + 2
    del rows
    gc.collect()
    assert not is_in_use(file)
    read_decoded(images("g"))
    assert names(folder) == ["f", "g"]


def test_only_a_disk_without_room_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the least recently used files have gone; nothing is decoded first."""
    calls: list[str] = []
    read_decoded(images("a"))
    free = KEPT_FREE - 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, free))
    message = f"data: 0.0 GB of decoded images, which do not fit into memory, do not fit on the disk of {folder} either"
    with pytest.raises(InputError, match=message):
        map_decoded(images("b", calls))
    assert (calls, names(folder)) == ([], ["a"])
    free = KEPT_FREE
    map_decoded(images("b", calls))
    assert names(folder) == ["b"]


def test_a_disk_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATION_CACHE", "/dev/null/nowhere")
    with pytest.raises(InputError, match="ABLATION_CACHE: /dev/null/nowhere cannot take 0.0 GB .*Not a directory"):
        map_decoded(images("a"))
    monkeypatch.setattr(image_cache, "cache_folder", lambda: None)
    with pytest.raises(InputError, match="ABLATION_CACHE: must name a folder on a disk with room for 0.0 GB"):
        map_decoded(images("a"))


# ------------------------------------------------------------------------------------------------------- half a file


def stops(error: type[BaseException]) -> DecodedImages:
    def decode(part: str) -> Iterator[np.ndarray]:
        yield np.zeros(BYTES, np.uint8)
        raise error("stop")

    return replace(images("a"), decode=decode)


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, MemoryError])
def test_an_interrupted_decoding_leaves_nothing(folder: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="stop"):
        map_decoded(stops(error))
    assert names(folder) == []


def test_a_disk_that_runs_full_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, flags: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        with pytest.raises(InputError, match=rf"{folder} cannot take 0.0 GB .* \(No space left on device\)$"):
            map_decoded(images("a"))
    assert names(folder) == []
    assert map_decoded(images("a"))["test"][0, 0] == ord("a")


def test_half_a_file_of_a_killed_process_is_not_used(folder: Path) -> None:
    code = (
        "import os, signal\n"
        "import numpy as np\n"
        "from ablation.data.image_cache import DecodedImages, map_decoded\n"
        "def decode(part):\n"
        "    yield np.zeros(50_000, np.uint8)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "map_decoded(DecodedImages('a', 'of a', {'train': (10, 10_000), 'test': (1, 10_000)}, decode))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (half,) = names(folder)
    assert half.endswith(".tmp")
    calls: list[str] = []
    mapped = map_decoded(images("a", calls))
    assert calls == ["a", "a"]
    assert mapped["train"][:, -1].tolist() == [ord("a") + number for number in range(IMAGES)]
    assert names(folder) == ["a"]


# ------------------------------------------------------------------------------------------------------- image folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, 12 training images and 2 test images each, in noise of 100 x 80 pixels."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 2)):
        for name in "abc":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (80, 100, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.jpg")
    return tmp_path / "images"


@pytest.mark.parametrize("more", [{}, {"limit": 20}, {"classes": ["c", "a"]}, {"classes": ["a", "b"], "limit": 12}])
def test_mapped_images_are_those_in_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
) -> None:
    data = Data(source="imagefolder", root=str(root), image_size=16, val_fraction=0.25, **more)
    device = torch.device("cpu")
    in_memory, split = load_split(data, seed=3)
    monkeypatch.setattr(reading, "available_memory", lambda: 1000)
    mapped, mapped_split = load_split(data, seed=3)
    assert isinstance(mapped.train_images_NHWC, np.memmap)
    assert isinstance(mapped.test_images_NHWC, np.memmap)
    assert not isinstance(in_memory.train_images_NHWC, np.memmap)
    assert mapped.digest == in_memory.digest
    for part, mapped_part in ((split.train_N, mapped_split.train_N), (split.val_N, mapped_split.val_N)):
        assert np.array_equal(part, mapped_part)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a map is read-only, which torch warns about
            one = to_device(mapped.train_images_NHWC, mapped.train_labels_N, part, device)
        other = to_device(in_memory.train_images_NHWC, in_memory.train_labels_N, part, device)
        address = mapped.train_images_NHWC.__array_interface__["data"][0]
        assert one.images_NCHW.data_ptr() == address, "they are not copied"
        assert len(one) == len(other) == len(part)
        assert torch.equal(one.labels_N, other.labels_N)
        assert one.digest == other.digest
        chosen_B = torch.tensor([len(part) - 1, 0, 2])
        assert torch.equal(one.read(chosen_B), other.images_NCHW[chosen_B])
        assert torch.equal(other.read(chosen_B), other.images_NCHW[chosen_B])
        assert [len(batch) for batch in one.in_order(2)] == [len(batch) for batch in other.in_order(2)]
        assert torch.equal(torch.cat(list(one.in_order(2))), other.images_NCHW)
        assert torch.equal(one.subset(chosen_B).read(torch.tensor([2, 1])), other.images_NCHW[[2, 0]])
        assert torch.equal(one.subset(chosen_B).labels_N, other.labels_N[chosen_B])


def test_broken_files_in_a_map_are_named(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "available_memory", lambda: 1000)
    (root / "train" / "b" / "5.jpg").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"cannot be read as an image: \S*train/b/5.jpg \(not an image\); data.unreadable"
    ):
        load_images(Data(source="imagefolder", root=str(root)))
    assert names(folder) == []


def test_pixels_of_another_decoding_are_never_read(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory or mapped: each version decodes again after the other."""
    data = Data(source="imagefolder", root=str(root), image_size=8)
    decoded: list[str] = []
    real = image_files.decode_file
    monkeypatch.setattr(image_files, "decode_file", lambda path, *how: decoded.append(path) or real(path, *how))
    for memory in (10**10, 1000):
        monkeypatch.setattr(reading, "available_memory", lambda memory=memory: memory)
        for version, decodes in ((1, True), (1, False), (2, True), (2, False), (1, True)):
            decoded.clear()
            monkeypatch.setattr(image_files, "DECODING_VERSION", version)
            load_split(data, seed=0)
            assert bool(decoded) is decodes
        for path in folder.glob("imagefolder-*"):
            path.unlink()
