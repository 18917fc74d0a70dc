"""Sets of Hugging Face's library: a folder of save_to_disk and Parquet files, read from the local disk alone."""

import importlib
import io
import socket
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from PIL import Image

from ablation.base.errors import InputError
from ablation.data.__main__ import cli
from ablation.data.reading import list_images, load_images, load_split
from ablation.spec.reading import load_study
from ablation.spec.tables import Data

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Show no bars, refuse every connection, and keep the library's cache apart."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "of the library")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("connects to a server")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8))


def rows(first: int, count: int, **more: list[Any]) -> datasets.Dataset:
    """Return pictures of alternating classes."""
    content = {"image": [picture(first + n) for n in range(count)], "label": [n % 2 for n in range(count)], **more}
    features = {"image": datasets.Image(), "label": CLASSES}
    features |= {name: datasets.Value("string") for name in more}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def data(root: Path, **more: object) -> Data:
    return Data(source="huggingface", root=str(root), image_size=8, **more)


def pixels(*numbers: int) -> np.ndarray:
    return np.stack([np.asarray(picture(number)) for number in numbers])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Six training images, two for validation, four for the test."""
    content = {"train": rows(0, 6), "validation": rows(6, 2), "test": rows(8, 4)}
    datasets.DatasetDict(content).save_to_disk(str(tmp_path / "pets"))
    return tmp_path / "pets"


def test_a_folder_of_save_to_disk(saved: Path) -> None:
    images = load_images(data(saved))
    assert images.classes == ["cat", "dog"]
    assert np.array_equal(images.train_images_NHWC, pixels(*range(8)))
    assert np.array_equal(images.test_images_NHWC, pixels(*range(8, 12)))
    assert images.train_labels_N.tolist() == [0, 1] * 4
    assert images.test_labels_N.tolist() == [0, 1] * 2
    assert images.reading == (
        f"{saved}, the test images are those of 'test'; 8 training and 4 test images of 2 classes; nothing passed over"
    )
    images, split = load_split(data(saved, val_fraction=0.25), 0)
    assert len(split.val_N) == 2


def test_parquet_files_with_images_in_them(saved: Path, tmp_path: Path) -> None:
    """As the Hub keeps them: a file or more for each split. One file alone has no splits."""
    for split, content in datasets.load_from_disk(str(saved)).items():
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        content.to_parquet(str(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"))
    images = load_images(data(tmp_path / "hub"))
    assert images.digest == load_images(data(saved)).digest
    one = load_images(data(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    assert len(one.train_labels_N) + len(one.test_labels_N) == 6
    assert "a fifth of each class is the test" in one.reading


def test_parquet_files_of_other_programs(tmp_path: Path) -> None:
    """Bare bytes, columns of other names, labels as words, groups."""
    files = []
    for number in range(24):
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        files.append(buffer.getvalue())
    labels, patients = ["dog" if n % 2 else "cat" for n in range(24)], [f"p{n // 2}" for n in range(24)]
    pandas.DataFrame({"picture": files, "what": labels, "patient": patients}).to_parquet(tmp_path / "all.parquet")
    keys = {"image_column": "picture", "label_column": "what", "val_fraction": 0.25}
    images, split = load_split(data(tmp_path / "all.parquet", **keys, groups="patient"), 0)
    assert images.classes == ["cat", "dog"]
    groups_N = images.train_groups_N
    assert groups_N is not None
    assert not set(groups_N[split.train_N]) & set(groups_N[split.val_N])
    assert {image.tobytes() for image in images.train_images_NHWC} < {image.tobytes() for image in pixels(*range(24))}


def test_a_column_of_splits_and_a_set_without_splits(tmp_path: Path) -> None:
    rows(0, 8, split=["train"] * 4 + ["test"] * 4).save_to_disk(str(tmp_path / "column"))
    assert np.array_equal(load_images(data(tmp_path / "column")).test_images_NHWC, pixels(*range(4, 8)))
    rows(0, 10).save_to_disk(str(tmp_path / "plain"))
    assert len(load_images(data(tmp_path / "plain")).test_labels_N) == 2


def test_broken_and_missing_images_and_duplicates(tmp_path: Path) -> None:
    content = rows(0, 12).cast_column("image", datasets.Image(decode=False)).to_list()
    content[3]["image"]["bytes"] = b"no image"
    content[5]["image"] = None
    content[6]["image"] = content[0]["image"]
    features = datasets.Features({"image": datasets.Image(), "label": CLASSES})
    datasets.Dataset.from_list(content, features=features).save_to_disk(str(tmp_path / "pets"))
    match = r"cannot be read as an image: row 3 .not an image.; data.unreadable"
    with pytest.raises(InputError, match=match):
        load_images(data(tmp_path / "pets"))
    images = load_images(data(tmp_path / "pets", unreadable="skip"))
    assert len(images.train_labels_N) + len(images.test_labels_N) == 10
    assert images.reading.endswith("left out: 2 unreadable images")
    images = load_images(data(tmp_path / "pets", unreadable="skip", duplicates="drop"))
    assert len(images.train_labels_N) + len(images.test_labels_N) == 9


def test_a_second_column_of_images_is_another_set(tmp_path: Path) -> None:
    """It is neither taken from the first one's cache nor decoded as text; columns of lists and bytes are no labels."""
    content = {"image": [picture(n) for n in range(10)], "mask": [picture(20 + n) for n in range(10)]}
    content |= {"label": [n % 2 for n in range(10)], "boxes": [[1.0, 2.0]] * 10, "raw": [b"x"] * 10}
    features = {"image": datasets.Image(), "mask": datasets.Image(), "label": CLASSES}
    features |= {"boxes": datasets.Sequence(datasets.Value("float32")), "raw": datasets.Value("binary")}
    set_ = datasets.Dataset.from_dict(content, features=datasets.Features(features))
    set_.save_to_disk(str(tmp_path / "pets"))
    for first, more in ((0, {}), (20, {"image_column": "mask"}), (0, {})):
        for unreadable in ("error", "skip"):
            images = load_images(data(tmp_path / "pets", unreadable=unreadable, **more))
            found = {image.tobytes() for image in [*images.train_images_NHWC, *images.test_images_NHWC]}
            assert found == {image.tobytes() for image in pixels(*range(first, first + 10))}
    broken = {"mask": [picture(n) for n in range(6)], "label": [0, 1] * 3}
    broken["mask"][2] = None
    broken = datasets.Dataset.from_dict(broken, features=datasets.Features(mask=datasets.Image(), label=CLASSES))
    broken.save_to_disk(str(tmp_path / "broken"))
    with pytest.raises(InputError, match="cannot be read as an image: mask: row 2 .no image in the row"):
        load_images(data(tmp_path / "broken", image_column="mask"))
    refused(
        data(tmp_path / "pets", label_column="boxes"),
        "pets: column 'boxes' .data.label_column. must hold words or numbers, not List",
    )


