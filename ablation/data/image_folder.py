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
from ablation.data.class_names import refuse_unknown
from ablation.data.decoding import SUFFIXES, File, ImageListing
from ablation.data.folder_walk import FolderWalk, Passed
from ablation.data.groups import groups_in
from ablation.data.own_images import OwnImages, own_listing
from ablation.data.split_names import FILLER, split_of
from ablation.spec.tables import Data

FORM = "train/<class>/* and test/<class>/*, or <class>/*"


def image_folder_listing(data: Data) -> ImageListing:
    """List the images of a folder, at any depth below their class's, class by class, sorted by path.

    Training images are in `train/<class>`, test images in `test/<class>`; `split_of` knows other names. Images in
    `val/<class>` count as training images; without `test`, they are the test images. Of classes alone, a fifth of each
    becomes test images, always the same ones. `data.train` and `data.test` name the folders in place of that.

    Raises:
        InputError: the folder can be read in two ways; a split or its images are missing; a class is unknown; an
            expression for groups does not match some path; or as `own_listing`.
    """
    root = expand(str(data.root)).resolve()
    layout = _Layout(root, data, FolderWalk(skips_unreadable=data.unreadable == "skip"))
    places = layout.chosen() if data.train is not None else layout.found()
    return own_listing(layout.images(places), data)


def _refusal(text: str) -> InputError:
    """Return an error in one line, whatever the names of folders in it."""
    return InputError(one_line(text))


def _two_ways(folder: Path, ways: str) -> InputError:
    return _refusal(
        f"data.root: {folder} can be read in two ways: {ways}; set data.train and data.test to the folders of the "
        "splits, or data.train = '.' for classes alone"
    )


