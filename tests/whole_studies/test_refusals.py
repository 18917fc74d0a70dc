"""Bad input is refused in one line, before anything is written; new studies are checked."""

import json
import re
import shutil
from contextlib import AbstractContextManager, nullcontext
from http.client import BadStatusLine
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import Request

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import ablation
from ablation.data import reading
from ablation.spec.reading import load_study
from ablation.spec.schema import study_schema
from tests.studies import (
    ONE_ARM,
    Command,
    arm_study,
    client,
    runs,
)


def test_a_new_study_is_written_and_checked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It loads as it is written, and also with every default that it shows."""
    assert command("--new", "mine") == 0
    path = Path("studies/mine.toml")
    written = path.read_text()
    schema = written.splitlines()[0].removeprefix("#:schema ")
    assert json.loads(Path("studies", schema).read_text()) == study_schema()  # beside it: the folder can be shared
    content = load_study(path).content()
    path.write_text(re.sub(r"^# (\w+ *=)", r"\1", written, flags=re.MULTILINE))
    shown = load_study(path).content()
    assert shown["data"].pop("limit") == 1000
    assert content["data"].pop("limit") is None
    assert shown["data"].pop("groups") == "(patient[0-9]+)_"  # left out where there are none
    assert shown == content
    path.write_text(written)

    capsys.readouterr()
    assert command("--check", "mine") == 2
    assert "data.root: pictures: there is no such folder; it must hold train/<class>/*" in capsys.readouterr().err
    for split in ("train", "test"):
        for name in ("a", "b"):
            Path("pictures", split, name).mkdir(parents=True)
            for number in range(10):
                colour = (number, 100 * (name == "a"), 100 * (split == "test"))
                Image.new("RGB", (40, 30), colour).save(Path("pictures", split, name, f"{number}.png"))
    with monkeypatch.context() as patch:
        patch.setattr(reading, "available_memory", lambda: 10_000)
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10_000))
        assert command("--check", "mine") == 2
    assert "which do not fit into memory, do not fit on the disk of" in capsys.readouterr().err
    assert command("--check", "mine") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 arms, 78 trainings on 20 images of 2 classes" in said
    assert "warning: 2 validation images, each worth 50.0 points of accuracy" in said
    broken = Path("pictures/train/b/3.png")
    broken.write_bytes(broken.read_bytes()[:40])
    assert command("--check", "mine") == 2
    assert re.search(r"cannot be read as an image: \S*train/b/3.png \(", capsys.readouterr().err)
    assert sorted(path.name for path in Path().iterdir()) == ["pictures", "studies"]  # nothing else was written


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vgg_truncation", "error: --new: there is a study 'vgg_truncation': "),
        ("../mine", "error: the study's name '../mine' must be"),
    ],
)
def test_a_new_study_that_cannot_be(command: Command, name: str, said: str, capsys: Any) -> None:
    assert command("--new", name) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("fault", [URLError("Name or service not known"), BadStatusLine("a portal's page"), None])
def test_check_says_which_weights_are_to_be_downloaded(
    command: Command, study_file: Path, fault: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """And downloads nothing: it asks their server for the size alone."""

    def answer(request: Request, timeout: float) -> AbstractContextManager[Any]:
        assert request.get_method() == "HEAD"
        if fault is not None:
            raise fault
        return nullcontext(SimpleNamespace(headers={"Content-Length": "553433881"}))

    monkeypatch.setattr("ablation.networks.weights.urlopen", answer)
    monkeypatch.setenv("TORCH_HOME", "cache")
    assert command("--check", study_file, "--set", "backbone={name='vgg16', weights='imagenet'}") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "is fine: " in said
    if fault is not None:
        assert "warning: backbone.weights: https://download.pytorch.org/models/vgg16-397923af.pth could not be " in said
        assert f"({fault}); place it at cache/hub/checkpoints/vgg16-397923af" in said
    else:
        assert "vgg16-397923af.pth (553 MB) to cache/hub/checkpoints/vgg16-397923af.pth" in said
    assert not Path("cache").exists()


def test_check_reads_the_weights(command: Command, study_file: Path, narrow_weights: Path, capsys: Any) -> None:
    assert command("--check", study_file) == 0
    assert command("--check", study_file, "--set", "backbone.name=vgg16") == 2
    assert "holds vgg16_narrow, but backbone.name is vgg16" in capsys.readouterr().err
    assert command("--check", study_file, "--set", "backbone={name='vgg16', weights='IMAGENET1K_V9'}") == 2
    said = capsys.readouterr().err
    assert "torchvision has no 'IMAGENET1K_V9' for vgg16; did you mean 'IMAGENET1K_V1'?" in said
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "which study? --list lists them"),
        (("vgg_truncatoin",), "no study 'vgg_truncatoin'; did you mean 'vgg_truncation'?"),
        (("other.toml",), "other.toml: no such file"),
        (("{file}", "--name", "../x"), "the study's name '../x' must be"),
        (("{file}", "--demo", "--name", "x"), "--name: a demo is always called NAME-demo"),
        (("{file}", "--epochs", "ten"), "'ten' is not a valid integer"),
        (("{file}", "--feature-cache", "inf"), "--feature-cache: must be a number of GB, got inf"),
        (("{file}", "--feature-cache", "nan"), "--feature-cache: must be a number of GB, got nan"),
        (("{file}", "--feature-cache", "-1"), "Invalid value for '--feature-cache'"),
        (("{file}", "--trials", "0"), "trials_per_arm: input should be greater than or equal to 1"),
        (("{file}", "--device", "tpu"), "--device: unknown device 'tpu'"),
        (("{file}", "--device", "cuda:77"), "--device: cuda:77 is not available"),
        (("{file}", "--set", "data.limit=99999"), "data.limit: 99999 is more than the 1437 training images"),
        (("{file}", "--set", "data.limit=11"), "data.limit: of 11 images, class '0' has 1 training image, but needs"),
        (("{file}", "--set", "data.limit=30"), "data.val_fraction: 8 of 30 images for validation, but 10 classes"),
        (("{file}", "--set", 'data.classes=["1","x"]'), "data.classes: no class 'x'; known: 0, 1"),
        (("{file}", "--set", "backbone.weights=no.pth"), "backbone.weights: no.pth: no such file"),
        (("{file}", "--set", "backbone.name=vgg16"), "holds vgg16_narrow, but backbone.name is vgg16"),
        (("{file}", "--store", "{file}"), "is not a folder"),
        (("{file}", "--status"), "has no study 'small'"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    command: Command, study_file: Path, arguments: tuple[str, ...], expected: str, capsys: Any
) -> None:
    assert command(*(argument.format(file=study_file) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_tracking_store_that_is_not_there_leaves_nothing_behind(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert command(study_file, "--patience", "0.02") == 1
    error = capsys.readouterr().err
    assert "error: MLflow does not answer (Connection refused)" in error
    assert "secret" not in error
    assert list(Path().iterdir()) == []


def test_a_deleted_experiment_is_not_written_to(command: Command, study_file: Path, capsys: Any) -> None:
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1", "--epochs", "1") == 0
    api = client(Path("s"))
    api.delete_experiment(api.get_experiment_by_name("small").experiment_id)
    capsys.readouterr()
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "2", "--epochs", "1") == 2
    assert "the MLflow experiment 'small' was deleted; --redo restores it" in capsys.readouterr().err
    assert arm_study(Path("s"), "small/fine_tune_all").user_attrs["content"]["trials_per_arm"] == 1


def test_lacking_layers_are_refused_unless_asked_for(
    command: Command, study_file: Path, narrow_weights: Path, capsys: Any
) -> None:
    tensors = load_file(narrow_weights)
    save_file({k: v for k, v in tensors.items() if k.split(".")[1] in ("0", "2")}, "block1.safetensors")
    weights = ("--set", "backbone.weights=block1.safetensors", "--trials", "1", "--epochs", "1", "--store", "s")
    assert command(study_file, *weights) == 2
    assert (
        "block1.safetensors: has no conv2_1 (features.5.weight), which truncate_at = conv2_1" in capsys.readouterr().err
    )
    assert not Path("s").exists()
    assert command(study_file, *weights, "--set", "backbone.missing_layers=random") == 0
    for run in runs(Path("s"), "small"):
        ablation.load_model(run.info.run_id, store="s")  # frozen random layers are rebuilt, too
