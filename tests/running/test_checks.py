"""What --check says of a study that is too small."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ablation.base import terminal
from ablation.base.errors import InputError
from ablation.data.image_set import ImageSet
from ablation.data.reading import DataSize
from ablation.networks.custom_backbone import load_custom_backbone
from ablation.running import checks
from ablation.running.checks import check_study, class_hints, export_hints, objective_hints, size_hints, too_small
from ablation.spec.study import StudySpec
from ablation.spec.tables import Data
from ablation.storage.store import find_store
from tests.fake_results import fake_spec
from tests.running.test_study_view import study


def test_a_study_too_small_to_answer_is_said_to_be() -> None:
    spec = study(["block1", "block2"], seeds=2)
    seeds, validation, test, per_class = too_small(spec, DataSize(classes=2, train=10, test=50), 1)
    assert seeds == "[confirm] seeds is 2; arms with fewer than 3 are not compared"
    assert validation.startswith("1 validation image, each worth 100.0 points")
    assert test.startswith("50 test images, each worth 2.0 points of accuracy")
    assert per_class == "there are fewer than 5 training images per class"


def test_few_groups_of_test_images_get_a_warning() -> None:
    spec = study(["block1", "block2"], seeds=3)
    (warning,) = too_small(spec, DataSize(classes=10, train=50_000, test=10_000, test_groups=9), 5_000)
    assert warning.startswith("9 groups of test images, which the report's tests count")
    assert too_small(spec, DataSize(classes=10, train=50_000, test=10_000, test_groups=10), 5_000) == []


def test_classes_of_few_test_images_get_a_hint_where_all_classes_count_alike() -> None:
    labels_N = np.array([0] * 20 + [1] * 4 + [2] * 5)
    no_NHWC = np.zeros((0, 8, 8, 3), np.uint8)
    images = ImageSet(no_NHWC, np.array([], np.int64), no_NHWC, labels_N, ["often", "rare", "seldom", "none"], "")
    balanced = fake_spec({}, objective="balanced_accuracy", confirm={"seeds": 3})
    (hint,) = class_hints(balanced, images)
    assert "fewer than 5 test images ('rare' has 4)" in hint
    grouped = replace(images, test_groups_N=np.arange(29) // 4)
    (hint,) = class_hints(fake_spec({}, objective="macro_f1", confirm={"seeds": 3}), grouped)
    assert "fewer than 5 groups of test images ('rare' has 1, 'seldom' has 2)" in hint
    assert class_hints(fake_spec({}, confirm={"seeds": 3}), images) == []
    assert class_hints(balanced, replace(images, classes=images.classes[:1], test_labels_N=labels_N[:20])) == []
    assert class_hints(fake_spec({}, objective="balanced_accuracy", confirm={"seeds": 0}), images) == []


def test_check_says_of_how_many_groups_the_test_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = study_of_folder(tmp_path, ["a", "b"], test_from=50)
    data = {**spec.data.model_dump(exclude_unset=True), "groups": "(test|train/./[0-9])"}
    spec = fake_spec({"truncate_at": ["block3", "block4"]}, data=data, confirm={"seeds": 3})
    monkeypatch.setattr(checks, "load_weights", lambda spec: None)
    check_study(spec, find_store(str(tmp_path / "store")), Path("mine.toml"))
    said = capsys.readouterr().out
    assert "Tested on 20 images of 1 group\n" in said
    assert "warning: 1 group of test images" in said


def test_groups_are_not_divided_for_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of each class is one group: 10 images, although a tenth of the images would be 2."""
    spec = study_of_folder(tmp_path, ["a", "b"], test_from=50)
    for number, path in enumerate(sorted(tmp_path.glob("train/*/*.png"))):
        path.rename(path.with_name("pq"[number % 2] + path.name))
    data = {**spec.data.model_dump(exclude_unset=True), "groups": "(test|train/./[pq])"}
    monkeypatch.setattr(checks, "load_weights", lambda spec: None)
    check_study(fake_spec({}, data=data), find_store(str(tmp_path / "store")), Path("mine.toml"))
    assert "warning: 10 validation images" in capsys.readouterr().out


