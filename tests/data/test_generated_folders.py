"""Generated image folders are read with exactly the images that were put there, or refused by name; never a traceback.

ABLATION_EXAMPLES=10000 tries as many folders, other ones each time; by default a few are tried, always the same ones.
"""

import csv
import io
import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from PIL import Image

from ablation.base.errors import InputError
from ablation.base.text import one_line
from ablation.data.decoding import ImageListing
from ablation.data.folder_walk import SYSTEM_NAMES
from ablation.data.reading import list_images, load_split, read_listing
from ablation.spec.tables import Data

EXAMPLES = os.environ.get("ABLATION_EXAMPLES")
SIDE = 8
# Format of a file and mode of its picture. Those that are lossless give the pixels of the picture back.
KINDS = [
    (".png", "RGB"), (".PNG", "L"), (".png", "P"), (".png", "RGBA"), (".png", "LA"), (".png", "1"), (".png", "I;16"),
    (".jpg", "RGB"), (".JPEG", "L"), (".jpe", "CMYK"), (".jfif", "RGB"), (".bmp", "RGB"), (".bmp", "L"),
    (".gif", "P"), (".tif", "RGB"), (".TIFF", "I;16"), (".webp", "RGB"), (".ppm", "RGB"), (".pgm", "L"),
    (".pbm", "1"), (".pnm", "RGB"), (".tga", "RGB"), (".jp2", "RGB"),
]  # fmt: skip
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".jp2")
WRITERS = {".jpe": "JPEG", ".jfif": "JPEG"}
BROKEN = [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\x00", b"P6 9 9 255 x"]

WORDS = {
    "train": ["train", "training", "Trains"],
    "val": ["val", "valid", "validation", "dev", "Development"],
    "test": ["test", "testing", "Tests"],
}
AROUND = ["{}", "{}", "{}", "{}_set", "{}set", "seg_{}", "{}-images", "{} data", "{}2017", "my photos/{}", "{}/{}"]
CASES: list[Callable[[str], str]] = [str, str, str.upper, str.title]


@cache
def picture(number: int, suffix: str, mode: str) -> tuple[bytes, bytes | None]:
    """Return a file, and the RGB pixels that it must give; None for a lossy one. Every number is another picture."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        image, seen = Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey).convert("RGB")
    else:
        image = image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)
        seen = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, WRITERS.get(suffix.lower()) or Image.registered_extensions()[suffix.lower()])
    return buffer.getvalue(), None if suffix.lower() in LOSSY else np.asarray(seen).tobytes()


@dataclass
class Folder:
    """A generated folder.

    Attributes:
        root: where it is.
        labels: path -> split ('train', 'test', or 'any') and class of every image that counts.
        pixels: path -> what an image must look like.
        sides: split -> where its images belong.
        copies: path -> the path of the image that it is a copy of.
        broken: the paths of files that cannot be read.
        faults: why it has to be refused.
        doubts: why it may be refused.
    """

    root: Path
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)
    pixels: dict[str, bytes] = field(default_factory=dict, repr=False)
    sides: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    faults: set[str] = field(default_factory=set)
    doubts: set[str] = field(default_factory=set)


def is_plain(name: str) -> bool:
    return name not in (".", "..") and not name.startswith(".") and name.lower() not in SYSTEM_NAMES


NAMES = st.one_of(
    st.sampled_from(["cat", "Dog", "0", "a b", "train", "test", "val", "images", "data", "trainer", "Käfer", "犬"]),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8),
).filter(is_plain)  # fmt: skip


@st.composite
def folders(draw: st.DrawFn, root: Path) -> tuple[Folder, Data]:
    """Make a folder, and the keys with which it is to be read."""
    found = Folder(root)
    unreadable = draw(st.sampled_from(["error", "skip"]))
    duplicates = draw(st.sampled_from(["error", "drop", "keep"]))
    few = 1 if draw(st.integers(0, 19)) == 0 else 2
    classes = draw(st.lists(NAMES, min_size=few, max_size=4, unique_by=str.lower))
    numbers = iter(range(10_000))
    places = _places(draw, found)
    ways = draw(st.integers(0, 3)) == 0  # unusual things are rare, else nearly every folder is refused
    for split, place in places.items():
        for name in classes:
            if ways and split != "any" and draw(st.integers(0, 9)) == 0:
                continue  # the split lacks the class
            _fill(draw, found, (root / place / name, split, name), numbers)
    classes_of: dict[str, set[str]] = {side: set() for side in (["any"] if "any" in places else ["train", "test"])}
    for side, name in found.labels.values():
        classes_of[side].add(name)
    if any(names != set(classes) for names in classes_of.values()):
        found.doubts.add("a split lacks a class")
    if len(set(map(frozenset, classes_of.values()))) > 1:
        found.faults.add("a class is in one split only")
    if any(len(names) < 2 for names in classes_of.values()):
        found.faults.add("fewer than two classes")
    if "any" in places:
        for name in classes:
            if sum(label == ("any", name) for label in found.labels.values()) < 3:
                found.faults.add("fewer than three images of a class")
    if ways:
        _add_others(draw, found, unreadable)
    if draw(st.integers(0, 4)) == 0:
        _add_copies(draw, found)
    if found.broken:
        (found.doubts if unreadable == "skip" else found.faults).add("unreadable")
    return found, Data(
        source="imagefolder", root=str(root), image_size=SIDE, unreadable=unreadable, duplicates=duplicates,
        val_fraction=0.5,
    )  # fmt: skip


def _places(draw: st.DrawFn, found: Folder) -> dict[str, str]:
    """Return split -> its folder below the root; 'any' for classes alone."""
    wrapper = draw(st.sampled_from(["", "", "", "images/", "Dataset/"]))
    usual = [[], [], ["train", "test"], ["train", "val", "test"], ["train", "val"]]
    splits = draw(st.sampled_from([*usual, *usual, ["train"]]))
    if not splits:
        return {"any": wrapper}
    found.sides["val"] = "train" if "test" in splits else "test"
    if splits == ["train"]:
        found.faults.add("no test")
    places = {}
    for split in splits:
        word = draw(st.sampled_from(CASES))(draw(st.sampled_from(WORDS[split])))
        around = draw(st.sampled_from(AROUND))
        if around.startswith("my photos"):
            around = "{}" if wrapper else around
        places[split] = wrapper + around.format(word, word)
    if sum(place.startswith("my photos") for place in places.values()) not in (0, len(places)):
        places = {split: place.removeprefix("my photos/") for split, place in places.items()}
    return places


def _fill(draw: st.DrawFn, found: Folder, place: tuple[Path, str, str], numbers: "iter[int]") -> None:
    """Write the images of a class, at several depths, some of them broken, some through links."""
    folder, split, name = place
    shown = folder
    if draw(st.integers(0, 15)) == 0:  # the class's folder is a link
        folder = found.root.parent / "elsewhere" / str(next(numbers))
        folder.mkdir(parents=True)
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.symlink_to(folder)
    for _ in range(draw(st.integers(3, 5))):
        number = next(numbers)
        deep = draw(st.sampled_from(["", "", "", "deep", "deep/er", "x.png", "ünder"]))
        suffix, mode = draw(st.sampled_from(KINDS))
        path = folder / deep / f"{draw(st.sampled_from(['', 'a b', 'ß', 'train', '%41']))}{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        seen = str(shown / path.relative_to(folder))
        content, pixels = picture(number % 400, suffix, mode)
        if draw(st.integers(0, 70)) == 0:
            content, pixels = draw(st.sampled_from(BROKEN)), None
            found.broken.add(seen)
        if draw(st.integers(0, 20)) == 0:  # a link to a file
            target = found.root.parent / "elsewhere" / f"file{number}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
            path.symlink_to(target)
        else:
            path.write_bytes(content)
        found.labels[seen] = (found.sides.get(split, split), name)
        if pixels is not None:
            found.pixels[seen] = pixels


def _add_others(draw: st.DrawFn, found: Folder, unreadable: str) -> None:
    """Add what is no image, or is none that counts, and links; note what has to be refused for it."""
    folders = sorted({path.parent for path in map(Path, found.labels)})
    for kind in draw(st.lists(st.sampled_from(range(9)), max_size=4)):
        folder = draw(st.sampled_from(folders)) if folders else found.root
        name = f"other{kind}{draw(st.integers(0, 99))}"
        content = picture(0, ".png", "RGB")[0]
        if kind == 0:
            (folder / f"{name}.txt").write_bytes(b"x")
        elif kind == 1:
            (folder / f".{name}.png").write_bytes(content)
        elif kind == 2:
            (folder / "__MACOSX").mkdir(exist_ok=True)
            (folder / "__MACOSX" / f"{name}.png").write_bytes(content)
        elif kind == 3:
            (found.root / name).mkdir(exist_ok=True)  # empty
        elif kind == 4 and not (folder / name).is_symlink():
            (folder / name).symlink_to(folder)  # a link that leads back
        elif kind == 5 and not (folder / f"{name}.png").is_symlink():
            (folder / f"{name}.png").symlink_to("nowhere")
            (found.doubts if unreadable == "skip" else found.faults).add("a link to nowhere")
        elif kind == 6 and os.name != "nt":
            Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(content)
            (found.doubts if unreadable == "skip" else found.faults).add("a name that is not UTF-8")
        elif kind == 7:
            (found.root / name).mkdir(exist_ok=True)
            (found.root / name / "0.png").write_bytes(picture(399, ".png", "RGB")[0])
            found.doubts.add("a folder beside the others")
        else:
            (found.root / f"{name}.png").write_bytes(content)  # outside of every class


def _add_copies(draw: st.DrawFn, found: Folder) -> None:
    """Copy images, into folders of the same or of other classes and splits."""
    whole = sorted(found.labels.keys() - found.broken)
    for number in range(draw(st.integers(1, 3)) if len(whole) > 1 else 0):
        source = draw(st.sampled_from(whole))
        beside = draw(st.sampled_from(whole))
        copy = str(Path(beside).parent / f"copy{number}{Path(source).suffix}")
        shutil.copyfile(source, copy)
        found.labels[copy] = found.labels[beside]
        found.copies[copy] = source
        if source in found.pixels:
            found.pixels[copy] = found.pixels[source]


def check(found: Folder, data: Data) -> str:
    """Read a folder, and compare it with what was put there; return what happened."""
    listings, sets = [], []
    error = refusal(lambda: (listings.append(list_images(data)), sets.append(read_listing(listings[0]))))
    if error:
        return _check_refusal(found, data, error)
    (listing,), (images,) = listings, sets
    assert not found.faults, "it has to be refused"
    read = _read(listing, found)
    assert len(read) == len(images.train_labels_N) + len(images.test_labels_N)
    expected = {path: label for path, label in found.labels.items() if path not in found.broken}
    if data.duplicates == "drop":
        expected = _without_copies(found, expected, read)
    if "a folder beside the others" in found.doubts:  # may be a class as well
        read = {path: label for path, label in read.items() if label[1] in {name for _, name in expected.values()}}
    assert read == expected
    pixels_NHWC = np.concatenate([images.train_images_NHWC, images.test_images_NHWC])
    for path, pixels_HWC in zip(read, pixels_NHWC, strict=True):
        assert pixels_HWC.tobytes() == found.pixels.get(path, pixels_HWC.tobytes()), path
    if data.duplicates == "keep" and "a folder beside the others" not in found.doubts:
        _check_manifest(found, data, read)
    return _check_duplicates(found, data)


def _read(listing: ImageListing, found: Folder) -> dict[str, tuple[str, str]]:
    """Return path -> split and class of the images that are read, in their order."""
    assert listing.files is not None
    return {
        path: ("any" if _is_any(found) else split, listing.classes[label])
        for split, labels_N in (("train", listing.train_labels_N), ("test", listing.test_labels_N))
        for (path, _), label in zip(listing.files[split], labels_N, strict=True)
    }


def _check_manifest(found: Folder, data: Data, read: dict[str, tuple[str, str]]) -> None:
    """Check that a manifest of the same images, whatever their names, gives the same."""
    rows = [(str(Path(path).relative_to(found.root)), *label[::-1]) for path, label in found.labels.items()]
    if any(value != value.strip() for row in rows for value in row):
        return  # spaces around the values of a table do not count
    columns = ["path", "label", "of no use" if _is_any(found) else "split"]
    with (found.root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *sorted(rows, key=lambda row: (row[1], row[0]))])
    keys = {"source": "manifest", "root": None, "manifest": str(found.root / "labels.csv")}
    as_table = data.model_copy(update=keys)
    if any(name.lower() == "nan" for _, name in found.labels.values()):
        assert "stands for none" in refusal(lambda: list_images(as_table))
        return
    assert _read(list_images(as_table), found) == read


def refusal(read: Callable[[], object]) -> str:
    """Return the line with which something is refused; empty if it is not."""
    try:
        read()
    except InputError as error:
        line = str(error)
    else:
        return ""
    note(line)
    assert "\n" not in line
    assert line.startswith("data")
    return line


def _is_any(found: Folder) -> bool:
    return any(split == "any" for split, _ in found.labels.values())


def _groups(found: Folder) -> list[list[str]]:
    """Return the images that are the same picture, two or more each."""
    groups: dict[str, list[str]] = {}
    for path in found.labels:
        source = path
        while source in found.copies:
            source = found.copies[source]
        groups.setdefault(source, []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _without_copies(
    found: Folder, expected: dict[str, tuple[str, str]], read: dict[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Return what stays: none of copies under two labels, one of those under one, a test image if there is any."""
    for group in _groups(found):
        classes, splits = ({found.labels[path][n] for path in group} for n in (1, 0))
        stays = [path for path in group if path in read]
        assert len(stays) == (len(classes) == 1), "one of the copies of one class stays"
        if stays:
            assert found.labels[stays[0]][0] == ("test" if "test" in splits else next(iter(splits)))
        expected = {path: label for path, label in expected.items() if path not in group or path in stays}
    return expected


def _check_refusal(found: Folder, data: Data, error: str) -> str:
    doubts = set(found.doubts)
    names = {name for _, name in found.labels.values()}
    assert str(found.root) in error or any(repr(name) in error for name in names), f"names nothing: {error}"
    if any(word in " ".join(names).lower() for word in ("train", "test", "val", "dev", "images", "data")):
        doubts.add("a class with the name of a split")
    if len({" ".join(unicodedata.normalize("NFKD", name.casefold()).split()) for name in names}) < len(names):
        doubts.add("classes that look the same")
    inside = [_folders_inside(found, name) for name in names]
    if _is_any(found) and len(set.intersection(*inside)) > 1:
        doubts.add("classes that hold the same folders")
    if data.duplicates == "drop" and found.copies:
        doubts.add("a class of nothing but copies")
    assert found.faults or doubts, f"no reason to refuse it: {error}"
    return "refused"


def _folders_inside(found: Folder, name: str) -> set[str]:
    """Return the names of the folders with images in a class's folder; none if an image stands beside them."""
    inside = [str(path).split(f"/{name}/", 1)[1].split("/") for path, label in found.labels.items() if label[1] == name]
    return {parts[0] for parts in inside} if all(len(parts) > 1 for parts in inside) else set()


def _check_duplicates(found: Folder, data: Data) -> str:
    """Check that copies across splits or classes end a study, and that they are named."""
    crossing = [group for group in _groups(found) if len({found.labels[path] for path in group}) > 1]
    error = refusal(lambda: load_split(data, 0))
    if error.startswith("data.duplicates"):
        assert data.duplicates == "error"
        assert found.copies, "different pictures are called the same"
        assert any(one_line(path) in error for group in _groups(found) for path in group)
        return "refused"
    if error:
        return "read"  # but there are too few images to validate
    assert data.duplicates != "error" or not crossing, "copies are let through"
    return "read"


@pytest.mark.filterwarnings("ignore")
def test_generated_folders_are_read_as_they_were_made_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    @settings(
        max_examples=int(EXAMPLES or 80), derandomize=EXAMPLES is None, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
            monkeypatch.setenv("ABLATION_CACHE", f"{place}/cache")
            root = Path(place).resolve() / "root"
            root.mkdir()
            counts[check(*data.draw(folders(root)))] += 1

    try_one()
    print(counts)
    assert counts["read"] > counts["refused"] / 3
    assert counts["refused"] > 0
