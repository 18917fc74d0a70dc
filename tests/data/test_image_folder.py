"""Image folders: each layout is read as it is meant, or refused in one line; what is passed over is counted."""

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from ablation.base.errors import InputError
from ablation.data import file_audit
from ablation.data.folder_walk import passed_text
from ablation.data.image_folder import image_folder_listing
from ablation.data.reading import list_images, load_images, load_split, measure_data
from ablation.data.split_names import split_of
from ablation.spec.tables import Data

PICTURES = iter(range(10**6))


def picture(path: Path) -> None:
    """Save a picture of 8 x 8 pixels that no other file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(PICTURES)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def tree(root: Path, *folders: str, count: int = 5) -> Path:
    for folder in folders:
        for number in range(count):
            picture(root / folder / f"{number}.png")
    return root


def data(root: Path, **more: object) -> Data:
    return Data(source="imagefolder", root=str(root), image_size=8, **more)


def places(root: Path, **more: object) -> dict[str, set[str]]:
    """Return split -> the folders of its images, below the root."""
    files = image_folder_listing(data(root, **more)).files
    assert files is not None
    return {split: {Path(path).parent.relative_to(root).as_posix() for path, _ in files[split]} for split in files}


# ------------------------------------------------------------------------------------------------------ names of splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"), ("Train", "Test"), ("TRAIN", "TEST"), ("train_set", "test_set"),
        ("trainset", "testset"),
        ("train", "dev"), ("train-images", "val-images"), ("training data", "Validation Data"),
        ("train2017", "val2017"),
        ("images/train", "images/test"), ("seg_train/seg_train", "seg_test/seg_test"), ("train/images", "test/images"),
        ("pets/train", "pets/val"), ("Dataset/Train", "Dataset/valid"), ("tests/../train", "tests"),
    ],
)  # fmt: skip
def test_splits_are_known_by_name(tmp_path: Path, train: str, test: str) -> None:
    train, test = os.path.normpath(train), os.path.normpath(test)
    tree(tmp_path, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    assert places(tmp_path) == {"train": {f"{train}/cat", f"{train}/dog"}, "test": {f"{test}/cat", f"{test}/dog"}}
    size = measure_data(data(tmp_path))
    assert (size.classes, size.train, size.test) == (2, 10, 10)


@pytest.mark.parametrize("name", ["trainer", "contest", "valley", "strain", "attest", "cat", "images", "testament", ""])
def test_other_words_are_classes(name: str) -> None:
    assert split_of(name) is None


def test_all_validation_images_are_training_images_where_there_is_a_test(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{split}/{name}" for split in ("Train", "Valid", "dev", "Test") for name in "ab"))
    assert places(tmp_path) == {
        "train": {"Train/a", "Train/b", "Valid/a", "Valid/b", "dev/a", "dev/b"},
        "test": {"Test/a", "Test/b"},
    }


def test_classes_with_the_names_of_splits_are_classes(tmp_path: Path) -> None:
    """Vehicles, and a control group beside a test group: these folders hold images, not classes."""
    tree(tmp_path / "vehicles", "bus", "car", "train")
    assert places(tmp_path / "vehicles")["train"] == {"bus", "car", "train"}
    tree(tmp_path / "trial", "control", "test")
    assert places(tmp_path / "trial")["test"] == {"control", "test"}


def refused(root: Path, match: str, **more: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        image_folder_listing(data(root, **more))
    assert "\n" not in str(caught.value)


def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", "train/cat", "train/dog", "bus/x", "car")
    refused(root, r"two ways: as splits \(train\) beside other folders \(bus, car\), or as classes; set data.train")
    assert places(root, train=".")["train"] == {"train/cat", "train/dog", "bus/x", "car"}
    assert places(root, train="train") == {"train": {"train/cat", "train/dog"}, "test": {"train/cat", "train/dog"}}
    root = tree(tmp_path / "b", "train1/cat", "train1/dog", "Train/cat", "Train/dog", "training/cat", "test/cat")
    refused(root, "Train and training may both hold the train images|two ways")
    root = tree(tmp_path / "c", "Train/cat", "Train/dog", "train/cat", "train/dog", "test/cat", "test/dog")
    refused(root, "Train and train may both hold the train images; name one by data.train")
    twice = tree(tmp_path / "v", "train/cat", "train/dog", "val/cat", "val/dog", "valid/cat", "valid/dog")
    refused(twice, r"val and valid may both hold the test images; name one by data.test \(and data.train\)")
    assert places(root, train="Train", test="test")["train"] == {"Train/cat", "Train/dog"}
    root = tree(tmp_path / "d", "Training", "Testing")
    refused(root, "no images in <class>")
    root = tree(tmp_path / "e", "cat/train", "cat/test", "dog/train", "dog/test")
    refused(root, "cat holds test, train: move the images to train/<class>")
    assert places(root, train=".")["train"] == {"cat/train", "cat/test", "dog/train", "dog/test"}


def test_images_beside_the_classes_of_a_split_are_refused(tmp_path: Path) -> None:
    """They may be strays, or `train` and `test` classes that have folders inside."""
    root = tree(tmp_path, "train/a", "train/b", "test/a", "test/b")
    picture(root / "train" / "0.png")
    refused(root, "train can be read in two ways: as a split, with 1 image beside the folders of its classes, or as a")
    assert places(root, train="train", test="test")["train"] == {"train/a", "train/b"}
    assert places(root, train=".")["train"] == {"train", "train/a", "train/b", "test/a", "test/b"}


def test_folders_beside_splits_that_agree_are_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, "train/a", "train/b", "test/a", "test/b", "unlabeled")
    assert places(tmp_path) == {"train": {"train/a", "train/b"}, "test": {"test/a", "test/b"}}
    assert "1 folder beside the splits (unlabeled)" in image_folder_listing(data(tmp_path)).reading


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    """Whose accuracy is always 100 %."""
    two = "data: must have images of two classes or more, not of 'cat' "
    refused(tree(tmp_path / "a", "cat"), rf"{two}\({tmp_path}/a: classes in ./\)")
    refused(tree(tmp_path / "b", "train/cat", "test/cat"), two)
    refused(tree(tmp_path / "c", "train/cat", "val/cat"), two)


# -------------------------------------------------------------------------------------------------- what is passed over


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", "cat", "dog/deep")
    for name in ("Thumbs.db", "notes.txt", "photo.heic", "README"):
        (root / "cat" / name).write_bytes(b"x")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    (root / "cat" / "__MACOSX").mkdir()
    picture(root / "__MACOSX" / "cat" / "0.png")
    picture(root / "stray.png")
    (root / "bird").mkdir()
    assert image_folder_listing(data(root)).reading == (
        f"{root}: classes in ./, a fifth of each class is the test; 8 training and 2 test images of 2 classes; passed "
        "over: 1 empty folder (bird), 1 hidden file, 1 hidden folder, 1 image outside class folders, 3 other files "
        "(.heic, .txt, no suffix), 1 system file (Thumbs.db), 2 system folders (__MACOSX)"
    )
    assert load_split(data(root, val_fraction=0.25), 0)[0].reading.startswith(f"{root}: classes in ./")
    assert "nothing passed over" in image_folder_listing(data(tree(tmp_path / "clean", "a", "b"))).reading


def test_several_of_what_is_passed_over_are_said_in_english() -> None:
    passed = Counter(
        {("class left out", ""): 4, ("folder beside the splits", "x"): 1, ("link that leads back", "y"): 2}
    )
    passed += Counter({("folder beside the splits", "z"): 1, ("image outside class folders", ""): 3})
    passed += Counter({("folder met twice", "a"): 2, ("left-out image", "of other classes"): 1})
    assert passed_text(passed) == (
        "4 classes left out, 2 folders beside the splits (x, z), 2 folders met twice (a), 3 images outside class "
        "folders, 1 left-out image (of other classes), 2 links that lead back (y)"
    )


def test_what_stands_beside_the_splits_is_counted(tmp_path: Path) -> None:
    """And an image beside the one folder that holds all does not make that a class."""
    root = tree(tmp_path / "a", "train/a", "train/b", "test/a", "test/b")
    (root / "notes.txt").write_bytes(b"x")
    picture(root / "stray.png")
    (root / "test" / "labels.json").write_bytes(b"x")
    assert "1 image outside class folders, 2 other files (.json, .txt)" in image_folder_listing(data(root)).reading
    root = tree(tmp_path / "b", "images/a", "images/b")
    picture(root / "stray.png")
    assert places(root)["train"] == {"images/a", "images/b"}
    assert "passed over: 1 image outside class folders" in image_folder_listing(data(root)).reading
    (root / "em\npty").mkdir()
    assert "\n" not in image_folder_listing(data(root)).reading


def test_a_class_can_be_left_out(tmp_path: Path) -> None:
    """Whatever is wrong with it: too few images, missing in a split, broken files."""
    root = tree(tmp_path, "train/a", "train/b", "train/lost", "test/a", "test/b")
    (root / "train" / "lost" / "0.png").write_bytes(b"")
    refused(root, "class 'lost' has training images only .*: training images in train/, test images in test/")
    images = load_images(data(root, classes=["b", "a"]))
    assert (images.classes, len(images.train_labels_N), len(images.test_labels_N)) == (["b", "a"], 10, 10)
    assert "1 class left out" in images.reading
    refused(root, "data.classes: no class 'c'; known: a, b", classes=["a", "c"])


# ------------------------------------------------------------------------------------------------------ links, formats


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", "a", "b", "b/deep")
    elsewhere = tree(tmp_path / "elsewhere", "more", "more/deeper")
    (root / "a" / "linked").symlink_to(elsewhere / "more")
    (root / "a" / "again").symlink_to(elsewhere / "more")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    listing = image_folder_listing(data(root))
    labels_N = np.concatenate([listing.train_labels_N, listing.test_labels_N])
    assert np.bincount(labels_N).tolist() == [5 + 10, 10]
    assert "1 folder met twice (linked), 2 links that lead back (self, up)" in listing.reading


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".gif", ".avif", ".jp2", ".tga", ".pbm", ".PNM", ".webp", ".tiff"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    """Red on top, blue below: the pixels of every format are those that were saved, about; black and white for .pbm."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :, 0] = pixels[8:, :, 2] = 255
    mode = "1" if suffix == ".pbm" else "RGB"
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            image = Image.fromarray(np.roll(pixels, number, 0)).convert(mode)
            image.save(tmp_path / name / f"{number}{suffix}", {".jpe": "JPEG", ".jfif": "JPEG"}.get(suffix.lower()))
    images = load_images(Data(source="imagefolder", root=str(tmp_path), image_size=16, duplicates="keep"))
    assert len(images.train_labels_N) + len(images.test_labels_N) == 6
    if mode == "RGB":
        top = images.train_images_NHWC[0, 3, 3].astype(int)
        assert abs(top - [255, 0, 0]).max() < 60
        assert abs(images.train_images_NHWC[0, 12, 3].astype(int) - [0, 0, 255]).max() < 60


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            first, second = (Image.new("RGB", (8, 8), (c, number * 40, 0)) for c in (255, 0))
            first.save(tmp_path / name / f"{number}.gif", save_all=True, append_images=[second])
    images = load_images(data(tmp_path))
    assert images.train_images_NHWC[..., 0].min() > 250


