"""A backbone of the user's own: a function in a file that returns blocks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

import ablation
from ablation import architecture
from ablation.backbones import cuts_table
from ablation.blocks import build_blocks, initialise_blocks
from ablation.seeding import generator
from ablation.spec import Backbone, InputError
from ablation.weights import read_weights

NETS = """
import torch
from torch import nn


class Swish(nn.Module):  # with a parameter of its own
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), Swish())
        self.top = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 10)


def tiny():
    net = Net()
    return {"stem": net.stem, "body": net.body, "top": net.top}


def listed():
    return [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)]


def broken():
    raise ZeroDivisionError("oh")


def number():
    return 3


def numbers():
    return [1, 2]


def apart():
    return [nn.Conv2d(3, 4, 3), nn.Conv2d(5, 6, 3)]


def flat():
    return [nn.Flatten()]
"""

STUDY = """
question = "Does it work?"
trials_per_arm = 1
epochs = 2
[backbone]
name = "nets.py:tiny"
weights = "tiny.safetensors"
[data]
source = "digits"
limit = 100
[factors]
truncate_at = ["block1", "block3"]
strategy = ["feature_extraction", "from_scratch"]
[confirm]
seeds = 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the module, its weights and a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(architecture, "BACKBONES", dict(architecture.BACKBONES))
    monkeypatch.setattr(architecture, "CUSTOM", {})
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "own.toml").write_text(STUDY)
    code = (
        "import nets, torch; from safetensors.torch import save_file; torch.manual_seed(3);"
        "save_file(nets.Net().state_dict(), 'tiny.safetensors')"  # the head's, too
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return tmp_path


def study(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ablation.study", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_study_of_it_runs(folder: Path) -> None:
    done = study("own.toml", "--store", "s")
    assert done.returncode == 0, done.stderr
    table = ablation.load_results("own", store="s")
    assert list(table.state) == ["finished"] * 8
    client = MlflowClient(tracking_uri="sqlite:///s/mlflow.db")
    extraction = table[(table.strategy == "feature_extraction") & (table.truncate_at == "block3")].iloc[0]
    assert client.get_run(extraction.run_id).data.params["backbone"] == "nets.py:tiny"
    model = ablation.load_model(extraction.run_id, store="s")
    assert torch.equal(model.blocks.block3.unit3_1.bias, load_file("tiny.safetensors")["top.bias"])
    again = study("own.toml", "--store", "s", "--trials", "2", "--set", "confirm.seeds=1")
    assert again.returncode == 0, again.stderr

    (folder / "nets.py").write_text(NETS.replace("self.slope * x)", "2 * self.slope * x)"))
    changed = study("own.toml", "--store", "s")
    assert changed.returncode == 2
    assert "backbone.code_digest" in changed.stderr
    (folder / "nets.py").unlink()
    gone = study("own.toml", "--store", "s")
    assert (gone.returncode, gone.stderr) == (2, "error: own.toml: backbone.name: nets.py: no such file\n")


def test_blocks_start_as_the_function_makes_them(folder: Path) -> None:
    Backbone(name="nets.py:tiny", weights=None)
    one, same, other = (build_blocks("nets.py:tiny", cut) for cut in ("block3", "block2", "block3"))
    for blocks, seed in ((one, 1), (same, 1), (other, 2)):
        torch.rand(seed)  # what was drawn elsewhere has no influence
        initialise_blocks(blocks, "nets.py:tiny", None, generator(seed))
    assert [name for name, _ in one.named_parameters()][-3:] == [
        "block2.unit2_1.1.slope", "block3.unit3_1.weight", "block3.unit3_1.bias",
    ]  # fmt: skip
    assert torch.equal(one.block2.unit2_1[0].weight, same.block2.unit2_1[0].weight)
    assert not torch.equal(one.block2.unit2_1[0].weight, other.block2.unit2_1[0].weight)
    assert not one.block1.unit1_1[0].inplace  # it would overwrite what is stored of the images


def test_its_cuts(folder: Path) -> None:
    architecture.load_custom("nets.py:listed")
    assert [row[:3] for row in cuts_table("nets.py:listed", 9).rows] == [
        ["unit1_1", "0", "4 x 7 x 7"], ["block1", "", "4 x 7 x 7"],
        ["unit2_1", "1", "5 x 3 x 3"], ["block2", "", "5 x 3 x 3"],
    ]  # fmt: skip


def test_its_weights(folder: Path) -> None:
    Backbone(name="nets.py:tiny", weights=None)
    weights = read_weights("nets.py:tiny", "tiny.safetensors")
    assert sorted(weights.tensors) == [
        "body.0.bias", "body.0.weight", "body.1.slope", "stem.1.bias", "stem.1.weight", "stem.2.bias",
        "stem.2.running_mean", "stem.2.running_var", "stem.2.weight", "top.bias", "top.weight",
    ]  # fmt: skip
    save_file({"other": torch.ones(1)}, "other.safetensors", {"input_mean": json.dumps([0, 0, 0])})
    with pytest.raises(InputError, match="has none of nets.py:tiny's tensors, such as stem.1.weight"):
        read_weights("nets.py:tiny", "other.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.py:tiny", "none.py: no such file"),
        ("nets.py:tinny", "nets.py: has no function 'tinny'"),
        ("nets.py:broken", "broken() of nets.py failed (ZeroDivisionError: oh)"),
        ("nets.py:number", "number() of nets.py failed (TypeError: 'int' object is not iterable)"),
        ("nets.py:numbers", "numbers() of nets.py must return blocks: a list of modules, or a dict path -> module"),
        ("bad.py:tiny", "bad.py: cannot be imported (ModuleNotFoundError: No module named 'nonesuch')"),
        ("nets.py:apart", "nets.py:apart: its blocks up to block2 fail on 32 x 32 images ("),
        ("nets.py:flat", "nets.py:flat: its blocks up to block1 fail on 32 x 32 images ("),
    ],
)
def test_what_is_wrong_with_it_is_said(folder: Path, name: str, said: str) -> None:
    (folder / "bad.py").write_text("import nonesuch")
    before = sorted(folder.rglob("*"))
    cut = "block1" if name.endswith("flat") else "block2"
    settings = [f"backbone.name={name}", f"factors={{truncate_at=['{cut}'], strategy=['from_scratch']}}"]
    done = study("own.toml", "--store", "s", *(part for setting in settings for part in ("--set", setting)))
    assert done.returncode == 2
    assert f"backbone.name: {said}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in str(path)] == [
        path for path in before if "__pycache__" not in str(path)
    ]
