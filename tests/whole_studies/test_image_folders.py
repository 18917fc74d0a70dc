"""Studies of image folders: read through memory maps, and decoded by another version."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ablation.analysis.results import read_results
from ablation.data import reading
from ablation.data.reading import load_split
from ablation.data.split import split_seed
from ablation.running import workbench
from ablation.storage.store import find_store
from tests.studies import Command, arm_study, history, runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, 40 training images and 10 test images each: noise of 160 x 120 pixels, one class more red."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for c, name in enumerate("ab"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 200, (120, 160, 3), np.uint8)
                pixels[..., 0] += 30 * c
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.jpg")
    return tmp_path / "images"


def folder(root: Path, size: int = 16) -> tuple[str, ...]:
    values = {"source": "imagefolder", "root": root, "limit": 60, "image_size": size}
    return tuple(text for key, value in values.items() for text in ("--set", f"data.{key}={value}"))


def results(store: str) -> dict[str, Any]:
    """Return the curves and the parameters of every run, by kind and name."""
    return {
        f"{kind} {run.info.run_name}": (history(Path(store), run), run.data.params)
        for kind in ("trial", "confirmation")
        for run in runs(Path(store), "small", kind)
    }


def test_a_study_of_mapped_images_computes_the_same_to_the_bit(
    command: Command, study_file: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads on cached features of plain and mirrored images, heads on shifted images, and the test images."""
    values = ('factors={augmentation=["flip", "crop_flip"]}', "fixed.truncate_at=block1",
              "fixed.strategy=feature_extraction", "confirm.seeds=1")  # fmt: skip
    settings = (*folder(root), "--trials", "1", *(text for value in values for text in ("--set", value)))
    places: list[bool] = []
    real = workbench.to_device

    def observed(pixels: np.ndarray, *more: Any) -> Any:
        places.append(isinstance(pixels, np.memmap))
        return real(pixels, *more)

    monkeypatch.setattr(workbench, "to_device", observed)
    assert command(study_file, *settings, "--store", "copied") == 0
    assert places == [False, False]
    monkeypatch.setattr(reading, "available_memory", lambda: 1000)
    assert command(study_file, *settings, "--store", "mapped") == 0
    assert places[2:] == [True, True]
    copied, mapped = results("copied"), results("mapped")
    assert len(copied) == len(mapped) == 2 + 2
    assert copied == mapped


def test_a_study_of_another_decoding_is_refused(
    command: Command, study_file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pixels, or which images a folder holds, may be others."""
    settings = (study_file, *folder(root), "--set", 'factors={strategy=["fine_tune_all"]}', "--set",
                "fixed.truncate_at=block1")  # fmt: skip
    with monkeypatch.context() as older:
        older.setattr("ablation.data.own_images.DECODING_VERSION", 5)
        assert command(*settings, "--trials", "1") == 0
    content = arm_study(Path("mlruns"), "small/fine_tune_all").user_attrs["content"]
    assert content["data"]["decoding"] == 5
    assert command(*settings, "--trials", "2") == 2
    why = "data.decoding (was 5, is 6: its images were decoded by another version of ablation); run this variant"
    assert why in " ".join(capsys.readouterr().err.split())
    assert len(runs(Path("mlruns"), "small")) == 1


def test_groups_stay_together_and_reach_the_report(command: Command, study_file: Path, tmp_path: Path) -> None:
    """A manifest's column of patients: in both splits, in the split of a second tuning, and in the intervals."""
    random = np.random.default_rng(0)
    lines = ["path,label,patient"]
    for number in range(96):
        patient, label = number // 6, number // 6 % 2
        pixels = random.integers(0, 200, (16, 16, 3), np.uint8)
        pixels[..., 0] += 30 * label
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[label]},{patient}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = {"source": "manifest", "manifest": tmp_path / "labels.csv", "groups": "patient", "image_size": 16}
    settings = [text for key, value in data.items() for text in ("--set", f"data.{key}={value}")]
    settings += ["--set", "data.limit=72", "--set", 'factors={strategy=["feature_extraction", "fine_tune_all"]}']
    settings += ["--set", "fixed.truncate_at=block1", "--set", "confirm.seeds=3", "--set", "epochs=1"]
    assert command(study_file, *settings, "--trials", "1") == 0
    found = runs(Path("mlruns"), "small", "confirmation")
    assert len(found) == 6
    result = read_results(find_store("mlruns"), "small")
    assert result.test_groups_N is not None
    assert np.unique(result.test_groups_N, return_counts=True)[1].tolist() == [6] * (result.test_images // 6)
    page = next(Path("mlruns").rglob("report.html")).read_text(encoding="utf-8")
    assert f"The {result.test_images // 6} groups of test images (data.groups) are taken as independent" in page
    images, first = load_split(result.spec.data, split_seed(result.spec.seed))
    twice = result.spec.model_copy(update={"confirm": result.spec.confirm.model_copy(update={"repeats": 2})})
    groups_N = images.train_groups_N
    assert groups_N is not None
    splits = workbench.splits_of(twice, images, first)
    assert not np.array_equal(splits[0].val_N, splits[1].val_N)
    for split in splits:
        assert not set(groups_N[split.train_N]) & set(groups_N[split.val_N])