def test_on_a_terminal_sentences_wrap_at_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # no progress bar
    console = Console(force_terminal=True, width=60, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    monkeypatch.setattr(checks, "load_weights", lambda spec: None)
    with console.capture() as capture:
        check_study(
            study_of_folder(tmp_path, ["a", "b"], test_from=50), find_store(str(tmp_path / "store")), Path("mine.toml")
        )
    lines = capture.get().splitlines()
    assert len(lines) > 4
    assert all(len(line) <= 60 or " " not in line for line in lines)  # a path stays whole


def test_a_large_study_and_one_without_a_comparison_are_not() -> None:
    large = DataSize(classes=10, train=50_000, test=10_000)
    assert too_small(study(["block1", "block2"], seeds=3), large, 5_000) == []
    assert too_small(study(["block1"], seeds=0), large, 5_000) == []


def test_balanced_class_weights_with_accuracy_get_a_hint() -> None:
    """It trains for all classes alike, and would be chosen by the frequent ones."""
    weighted = {"fixed": {"class_weights": "balanced"}}
    (hint,) = objective_hints(fake_spec({}, **weighted))
    assert "objective = 'balanced_accuracy'" in hint
    assert objective_hints(fake_spec({}, **weighted, objective="macro_f1")) == []
    assert objective_hints(fake_spec({})) == []
    (hint,) = objective_hints(fake_spec({"class_weights": ["none", "balanced"]}))


def test_photos_that_become_tiny_by_default_get_a_hint(tmp_path: Path) -> None:
    for number, name in enumerate(["train/cat", "train/dog", "test/cat", "test/dog"]):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (300, 200 + number)).save(tmp_path / name / "a.png")
    (tmp_path / "train/cat/b.png").write_bytes(b"no picture")
    (hint,) = size_hints(Data(source="imagefolder", root=str(tmp_path)))
    assert "a shorter side of 202 pixels (median) become 32 x 32" in hint
    assert size_hints(Data(source="imagefolder", root=str(tmp_path), image_size=32)) == []
    assert size_hints(Data()) == []
    for path in tmp_path.glob("*/*/a.png"):
        Image.new("RGB", (100, 40)).save(path)
    assert size_hints(Data(source="imagefolder", root=str(tmp_path))) == []


def study_of_folder(root: Path, classes: list[str], test_from: int) -> StudySpec:
    """Return a study of ten training images of each class, the first one's grey being 0, and ten test images."""
    for split, first in (("train", 0), ("test", test_from)):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for grey in range(first, first + 10):
                Image.new("L", (32, 32), 100 * number + grey).save(root / split / name / f"{grey}.png")
    return fake_spec({}, data={"source": "imagefolder", "root": str(root), "image_size": 32})


@pytest.mark.parametrize(
    ("classes", "test_from", "match"),
    [(["a", "b"], 0, "the same image in training and test"), (["cat", "Cat"], 50, "differ only in case, spaces or")],
)
def test_images_are_read_before_a_study_is_called_fine(
    classes: list[str], test_from: int, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = study_of_folder(tmp_path, classes, test_from=test_from)
    monkeypatch.setattr(checks, "load_weights", lambda spec: None)
    with pytest.raises(InputError, match=match):
        check_study(spec, find_store(str(tmp_path / "store")), Path("mine.toml"))


@pytest.mark.parametrize(("strategy", "is_needed"), [("from_scratch", False), ("feature_extraction", True)])
def test_weights_from_which_nothing_starts_are_not_looked_for(
    strategy: str, is_needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "check_download", lambda backbone, weights: f"warning: no {weights} for {backbone}")
    spec = fake_spec({}, data={"source": "digits"}, fixed={"strategy": strategy}, trials_per_arm=1)
    check_study(spec, find_store(str(tmp_path / "store")), Path("mine.toml"))
    said = capsys.readouterr().out
    assert ("no imagenet for vgg16" in said) is is_needed
    assert said.startswith("mine.toml is fine: 1 arm, 1 training on 1,437 images of 10 classes")


NETS = """
import torch
from torch import nn


class Branching(nn.Module):
    def forward(self, x):
        return x * 0 if float(x.abs().mean()) > 1e6 else x


def mine():
    return [nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), Branching()), nn.Conv2d(4, 4, 1)]
"""


@pytest.mark.parametrize(
    ("cuts", "seeds", "said"),
    [
        (["block1"], 1, None),
        (["block2", "block3"], 1, "hint: mine will have no registered champion: torch.export cannot export it ("),
        (
            ["block3", "block2", "block1"],
            1,
            "hint: mine will have no registered champion if block2 or a deeper cut wins: ",
        ),
        (["block2"], 0, None),  # there is no champion anyway
    ],
)
def test_a_custom_network_that_cannot_be_exported_gets_a_hint(
    cuts: list[str], seeds: int, said: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    backbone = {"name": load_custom_backbone(str(tmp_path / "nets.py"), "mine"), "weights": None}
    spec = fake_spec(
        {"truncate_at": cuts}, backbone=backbone, confirm={"seeds": seeds}, fixed={"strategy": "from_scratch"},
        data={"image_size": 8},
    )  # fmt: skip
    hints = export_hints(spec, 10)
    assert len(hints) == (said is not None)
    assert all(hint.startswith(said or "") and "\n" not in hint for hint in hints)
    assert capfd.readouterr().err == ""


def test_torchvisions_networks_are_not_exported_for_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "trace", None)
    assert export_hints(fake_spec({}), 10) == []


def test_the_check_says_what_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "export_hints", lambda spec, classes: [f"hint: {classes} classes"])
    spec = fake_spec({}, data={"source": "digits"}, fixed={"strategy": "from_scratch"}, trials_per_arm=1)
    check_study(spec, find_store(str(tmp_path / "store")), Path("mine.toml"))
    assert "hint: 10 classes\n" in capsys.readouterr().out
