"""What could be misread without a word: siblings of faults that people reported of other programs.

Each is read as it is meant, or refused by name. Studies that began before it was refused are read as they were.
"""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from ablation.base.errors import InputError
from ablation.data.decoding import fit_image
from ablation.data.image_set import ImageSet
from ablation.data.reading import list_images, load_images
from ablation.spec.tables import Data
from tests.data.test_image_folder import picture, tree

COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def folder(root: Path, **more: object) -> Data:
    return Data(source="imagefolder", root=str(root), image_size=8, **more)


def refused(data: Data, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_images(data)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "names",
    [("entrenamiento", "prueba"), ("Trainingsdaten", "Testdaten"), ("01_train", "02_test"), ("train1", "test1"),
     ("cats_train", "cats_test"), ("fold1", "fold2", "fold3"), ("images", "masks")],
)  # fmt: skip
def test_folders_that_hold_the_same_folders_may_be_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Whatever they are called: a study would ask what tells training from test files."""
    tree(tmp_path, *(f"{name}/{inner}" for name in names for inner in ("a", "b")), f"{names[0]}/c")
    refused(folder(tmp_path), f"data.root: {tmp_path} can be read in two ways: .* hold folders a, b, as splits do")
    assert load_images(folder(tmp_path, train=".")).classes == sorted(names)
    assert load_images(folder(tmp_path, classes=list(names))).classes == list(names)
    (tmp_path / names[0] / "c").rename(tmp_path / names[1] / "c")
    chosen = folder(tmp_path, train=names[1], classes=["a", "b"])
    assert load_images(chosen).classes == ["a", "b"]


def test_classes_whose_images_are_by_camera_are_classes(tmp_path: Path) -> None:
    """One folder in common, or images beside the folders, is no sign of splits."""
    tree(tmp_path, "cat/front", "cat/left", "dog/front", "dog/right")
    assert load_images(folder(tmp_path)).classes == ["cat", "dog"]
    tree(tmp_path, "dog/left", "dog")
    assert load_images(folder(tmp_path)).classes == ["cat", "dog"]


LOOK_ALIKES = [
    ("Cat", "cat"),
    ("straße", "strasse"),
    (COMPOSED, DECOMPOSED),
    ("cat", "cat "),
    ("black cat", "black  cat"),
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES)
def test_classes_that_look_the_same(tmp_path: Path, one: str, other: str) -> None:
    tree(tmp_path, one, other, "dog")
    refused(folder(tmp_path), "data: the classes '.*' and '.*' differ only in case, spaces or .*: give them one name")
    assert load_images(folder(tmp_path, classes=[one, other])).classes == [one, other]
    splits = tree(tmp_path / "splits", f"train/{one}", f"test/{other}", "train/dog", "test/dog")
    refused(folder(splits), "class '.*' has (training|test) images only; is '.*' the same class in another spelling")


def test_letters_are_classes_in_both_cases(tmp_path: Path) -> None:
    assert load_images(folder(tree(tmp_path, "A", "a", "b"))).classes == ["A", "a", "b"]


def test_links_to_themselves_and_pipes(tmp_path: Path) -> None:
    """Nothing waits for what comes out of a pipe."""
    tree(tmp_path, "a", "b")
    (tmp_path / "a" / "x.png").symlink_to("x.png")
    refused(folder(tmp_path), "a/x.png cannot be read .Too many levels of symbolic links.")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    images = load_images(folder(tmp_path, unreadable="skip"))
    assert len(images.train_labels_N) + len(images.test_labels_N) == 10
    assert "passed over: 2 unreadable images" in images.reading
    (tmp_path / "a" / "x.png").unlink()
    refused(folder(tmp_path), "b/pipe.png is no file")


def first(images: ImageSet, label: int) -> np.ndarray:
    pixels: np.ndarray = np.concatenate([images.train_images_NHWC, images.test_images_NHWC])
    labels = np.concatenate([images.train_labels_N, images.test_labels_N])
    return pixels[labels == label]


# ------------------------------------------------------------------------------------------------------------- pictures


def colours(path: Path, *sizes: tuple[int, int]) -> None:
    """Save pictures of a colour each as one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.new("RGB", size, colour) for size, colour in zip(sizes, ("red", "lime", "blue"), strict=False)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Tag data larger than file")  # of broken directories
def test_a_stack_of_pictures_is_refused_and_smaller_copies_are_not(tmp_path: Path) -> None:
    tree(tmp_path, "a", "b")
    colours(tmp_path / "a" / "stack.tif", (8, 8), (8, 8), (4, 4))
    refused(folder(tmp_path), r"a/stack.tif .a stack of 2 pictures: save each as a file.; data.unreadable = 'skip'")
    assert "left out: 1 unreadable image" in load_images(folder(tmp_path, unreadable="skip")).reading
    content = bytearray((tmp_path / "a" / "stack.tif").read_bytes())
    first_directory = int.from_bytes(content[4:8], "little")
    next_pointer = first_directory + 2 + 12 * int.from_bytes(content[first_directory : first_directory + 2], "little")
    for broken in (len(content) + 1000, 3):  # after the end of the file; where there is no directory
        content[next_pointer : next_pointer + 4] = broken.to_bytes(4, "little")
        (tmp_path / "a" / "stack.tif").write_bytes(content)
        with Image.open(tmp_path / "a" / "stack.tif") as image:
            assert fit_image(image, 8)[0, 0].tolist() == [255, 0, 0]
    colours(tmp_path / "a" / "stack.tif", (8, 8), (4, 4), (2, 2))
    assert [255, 0, 0] in first(load_images(folder(tmp_path)), 0)[:, 0, 0].tolist()


