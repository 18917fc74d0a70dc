"""Manifests: the rows are read as they are meant, or refused in one line that names file and line."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from ablation.base.errors import InputError
from ablation.data.__main__ import cli
from ablation.data.image_cache import cache_files
from ablation.data.reading import list_images, load_images, load_split, measure_data
from ablation.spec.reading import load_study
from ablation.spec.tables import Data
from tests.data.test_image_folder import make_broken, picture, tree

STUDY = "question = 'Q?'\ntrials_per_arm = 1\nepochs = 1\n[data]\nsource = 'manifest'\n"


def data(manifest: Path, **more: object) -> Data:
    return Data(source="manifest", manifest=str(manifest), image_size=8, **more)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures in one folder; those with even numbers are cats."""
    for number in range(10):
        picture(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def rows(*more: str) -> list[str]:
    """Return lines of a manifest of the ten pictures, with more values in each."""
    return [",".join([f"{number}.png", "cat" if number % 2 == 0 else "dog", *more]) for number in range(10)]


def stems(manifest: Data, split: str) -> list[str]:
    files = list_images(manifest).files
    assert files is not None
    return [Path(path).stem for path, _ in files[split]]


# --------------------------------------------------------------------------------------------------------- what is read


def test_labels_beside_one_folder(photos: Path) -> None:
    """The usual form of a competition: a fifth of each class is the test, as of a folder of classes."""
    manifest = write(photos / "labels.csv", "path,label", *rows())
    images = load_images(data(manifest))
    assert images.classes == ["cat", "dog"]
    assert np.bincount(images.train_labels_N).tolist() == [4, 4]
    assert np.bincount(images.test_labels_N).tolist() == [1, 1]
    for split, labels_N in (("train", images.train_labels_N), ("test", images.test_labels_N)):
        assert [int(stem) % 2 for stem in stems(data(manifest), split)] == labels_N.tolist()
    assert images.reading == (
        f"{manifest}: images in {photos}, a fifth of each class is the test; 8 training and 2 test images of 2 "
        "classes; nothing passed over"
    )
    size = measure_data(data(manifest, limit=6))
    assert (size.classes, size.train, size.test) == (2, 6, 2)


def test_columns_that_nothing_is_read_from_are_named(photos: Path) -> None:
    """A column of patients under another name keeps no patient on one side of the split."""
    table = write(photos / "labels.csv", "path,label,patient,age", *rows("train", "40")[:8], *rows("test", "40")[8:])
    assert load_images(data(table)).reading.endswith("; passed over: 2 unused columns (age, patient)")
    assert load_images(data(table, split_column="patient")).reading.endswith("; passed over: 1 unused column (age)")


def test_the_same_images_in_folders_and_in_a_manifest_are_the_same_set(tmp_path: Path) -> None:
    """Pixels, labels, split and digest."""
    root = tree(tmp_path / "images", "train/a", "train/b", "test/a", "test/b")
    paths = sorted(root.rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    lines = [f"{path.relative_to(root)},{path.parent.name},{path.parent.parent.name}" for path in paths]
    manifest = write(tmp_path / "labels.csv", "path,label,split", *lines)
    of_folder, split = load_split(Data(source="imagefolder", root=str(root), image_size=8, val_fraction=0.2), 3)
    of_manifest, same = load_split(data(manifest, root=str(root), val_fraction=0.2), 3)
    assert of_manifest.digest == of_folder.digest
    assert np.array_equal(same.val_N, split.val_N)


def test_names_of_columns_and_root(photos: Path, tmp_path: Path) -> None:
    """With spaces, a byte order mark, quotes, more columns, paths inside folders and absolute ones."""
    lines = [f'{photos / "0.png"}," cat ",x', *(f'"photos/{n}.png", {"cat" if n % 2 == 0 else "dog"},y'
                                                for n in range(1, 10))]  # fmt: skip
    manifest = write(tmp_path / "labels.csv", "\ufefffile, breed ,note", "", *lines)
    images = load_images(data(manifest, image_column="file", label_column="breed"))
    assert np.bincount(images.train_labels_N).tolist() == [4, 4]
    elsewhere = write(tmp_path / "elsewhere.csv", "path,label", *rows())
    assert len(load_images(data(elsewhere, root=str(photos))).train_labels_N) == 8


@pytest.mark.parametrize(
    ("words", "test"),
    [
        (["train"] * 6 + ["test"] * 4, {6, 7, 8, 9}),
        (["Training"] * 4 + ["valid"] * 2 + ["TEST"] * 4, {6, 7, 8, 9}),
        (["train"] * 6 + ["dev"] * 4, {6, 7, 8, 9}),
    ],
)
def test_splits_are_known_by_their_words(photos: Path, words: list[str], test: set[int]) -> None:
    lines = [f"{line},{word}" for line, word in zip(rows(), words, strict=True)]
    manifest = data(write(photos / "labels.csv", "path,label,split", *lines))
    assert set(map(int, stems(manifest, "test"))) == test
    assert set(map(int, stems(manifest, "train"))) == set(range(10)) - test
    assert f"the test images are those of {words[-1]!r};" in list_images(manifest).reading
    renamed = write(photos / "other.csv", "path,label,fold", *lines)
    assert set(map(int, stems(data(renamed, split_column="fold"), "test"))) == test


def test_an_image_that_moves_to_the_test_is_not_taken_from_the_old_cache(photos: Path) -> None:
    """The same images in the same order, with the border between training and test at another row."""
    for training in (6, 5, 6):
        words = ["train"] * training + ["test"] * (10 - training)
        lines = [f"{line},{word}" for line, word in zip(rows(), words, strict=True)]
        images = load_images(data(write(photos / "labels.csv", "path,label,split", *lines)))
        assert len(images.train_images_NHWC) == len(images.train_labels_N) == training
        assert len(images.test_images_NHWC) == len(images.test_labels_N) == 10 - training


def test_two_manifests_of_the_same_images_have_two_files_in_the_cache(photos: Path) -> None:
    before = cached()
    for name in ("one.csv", "two.csv"):
        load_images(data(write(photos / name, "path,label", *rows())))
    assert len(cached() - before) == 2


def cached() -> set[Path]:
    return {path for path, _, _ in cache_files() if path.name.startswith("imagefolder-")}


def test_a_column_of_splits_can_be_left_out(photos: Path) -> None:
    manifest = write(photos / "labels.csv", "path,label,split", *rows("3"))
    with pytest.raises(InputError, match="labels.csv, line 2: '3' is no split; say train, val or test"):
        load_images(data(manifest))
    assert len(load_images(data(manifest, split_column="")).test_labels_N) == 2


def test_parquet(photos: Path) -> None:
    """Whole numbers are classes, also where empty cells elsewhere made them floats."""
    table = pandas.DataFrame({"path": [f"{n}.png" for n in range(10)], "label": [n % 2 for n in range(10)]})
    table["split"] = pandas.Categorical(["train"] * 6 + ["test"] * 4)
    table.to_parquet(photos / "labels.parquet")
    images = load_images(data(photos / "labels.parquet"))
    assert images.classes == ["0", "1"]
    assert images.test_labels_N.tolist() == [0, 1, 0, 1]
    table["label"] = table["label"].astype(float)
    table.to_parquet(photos / "floats.parquet")
    assert load_images(data(photos / "floats.parquet")).digest == images.digest
    table.loc[7, "label"] = None
    table.to_parquet(photos / "missing.parquet")
    refused(data(photos / "missing.parquet"), "missing.parquet, row 8: has no label$")


def test_labels_of_digits_stay_as_they_are_written(photos: Path) -> None:
    """Postcodes and other names of digits: 007 is not 7."""
    lines = [f"{number}.png,{'007' if number % 2 else '7'}" for number in range(10)]
    assert load_images(data(write(photos / "labels.csv", "path,label", *lines))).classes == ["007", "7"]


def test_classes_and_unreadable_images_are_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a", "train/b", "train/c")
    make_broken(root)
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.*")) if path.is_file()]
    manifest = write(root / "labels.csv", "path,label", *lines, "train/a/gone.png,a")
    refused(data(manifest), "line 18: .*/train/a/gone.png cannot be read .No such file or directory")
    images = load_images(data(manifest, unreadable="skip", classes=["b", "a"]))
    assert images.classes == ["b", "a"]
    counts = np.bincount(np.concatenate([images.train_labels_N, images.test_labels_N]))
    assert counts.tolist() == [5, 3], "two of six files of class a are broken, and one is not there"
    assert "passed over: 5 left-out images (of other classes), 1 unreadable image" in images.reading
    assert images.reading.endswith("left out: 3 unreadable images")
    refused(data(manifest, classes=["a", "d"]), "data.classes: no class 'd'; known: a, b, c")


def test_duplicates_are_refused_by_name(photos: Path) -> None:
    (photos / "9.png").write_bytes((photos / "0.png").read_bytes())
    manifest = write(photos / "labels.csv", "path,label", *rows())
    with pytest.raises(InputError, match=r"data.duplicates: .*0.png = .*9.png .(two classes|training and test)"):
        load_split(data(manifest, val_fraction=0.3), 0)
    images, _ = load_split(data(manifest, duplicates="drop", val_fraction=0.34), 0)
    assert len(images.train_labels_N) + len(images.test_labels_N) == 8


def test_a_set_is_shown(photos: Path) -> None:
    manifest = write(photos / "labels.csv", "path,breed", *rows())
    words = [str(manifest), "--out", str(photos / "sheet.png"), "--set", "data.label_column=breed"]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert "sizes in pixels: 8 x 8 (10)" in " ".join(result.output.split())


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(manifest: Data, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_images(manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["file,label", *rows()], "labels.csv: has no column 'path' .data.image_column.; known: file, label"),
        (["path,lable", *rows()], "labels.csv: has no column 'label' .data.label_column.; did you mean 'lable'"),
        (["path;label", "0.png;cat"], "labels.csv: must have commas between its columns, not 'path;label'"),
        (["path,label,label", *rows("x")], "labels.csv: has two columns 'label'"),
        (["path,label"], "labels.csv: has no rows$"),
        ([""], "labels.csv: has no rows$"),
        (["path,label", *rows(), "10.png,cat"], "line 12: .*/photos/10.png cannot be read .No such file"),
        (["path,label", *rows(), "1,cat"], "line 12: .*/photos/1 cannot be read .*; did you mean '1.png'"),
        (["path,label", *rows(), "../x.png,cat"], "line 12: ../x.png is outside data.root .*/photos"),
        (["path,label", *rows(), "/etc/hosts,cat"], "line 12: /etc/hosts is outside data.root"),
        (["path,label", *rows(), ".,cat"], "line 12: .*photos is no file"),
        (["path,label", *rows(), "x\0.png,cat"], "line 12: .*x.x00.png cannot be read .no name of a file|NUL"),
        (["path,label", *rows(), "./3.png,cat"], "line 12: ./3.png is on line 5 already"),
        (["path,label", "", *rows()[:9], "9.png,"], "line 12: has no label$"),
        (["path,label", *rows(), ",cat"], "line 12: has no path$"),
        (["path,label", *rows(), "cat"], "line 12: has 1 field, but the first line has 2"),
        (["path,label", *rows()[:9], "9.png,bird"], "data: class 'bird' has 1 image, but needs three"),
        (["path,label", "0.png,cat", "1.png,cat"], "must have images of two classes or more, not of 'cat'"),
        (["path,label,split", *rows("train")[:9], "9.png,bird,test"], "'bird' has test images only .*labels.csv: im"),
        (["path,label,split", *rows("test")], "data: class 'cat' has test images only"),
        (["path,label,split", *rows("train")[:9], "9.png,dog,"], "line 11: has no split$"),
        (["path,label,split", *rows("trian")], "line 2: 'trian' is no split; say train, val or test, or set"),
        (['path,label', '0.png,"cat'], "labels.csv: cannot be read .unexpected end of data"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(photos: Path, lines: list[str], match: str) -> None:
    refused(data(write(photos / "labels.csv", *lines)), match)


def test_bad_files_are_named(photos: Path) -> None:
    (photos / "latin.csv").write_bytes("path,label\n0.png,Käfer\n".encode("latin-1"))
    refused(data(photos / "latin.csv"), "latin.csv: cannot be read .not UTF-8.")
    write(photos / "text.parquet", "path,label")
    refused(data(photos / "text.parquet"), "text.parquet: cannot be read .*magic bytes")
    refused(data(photos / "nowhere.csv"), "data.manifest: .*nowhere.csv: there is no such file")
    manifest = write(photos / "labels.csv", "path,label", *rows())
    refused(data(manifest, root=str(photos / "nowhere")), "data.root: .*nowhere: there is no such folder; the paths")
    refused(data(manifest, split_column="fold"), "has no column 'fold' .data.split_column.")
    refused(data(manifest, groups="patient"), "has no column 'patient' .data.groups.")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ("", "data: source = 'manifest' needs manifest = <a .csv or .parquet file>"),
        ("manifest = 'labels.txt'", "data: manifest must be a .csv or .parquet file, got 'labels.txt'"),
        ("manifest = 'l.csv'\ntrain = 'a'", "data: train and test are for source = 'imagefolder'"),
        ("manifest = 'l.csv'\nsplit_column = 3", "data.split_column"),
    ],
)
def test_bad_keys_are_refused(tmp_path: Path, keys: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_study(write(tmp_path / "s.toml", STUDY + keys), name="s", overrides=[])


def test_older_studies_keep_their_content(tmp_path: Path) -> None:
    text = STUDY.replace("'manifest'", "'imagefolder'\nroot = 'photos'")
    content = load_study(write(tmp_path / "s.toml", text), name="s", overrides=[]).content()["data"]
    assert content == {"source": "imagefolder", "val_fraction": 0.1, "limit": None, "classes": None, "image_size": 32}
    text = f"{STUDY}manifest = 'somewhere/labels.csv'\nlabel_column = 'breed'"
    content = load_study(write(tmp_path / "s.toml", text), name="s", overrides=[]).content()["data"]
    assert (content["label_column"], "manifest" in content) == ("breed", False)
