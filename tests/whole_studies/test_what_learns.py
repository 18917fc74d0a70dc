"""A study whose arms differ in what learns and in the head: stopped again and again, resumed, and read back."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow.entities import Run
from safetensors import safe_open
from safetensors.torch import save_file

import ablation
from ablation.data.images import to_device
from ablation.data.normalisation import Normalisation
from ablation.data.reading import load_split
from ablation.data.split import split_seed
from ablation.networks.blocks import expected_tensors
from ablation.running import trial
from ablation.running.export import Classifier, export_program
from ablation.spec.tables import Data
from ablation.training.evaluation import evaluate
from ablation.training.sources import ImageSource, frozen_part
from tests.studies import Command, history, patched_train, runs

STUDY = """
question = "What should learn?"
trials_per_arm = 1
epochs = 3

[backbone]
name = "vgg16_narrow_bn"
weights = "weights.safetensors"

[data]
source = "digits"
limit = 200
val_fraction = 0.25

[fixed]
truncate_at = "block2"
strategy = "fine_tune_all"
batch_size = 32
head_width = 8

[search]
lr = { low = 1e-3, high = 1e-1, log = true }

[[arms]]
name = "probe"
strategy = "feature_extraction"
head_width = 0
head_norm = "batch"

[[arms]]
learn = "norms"
head_dropout = 0.5

[[arms]]
learn = "biases"
head_norm = "layer"

[[arms]]
learn = "block2"

[[arms]]
strategy = "fine_tune_top"
freeze_depth = "conv1_1"
lr_decay = 0.5
head_norm = "batch"
head_dropout = 0.2

[[arms]]
name = "random block1"
strategy = "from_scratch"
learn = "block2"

[[arms]]
name = "gradual"
unfreeze_every = 1
l2_sp = 0.1

[[arms]]
name = "average"
ema = 0.9
patience = 1
augmentation = "strong"

[confirm]
seeds = 1
"""
CUSTOM = """
from torch import nn

def plain():
    return [nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4)]
"""


@pytest.fixture
def file(command: Command) -> Path:
    """The study's file, in the working folder, beside random weights."""
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for key, (_, shape) in expected_tensors("vgg16_narrow_bn", "block5").items():
        tensors[key] = torch.rand(shape, generator=random) if "var" in key else torch.randn(shape, generator=random) / 5
    save_file(tensors, "weights.safetensors", {"architecture": "vgg16_narrow_bn"})
    Path("what.toml").write_text(STUDY)
    return Path("what.toml")


def all_runs(store: Path) -> dict[tuple[str, str], Run]:
    return {
        (run.data.params["arm"], kind): run for kind in ("trial", "confirmation") for run in runs(store, "what", kind)
    }


def test_stopped_in_every_arm_it_ends_the_same(command: Command, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    assert command(file, "--store", "whole", "--device", "cpu") == 0

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):  # the second training of each command; the first is the one before, resumed
            raise KeyboardInterrupt

    for _ in range(8):  # the trials of the arms from the second on, and the first arm's confirmation run
        with monkeypatch.context() as patch:
            patched_train(patch, fault)
            assert command(file, "--store", "s", "--device", "cpu") == 130
    assert command(file, "--store", "s", "--device", "cpu") == 0
    whole, resumed = all_runs(Path("whole")), all_runs(Path("s"))
    assert whole.keys() == resumed.keys()
    assert len(whole) == 16
    for key, run in whole.items():
        assert history(Path("s"), resumed[key]) == history(Path("whole"), run), key
        assert resumed[key].data.params == run.data.params

    check_models(Path("whole"), whole)
    check_exported_heads(Path("whole"), whole)
    check_params(whole)
    check_table()


