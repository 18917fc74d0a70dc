"""Image files to RGB: large JPEG files are decoded at a part of their size; threads; order; broken files."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_sample_images

from ablation.base.cores import usable_cores
from ablation.base.errors import InputError
from ablation.data import decoding
from ablation.data.decoding import AHEAD, decode_images, fit_image, in_memory, untracked
from ablation.data.image_files import decode_file
from ablation.data.reading import load_images
from ablation.spec.study import Data


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photo of 640 x 427 pixels, enlarged; neither side is a multiple of 2."""
    return Image.fromarray(load_sample_images().images[0]).resize((1601, 1067), Image.Resampling.BICUBIC)


def both(path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a file's pixels, decoded at full size and as a study decodes them."""
    with Image.open(path) as image:
        image.load()
        full = fit_image(image, size)
    return full.astype(int), decode_file(str(path), size).astype(int)


# --------------------------------------------------------------------------------------------------- the decoder's size


@pytest.mark.parametrize(
    ("mode", "size", "scale"),
    [
        ("RGB", 32, 8), ("L", 64, 8), ("CMYK", 64, 8), ("RGB", 100, 4), ("RGB", 266, 2), ("RGB", 267, 1),
        ("RGB", 900, 1),
    ],
)  # fmt: skip
def test_a_large_jpeg_is_reduced_and_never_enlarged_again(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch, mode: str, size: int, scale: int
) -> None:
    """The decoder leaves at least twice the size: 1,067 / 8 is above 2 x 64; 2 x 267 is above 1,067 / 2."""
    photo.convert(mode).save(tmp_path / "photo.jpg", quality=92)
    decoded: list[tuple[int, int]] = []
    as_rgb = decoding._as_rgb
    monkeypatch.setattr(decoding, "_as_rgb", lambda image: decoded.append(image.size) or as_rgb(image))
    full, reduced = both(tmp_path / "photo.jpg", size)
    assert decoded == [(1601, 1067), (-(-1601 // scale), -(-1067 // scale))]
    assert np.abs(reduced - full).mean() < 1
    assert np.abs(reduced - full).max() <= 12
    if scale == 1:
        assert np.array_equal(reduced, full)


def test_a_reduced_picture_is_not_shifted(tmp_path: Path) -> None:
    """Of 1,065 rows, an eighth is 134 rows, of which the last shows one; a shift by half of that would show here."""
    ramp_HW = np.tile(np.linspace(0, 255, 1065)[:, None], (1, 1601)).round().astype(np.uint8)
    for turn in range(4):
        Image.fromarray(np.rot90(ramp_HW, turn)).save(tmp_path / "ramp.jpg", quality=98)
        full, reduced = both(tmp_path / "ramp.jpg", 64)
        assert abs((reduced - full).mean()) < 0.3  # a shift would be 0.75 to 0.95


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"quality": 90}), ("tiff", {}), ("bmp", {})])
def test_other_files_are_not_reduced(tmp_path: Path, photo: Image.Image, suffix: str, options: dict[str, Any]) -> None:
    photo.save(tmp_path / f"photo.{suffix}", **options)
    full, reduced = both(tmp_path / f"photo.{suffix}", 32)
    assert np.array_equal(full, reduced)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_photo_is_turned_as_the_camera_says(tmp_path: Path, photo: Image.Image, orientation: int) -> None:
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    turned = photo.transpose(undo[orientation]) if orientation in undo else photo
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    _, reduced = both(tmp_path / "turned.jpg", 64)
    assert np.abs(reduced - fit_image(photo, 64)).mean() < 1.5
    wrong = fit_image(turned, 64).astype(int)
    assert orientation == 1 or np.abs(reduced - wrong).mean() > 10


def test_torchvisions_files_are_reduced_too(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And kept in the cache."""
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        photo.rotate(9 * number).save(folder / "jpg" / f"image_{number:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    data = Data(source="flowers102", root=str(tmp_path), image_size=24)
    images = load_images(data)
    files = [str(folder / "jpg" / f"image_{number:05}.jpg") for number in range(1, 5)]
    for row, file in zip(images.train_images_NHWC, files, strict=True):
        assert np.array_equal(row, decode_file(file, 24))
    monkeypatch.setattr("ablation.data.image_files.decode_images", None)  # a second decoding would raise
    assert load_images(data).digest == images.digest


# -------------------------------------------------------------------------------------------------------------- threads


def test_images_come_in_order_from_threads_that_hold_few_of_them() -> None:
    """The first image is the last to be ready; no more are begun than may wait for it."""
    begun: list[int] = []
    may_end = threading.Event()

    def decode(number: int) -> np.ndarray:
        begun.append(number)
        if number == 0:
            may_end.wait(30)
        return np.full((2, 2, 3), number % 256, np.uint8)

    def observed(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        assert (total, description) == (400, "Decoding")
        timer = threading.Timer(0.5, lambda: (begun_then.append(len(begun)), may_end.set()))
        timer.start()
        return items

    begun_then: list[int] = []
    threads = threading.active_count()  # another test may have left some
    names = [str(number) for number in range(400)]
    pixels = in_memory(decode_images(names, decode, observed, "Decoding"), (400, 2, 2, 3))
    assert pixels[:, 0, 0, 0].tolist() == [number % 256 for number in range(400)]
    assert sorted(begun) == list(range(400))
    if usable_cores() > 1:  # else nothing runs beside the first
        assert 1 < begun_then[0] <= AHEAD * usable_cores() + 1
    assert threading.active_count() <= threads + 1  # the timer may be about to end


LEFT_OUT = "; data.unreadable = 'skip' leaves such files out"


def test_broken_files_in_the_middle_are_named(tmp_path: Path) -> None:
    for number in range(60):
        Image.new("RGB", (30, 20), (number, 0, 0)).save(tmp_path / f"{number:02}.jpg")
    whole = (tmp_path / "07.jpg").read_bytes()
    (tmp_path / "41.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "17.jpg").write_bytes(b"")
    names = [str(tmp_path / f"{number:02}.jpg") for number in range(60)]
    with pytest.raises(InputError) as refused:
        list(decode_images(names, lambda number: decode_file(names[number], 8), untracked, ""))
    assert (
        str(refused.value)
        == f"data.root: cannot be read as an image: {names[17]} (not an image), {names[41]} (Truncated File Read)"
        + LEFT_OUT
    )
    with pytest.raises(
        InputError, match=r"0.jpg \(No such file or directory\), \S*1.jpg .* and 50 more; data.unreadable"
    ):
        list(decode_images(names, lambda number: decode_file(names[number] + "x", 8), untracked, ""))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_waits_only_for_the_images_in_the_threads() -> None:
    """400 images would take a quarter of a minute per core and more; those that wait for a thread are given up."""
    code = (
        "import time, numpy as np\n"
        "from ablation.data import decoding\n"
        "def decode(number):\n"
        "    print(number, flush=True)\n"
        "    time.sleep(0.2)\n"
        "decoding.usable_cores = lambda: 2\n"
        "list(decoding.decode_images(['x'] * 400, decode, decoding.untracked, ''))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(2)
        time.sleep(0.1)
        output, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert len(output.split()) <= 4