# ------------------------------------------------------------------------------------------------------- broken files


def make_broken(root: Path) -> dict[str, str]:
    """Break four files of class a in different ways; return name -> what is said."""
    whole = (root / "train" / "a" / "0.png").read_bytes()
    (root / "train" / "a" / "1.png").write_bytes(b"no image")
    (root / "train" / "a" / "2.png").write_bytes(whole[:60])
    Image.new("I", (8, 8)).save(root / "train" / "a" / "3.tif")
    return {"1.png": "not an image", "3.tif": "32 bits, which may stand for anything", "2.png": ""}


def test_broken_files_are_named_with_their_reason_or_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", "train/a", "train/b", "test/a", "test/b", count=20)
    faults = make_broken(root)
    with pytest.raises(InputError, match="data.unreadable = 'skip' leaves such files out$") as caught:
        load_images(data(root))
    for name, reason in faults.items():
        assert f"a/{name} ({reason}" in str(caught.value)
    images, split = load_split(data(root, unreadable="skip"), seed=0)
    assert len(images.train_labels_N) + len(images.test_labels_N) == 81 - 3
    assert len(split.train_N) + len(split.val_N) == len(images.train_labels_N)
    assert images.reading.endswith("left out: 3 unreadable images")
    again, _ = load_split(data(root, unreadable="skip"), seed=0)
    assert again.digest == images.digest
    (root / "train" / "a" / "9.png").unlink()
    (root / "train" / "a" / "9.png").symlink_to("nowhere")
    refused(root, "a/9.png cannot be read")
    assert "1 unreadable image" in load_images(data(root, unreadable="skip")).reading
    for path in (root / "train" / "a").iterdir():
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(InputError, match="data: class 'a' has no training image left .left out: 21 unreadable images"):
        load_images(data(root, unreadable="skip"))


