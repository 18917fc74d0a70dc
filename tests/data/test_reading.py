import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.functional import resize

from ablation.base.errors import InputError
from ablation.base.generators import generator
from ablation.data import image_files, reading
from ablation.data.augmentation import augment, draw
from ablation.data.decoding import ImageListing, fit_image
from ablation.data.image_cache import cache_folder
from ablation.data.image_files import decode_file
from ablation.data.image_set import ImageSet
from ablation.data.images import normalise
from ablation.data.normalisation import Normalisation
from ablation.data.reading import check_memory, list_images, load_images, load_split
from ablation.data.split import split_listing
from ablation.spec.tables import Data


def test_digits_are_scikit_learns() -> None:
    images = load_images(Data(source="digits", image_size=8))
    assert images.train_images_NHWC.shape == (1437, 8, 8, 3)
    assert images.test_images_NHWC.shape == (360, 8, 8, 3)
    grey = {(np.round(image * 255 / 16).astype(np.uint8)).tobytes() for image in load_digits().images}
    assert {image.tobytes() for image in images.train_images_NHWC[..., 0].copy()} <= grey
    train = {image.tobytes() for image in images.train_images_NHWC}
    assert sum(image.tobytes() in train for image in images.test_images_NHWC) <= 2  # a few digits are drawn alike


def test_classes_are_chosen_and_renumbered() -> None:
    everything = load_images(Data(source="digits"))
    some = load_images(Data(source="digits", classes=["7", "5"]))
    assert some.classes == ["7", "5"]
    assert np.array_equal(some.train_images_NHWC[some.train_labels_N == 0],
                          everything.train_images_NHWC[everything.train_labels_N == 7])  # fmt: skip
    assert some.digest != everything.digest
    with pytest.raises(InputError, match="no class '12'; known: 0, 1"):
        load_images(Data(source="digits", classes=["1", "12"]))


def test_many_classes_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking each of 20,000 names up in a list took three seconds."""
    names, labels = [f"{number:05}" for number in range(20_000)], np.arange(20_000)
    listing = ImageListing(labels, labels, names, 32, lambda *_: (labels, labels))
    data = Data(source="imagefolder", root=".", classes=names[::-1])
    monkeypatch.setattr(reading, "list_own_images", lambda _: listing)
    began = time.process_time()
    assert list_images(data).train_labels_N.tolist() == list(range(20_000))[::-1]
    assert time.process_time() - began < 1


# ------------------------------------------------------------------------------------------------------ image folder


def modes() -> dict[str, Image.Image]:
    """One picture, a ramp of greys from left to right, as files of other modes may hold it."""
    ramp_HW = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    grey = Image.fromarray(ramp_HW)
    sixteen = Image.fromarray(ramp_HW.astype(np.uint16) * 257)
    alpha = Image.fromarray(np.stack([np.zeros_like(ramp_HW)] * 3 + [255 - ramp_HW], 2))  # black, on white
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # the camera was held on its side
    palette = grey.convert("P")
    palette.info["transparency"] = 0  # its black is white then
    return {"L": grey, "P": grey.convert("P"), "RGBA": alpha, "I;16": sixteen,
            "LA": Image.merge("LA", [Image.new("L", (32, 32)), grey.point(lambda v: 255 - v)]), "turned": turned,
            "P with transparency": palette}  # fmt: skip


@pytest.mark.parametrize("mode", modes())
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_any_mode_are_seen_as_they_are_meant(tmp_path: Path, mode: str, suffix: str) -> None:
    picture = modes()[mode]
    picture.save(tmp_path / f"image.{suffix}", exif=picture.getexif())
    with Image.open(tmp_path / f"image.{suffix}") as image:
        pixels = fit_image(image, 32)
    expected = np.tile(np.arange(0, 256, 8)[:, None], (32, 1, 3))
    if mode == "P with transparency" and suffix == "png":  # TIFF has none
        expected[:, 0] = 255
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three training images and one test image each; every image has one colour of its own."""
    root = tmp_path / "images"
    for c, name in enumerate(["cat", "dog"]):
        for split, count in (("train", 3), ("test", 1)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                colour = (100 * c, 50 * number, 200 if split == "test" else 0)
                Image.new("RGB", (32, 32), colour).save(root / split / name / f"{number}.png")
    return root


def load_folder(root: Path, **more: object) -> ImageSet:
    return load_images(Data(source="imagefolder", root=str(root), **more))


def test_image_folder(folder: Path) -> None:
    images = load_folder(folder)
    assert images.classes == ["cat", "dog"]
    assert images.train_labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.train_images_NHWC[:, 5, 5].tolist() == [[100 * c, 50 * n, 0] for c in (0, 1) for n in (0, 1, 2)]
    assert images.test_images_NHWC[:, 0, 0].tolist() == [[0, 0, 200], [100, 0, 200]]


def names_of(root: Path) -> dict[str, list[str]]:
    """Return the colours' numbers of the images of each split, class by class."""
    files = list_images(Data(source="imagefolder", root=str(root))).files
    assert files is not None
    return {split: [str(Path(path).relative_to(root)) for path, _ in files[split]] for split in files}


def test_validation_images_are_training_images_or_those_of_the_test(folder: Path) -> None:
    """As people have them: train, val and test, or train and val alone."""
    shutil.copytree(folder / "test", folder / "val")
    (folder / "val" / "cat" / ".hidden.png").write_bytes(b"not an image")
    (folder / "val" / ".ipynb_checkpoints").mkdir()
    assert names_of(folder) == {
        "train": ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "val/cat/0.png",
                  "train/dog/0.png", "train/dog/1.png", "train/dog/2.png", "val/dog/0.png"],
        "test": ["test/cat/0.png", "test/dog/0.png"],
    }  # fmt: skip
    assert load_folder(folder).train_labels_N.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    shutil.rmtree(folder / "test")
    assert names_of(folder)["test"] == ["val/cat/0.png", "val/dog/0.png"]
    assert len(names_of(folder)["train"]) == 6
    (folder / "val").rename(folder / "valid")
    (folder / "valid" / "bird").mkdir()
    shutil.copy(folder / "valid" / "cat" / "0.png", folder / "valid" / "bird" / "0.png")
    with pytest.raises(InputError, match="class 'bird' has test images only .*test images in valid/"):
        load_folder(folder)


