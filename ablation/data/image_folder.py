"""Image folders: which images they hold, of which split and class."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import one_line, plural
from ablation.data.decoding import FOLDER_VERSION, SUFFIXES, TEST_FRACTION, File, ImageListing
from ablation.data.folder_walk import FolderWalk, Passed, passed_text
from ablation.data.image_files import file_readers
from ablation.spec.files import check_image_root
from ablation.spec.tables import Data

FORM = "train/<class>/* and test/<class>/*, or <class>/*"
SPLIT_WORDS = {
    "train": "train|training|trains|trainings",
    "val": "val|vals|valid|validation|validations|dev|develop|development",
    "test": "test|testing|tests|testings",
}
# Words that say nothing about the split or the class: seg_train, train_set, images, Training Data, val2017.
FILLER = "(?:segmented|seg|data|dataset|sets?|images?|imgs?|pictures?|pics?|photos?|split|files?|folders?|[12][0-9]{3})"
OLD_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # until version 4


@dataclass
class FolderContent:
    """How an image folder is understood.

    Attributes:
        root: the folder.
        files: split -> class -> files, sorted by path.
        places: split -> the folders below the root that hold its classes; none for test images taken from the others.
        passed: what was passed over.
    """

    root: Path
    files: dict[str, dict[str, list[File]]]
    places: dict[str, list[str]]
    passed: Passed = field(default_factory=Counter)

    def text(self) -> str:
        """Return in one line how the folder is understood."""
        train, test = (sum(map(len, self.files[split].values())) for split in ("train", "test"))
        if self.places["test"]:
            where = f"training images in {' and '.join(self.places['train'])}, test images in {self.places['test'][0]}"
        else:
            where = f"classes in {self.places['train'][0]}, a fifth of each class is the test"
        over = passed_text(self.passed)
        counts = f"{train:,} training and {plural(test, 'test image')} of {len(self.files['train'])} classes"
        return one_line(f"{self.root}: {where}; {counts}; {f'passed over: {over}' if over else 'nothing passed over'}")


def image_folder_listing(data: Data, version: int) -> ImageListing:
    """List the images of a folder, see `read_folder`."""
    content = read_folder(data, version)
    splits, classes = content.files, sorted(content.files["train"])
    files = {split: [file for name in classes for file in splits[split][name]] for split in ("train", "test")}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(splits[split][name]) for name in classes]) for split in files
    }
    read, map_ = file_readers(files, data, content.root, version)
    return ImageListing(
        labels["train"], labels["test"], classes, data.image_size, read, map_, version, files, content.text()
    )


def split_of(name: str, version: int) -> str | None:
    """Return the split that a folder's name stands for: 'train', 'val', 'test', or None for a class."""
    if version < FOLDER_VERSION:
        return OLD_SPLITS.get(name)
    letters = re.sub("[^a-z0-9]", "", name.lower())
    for split, words in SPLIT_WORDS.items():
        if re.fullmatch(f"{FILLER}*(?:{words}){FILLER}*", letters):
            return split
    return None


def read_folder(data: Data, version: int) -> FolderContent:
    """Find the images of a folder, at any depth below their class's, by split and class.

    Training images are in `train/<class>`, test images in `test/<class>`; `split_of` knows other names. Images in
    `val/<class>` count as training images; without `test`, they are the test images. Of classes alone, a fifth of each
    becomes test images, always the same ones. `data.train` and `data.test` name the folders in place of that.

    Raises:
        InputError: the folder can be read in two ways; a split or its images are missing; a class is in one split only,
            unknown, or too small.
    """
    root = expand(str(data.root)).resolve()
    check_image_root(root)
    layout = _Layout(root, FolderWalk(version, skips_unreadable=data.unreadable == "skip"), data.classes)
    places = layout.chosen(data) if data.train is not None else layout.found()
    return layout.content(places)