@dataclass
class _Layout:
    """A folder while it is being understood. Folders are paths; `passed` fills up on the way."""

    root: Path
    data: Data
    walk: FolderWalk
    passed: Passed = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)  # of all classes, also of those that are left out

    def name(self, folder: Path) -> str:
        """Return a folder as people write it, below the root."""
        return folder.relative_to(self.root).as_posix() + "/" if folder != self.root else "./"

    def with_images(self, folder: Path) -> list[str]:
        """Return the names of the folders in a folder that hold images at any depth."""
        return [name for name in self.walk.level(folder).folders if self.walk.below(folder / name).images]

    def chosen(self) -> dict[str, list[Path]]:
        """Return split -> folders, by the keys `data.train` and `data.test`."""
        places = {}
        for split, value in (("train", self.data.train), ("test", self.data.test)):
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
            split = split_of(name)
            if split == "val" and not self.walk.below(base / name).images:
                self.passed["empty folder", name] += 1
            elif split is not None:
                splits[split].append(name)
        names = [name for group in splits.values() for name in group]
        others = [name for name in self.with_images(base) if name not in names]
        inner = {name: self._unwrapped(base / name) for name in names}
        classes = {name: found for name in names if (found := self.with_images(inner[name]))}
        if not names or (others and not classes and len(names) == 1):
            self._refuse_splits_in_classes(base)
            self._refuse_same_folders(base)
            return {"train": [base], "test": []}
        if others and (len(classes) < 2 or len(set(map(tuple, classes.values()))) > 1 or not splits["train"]):
            beside = f"as splits ({', '.join(names)}) beside other folders ({', '.join(others[:5])}), or as classes"
            raise _two_ways(base, beside)
        for name in classes:  # images beside these may mean that the folder is a class, which holds folders
            if images := self.walk.level(inner[name]).images:
                beside = f"with {plural(len(images), 'image')} beside the folders of its classes"
                raise _two_ways(inner[name], f"as a split, {beside}, or as a class; move the images")
        for name in others:
            self.passed["folder beside the splits", name] += 1
        test = splits["test"] or splits["val"]
        for split, group in (("train", splits["train"]), ("test", test)):
            if len(group) > 1:
                raise _refusal(
                    f"data.root: in {base}, {' and '.join(group)} may both hold the {split} images; name one by "
                    f"{'data.train' if split == 'train' else 'data.test (and data.train)'}"
                )
            if not group:
                raise _refusal(
                    f"data.root: {base} must hold {FORM} alone, but there is no folder {split}; data.train names one, "
                    "of whose classes a fifth is the test"
                )
        train = splits["train"] + (splits["val"] if splits["test"] else [])
        return {"train": [inner[name] for name in train], "test": [inner[name] for name in test]}

    def _unwrapped(self, folder: Path) -> Path:
        """Return the folder that holds the splits or classes: below seg_train/seg_train, images or train/images."""
        while len(names := self.with_images(folder)) == 1:
            inner = folder / names[0]
            own_split, split = split_of(folder.name), split_of(names[0])
            is_filler = re.fullmatch(f"{FILLER}+", re.sub("[^a-z0-9]", "", names[0].lower())) is not None
            is_repeated = split is not None and split == own_split and folder != self.root
            below = self.with_images(inner)
            holds_splits = split is None and sum(split_of(name) is not None for name in below) > 1
            is_class = self.walk.level(folder).images and folder != self.root
            if is_class or not below or not (is_filler or is_repeated or holds_splits):
                break
            folder = inner
        return folder

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
        if len(names) < 2 or set(self.data.classes or []) & set(names):
            return
        shared = set.intersection(*(set(self.with_images(base / name)) for name in names))
        if len(shared) > 1 and not any(self.walk.level(base / name).images for name in names):
            hold = f"{' and '.join(names[:5])} hold folders {', '.join(sorted(shared)[:5])}"
            raise _two_ways(base, f"{hold}, as splits do, or they are classes")

    def images(self, places: dict[str, list[Path]]) -> OwnImages:
        """Return the images of the splits in these folders."""
        every = [folder for folders in places.values() for folder in folders]
        above = {folder for place in every for folder in place.parents if folder.is_relative_to(self.root)}
        for folder in above.difference(every):
            self._pass_over(folder)
        found = [
            (name, file, split == "test")
            for split, folders in places.items()
            for folder in folders
            for name, files in self._classes(folder, [place for place in every if place != folder]).items()
            for file in files
        ]
        found.sort(key=lambda image: (image[0], image[1][0]))
        labels, files = [name for name, _, _ in found], [file for _, file, _ in found]
        refuse_unknown(self.data.classes or [], sorted(self.names))
        groups = None
        if self.data.groups is not None:
            paths = [os.path.relpath(path, self.root).replace(os.sep, "/") for path, _ in files]
            groups = groups_in(paths, self.data.groups)
        names = {split: " and ".join(map(self.name, folders)) for split, folders in places.items()}
        where, is_test_N = f"classes in {names['train']}", None
        if places["test"]:
            where = f"training images in {names['train']}, test images in {names['test']}"
            is_test_N = np.array([is_test for _, _, is_test in found])
        return OwnImages(files, labels, is_test_N, groups, f"{self.root}: {where}", self.root, self.passed)

    def _pass_over(self, folder: Path) -> None:
        """Count what stands in a folder beside the folders that count."""
        level = self.walk.level(folder)
        self.passed += level.passed
        if level.images:
            self.passed["image outside class folders", ""] += len(level.images)

    def _classes(self, folder: Path, others: list[Path]) -> dict[str, list[File]]:
        """Return class -> files of the folders in a folder, without the folders of other splits."""
        self._pass_over(folder)
        files, chosen = {}, set(self.data.classes or [])
        for name in self.walk.level(folder).folders:
            if any(other.is_relative_to(folder / name) for other in others):
                continue
            below = self.walk.below(folder / name)
            if not below.images:
                self.passed["empty folder", one_line(name)] += 1
                continue
            self.names.add(name)
            if not chosen or name in chosen:
                self.passed += below.passed
                files[name] = below.images
            else:
                self.passed["class left out", ""] += 1
        if not any(files.values()):
            raise _refusal(f"data.root: {folder} holds no images in <class>/*{{{','.join(SUFFIXES)}}}")
        return files