def test_another_pillow_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read what this one could not."""
    root = tree(tmp_path, "a", "b", count=3)
    (root / "a" / "1.png").write_bytes(b"of a format of the future")
    real, decoded = file_audit.decode_file, []
    monkeypatch.setattr(file_audit, "decode_file", lambda *args: decoded.append(args[0]) or real(*args))
    counts = []
    for version in ("11.0", "11.0", "99.0"):
        monkeypatch.setattr(PIL, "__version__", version)
        list_images(data(root, unreadable="skip"))
        counts.append(len(decoded))
    assert counts == [6, 6, 12]


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (OSError(errno.EIO, "Input/output error"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (MemoryError(), False),
        (OSError("image file is truncated"), True),
    ],
)
def test_a_fault_of_the_system_is_not_remembered(
    error: Exception, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the file that has it is looked at again, and not once it was read."""
    root = tree(tmp_path / "images", "train/a", "train/b", "test/a", "test/b")
    real = file_audit.decode_file
    decoded: list[str] = []
    is_broken = True

    def decode(path: str, *others: Any) -> np.ndarray:
        decoded.append(path)
        if is_broken and path.endswith("train/a/3.png"):
            raise error
        return real(path, *others)

    def listed() -> tuple[bool, int]:
        """Whether an image is left out, and how many are decoded."""
        decoded.clear()
        reading = list_images(data(root, unreadable="skip")).reading
        return reading.endswith("left out: 1 unreadable image"), len(decoded)

    monkeypatch.setattr(file_audit, "decode_file", decode)
    again = 0 if is_kept else 1
    assert [listed() for _ in range(3)] == [(True, 20), (True, again), (True, again)]
    is_broken = False
    assert [listed() for _ in range(2)] == [(is_kept, again), (is_kept, 0)]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", "a", "b")
    (root / "a" / "0.png").rename(os.fsdecode(os.fsencode(root / "a") + b"/caf\xe9.png"))
    refused(root, r"the name of .*a/caf\\xe9.png is not UTF-8: rename it")
    listing = image_folder_listing(data(root, unreadable="skip"))
    assert "1 unreadable image" in listing.reading
    assert len(listing.train_labels_N) + len(listing.test_labels_N) == 9


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_folder_above_the_images_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study file names it by a relative path."""
    above = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    tree(above / "images", "a", "b")
    monkeypatch.chdir(above)
    assert len(load_images(data(Path("images"))).train_labels_N) == 8
    assert len(load_images(data(Path("images"), unreadable="skip")).train_labels_N) == 8  # looks at all files first


# ------------------------------------------------------------------------------------------------------------ resizing


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("crop", lambda: np.full((8, 8), 200)),
        ("squash", lambda: np.repeat([[100, 100, 200, 200, 200, 200, 100, 100]], 8, 0)),
        ("pad", lambda: np.vstack([np.zeros((2, 8)), np.repeat([[100, 100, 200, 200, 200, 200, 100, 100]], 4, 0),
                                   np.zeros((2, 8))])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1, 8])
def test_images_that_are_not_square(
    tmp_path: Path, resize: str, expected: Callable[[], np.ndarray], scale: int
) -> None:
    """A picture twice as wide as high, whose middle half is lighter; a large JPEG is decoded reduced."""
    row = np.repeat(np.array([100, 200, 100], np.uint8), np.array([4, 8, 4]) * scale)
    picture_HW = np.repeat(row[None], 8 * scale, 0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(picture_HW).save(tmp_path / name / f"{number}.jpg", quality=100)
    images = load_images(data(tmp_path, resize=resize, duplicates="keep"))
    inner = images.train_images_NHWC[0, :, :, 0].astype(int)
    assert abs(inner - expected())[:, [0, 3, 4, 7]].max() <= 20
    assert (images.train_images_NHWC == images.train_images_NHWC[:1]).all()