def test_of_classes_alone_a_fifth_is_the_test(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name, count in (("cat", 20), ("dog", 9)):
        (root / name / "deeper").mkdir(parents=True)
        for number in range(count):
            place = root / name / ("deeper" if number % 2 else "") / f"{number}.png"
            Image.new("RGB", (8, 8), (number, count, 0)).save(place)
    found = names_of(root)
    assert [sum(path.startswith(name) for path in found["test"]) for name in ("cat", "dog")] == [4, 2]
    assert len(found["train"]) == 16 + 7
    assert not set(found["train"]) & set(found["test"])
    assert names_of(root) == found
    images, split = load_split(Data(source="imagefolder", root=str(root), val_fraction=0.25, image_size=8), seed=0)
    assert sorted(images.train_images_NHWC[images.train_labels_N == 0, 0, 0, 0].tolist()) == sorted(
        int(Path(path).stem) for path in found["train"] if path.startswith("cat")
    )
    assert (len(split.train_N), len(split.val_N), len(images.test_labels_N)) == (17, 6, 6)
    for number in range(2, 9):
        (root / "dog" / ("deeper" if number % 2 else "") / f"{number}.png").unlink()
    with pytest.raises(InputError, match="data: class 'dog' has 2 images, but needs three"):
        load_folder(root)
    shutil.rmtree(root / "dog")
    with pytest.raises(InputError, match="of two classes or more, not of 'cat'"):
        load_folder(root)


def test_a_class_with_one_training_image_is_named(folder: Path) -> None:
    for number in (0, 1):
        (folder / "train" / "dog" / f"{number}.png").unlink()
    with pytest.raises(InputError, match="class 'dog' has 1 training image, but needs two"):
        load_split(Data(source="imagefolder", root=str(folder), val_fraction=0.5), seed=0)


def test_other_sizes_and_modes_are_fitted(folder: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 8:22] = 255  # the middle square and a margin for the filter are white
    Image.fromarray(wide).save(folder / "train" / "cat" / "0.png")
    Image.new("L", (64, 64), 77).save(folder / "train" / "cat" / "1.png")
    images = load_folder(folder)
    assert (images.train_images_NHWC[0] == 255).all()
    assert (images.train_images_NHWC[1] == 77).all()
    assert load_folder(folder, image_size=16).train_images_NHWC.shape == (6, 16, 16, 3)


def test_cache_is_used_and_notices_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_folder(folder)
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "decode_images", None)  # a second decoding would raise
        again = load_folder(folder)
    assert again.digest == first.digest
    assert np.array_equal(again.train_images_NHWC, first.train_images_NHWC)
    assert np.array_equal(again.test_labels_N, first.test_labels_N)

    changed = folder / "train" / "dog" / "1.png"
    before = changed.stat()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert load_folder(folder).train_images_NHWC[4, 0, 0].tolist() == [9, 9, 9]
    (folder / "train" / "dog" / "2.png").unlink()
    assert len(load_folder(folder).train_labels_N) == 5


