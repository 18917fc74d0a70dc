"""Groups of images: found in paths or columns, and on one side of every split."""

from pathlib import Path

import numpy as np
import pytest

from ablation.base.errors import InputError
from ablation.data.groups import choose_groups, groups_in, numbered
from ablation.data.reading import list_images, load_split
from ablation.data.split import split_train_val
from ablation.spec.tables import Data
from tests.data.test_image_folder import picture


def patients(root: Path, counts: dict[str, list[int]], prefix: str = "") -> None:
    """Save pictures `<class>/p<patient>-<number>.png`: class -> the number of pictures of each patient."""
    patient = 0
    for name, sizes in counts.items():
        for size in sizes:
            for number in range(size):
                picture(root / prefix / name / f"{prefix[:2]}p{patient}-{number}.png")
            patient += 1


def data(root: Path, **more: object) -> Data:
    return Data(source="imagefolder", root=str(root), image_size=8, **{"groups": "(p[0-9]+)-", **more})


def groups_of(data: Data) -> tuple[list[set[str]], list[int]]:
    """Return the groups, and the number of images, of training, validation and test."""
    listing = list_images(data)
    assert listing.groups is not None
    images, split = load_split(data, seed=1)
    assert images.train_groups_N is not None  # numbers of the names in their order
    train = np.unique(listing.groups["train"])[images.train_groups_N]
    sides = [train[split.train_N], train[split.val_N], np.array(listing.groups["test"])]
    return [set(side) for side in sides], [len(side) for side in sides]


def disjoint(groups: list[set[str]]) -> bool:
    return sum(map(len, groups)) == len(set().union(*groups))


# ------------------------------------------------------------------------------------------------------- whole groups


def test_a_patients_images_are_on_one_side_of_every_split(tmp_path: Path) -> None:
    patients(tmp_path, {"ill": [5, 3, 4, 6, 2, 5, 4, 3, 5, 3], "well": [4, 4, 5, 3, 6, 2, 4, 5, 4, 3]})
    groups, images = groups_of(data(tmp_path, val_fraction=0.25))
    assert disjoint(groups)
    assert set().union(*groups) == {f"p{n}" for n in range(20)}
    assert images[2] == pytest.approx(16, abs=2), "a fifth of 80 images"
    assert images[1] == pytest.approx(16, abs=2), "a quarter of the rest"
    without = groups_of(data(tmp_path, groups="(.+)"))[0]
    assert sum(map(len, without)) == 80, "each picture is a group of its own"
    reading = list_images(data(tmp_path)).reading
    assert "a fifth of the groups is the test; 20 groups of images; " in reading
    assert load_split(data(tmp_path, val_fraction=0.25), 1)[0].reading == (
        f"{reading}; {images[1]} images of {len(groups[1])} groups validate ({100 * images[1] / sum(images[:2]):.0f} %)"
    )


def test_groups_of_a_manifest_are_its_column(tmp_path: Path) -> None:
    """Of any name; an expression over the paths does as well; without either, images are split one by one."""
    patients(tmp_path, {"ill": [4] * 6, "well": [4] * 6})
    paths = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    names = [path.name.split("-")[0] for path in paths]
    for column, key in (("group", None), ("patient", "patient"), ("none", "(p[0-9]+)-")):
        lines = [f"{path},{path.parent},{name}" for path, name in zip(paths, names, strict=True)]
        (tmp_path / "labels.csv").write_text("\n".join([f"path,label,{column}", *lines]))
        keys = {"source": "manifest", "manifest": str(tmp_path / "labels.csv"), "image_size": 8, "val_fraction": 0.25}
        groups, _ = groups_of(Data(**keys, groups=key))
        assert disjoint(groups)
        assert set().union(*groups) == set(names)
    assert list_images(Data(**keys)).groups is None
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group", *lines]))
    assert list_images(Data(**keys, groups="")).groups is None


def test_a_limit_leaves_groups_whole(tmp_path: Path) -> None:
    patients(tmp_path, {"ill": [6] * 8, "well": [6] * 8})
    groups, images = groups_of(data(tmp_path, limit=40, val_fraction=0.2))
    assert disjoint(groups)
    assert images[0] + images[1] == 40


