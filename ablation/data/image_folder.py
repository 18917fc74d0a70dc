"""Image folders: which images they hold, of which split and class."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import one_line, plural
from ablation.data.class_names import folded, refuse_look_alikes
from ablation.data.decoding import DECODING_VERSION, SUFFIXES, File, ImageListing
from ablation.data.folder_walk import FolderWalk, Passed, passed_text
from ablation.data.groups import groups_in, refuse_shared
from ablation.data.held_out import FEWEST, a_fifth
from ablation.data.image_files import file_readers
from ablation.data.split_names import FILLER, split_of
from ablation.spec.files import check_image_root
from ablation.spec.tables import Data

FORM = "train/<class>/* and test/<class>/*, or <class>/*"


@dataclass
class FolderContent:
    """How an image folder is understood.

    Attributes:
        root: the folder.
        files: split -> class -> files, sorted by path.
        places: split -> the folders below the root that hold its classes; none for test images taken from the others.
        passed: what was passed over.
        expression: that finds the group of an image in its path; None without groups.
    """

    root: Path
    files: dict[str, dict[str, list[File]]]
    places: dict[str, list[str]]
    passed: Passed = field(default_factory=Counter)
    expression: str | None = None

    @property
    def groups(self) -> dict[str, list[str]] | None:
        """Split -> the groups of its images, class by class; None without groups.

        Raises:
            InputError: the expression does not match the path of some image, or a given test split shares a group.
        """
        if self.expression is None:
            return None
        names = {
            split: [_below(self.root, file) for name in sorted(classes) for file in classes[name]]
            for split, classes in self.files.items()
        }
        groups = {split: groups_in(names[split], self.expression) for split in names}
        refuse_shared(groups["train"], groups["test"])
        return groups

    def text(self, groups: dict[str, list[str]] | None = None) -> str:
        """Return in one line how the folder, and the groups of its images, are understood."""
        train, test = (sum(map(len, self.files[split].values())) for split in ("train", "test"))
        if self.places["test"]:
            where = f"training images in {' and '.join(self.places['train'])}, test images in {self.places['test'][0]}"
        else:
            fifth = "each class" if groups is None else "the groups"
            where = f"classes in {self.places['train'][0]}, a fifth of {fifth} is the test"
        if groups is not None:
            where += f"; {plural(len({*groups['train'], *groups['test']}), 'group')} of images"
        over = passed_text(self.passed)
        counts = f"{train:,} training and {plural(test, 'test image')} of {len(self.files['train'])} classes"
        return one_line(f"{self.root}: {where}; {counts}; {f'passed over: {over}' if over else 'nothing passed over'}")


def image_folder_listing(data: Data) -> ImageListing:
    """List the images of a folder, see `read_folder`."""
    content = read_folder(data)
    splits, classes = content.files, sorted(content.files["train"])
    files = {split: [file for name in classes for file in splits[split][name]] for split in ("train", "test")}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(splits[split][name]) for name in classes]) for split in files
    }
    read, map_ = file_readers(files, data, content.root)
    groups = content.groups
    return ImageListing(
        labels["train"],
        labels["test"],
        classes,
        data.image_size,
        read,
        map=map_,
        decoding=DECODING_VERSION,
        files=files,
        reading=content.text(groups),
        groups=groups,
    )


def _refusal(text: str) -> InputError:
    """Return an error in one line, whatever the names of folders in it."""
    return InputError(one_line(text))


def _below(root: Path, file: File) -> str:
    """Return a file's path below the root, as people write it."""
    return os.path.relpath(file[0], root).replace(os.sep, "/")


def read_folder(data: Data) -> FolderContent:
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
    layout = _Layout(root, FolderWalk(skips_unreadable=data.unreadable == "skip"), data.classes, data.groups)
    places = layout.chosen(data) if data.train is not None else layout.found()
    return layout.content(places)