def test_without_a_writable_cache_it_decodes_every_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATION_CACHE", "/dev/null/nowhere")
    assert load_folder(folder).digest == load_folder(folder).digest


def test_damaged_cache_is_made_again(folder: Path) -> None:
    first = load_folder(folder)
    (cache,) = cache_folder().glob("imagefolder-*.safetensors")
    cache.write_bytes(cache.read_bytes()[:50])
    assert load_folder(folder).digest == first.digest


# ------------------------------------------------------------------------------------------------------- limit, memory


def test_only_what_the_limit_keeps_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels, labels and parts are those that all images would be split into."""
    for number in range(3, 30):
        for c, name in enumerate(["cat", "dog"]):
            Image.new("RGB", (8, 8), (100 * c, number, 7)).save(folder / "train" / name / f"{number}.png")
    opened: list[str] = []
    monkeypatch.setattr(image_files, "decode_file", lambda path, *how: opened.append(path) or decode_file(path, *how))
    everything = load_folder(folder)
    assert len(opened) == 62
    wanted = Data(source="imagefolder", root=str(folder), limit=20, val_fraction=0.25)
    whole = split_listing(wanted, list_images(wanted), seed=4)
    opened.clear()
    images, split = load_split(wanted, seed=4)
    assert len(set(opened)) == len(opened) == 20 + 2
    for part, expected in ((split.train_N, whole.train_N), (split.val_N, whole.val_N)):
        assert np.array_equal(images.train_images_NHWC[part], everything.train_images_NHWC[expected])
        assert np.array_equal(images.train_labels_N[part], everything.train_labels_N[expected])
    assert np.array_equal(images.test_images_NHWC, everything.test_images_NHWC)
    opened.clear()
    again, _ = load_split(wanted, seed=4)
    assert (again.digest, opened) == (images.digest, [])
    other, _ = load_split(wanted, seed=5)
    assert other.digest != images.digest


def test_arrays_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three copies of 50,000 training images and one of 10,000 test images of 3,072 bytes are 0.49 GB."""
    monkeypatch.setattr(reading, "available_memory", lambda: 10**9)
    check_memory(32, 50_000, 10_000)
    monkeypatch.setattr(reading, "available_memory", lambda: 4 * 10**8)
    with pytest.raises(InputError) as refused:
        check_memory(32, 50_000, 10_000)
    assert str(refused.value) == (
        "data: 50,000 training and 10,000 test images of 32 x 32 pixels take 0.5 GB of memory, of which 0.4 GB are "
        "free; set data.limit = 35000, or make data.image_size smaller"  # (0.9 * 4e8 / 3072 - 10,000) / 3 = 35,729
    )
    check_memory(32, 35_000, 10_000)
    with pytest.raises(InputError, match="set data.limit = 16000"):  # (0.9 * 2e8 / 3072 - 10,000) / 3 = 16,198
        check_memory(32, 50_000, 10_000, processes=2)
    monkeypatch.setattr(reading, "available_memory", lambda: 10_000)
    with pytest.raises(InputError, match="the test images alone are too many"):
        check_memory(32, 50_000, 10_000)
    with pytest.raises(InputError, match="1,437 training and 360 test images of 32 x 32 pixels"):
        load_images(Data(source="digits"))


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Two classes of 200 training images, and one of three."""
    for split, sizes in (("train", (200, 200, 3)), ("test", (1, 1, 1))):
        for name, count in zip("abc", sizes, strict=True):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                noise = generator(number, split, name)
                pixels = torch.randint(256, (2, 2, 3), generator=noise).to(torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{number}.png")
    return tmp_path / "set"


def test_a_limit_that_leaves_too_few_images_of_a_class_is_refused(uneven: Path) -> None:
    data = Data(source="imagefolder", root=str(uneven), image_size=2, limit=40, val_fraction=0.25)
    with pytest.raises(InputError, match=r"data.limit: of 40 images, class 'c' has 0 training images, but needs two"):
        load_split(data, 1)
    with pytest.raises(InputError, match=r"data.limit: of 140 images, class 'c' has 1 training image, but needs two"):
        load_split(data.model_copy(update={"limit": 140}), 1)


def test_digests_are_made_where_they_are_used(uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start of every worker took 0.7 seconds longer for each GB."""
    data = Data(source="imagefolder", root=str(uneven), image_size=2, duplicates="keep")
    monkeypatch.setattr(reading, "pixel_digest", pytest.fail)
    load_split(data, 1)
    load_split(data.model_copy(update={"duplicates": "error"}), 1, is_begun=True)


