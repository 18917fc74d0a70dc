"""python -m ablation.data: a set of images, near-duplicates, and the cache."""

import csv
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFilter, ImageOps

from ablation.base.errors import InputError
from ablation.data import reading
from ablation.data.__main__ import cli, read_data, write_lines
from ablation.data.image_cache import cache_folder, map_decoded
from ablation.data.kept_duplicates import kept_comparison
from ablation.data.near_duplicates import find_near_duplicates
from ablation.data.reading import list_images, listing_key, load_split
from ablation.data.split import split_seed
from ablation.spec.tables import Data
from ablation.storage.store import find_store
from tests.analysis.test_label_errors import with_calls
from tests.data.test_image_files import images
from tests.data.test_image_folder import tree
from tests.fake_results import fake_result, store_study
from tests.studies import REPOSITORY


def smooth(number: int, side: int = 96) -> Image.Image:
    """Return a picture of coarse patches, as photos have them; every number another one."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty pictures in two classes and two splits."""
    root = tmp_path / "photos"
    for number in range(40):
        folder = root / ("train" if number < 30 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        smooth(number).save(folder / f"{number}.png")
    return root


def run(*words: str) -> str:
    """Run the command in this process; return what it printed."""
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    if result.exit_code:
        raise InputError(result.output)
    return result.output


def test_copies_that_differ_in_encoding_size_or_side_are_found(photos: Path) -> None:
    """And nothing else. A broken file does no harm."""
    picture, test = smooth(30), photos / "test" / "a" / "30.png"
    copies = {
        "same.bmp": picture,
        "jpeg50.jpg": picture,
        "smaller.png": picture.resize((60, 60)),
        "blurred.png": picture.filter(ImageFilter.GaussianBlur(1)),
        "mirrored.jpg": ImageOps.mirror(picture),
    }
    for name, copy in copies.items():
        copy.save(photos / "train" / "a" / name, quality=50)
    (photos / "train" / "a" / "broken.png").write_bytes(b"x")
    paths = [str(path) for path in sorted(photos.rglob("*.*"))]
    pairs = find_near_duplicates(paths)
    assert (len(paths), pairs.unreadable) == (46, 1)
    found = {
        frozenset((Path(paths[first]).name, Path(paths[second]).name)): bool(is_mirrored)
        for first, second, is_mirrored in zip(pairs.first_P, pairs.second_P, pairs.is_mirrored_P, strict=True)
    }
    assert {name for pair in found for name in pair} == {*copies, "30.png"}
    assert all(frozenset((test.name, name)) in found for name in copies)
    assert found[frozenset((test.name, "mirrored.jpg"))]
    assert not found[frozenset((test.name, "jpeg50.jpg"))]


def test_black_pictures_are_pictures() -> None:
    black, white = (np.full((40, 40, 3), grey, np.uint8) for grey in (0, 255))
    pairs = find_near_duplicates([black, white, black.copy()])
    assert [pairs.first_P.tolist(), pairs.second_P.tolist(), pairs.is_mirrored_P.tolist()] == [[0], [2], [False]]


def test_many_equal_pictures_take_no_time(tmp_path: Path) -> None:
    """Of 20 all pairs are named, the others are paired with the first; broken files are not equal to each other."""
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 1000
    began = time.process_time()
    pairs = find_near_duplicates(pictures)
    assert time.process_time() - began < 2
    assert (pairs.difference_P.max(), pairs.is_mirrored_P.any(), pairs.represented) == (0, False, 980)
    found = list(zip(pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True))
    assert found == [(a, b) for a in range(20) for b in range(a + 1, 20 if a else 1000)]
    broken = [str(tmp_path / f"{number}.png") for number in range(3)]
    pairs = find_near_duplicates(broken)
    assert (len(pairs.first_P), pairs.unreadable) == (0, 3)


@pytest.mark.real_data
def test_planted_copies_of_real_images_are_found(real_images: Path, tmp_path: Path) -> None:
    """Every exact copy, at least 95 % of those encoded anew or mirrored, and hardly any other pair.

    Of CIFAR-10 (60,000 pictures) with 200 planted copies, in 30 seconds on two cores: 67 of 67 exact copies, 67 of
    67 that were encoded anew, 66 of 66 mirrored ones; of 57 other pairs, 54 are the same or nearly the same picture.
    """
    root = shutil.copytree(real_images, tmp_path / "cifar10")
    random = np.random.default_rng(0)
    paths = sorted(root.glob("train/*/*.jpg"))
    planted = {kind: random.choice(len(paths), 40, replace=False) for kind in ("copied", "encoded", "mirrored")}
    expected: dict[str, set[frozenset[str]]] = {kind: set() for kind in planted}
    for kind, numbers in planted.items():
        for number in numbers:
            copy = root / "test" / paths[number].parent.name / f"{kind}{number}.jpg"
            if kind == "copied":
                shutil.copy(paths[number], copy)
            else:
                with Image.open(paths[number]) as picture:
                    changed = ImageOps.mirror(picture) if kind == "mirrored" else picture
                    changed.save(copy, quality=int(random.integers(40, 91)))
            expected[kind].add(frozenset((str(paths[number]), str(copy))))
    run("check", str(root), "--out", str(tmp_path / "pairs.csv"))
    with (tmp_path / "pairs.csv").open(encoding="utf-8") as file:
        found = {frozenset(line[:2]) for line in list(csv.reader(file))[1:]}
    assert expected["copied"] <= found
    for kind in ("encoded", "mirrored"):
        assert len(expected[kind] & found) >= 0.95 * 40
    copies = {path for pairs in expected.values() for pair in pairs for path in pair}
    assert sum(not pair & copies for pair in found) <= 3


def test_check_says_where_the_pairs_lie(photos: Path, tmp_path: Path) -> None:
    smooth(31).save(photos / "train" / "a" / "leak.jpg", quality=70)  # a test image of class b
    file = tmp_path / "pairs.csv"
    text = " ".join(run("check", str(photos), "--out", str(file)).split())
    assert "1 pair of pictures nearly the same: 1 across training and test, 1 in two classes" in text
    with file.open(encoding="utf-8") as opened:
        ((first, second, difference, note),) = list(csv.reader(opened))[1:]
    assert {Path(first).name, Path(second).name} == {"leak.jpg", "31.png"}
    assert 0 < float(difference) < 6
    assert note == "training and test and two classes"


def test_check_says_that_it_does_not_name_all_pairs_of_equal_pictures(photos: Path) -> None:
    """Of 24 equal ones, 14 of them in training, the last four are paired with the first: 190 + 4, 14 x 6 + 4 across."""
    for number in range(24):
        smooth(50).save(photos / ("train" if number < 14 else "test") / "a" / f"same{number}.png")
    text = " ".join(run("check", str(photos)).split())
    assert "paired only with the first of more than 20 equal ones: 4 pictures" in text
    assert "194 pairs of pictures nearly the same: 88 across training and test, 0 in two classes" in text
    comparison = kept_comparison(listing_key(list_images(Data(source="imagefolder", root=str(photos)))))
    assert comparison is not None
    assert (comparison.pictures, comparison.across, comparison.represented) == (64, 88, 4)


def test_check_says_what_it_cannot_read(photos: Path) -> None:
    (photos / "test" / "a" / "30.png").write_bytes(b"x")
    text = " ".join(run("check", str(photos)).split())
    assert "not compared: 1 picture that cannot be read" in text
    comparison = kept_comparison(listing_key(list_images(Data(source="imagefolder", root=str(photos)))))
    assert comparison is not None
    assert comparison.pictures == 39


def test_a_set_is_listed_once_and_with_progress(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, listed = reading.image_folder_listing, []
    monkeypatch.setattr(reading, "image_folder_listing", lambda *a: listed.append(1) or real(*a))
    text = run(str(photos), "--out", str(tmp_path / "sheet.png"), "--set", "data.unreadable=skip")
    assert "Looking at all images (40)" in text
    assert listed == [1]
    assert "Looking at all images (40)" in run(
        "check", str(photos), "--set", "data.unreadable=skip", "--set", "image_size=16"
    )


def test_parquet_files_with_their_images_are_named_by_their_path(tmp_path: Path) -> None:
    """Others are manifests. A file that is none, or is not there, is described as that."""
    images = [{"bytes": b"", "path": None}]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [1]}), tmp_path / "set.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"photo": images, "label": [1]}), tmp_path / "other.parquet")
    sizes = {"path": ["1.png"], "label": [1], "image": [{"width": 640, "height": 480}]}
    pyarrow.parquet.write_table(pyarrow.table(sizes), tmp_path / "manifest.parquet")
    assert read_data(str(tmp_path / "set.parquet"), ()).source == "huggingface"
    assert read_data(str(tmp_path / "set.parquet"), ("source=manifest",)).source == "manifest"
    assert read_data(str(tmp_path / "other.parquet"), ()).source == "manifest"
    assert read_data(str(tmp_path / "other.parquet"), ("data.image_column=photo",)).source == "huggingface"
    assert read_data(str(tmp_path / "other.parquet"), ("data.source=huggingface",)).root == str(
        tmp_path / "other.parquet"
    )
    assert read_data(str(tmp_path / "manifest.parquet"), ()).source == "manifest"
    assert read_data(str(tmp_path / "missing.parquet"), ()).source == "manifest"