def test_another_set_in_the_same_folder_is_decoded_anew(tmp_path: Path) -> None:
    rows(0, 10).save_to_disk(str(tmp_path / "pets"))
    before = load_images(data(tmp_path / "pets"))
    assert load_images(data(tmp_path / "pets")).digest == before.digest
    rows(20, 10).save_to_disk(str(tmp_path / "pets"))
    after = {image.tobytes() for image in load_images(data(tmp_path / "pets")).train_images_NHWC}
    assert after < {image.tobytes() for image in pixels(*range(20, 30))}


def test_a_set_is_shown_and_checked(tmp_path: Path) -> None:
    rows(0, 10).save_to_disk(str(tmp_path / "pets"))
    study = "question = 'Q?'\ntrials_per_arm = 1\nepochs = 1\n[data]\nsource = 'huggingface'\n"
    (tmp_path / "s.toml").write_text(f"{study}root = '{tmp_path / 'pets'}'\n")
    for name in ("s.toml", "pets"):
        result = CliRunner().invoke(cli, [str(tmp_path / name), "--out", str(tmp_path / "sheet.png")])
        assert "sizes in pixels: 8 x 8 (10)" in " ".join(result.output.split())
    result = CliRunner().invoke(cli, ["check", str(tmp_path / "s.toml")], catch_exceptions=False)
    assert "0 pairs of pictures nearly the same" in " ".join(result.output.split())
    with pytest.raises(InputError, match="source = 'huggingface' needs root"):
        load_study(_write(tmp_path / "t.toml", study), name="t", overrides=[])


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(set_: Data, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        list_images(set_)
    assert "\n" not in str(caught.value)


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    refused(data(tmp_path / "nowhere"), "data.root: .*nowhere: there is no such folder or Parquet file")
    (tmp_path / "empty").mkdir()
    refused(data(tmp_path / "empty"), "data.root: empty: is no folder of save_to_disk and has no Parquet files")
    (tmp_path / "text.parquet").write_text("x")
    refused(data(tmp_path / "text.parquet"), "data.root: text.parquet: is no folder of save_to_disk")


def test_bad_columns_and_rows_are_named(saved: Path, tmp_path: Path) -> None:
    refused(data(saved, image_column="img"), "pets: has no column 'img' .data.image_column.; did you mean 'image'")
    refused(data(saved, image_column="label"), "pets: column 'label' holds no images .it is ClassLabel.")
    refused(data(saved, label_column="breed"), "pets: has no column 'breed' .data.label_column.")
    refused(data(saved, groups="(.*)"), "pets: has no column '(.*)' .data.groups.")
    refused(data(saved, classes=["cat", "cow"]), "data.classes: no class 'cow'; known: cat, dog")
    hidden = {"train": rows(0, 6), "test": rows(6, 2).map(lambda row: {"label": -1})}
    datasets.DatasetDict(hidden).save_to_disk(str(tmp_path / "hidden"))
    refused(data(tmp_path / "hidden"), "hidden, test row 0: has no label$")
    datasets.DatasetDict({"train": rows(0, 6), "extra": rows(6, 2)}).save_to_disk(str(tmp_path / "extra"))
    refused(data(tmp_path / "extra"), "extra, extra row 0: 'extra' is no split; say train, val or test, or set")
    assert len(load_images(data(tmp_path / "extra", split_column="")).test_labels_N) == 2


def test_the_library_is_named_where_it_is_missing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    refused(data(saved), "needs datasets: python -m pip install datasets")