@dataclass
class _Layout:
    """A folder while it is being understood. Folders are paths; `passed` fills up on the way."""

    root: Path
    walk: FolderWalk
    chosen_classes: list[str] | None
    passed: Passed = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)  # of all classes, also of those that are left out

    def name(self, folder: Path) -> str:
        """Return a folder as people write it, below the root."""
        return folder.relative_to(self.root).as_posix() + "/" if folder != self.root else "./"

    def with_images(self, folder: Path) -> list[str]:
        """Return the names of the folders in a folder that hold images at any depth."""
        return [name for name in self.walk.level(folder).folders if self.walk.below(folder / name).images]

    def chosen(self, data: Data) -> dict[str, list[Path]]:
        """Return split -> folders, by the keys `data.train` and `data.test`."""
        places = {}
        for split, value in (("train", data.train), ("test", data.test)):
            folder = self.root / value if value is not None else None
            if folder is not None and not folder.is_dir():
                raise InputError(f"data.{split}: there is no folder {folder}")
            places[split] = [folder] if folder is not None else []
        if places["train"] == places["test"]:
            raise InputError("data.test: must be another folder than data.train")
        return places

    def found(self) -> dict[str, list[Path]]:
        """Return split -> folders, by the names of the folders.

        Raises:
            InputError: there are two readings, or none.
        """
        base = self._unwrapped(self.root)
        version = self.walk.version
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for name in self.walk.level(base).folders:
            if (split := split_of(name, version)) is not None:
                splits[split].append(name)
        names = [name for group in splits.values() for name in group]
        if version < FOLDER_VERSION:
            return self._by_split(base, splits) if names else {"train": [base], "test": []}
        others = [name for name in self.with_images(base) if name not in names]
        empty = [name for name in splits["val"] if not self.walk.below(base / name).images]
        self.passed += Counter(("empty folder", name) for name in empty)
        splits["val"] = [name for name in splits["val"] if name not in empty]
        names = [name for name in names if name not in empty]
        holders = [name for name in names if self.with_images(self._unwrapped(base / name))]
        if not names or (others and not holders and len(names) == 1):
            self._refuse_splits_in_classes(base)
            return {"train": [base], "test": []}
        if others and (len(holders) < 2 or not self._agree(base, holders) or not splits["train"]):
            raise InputError(
                f"data.root: {base} can be read in two ways: as splits ({', '.join(names)}) beside other folders "
                f"({', '.join(others[:5])}), or as classes; set data.train and data.test to the folders of the splits, "
                "or data.train = '.' for classes alone"
            )
        for name in others:
            self.passed["folder beside the splits", name] += 1
        for split in ("train", "test"):
            if len(splits[split]) > 1:
                raise InputError(
                    f"data.root: in {base}, {' and '.join(splits[split])} may both hold the {split} images; name one "
                    f"by {'data.train' if split == 'train' else 'data.test (and data.train)'}"
                )
        return self._by_split(base, splits)

    def _by_split(self, base: Path, splits: dict[str, list[str]]) -> dict[str, list[Path]]:
        for split, is_present in (("train", splits["train"]), ("test", splits["test"] or splits["val"])):
            if not is_present:
                raise InputError(
                    f"data.root: {base} must hold {FORM} alone, but there is no folder {split}; data.train names one, "
                    "of whose classes a fifth is the test"
                )
        folders = {split: [self._unwrapped(base / name) for name in group] for split, group in splits.items()}
        if not folders["test"]:
            return {"train": folders["train"], "test": folders["val"][:1]}
        return {"train": folders["train"] + folders["val"], "test": folders["test"]}

    def _unwrapped(self, folder: Path) -> Path:
        """Return the folder that holds the splits or classes: below seg_train/seg_train, images or train/images."""
        while self.walk.version >= FOLDER_VERSION:
            names = self.with_images(folder)
            if len(names) != 1 or self.walk.level(folder).images:
                break
            inner = folder / names[0]
            own_split, split = split_of(folder.name, self.walk.version), split_of(names[0], self.walk.version)
            is_filler = re.fullmatch(f"{FILLER}+", re.sub("[^a-z0-9]", "", names[0].lower())) is not None
            is_repeated = split is not None and split == own_split and folder != self.root
            below = self.with_images(inner)
            holds_splits = split is None and sum(split_of(name, self.walk.version) is not None for name in below) > 1
            if not below or not (is_filler or is_repeated or holds_splits):
                break
            folder = inner
        return folder

    def _agree(self, base: Path, names: list[str]) -> bool:
        """Return whether folders hold the same classes."""
        classes = [self.with_images(self._unwrapped(base / name)) for name in names]
        return all(each == classes[0] for each in classes)

    def _refuse_splits_in_classes(self, base: Path) -> None:
        """Refuse <class>/train/*, whose images would otherwise be mixed."""
        for name in self.with_images(base):
            inner = {split_of(each, self.walk.version): each for each in self.with_images(base / name)}
            if "train" in inner and ("val" in inner or "test" in inner):
                raise InputError(
                    f"data.root: {base / name} holds {', '.join(inner.values())}: move the images to train/<class> and "
                    "test/<class>, or set data.train = '.' to read classes alone, without regard to these folders"
                )

    def content(self, places: dict[str, list[Path]]) -> FolderContent:
        """Return the images of the splits in these folders, checked."""
        files: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
        for split, folders in places.items():
            for folder in folders:
                others = [place for group in places.values() for place in group if place != folder]
                for name, class_files in self._classes(folder, others).items():
                    files[split][name] = sorted([*files[split].get(name, []), *class_files], key=lambda file: file[0])
        if self.chosen_classes is not None:
            known = sorted(self.names)
            for name in self.chosen_classes:
                if name not in self.names:
                    raise InputError(f"data.classes: no class {name!r}; known: {', '.join(known)}")
        if places["test"]:
            self._check_same_classes(files, places)
        else:
            files = self._split_classes(places["train"][0], files["train"])
        names = {split: [self.name(folder) for folder in folders] for split, folders in places.items()}
        return FolderContent(self.root, files, names, self.passed)

    def _classes(self, folder: Path, others: list[Path]) -> dict[str, list[File]]:
        """Return class -> files of the folders in a folder, without the folders of other splits."""
        level = self.walk.level(folder)
        self.passed += level.passed
        if level.images:
            self.passed["image outside class folders", ""] += len(level.images)
        files = {}
        for name in level.folders:
            if any(other.is_relative_to(folder / name) for other in others):
                continue
            below = self.walk.below(folder / name)
            self.names |= {name} if below.images else set()
            if not below.images:
                self.passed["empty folder", one_line(name)] += 1
            elif self.chosen_classes is None or name in self.chosen_classes:
                self.passed += below.passed
                files[name] = below.images
            else:
                self.passed["class left out", ""] += 1
        if not any(files.values()):
            raise InputError(f"data.root: {folder} holds no images in <class>/*{{{','.join(SUFFIXES)}}}")
        return files

    def _check_same_classes(self, files: dict[str, dict[str, list[File]]], places: dict[str, list[Path]]) -> None:
        for split, other in (("train", "test"), ("test", "train")):
            unmatched = sorted(files[split].keys() - files[other].keys())
            if unmatched:
                where, missing = places[split][0], places[other][0]
                raise InputError(f"data.root: class {unmatched[0]!r} is in {where} but not in {missing}")

    def _split_classes(self, folder: Path, files: dict[str, list[File]]) -> dict[str, dict[str, list[File]]]:
        """Make a fifth of each class's images test images."""
        if len(files) < 2:
            raise InputError(f"data.root: {folder} must hold {FORM} of two classes or more")
        splits: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
        for name, class_files in files.items():
            image_count = len(class_files)
            if image_count < 3:
                raise InputError(
                    f"data.root: {folder / name} holds {plural(image_count, 'image')}, but a class needs three: to "
                    "learn from, to validate and to test"
                )
            train, test = train_test_split(range(image_count), test_size=TEST_FRACTION, random_state=0)
            for split, numbers in (("train", train), ("test", test)):
                splits[split][name] = [class_files[number] for number in sorted(numbers)]
        return splits