def test_a_set_is_shown(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    text = " ".join(run(str(photos), "--out", str(sheet), "--set", "data.image_size=16").split())
    assert "sizes in pixels: 96 x 96 (40); formats and modes: PNG RGB (40)" in text
    assert "training images in train/" in text
    cells = " ".join("".join(c if c.isalnum() else " " for c in text).split())
    for row in ("a 15 5", "b 15 5", "all 30 10"):
        assert row in cells
    with Image.open(sheet) as picture:
        assert picture.size == (640, 2 * 82)
        corner = np.asarray(picture.convert("RGB"))[18 + 2 : 18 + 60, 2:60].astype(int)
    assert abs(corner - np.asarray(smooth(0).resize((16, 16)).resize((62, 62)))[2:60, 2:60]).mean() < 25


def test_the_cache_is_listed_and_cleaned() -> None:
    used = map_decoded(images("a"))
    map_decoded(images("b"))
    folder = cache_folder()
    assert folder is not None
    cut = folder / "imagefolder-c.safetensors"
    cut.write_bytes((folder / "imagefolder-b.safetensors").read_bytes()[:-1])
    (folder / "audit-d.json").write_text("{")
    (folder / "near-e.safetensors").write_bytes(b"")
    text = " ".join("".join(c if c.isalnum() or c in "-." else " " for c in run("cache")).split())
    for file, state in (("imagefolder-a.safetensors 0.1", "in use"), ("imagefolder-b.safetensors 0.1", "not in use"),
                        ("imagefolder-c.safetensors 0.1", "damaged"), ("audit-d.json 0.0", "damaged"),
                        ("near-e.safetensors 0.0", "damaged")):  # fmt: skip
        assert f"{file} {state}" in text
    assert "0.0 of 10 GB" in text
    assert "4 files deleted" in run("cache", "--clear")
    assert [file.name for file in folder.glob("imagefolder-*")] == ["imagefolder-a.safetensors"]
    assert used["test"].shape == (1, 10_000)


def test_without_a_cache_its_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.data.image_cache.cache_folder", lambda: None)
    assert run("cache").startswith("There is no cache of decoded images: the home folder is unknown")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "which images"),
        (("check",), "which images"),
        (("nowhere_at_all",), "no study 'nowhere_at_all'"),
        (("photos/tyop",), "^photos/tyop: no such folder or file$"),
        (("check", "studies/tyop.toml"), "^studies/tyop.toml: no such folder or file$"),
        (("a", "b"), "which images"),
        (("digits_known", "--clear"), "--clear: is for"),
        (("suspects",), "which images"),
        (("suspects", "no study"), "the study's name 'no study' must be"),
        (("suspects", "nothing", "--store", "nowhere"), "nowhere"),
        (("digits_known", "--store", "x"), "--store: is for suspects"),
        (("cache", "--store", "x"), "--store: is for suspects"),
        (("cache", "--set", "data.limit=5"), "--set: is for NAME, check"),
        (("suspects", "nothing", "--set", "data.limit=5"), "--set: is for NAME, check"),
        (("cache", "--out", "x.csv"), "--out: is for NAME, check, suspects"),
    ],
)
def test_bad_words_are_refused(words: tuple[str, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        run(*words)


def test_bad_keys_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", "a", "b")
    with pytest.raises(InputError, match=r"^--set: data.colour: unknown key"):
        run(str(root), "--set", "data.colour=1")
    with pytest.raises(InputError, match=r"^--set: groups: .* is no regular expression .missing "):
        run(str(root), "--set", "groups='(a'")
    pyarrow.parquet.write_table(pyarrow.table({"image": [1], "label": [1]}), tmp_path / "set.parquet")
    for column in ("5", "[1]"):
        with pytest.raises(InputError, match=r"^--set: image_column: .* string"):
            run(str(tmp_path / "set.parquet"), "--set", f"image_column={column}")
    (root / "a" / "broken.png").write_text("no image")
    with pytest.raises(InputError, match=r"data.root: cannot be read as an image: .*broken.png .not an image"):
        run(str(root))
    (root / "a" / "broken.png").unlink()
    with pytest.raises(InputError, match="--out: .* cannot be written"):
        run(str(root), "--out", str(tmp_path / "nowhere" / "sheet.png"))
    shutil.rmtree(root / "a")
    with pytest.raises(InputError, match="of two classes or more"):
        run(str(root))


@pytest.mark.parametrize(
    ("backbone", "loaded"),
    [
        ('module = "nets.py"\nfunction = "mine"', ("nets.py", "mine", 32)),
        ('name = "timm:resnet18"', (None, "timm:resnet18", 32)),
    ],
)
def test_a_study_of_any_backbone_has_images(
    backbone: str, loaded: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "ablation.networks.timm_backbones.load_backbone", lambda *args: asked.append(args) or "vgg16_narrow"
    )
    study = f'question = "?"\ntrials_per_arm = 1\nepochs = 1\n[backbone]\nweights = "mine.pth"\n{backbone}\n'
    (tmp_path / "own.toml").write_text(study + '[data]\nsource = "digits"\n')
    assert read_data(str(tmp_path / "own.toml"), ("data.limit=50",)) == Data(source="digits", limit=50)
    assert asked == [loaded]


def test_a_refused_file_imports_nothing_large(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("question = 5\n")
    code = (
        "import sys; from ablation.data.__main__ import main; status = main();"
        "print(sorted({'torch', 'mlflow', 'optuna', 'sklearn'} & set(sys.modules)), status)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "own.toml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 2", done.stderr


def test_lists_have_no_formulas(tmp_path: Path) -> None:
    write_lines(tmp_path / "lines.csv", [("test image", "label"), ("=1+1.png", "@sum"), ("a\nb.png", "-1")])
    with (tmp_path / "lines.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["test image", "label"], ["'=1+1.png", "'@sum"], ["a\nb.png", "-1"]]


def test_suspected_labels_are_named_by_their_files(tmp_path: Path) -> None:
    """All runs call the first cat a dog; only some call the others something else."""
    root = tree(tmp_path / "images", "train/cat", "train/dog", "test/cat", "test/dog", count=2)
    data = {"source": "imagefolder", "root": str(root), "val_fraction": 0.5}
    result = fake_result({"truncate_at": ["block1", "block2"]}, {"block1": 0.6, "block2": 0.7}, seeds=2, data=data)
    result = with_calls(result, [[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]], [0.8] * 4)
    images, _ = load_split(result.spec.data, split_seed(result.spec.seed))
    result = replace(result, data_digest=images.digest)
    store = find_store(str(tmp_path / "store"))
    store_study(store, result)
    name = result.spec.name
    text = " ".join(run("suspects", name, "--store", str(store.root), "--out", str(tmp_path / "found.csv")).split())
    assert "1 test image of 4 that all confirmation runs call another class" in text
    with (tmp_path / "found.csv").open(encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["test image", "label", "all runs say", "mean probability"]
    assert lines == [[str(root / "test" / "cat" / "0.png"), "cat", "dog", "0.800"]]
    (root / "test" / "cat" / "1.png").replace(root / "test" / "cat" / "9.png")
    run("suspects", name, "--store", str(store.root))  # the order is the same
    (root / "test" / "cat" / "9.png").replace(root / "test" / "cat" / "-.png")
    with pytest.raises(InputError, match="^data: the images have changed since the study, or another version of"):
        run("suspects", name, "--store", str(store.root))


def test_a_study_with_a_key_without_effect_has_images(tmp_path: Path) -> None:
    """The study is right otherwise, and its images are those of the whole study."""
    path = tmp_path / "s.toml"
    published = '[[published]]\narm = { truncate_at = "conv1_1" }\naccuracy = 0.9\n'
    path.write_text((REPOSITORY / "studies" / "vgg_truncation.toml").read_text(encoding="utf-8") + published)
    assert read_data(str(path), ()).source == "cifar10"
