"""What the report shows of a whole set: counts, a contact sheet, near-duplicates across training and test."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ablation.base.errors import InputError
from ablation.data import near_duplicates, set_summary
from ablation.data.image_set import ImageSet
from ablation.data.kept_duplicates import kept_comparison
from ablation.data.overview import MOST_BYTES, small_contact_sheet
from ablation.data.reading import load_split
from ablation.data.set_summary import load_summary, summarise_set, summary_file
from ablation.spec.tables import Data
from tests.data.test_data_command import run, smooth


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve training and eight test pictures of two classes; a thirteenth is a mirrored test picture."""
    root = tmp_path / "photos"
    for number in range(20):
        folder = root / ("train" if number < 12 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        smooth(number).save(folder / f"{number}.png")
    ImageOps.mirror(smooth(15)).save(root / "train" / "b" / "copy.jpg", quality=80)
    return root


def data(root: Path) -> Data:
    return Data(source="imagefolder", root=str(root), image_size=32, val_fraction=0.25)


def test_a_small_set_is_compared_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, split = load_split(data(photos), seed=0)
    path = tmp_path / "data.safetensors"
    path.write_bytes(summary_file(summarise_set(images, split)))
    summary = load_summary(path)
    assert summary.counts_DK.sum(axis=1).tolist() == [9, 4, 8]
    assert (summary.counts_DK[0] + summary.counts_DK[1]).tolist() == [6, 7]
    comparison = summary.comparison
    assert comparison is not None
    assert (comparison.pictures, comparison.across) == (21, 1)
    (pair,) = comparison.pairs
    assert (Path(pair.first).name, Path(pair.second).name, pair.is_mirrored) == ("copy.jpg", "15.png", True)
    left, right = comparison.thumbnails_P2SSC[0].astype(int)
    assert abs(left[:, ::-1] - right).mean() < 6
    assert abs(left - right).mean() > 20
    monkeypatch.setattr(set_summary, "find_near_duplicates", lambda *arguments: pytest.fail("is compared again"))
    again = summarise_set(images, split).comparison
    assert again is not None
    assert again.pairs == comparison.pairs
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        load_summary(path)


def test_of_a_large_set_what_check_found_is_shown(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_summary, "FEW", 20)
    images, split = load_split(data(photos), seed=0)
    summary = summarise_set(images, split)
    assert summary.comparison is None
    assert summary.why_not == "the set has more than 20 images"
    run("check", str(photos))
    comparison = summarise_set(images, split).comparison
    assert comparison is not None
    assert (comparison.pictures, comparison.across, len(comparison.pairs)) == (21, 1, 1)
    (photos / "test" / "a" / "12.png").unlink()
    assert summarise_set(*load_split(data(photos), seed=0)).comparison is not None, "20 images are few"
    monkeypatch.setattr(set_summary, "FEW", 19)
    smooth(12).save(photos / "test" / "a" / "13.png")
    assert summarise_set(*load_split(data(photos), seed=0)).comparison is None, "it is another set"


def test_without_the_library_the_report_says_so(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = near_duplicates.importlib.import_module

    def missing(name: str) -> object:
        if name == "imagehash":
            raise ImportError
        return real(name)

    monkeypatch.setattr(near_duplicates.importlib, "import_module", missing)
    images, split = load_split(data(photos), seed=0)
    summary = summarise_set(images, split)
    assert summary.comparison is None
    assert summary.why_not == "need imagehash: python -m pip install imagehash"
    with pytest.raises(InputError, match="need imagehash: python -m pip install imagehash"):
        run("check", str(photos))


def test_sets_without_files_are_compared_by_their_pixels(study_file: Path) -> None:
    """What is kept of all of them is found by a study of some of them."""
    assert "0 pairs of pictures nearly the same" in run("check", str(study_file))
    images, split = load_split(Data(source="digits", limit=200), seed=0)
    comparison = summarise_set(images, split).comparison
    assert comparison is not None
    assert comparison.pictures == 1797
    assert kept_comparison(load_split(Data(source="digits", classes=["1", "2"]), seed=0)[0].listing_key) is None


def test_a_copy_of_a_set_has_its_own_names(photos: Path) -> None:
    """Its pixels are the same."""
    summarise_set(*load_split(data(photos), seed=0))
    copy = photos.rename(photos.with_name("copy"))
    for path in list(copy.rglob("*.*g")):
        path.rename(path.with_name(f"new-{path.name}"))
    comparison = summarise_set(*load_split(data(copy), seed=0)).comparison
    assert comparison is not None
    (pair,) = comparison.pairs
    assert pair[:2] == (str(copy / "train" / "b" / "new-copy.jpg"), str(copy / "test" / "b" / "new-15.png"))


@pytest.mark.parametrize("classes", [2, 30, 100])
def test_the_contact_sheet_stays_small(classes: int) -> None:
    """Noise is what compresses the least."""
    pixels = np.random.default_rng(0).integers(0, 256, (10 * classes, 32, 32, 3), np.uint8)
    labels = np.repeat(np.arange(classes), 10)
    none = np.zeros(0, np.int64)
    images = ImageSet(pixels, labels, pixels[:0], none, [f"class {k}" for k in range(classes)], "d")
    png = small_contact_sheet(images)
    assert len(png) <= MOST_BYTES
    with Image.open(io.BytesIO(png)) as sheet:
        assert sheet.width >= 160