def test_colours_of_16_bits_and_animations_of_every_format(tmp_path: Path) -> None:
    """Sixteen bits keep their brightness; of an animation, the first picture counts."""
    tree(tmp_path, "a", "b")
    for suffix in ("png", "webp", "gif"):
        colours(tmp_path / "a" / f"animated.{suffix}", (8, 8), (8, 8))
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "b" / "grey.png")
    images = load_images(folder(tmp_path))
    corners = first(images, 0)[:, 0, 0].astype(int)
    assert (abs(corners - [255, 0, 0]).max(axis=1) < 3).sum() == 3
    assert [128, 128, 128] in first(images, 1)[:, 0, 0].tolist()


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_large_picture_is_read_and_a_huge_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit is 179 million pixels, which would take a second to write."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    tree(tmp_path, "a", "b")
    Image.new("RGB", (50, 30)).save(tmp_path / "a" / "large.png")
    load_images(folder(tmp_path))
    Image.new("RGB", (50, 50)).save(tmp_path / "a" / "huge.png")
    refused(folder(tmp_path), "a/huge.png .Image size .2500 pixels. exceeds limit of 2000 pixels")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_called_a_picture_and_is_none(tmp_path: Path, content: bytes) -> None:
    tree(tmp_path, "a", "b")
    (tmp_path / "a" / "x.jpg").write_bytes(content)
    refused(folder(tmp_path), "a/x.jpg .not an image.")


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(12):
        picture(tmp_path / "photos" / "in" / f"{number:03d}.png")
    return tmp_path / "photos"


def manifest(photos: Path, label: Callable[[int], str], path: str = "in/{:03d}.png", head: str = "path,label") -> Data:
    lines = [head, *(f"{path.format(number)},{label(number)}" for number in range(12))]
    (photos / "labels.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    return Data(source="manifest", manifest=str(photos / "labels.csv"), image_size=8)


@pytest.mark.parametrize("path", [r"in\{:03d}.png", r".\in\{:03d}.png", r"in\..\in/{:03d}.png"])
def test_paths_of_windows(photos: Path, path: str) -> None:
    files = list_images(manifest(photos, lambda n: "cat" if n % 2 else "dog", path)).files
    assert files is not None
    found = {Path(name).name for group in files.values() for name, _ in group}
    assert found == {f"{number:03d}.png" for number in range(12)}
    refused(manifest(photos, str, r"..\{:03d}.png"), r"line 2: \.\..000.png is outside data.root")


def test_a_mark_at_the_start_and_ends_of_lines_of_windows(photos: Path) -> None:
    """And numbers keep their zeros."""
    data = manifest(photos, lambda n: f"00{7 + n % 2}", head="\ufeffpath,label")
    assert load_images(data).classes == ["007", "008"]


@pytest.mark.parametrize("label", ["nan", "NaN"])
def test_a_missing_label_is_no_class(photos: Path, label: str) -> None:
    data = manifest(photos, lambda n: label if n > 7 else "cat" if n % 2 else "dog")
    refused(data, f"labels.csv, line 10: label '{label}' stands for none: leave the row out")


def test_labels_that_look_the_same(photos: Path) -> None:
    data = manifest(photos, lambda n: ("Cat", "cat", "dog")[n % 3])
    refused(data, "data: the classes 'Cat' and 'cat' differ only in case, spaces or")
    assert load_images(data.model_copy(update={"classes": ["Cat", "cat"]})).classes == ["Cat", "cat"]


def test_columns_of_parquet(photos: Path) -> None:
    """Categories and bytes are words; lists are several labels, which a class is not."""
    words = ["cat", "dog"] * 6
    columns = {"category": pandas.Categorical(words), "bytes": [word.encode() for word in words],
               "list": [[word] for word in words], "true": [word == "cat" for word in words]}  # fmt: skip
    paths = [f"in/{number:03d}.png" for number in range(12)]
    pandas.DataFrame({"path": paths, **columns}).to_parquet(photos / "labels.parquet")

    def data(column: str) -> Data:
        return Data(source="manifest", manifest=str(photos / "labels.parquet"), image_size=8, label_column=column)

    assert load_images(data("category")).classes == ["cat", "dog"]
    assert load_images(data("bytes")).classes == ["cat", "dog"]
    assert load_images(data("true")).classes == ["False", "True"]
    refused(data("list"), r"column 'list' .data.label_column. must hold words or numbers, not list<element: string>")


def test_a_list_of_labels_in_a_set_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    content = {"image": [Image.new("RGB", (8, 8))] * 4, "label": [["cat"], ["dog"], ["cat"], ["dog"]]}
    datasets.Dataset.from_dict(content).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "set"))
    data = Data(source="huggingface", root=str(tmp_path / "set"), image_size=8)
    refused(data, r"column 'label' .data.label_column. must hold words or numbers, not List")