def test_copies_are_dropped_with_their_groups(tmp_path: Path) -> None:
    patients(tmp_path, {"ill": [4] * 6, "well": [4] * 6})
    original = tmp_path / "ill" / "p0-0.png"
    (tmp_path / "ill" / "p1-9.png").write_bytes(original.read_bytes())
    assert disjoint(groups_of(data(tmp_path, duplicates="drop", val_fraction=0.25))[0])
    images, _ = load_split(data(tmp_path, duplicates="drop"), 0)
    assert images.test_groups_N is not None
    assert len(images.test_groups_N) == len(images.test_labels_N)
    assert set(images.test_groups_N) == set(range(images.test_groups_N.max() + 1))


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("mixed", [False, True])
def test_choices_of_groups_keep_classes_and_share(share: float, mixed: bool) -> None:
    """200 groups of 1 to 30 images: each class's share is within a fifth of the one asked for."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 31, 200)
    groups_N = np.repeat(np.arange(200), sizes)
    labels_N = random.integers(0, 4, len(groups_N)) if mixed else np.repeat(random.integers(0, 4, 200), sizes)
    chosen_N = choose_groups(labels_N, groups_N, share, seed=3)
    assert not set(groups_N[chosen_N]) & set(groups_N[~chosen_N])
    shares_K = np.bincount(labels_N[chosen_N]) / np.bincount(labels_N)
    assert abs(shares_K - share).max() < 0.2 * share
    assert np.array_equal(choose_groups(labels_N, groups_N, share, seed=3), chosen_N)
    assert not np.array_equal(choose_groups(labels_N, groups_N, share, seed=4), chosen_N)


def test_few_groups_make_a_larger_share_than_asked_for() -> None:
    """Two groups of each class: one for each side, though a tenth was asked for."""
    labels_N, groups_N = np.repeat([0, 0, 1, 1], 5), np.repeat([0, 1, 2, 3], 5)
    chosen_N = choose_groups(labels_N, groups_N, 0.1, seed=0)
    assert np.bincount(labels_N[chosen_N]).tolist() == [5, 5]
    split = split_train_val(labels_N, 0.1, 0, groups_N)
    assert np.bincount(labels_N[split.val_N]).tolist() == [5, 5]


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_group_that_would_empty_a_split_is_refused(tmp_path: Path) -> None:
    """All images of a class are of one patient, or of two where a test split has to be made as well."""
    for number, sizes in enumerate(([20], [10, 10])):
        root = tmp_path / str(number)
        patients(root, {"ill": sizes, "well": [4] * 5})
        with pytest.raises(InputError, match=f"the class in the fewest groups is in {len(sizes)}; it needs 3"):
            load_split(data(root), 0)
    patients(tmp_path / "given", {"ill": [20], "well": [4] * 5}, "train")
    patients(tmp_path / "given", {"ill": [4], "well": [4]}, "test")
    with pytest.raises(InputError, match="the class in the fewest groups is in 1; it needs 2, or more"):
        load_split(data(tmp_path / "given", groups="(..p[0-9]+)-"), 0)


def test_a_group_in_training_and_test_is_refused_by_name(tmp_path: Path) -> None:
    patients(tmp_path, {"ill": [2] * 6, "well": [2] * 6}, "train")
    patients(tmp_path, {"ill": [2], "well": [2]}, "test")
    match = "2 groups with images in training and in test: p0, p1; move their images to one side"
    with pytest.raises(InputError, match=match):
        list_images(data(tmp_path))
    with pytest.raises(InputError, match=match):
        list_images(data(tmp_path, duplicates="keep"))
    assert disjoint(groups_of(data(tmp_path, groups="(..p[0-9]+)-", val_fraction=0.25))[0])


def test_images_that_do_not_match_are_named(tmp_path: Path) -> None:
    patients(tmp_path, {"ill": [2] * 6, "well": [2] * 6})
    picture(tmp_path / "well" / "other.png")
    picture(tmp_path / "well" / "p-1.png")
    with pytest.raises(InputError, match=r"finds no group in 2 paths: well/other.png, well/p-1.png$"):
        list_images(data(tmp_path))
    with pytest.raises(InputError, match=r"finds no group in 12 paths: 0, .*, 9 and 2 more$"):
        groups_in([str(n) for n in range(12)], "([a-z]*)")
    assert groups_in(["a/x", "b/x"], "^([^/]+)/") == ["a", "b"]
    assert numbered(["b", "a", "b"]).tolist() == [1, 0, 1]