@dataclass
class _Layout:
    """A folder while it is being understood. Folders are paths; `passed` fills up on the way."""

    root: Path
    walk: FolderWalk
    chosen_classes: list[str] | None
    expression: str | None  # that finds an image's group in its path
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
                raise _refusal(f"data.{split}: there is no folder {folder}")
            places[split] = [folder] if folder is not None else []
        if places["train"] == places["test"]:
            raise _refusal("data.test: must be another folder than data.train")
        return places

    def found(self) -> dict[str, list[Path]]:
        """Return split -> folders, by the names of the folders.

        Raises:
            InputError: there are two readings, or none.
        """
        base = self._unwrapped(self.root)
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for name in self.walk.level(base).folders:
            if (split := split_of(name)) is not None:
                splits[split].append(name)
        names = [name for group in splits.values() for name in group]
        others = [name for name in self.with_images(base) if name not in names]
        empty = [name for name in splits["val"] if not self.walk.below(base / name).images]
        self.passed += Counter(("empty folder", name) for name in empty)
        splits["val"] = [name for name in splits["val"] if name not in empty]
        names = [name for name in names if name not in empty]
        holders = [name for name in names if self.with_images(self._unwrapped(base / name))]
        if not names or (others and not holders and len(names) == 1):
            self._refuse_splits_in_classes(base)
            self._refuse_same_folders(base)
            return {"train": [base], "test": []}
        if others and (len(holders) < 2 or not self._agree(base, holders) or not splits["train"]):
            raise _refusal(
                f"data.root: {base} can be read in two ways: as splits ({', '.join(names)}) beside other folders "
                f"({', '.join(others[:5])}), or as classes; set data.train and data.test to the folders of the splits, "
                "or data.train = '.' for classes alone"
            )
        for name in holders:
            self._refuse_images_beside_classes(self._unwrapped(base / name))
        for name in others:
            self.passed["folder beside the splits", name] += 1
        for split in ("train", "test"):
            if len(splits[split]) > 1:
                raise _refusal(
                    f"data.root: in {base}, {' and '.join(splits[split])} may both hold the {split} images; name one "
                    f"by {'data.train' if split == 'train' else 'data.test (and data.train)'}"
                )
        return self._by_split(base, splits)

    def _by_split(self, base: Path, splits: dict[str, list[str]]) -> dict[str, list[Path]]:
        for split, is_present in (("train", splits["train"]), ("test", splits["test"] or splits["val"])):
            if not is_present:
                raise _refusal(
                    f"data.root: {base} must hold {FORM} alone, but there is no folder {split}; data.train names one, "
                    "of whose classes a fifth is the test"
                )
        folders = {split: [self._unwrapped(base / name) for name in group] for split, group in splits.items()}
        if not folders["test"]:
            return {"train": folders["train"], "test": folders["val"][:1]}
        return {"train": folders["train"] + folders["val"], "test": folders["test"]}

    def _unwrapped(self, folder: Path) -> Path:
        """Return the folder that holds the splits or classes: below seg_train/seg_train, images or train/images."""
        while True:
            names = self.with_images(folder)
            if len(names) != 1 or (self.walk.level(folder).images and folder != self.root):
                break
            inner = folder / names[0]
            own_split, split = split_of(folder.name), split_of(names[0])
            is_filler = re.fullmatch(f"{FILLER}+", re.sub("[^a-z0-9]", "", names[0].lower())) is not None
            is_repeated = split is not None and split == own_split and folder != self.root
            below = self.with_images(inner)
            holds_splits = split is None and sum(split_of(name) is not None for name in below) > 1
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
            inner = {split_of(each): each for each in self.with_images(base / name)}
            if "train" in inner and ("val" in inner or "test" in inner):
                raise _refusal(
                    f"data.root: {base / name} holds {', '.join(inner.values())}: move the images to train/<class> and "
                    "test/<class>, or set data.train = '.' to read classes alone, without regard to these folders"
                )

    def _refuse_same_folders(self, base: Path) -> None:
        """Refuse folders that hold the same folders, such as entrenamiento/cat and prueba/cat, which may be splits.

        `data.classes` may say that they are classes.
        """
        names = self.with_images(base)
        if len(names) < 2 or set(self.chosen_classes or []) & set(names):
            return
        shared = set.intersection(*(set(self.with_images(base / name)) for name in names))
        if len(shared) > 1 and not any(self.walk.level(base / name).images for name in names):
            raise _refusal(
                f"data.root: {base} can be read in two ways: {' and '.join(names[:5])} hold folders "
                f"{', '.join(sorted(shared)[:5])}, as splits do, or they are classes; set data.train and data.test to "
                "the folders of the splits, or data.train = '.' for classes alone"
            )

    def _refuse_images_beside_classes(self, folder: Path) -> None:
        """Refuse a split's folder that holds images, because it may be a class that holds folders."""
        if images := self.walk.level(folder).images:
            raise _refusal(
                f"data.root: {folder} can be read in two ways: as a split, with {plural(len(images), 'image')} beside "
                "the folders of its classes, or as a class; move the images, or set data.train and data.test to the "
                "folders of the splits, or data.train = '.' for classes alone"
            )

    def content(self, places: dict[str, list[Path]]) -> FolderContent:
        """Return the images of the splits in these folders, checked."""
        files: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
        every = [folder for folders in places.values() for folder in folders]
        above = {folder for place in every for folder in place.parents if folder.is_relative_to(self.root)}
        for folder in above.difference(every):
            self._pass_over(folder)
        for split, folders in places.items():
            for folder in folders:
                others = [place for group in places.values() for place in group if place != folder]
                for name, class_files in self._classes(folder, others).items():
                    files[split][name] = sorted([*files[split].get(name, []), *class_files], key=lambda file: file[0])
        if self.chosen_classes is not None:
            known = sorted(self.names)
            for name in self.chosen_classes:
                if name not in self.names:
                    raise _refusal(f"data.classes: no class {name!r}; known: {', '.join(known)}")
        else:
            refuse_look_alikes(sorted(files["train"]))
        if places["test"]:
            self._check_same_classes(files, places)
            if len(files["train"]) < 2:
                raise _refusal(f"data.root: {places['train'][0]} must hold images of two classes or more")
        else:
            files = self._split_classes(places["train"][0], files["train"])
        names = {split: [self.name(folder) for folder in folders] for split, folders in places.items()}
        return FolderContent(self.root, files, names, self.passed, self.expression)

    def _pass_over(self, folder: Path) -> None:
        """Count what stands in a folder beside the folders that count."""
        level = self.walk.level(folder)
        self.passed += level.passed
        if level.images:
            self.passed["image outside class folders", ""] += len(level.images)

    def _classes(self, folder: Path, others: list[Path]) -> dict[str, list[File]]:
        """Return class -> files of the folders in a folder, without the folders of other splits."""
        self._pass_over(folder)
        files, chosen = {}, set(self.chosen_classes or [])
        for name in self.walk.level(folder).folders:
            if any(other.is_relative_to(folder / name) for other in others):
                continue
            below = self.walk.below(folder / name)
            self.names |= {name} if below.images else set()
            if not below.images:
                self.passed["empty folder", one_line(name)] += 1
            elif self.chosen_classes is None or name in chosen:
                self.passed += below.passed
                files[name] = below.images
            else:
                self.passed["class left out", ""] += 1
        if not any(files.values()):
            raise _refusal(f"data.root: {folder} holds no images in <class>/*{{{','.join(SUFFIXES)}}}")
        return files

    def _check_same_classes(self, files: dict[str, dict[str, list[File]]], places: dict[str, list[Path]]) -> None:
        for split, other in (("train", "test"), ("test", "train")):
            unmatched = sorted(files[split].keys() - files[other].keys())
            if unmatched:
                where, missing = places[split][0], places[other][0]
                like = [name for name in sorted(files[other]) if folded(name) == folded(unmatched[0])]
                hint = f", which has {like[0]!r} in another spelling" if like else ""
                raise _refusal(f"data.root: class {unmatched[0]!r} is in {where} but not in {missing}{hint}")

    def _split_classes(self, folder: Path, files: dict[str, list[File]]) -> dict[str, dict[str, list[File]]]:
        """Make a fifth of each class's images test images."""
        if len(files) < 2:
            raise _refusal(f"data.root: {folder} must hold {FORM} of two classes or more")
        for name, class_files in files.items():
            if len(class_files) < FEWEST:
                raise _refusal(
                    f"data.root: {folder / name} holds {plural(len(class_files), 'image')}, but a class needs three: "
                    "to learn from, to validate and to test"
                )
        labels_N = np.repeat(np.arange(len(files)), [len(class_files) for class_files in files.values()])
        every = [file for class_files in files.values() for file in class_files]
        groups = None if self.expression is None else groups_in([_below(self.root, f) for f in every], self.expression)
        is_test_N = a_fifth(labels_N, groups)
        splits: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
        for label, name in enumerate(files):
            for split, is_test in (("train", False), ("test", True)):
                splits[split][name] = [every[n] for n in np.flatnonzero((labels_N == label) & (is_test_N == is_test))]
        return splits
