"""A study whose images cannot be used ends with exit status 2 and one line, before anything is written."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from tests.data.test_image_folder import picture, tree
from tests.studies import Command


@dataclass(frozen=True)
class Case:
    """Bad images: what makes them in a folder, the keys of `[data]` in TOML, and what is said.

    `is_decoded` says whether the fault shows only once all images have been decoded, which the cache keeps.
    """

    said: str
    make: Callable[[Path], object] = lambda root: None
    keys: tuple[str, ...] = ()
    is_decoded: bool = False


def folders(*changes: Callable[[Path], object], beside: tuple[str, ...] = ()) -> Callable[[Path], None]:
    """Return what makes train/ and test/ with two classes of five images each, and changes that."""

    def make(root: Path) -> None:
        tree(root, "train/a", "train/b", "test/a", "test/b", *beside)
        for change in changes:
            change(root)

    return make


def classes(*changes: Callable[[Path], object], names: tuple[str, ...] = ("a", "b")) -> Callable[[Path], None]:
    """Return what makes two classes without splits, and changes that."""

    def make(root: Path) -> None:
        tree(root, *names)
        for change in changes:
            change(root)

    return make


def manifest(*lines: str, name: str = "labels.csv") -> Callable[[Path], None]:
    """Return what makes a manifest and eleven pictures; a line `*` stands for ten, cats and dogs in turn."""

    def make(root: Path) -> None:
        for number in range(10):
            picture(root / f"{number}.png")
        picture(root / "x" / "x.png")
        rows = [f"{number}.png,{'dog' if number % 2 else 'cat'}" for number in range(10)]
        written: list[str] = []
        for line in lines:
            written += [f"{row}{line[1:]}" for row in rows] if line.startswith("*") else [line]
        (root / name).write_text("\n".join(written) + "\n", encoding="utf-8")

    return make


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def large(root: Path) -> None:
    Image.new("RGB", (30, 20)).save(root / "a" / "deep.tiff")
    Image.new("F", (30, 20)).save(root / "a" / "float.tiff")


MANIFEST = ("source='manifest'", "manifest='{root}/labels.csv'")
TABLE = ("source='huggingface'", "root='{root}'")
CASES = {
    # Folders.
    "no folder": Case("data.root: {root}/x: there is no such folder", keys=("root='{root}/x'",)),
    "a file": Case("is not a folder", write("x", b""), keys=("root='{root}/x'",)),
    "no root": Case("data: source = 'imagefolder' needs root"),
    "empty": Case("data.root: {root} holds no images in <class>/*"),
    "images alone": Case("holds no images in <class>/*", lambda root: picture(root / "1.png")),
    "one class": Case("of two classes or more", classes(names=("a",))),
    "a class of two": Case("data: class 'b' has 2 images, but needs three",
                           lambda root: (tree(root, "a"), tree(root, "b", count=2))),
    "no test": Case("but there is no folder test", lambda root: tree(root, "train/a", "train/b")),
    "no train": Case("there is no folder train", lambda root: tree(root, "test/a", "test/b")),
    "two tests": Case("test and testing may both hold the test images", folders(beside=("testing/a", "testing/b"))),
    "two readings": Case("can be read in two ways", lambda root: tree(root, "train/a", "train/b", "horses")),
    "splits in classes": Case("holds test, train", lambda root: tree(root, "a/train", "a/test", "b/train", "b/test")),
    "images beside classes": Case("can be read in two ways", folders(lambda root: picture(root / "train" / "1.png"))),
    "a class in one split": Case("data: class 'c' has training images only ({root}: ", folders(beside=("train/c",))),
    "a name in Latin-1": Case("{root}/a/caf\\xe9.png is not UTF-8: rename it", classes(
        lambda root: (root / "a" / "0.png").rename(os.fsdecode(os.fsencode(root / "a") + b"/caf\xe9.png")))),
    "data.test alone": Case("data: test needs train", folders(), ("test='test'",)),
    "data.train away": Case("data.train: there is no folder {root}/x", folders(), ("train='x'",)),
    "data.test away": Case("data.test: there is no folder {root}/x", folders(), ("train='train'", "test='x'")),
    "the same twice": Case("must be another folder", folders(), ("train='train'", "test='train'")),
    "train outside": Case("train must be a folder below root", folders(), ("train='../x'",)),
    "an unknown class": Case("data.classes: no class 'x'; known: a, b", folders(), ("classes=['a','x']",)),
    "one training image": Case("has 1 training image, but needs two",
                               lambda root: (tree(root, "train/a", "test/a", "test/b"),
                                             tree(root, "train/b", count=1))),
    "too few to validate": Case("data.val_fraction", folders(), ("val_fraction=0.01",)),
    "a large limit": Case("data.limit: 11 is more than the 10 training images", folders(), ("limit=11",)),
    "no UTF-8": Case("is not UTF-8: rename it", classes(lambda root: picture(root / "a" / "\udcff.png"))),
    "a link to nowhere": Case("cannot be read (No such file", classes(lambda root: (root / "a/x.png").symlink_to("y"))),
    # Files.
    "no image": Case("cannot be read as an image: {root}/a/x.png (not an image); data.unreadable = 'skip'",
                     classes(write("a/x.png", b"<html>"))),
    "nothing in it": Case("{root}/a/x.png (", classes(write("a/x.png", b""))),
    "cut off": Case("{root}/a/x.png (",
                    classes(lambda root: (root / "a/x.png").write_bytes((root / "a/0.png").read_bytes()[:150]))),
    "float": Case("{root}/a/float.tiff (32 bits, which may stand for anything)", classes(large)),
    "no class left": Case("class 'b' has no training image left (left out: 5 unreadable images)",
                          folders(*(write(f"train/b/{n}.png", b"x") for n in range(5))), ("unreadable='skip'",), True),
    # Duplicates.
    "train and test": Case("data.duplicates: the same image in training and test, or in two classes: "
                           "{root}/train/a/0.png = {root}/test/a/x.png (training and test)",
                           folders(copy("train/a/0.png", "test/a/x.png")), is_decoded=True),
    "two classes": Case("(two classes)", folders(copy("train/a/0.png", "train/b/x.png")), is_decoded=True),
    "a copy that is dropped": Case("class 'a' has no training image left (left out: 10 copies)",
                                   folders(*(copy(f"train/a/{n}.png", f"train/b/{n}.png") for n in range(5))),
                                   ("duplicates='drop'",), True),
    # Groups.
    "no expression": Case("is no regular expression", folders(), ("groups='(a'",)),
    "no group": Case("must have one group in parentheses", folders(), ("groups='a'",)),
    "two groups": Case("must have one group in parentheses", folders(), ("groups='(a)(b)'",)),
    "no match": Case("data.groups: '(x)' finds no group in 20 paths: test/a/0.png", folders(), ("groups='(x)'",)),
    "a group in both": Case("data.groups: 5 groups with images in training and in test: 0, 1, 2, 3, 4",
                            folders(), ("groups='([0-9])[.]'",)),
    "a group that would empty a split": Case("cannot be split so that every class is on both sides",
                                             classes(), ("groups='^(.)/'",)),
    "groups of others": Case("data: groups are for your own images", keys=("source='digits'", "groups='(a)'")),
    # Manifests.
    "no manifest": Case("labels.csv: there is no such file", keys=MANIFEST),
    "no key": Case("data: source = 'manifest' needs manifest", keys=("source='manifest'",)),
    "another suffix": Case("must be a .csv or .parquet file", keys=("source='manifest'", "manifest='{root}/l.txt'")),
    "no column": Case("has no column 'label' (data.label_column); did you mean 'lable'",
                      manifest("path,lable", "*"), MANIFEST),
    "a column of no name": Case("has no column 'fold' (data.split_column)", manifest("path,label", "*"),
                                (*MANIFEST, "split_column='fold'")),
    "no group column": Case("has no column 'patient' (data.groups)", manifest("path,label", "*"),
                            (*MANIFEST, "groups='patient'")),
    "a missing path": Case("labels.csv, line 12: {root}/x.png cannot be read (No such file",
                           manifest("path,label", "*", "x.png,cat"), MANIFEST),
    "outside": Case("line 12: ../x.png is outside data.root ({root})", manifest("path,label", "*", "../x.png,cat"),
                    MANIFEST),
    "a path twice": Case("line 12: 3.png is on line 5 already", manifest("path,label", "*", "3.png,dog"), MANIFEST),
    "a label once": Case("data: class 'bird' has 1 image, but needs three",
                         manifest("path,label", "*", "x/x.png,bird"), MANIFEST),
    "no split": Case("line 2: 'trian' is no split", manifest("path,label,split", "*,trian"), MANIFEST),
    "no training": Case("class 'cat' has test images only", manifest("path,label,split", "*,test"), MANIFEST),
    "a label in one split": Case("class 'cat' has training images only", manifest(
        "path,label,split", "0.png,cat,train", "1.png,dog,train", "3.png,dog,test", "5.png,dog,test"), MANIFEST),
    "semicolons": Case("must have commas between its columns", manifest("path;label", "0.png;cat"), MANIFEST),
    "no rows": Case("labels.csv: has no rows", manifest("path,label"), MANIFEST),
    "a class of no row": Case("data.classes: no class 'cow'; known: cat, dog", manifest("path,label", "*"),
                              (*MANIFEST, "classes=['cat','cow']")),
    "no Parquet": Case("cannot be read", manifest("path,label", "*", name="labels.parquet"),
                       ("source='manifest'", "manifest='{root}/labels.parquet'")),
    # Sets of Hugging Face.
    "no set": Case("is no folder of save_to_disk and has no Parquet files", write("x.parquet", b"x"), TABLE),
    "no images": Case("holds no images", lambda root: pandas.DataFrame(
        {"image": [1, 2, 3, 4], "label": ["a", "b", "a", "b"]}).to_parquet(root / "x.parquet"), TABLE),
    "no image column": Case("has no column 'image'", lambda root: pandas.DataFrame(
        {"picture": ["a"], "label": ["b"]}).to_parquet(root / "x.parquet"), TABLE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_images_get_one_line_and_nothing_is_written(
    case: Case, command: Command, study_file: Path, tmp_path: Path, capsys: Any
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    case.make(root)
    keys = dict(key.replace("{root}", str(root)).split("=", 1) for key in ("source='imagefolder'", *case.keys))
    if keys["source"] == "'imagefolder'" and "needs root" not in case.said:
        keys.setdefault("root", f"'{root}'")
    settings = [text for key, value in keys.items() for text in ("--set", f"data.{key}={value}")]
    study_file.write_text(study_file.read_text().replace("limit = 200\n", ""))
    before = sorted(tmp_path.rglob("*"))
    arguments = (study_file, "--set", "data.image_size=8", *settings, "--store", tmp_path / "store")
    status = command(*arguments)
    captured = capsys.readouterr()
    assert command(*arguments, "--check") == status
    assert capsys.readouterr().err == captured.err
    assert captured.err.startswith("error: "), captured.err
    assert case.said.replace("{root}", str(root)) in captured.err
    assert (status, captured.err.count("\n")) == (2, 1)
    cache = tmp_path / "cache"
    after = sorted(path for path in tmp_path.rglob("*") if not (case.is_decoded and path.is_relative_to(cache)))
    assert after == before