def test_a_class_without_validation_images_is_said(uneven: Path) -> None:
    data = Data(source="imagefolder", root=str(uneven), image_size=2)
    images, split = load_split(data, 1)
    assert np.bincount(images.train_labels_N[split.val_N], minlength=3).tolist() == [20, 21, 0]  # as ever
    assert images.reading.endswith("; no image for validation of class 'c'")
    images, _ = load_split(data.model_copy(update={"val_fraction": 0.9}), 1)
    assert images.reading.endswith("; no image to learn from of class 'c'")


@pytest.mark.parametrize(("bits", "brightest"), [(8, 1), (13, 32), (14, None)])
@pytest.mark.parametrize("free_memory", [10**9, 10**4])  # with the second, images are read through a memory map
def test_greys_that_do_not_fill_their_16_bits_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, brightest: int | None, free_memory: int
) -> None:
    """Also where the images come from the cache. The brightest value is (2^bits - 1) / 257, rounded."""
    for number in range(20):
        grey_HW = np.random.default_rng(number).integers(0, 2**bits, (8, 8), dtype=np.uint16)
        grey_HW[0, 0] = 2**bits - 1
        folder = tmp_path / "set" / ("test" if number < 4 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey_HW).save(folder / f"{number}.png")
    monkeypatch.setattr(reading, "available_memory", lambda: free_memory)
    data = Data(source="imagefolder", root=str(tmp_path / "set"), image_size=8)
    images, _ = load_split(data, 1)
    assert isinstance(images.train_images_NHWC, np.memmap) is (free_memory < 10**9)
    note = f"; the images are nearly black, no value is above {brightest} of 255: if they are 16-bit files"
    assert ("nearly black" in images.reading, note in images.reading) == ((brightest is not None),) * 2
    monkeypatch.setattr(image_files, "decode_file", None)
    cached, _ = load_split(data, 1)
    assert (cached.reading, cached.digest) == (images.reading, images.digest)


# --------------------------------------------------------------------------------------------------------- on device


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    flipped = augment(images, draw("flip", [len(images)], generator(3)), slice(None))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(augment(images, draw("none", [len(images)], generator(3)), slice(None)), images)


def test_crop_shifts_over_black() -> None:
    images = torch.randint(1, 256, (60, 3, 8, 8), dtype=torch.uint8)
    flipped = augment(images, draw("flip", [len(images)], generator(3)), slice(None))
    cropped = augment(images, draw("crop_flip", [len(images)], generator(3)), slice(None))
    shifts = set()
    for before, after in zip(flipped, cropped, strict=True):
        padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(padded[:, y : y + 8, x : x + 8], after)]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 30


def test_normalise() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None]
    out = normalise(pixels, Normalisation((0.5, 0.1, 0.0), (0.5, 0.2, 2.0)))
    assert out.flatten().tolist() == pytest.approx([-1.0, 0.5, 0.5])
    assert out.dtype == torch.float32


@pytest.mark.parametrize("size", [8, 12, 32, 50])
def test_images_are_resized_before_they_are_normalised(size: int) -> None:
    """As torchvision resizes them, smoothed where they shrink."""
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=generator(0))
    expected = resize(pixels.float(), [size, size], antialias=True) / 255 / 0.25 - 2
    torch.testing.assert_close(normalise(pixels, Normalisation((0.5,) * 3, (0.25,) * 3, size)), expected)


def test_cifar10_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(InputError) as caught:
        load_images(Data(source="cifar10", root=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()
    for part in (
        "is not there",
        "no route to host",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "--demo",
    ):
        assert part in str(caught.value)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz is damaged and could not be downloaded"):
        load_images(Data(source="cifar10", root=str(tmp_path)))