def check_models(store: Path, found: dict[tuple[str, str], Run]) -> None:
    """Models are rebuilt from what learned, the weights, and the seed; checkpoints hold nothing else."""
    images, split = load_split(Data(source="digits", limit=200, val_fraction=0.25), split_seed(0))
    val = to_device(images.train_images_NHWC, images.train_labels_N, split.val_N, torch.device("cpu"))
    stored = {}
    for (arm, _), run in found.items():
        model = ablation.load_model(run.info.run_id, store=str(store))
        frozen = frozen_part(model, 0, Normalisation(tuple(model.input_mean), tuple(model.input_std)), "float32")
        evaluation = evaluate(model, ImageSource(val, frozen, "none"), "float32")
        assert evaluation.accuracy == run.data.metrics["best_val_accuracy"], arm
        with safe_open(next(store.rglob(f"{run.info.run_id}/artifacts/checkpoint/best.safetensors")), "pt") as opened:
            stored[arm] = {name for name in opened.keys() if name.startswith("blocks.")}  # noqa: SIM118 - not a dict
    assert stored["probe"] == set()
    assert all(name.rpartition(".")[0].split(".")[2].startswith("bn") for name in stored["norms,head_dropout=0.5"])
    assert all(name.endswith(".bias") for name in stored["biases,layer"])
    for arm in ("block2", "random block1"):
        assert {name.split(".")[1] for name in stored[arm]} == {"block2"}
    (top,) = [names for arm, names in stored.items() if "conv1_1" in arm]
    assert "blocks.block1.conv1_2.weight" in top
    assert not any("1_1" in name for name in top)


def check_exported_heads(store: Path, found: dict[tuple[str, str], Run]) -> None:
    """What a champion is exported as computes the same, with its norm's statistics and without dropout."""
    images_NSSC = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for (arm, kind), run in found.items():
        if kind == "confirmation" and "block1" not in arm:
            model = ablation.load_model(run.info.run_id, store=str(store))
            export_program(model, images_NSSC, Path("program.pt2"))
            exported = torch.export.load("program.pt2").module()(images_NSSC)
            assert torch.allclose(exported, Classifier(model)(images_NSSC), atol=1e-6), arm


def check_params(found: dict[tuple[str, str], Run]) -> None:
    """MLflow has the parameters that an arm of the study names, null where they have no effect."""
    params = {arm: run.data.params for (arm, kind), run in found.items() if kind == "trial"}
    assert (params["probe"]["learn"], params["probe"]["lr_decay"], params["probe"]["head_norm"]) == (
        "null", "null", "batch",
    )  # fmt: skip
    assert (params["block2"]["learn"], params["block2"]["lr_decay"], params["block2"]["head_norm"]) == (
        "block2", "null", "none",
    )  # fmt: skip
    (top,) = [values for arm, values in params.items() if "conv1_1" in arm]
    assert (top["freeze_depth"], top["learn"], top["lr_decay"]) == ("conv1_1", "all", "0.5")
    assert json.loads(top["head_dropout"]) == 0.2


def check_table() -> None:
    table = ablation.load_results("what", store="whole").query("kind == 'trial'").set_index("arm")
    assert pd.isna(table.loc["probe", "learn"])
    assert table.loc["block2", "learn"] == "block2"
    assert set(table.freeze_depth.dropna()) == {"conv1_1"}
    assert str(table.freeze_depth.dtype) == "string"
    assert list(table.head_width) == [0] + [8] * 7


def test_norms_of_a_custom_backbone_are_looked_for_where_they_would_learn(
    command: Command, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("nets.py").write_text(CUSTOM)
    head, _, _ = STUDY.partition("[[arms]]")
    backbone = '[backbone]\nmodule = "nets.py"\nfunction = "plain"\n\n[data]'
    custom = head.partition("[backbone]")[0] + backbone + head.partition("[data]")[2].replace(
        '"fine_tune_all"', '"from_scratch"\nlearn = "norms"')  # fmt: skip
    Path("what.toml").write_text(custom)
    assert command(file, "--store", "s") == 2
    error = capsys.readouterr().err
    assert "learn: 'norms' has no effect: there are none in the layers of plain that block2 keeps" in error
    assert not Path("s").exists()
    Path("what.toml").write_text(custom.replace('"block2"', '"block3"'))
    assert command(file, "--store", "s", "--epochs", "1") == 0
