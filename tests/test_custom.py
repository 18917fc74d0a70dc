"""A backbone of one's own: a function in a Python file that returns blocks."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ablation
from ablation import architecture, custom
from ablation.backbones import cuts_table
from ablation.blocks import build_blocks, check_custom, initialise_blocks
from ablation.data import Normalisation
from ablation.features import frozen_part
from ablation.models import TransferModel, build_model
from ablation.seeding import generator
from ablation.spec import InputError, load_study
from ablation.strategies import apply_strategy
from ablation.train import set_training_mode, trained_tensors
from ablation.weights import read_weights

NETS = """
import random

import numpy as np
import torch
from torch import nn

from helpers.swish import Swish


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.layers = nn.ModuleList([nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Dropout(0.5)])
        self.top = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), Swish())
        self.head = nn.Linear(8, 10)


def mine():
    net = Net()
    return {"stem": net.stem, "layers.0": net.layers[0], "layers.1": net.layers[1], "top": net.top}


def drawn():
    conv = nn.Conv2d(3, 4, 1)
    conv.bias.data = torch.tensor([random.random(), np.random.rand(), 0, 0])
    return [conv]
"""
SWISH = """
import torch


class Swish(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)
"""
STUDY = """
question = "Does it work?"
trials_per_arm = 1
epochs = 2
[backbone]
module = "nets.py"
function = "mine"
weights = "mine.safetensors"
[data]
source = "digits"
limit = 100
image_size = 12
[factors]
truncate_at = ["block1", "block4"]
strategy = ["feature_extraction", "from_scratch"]
[confirm]
seeds = 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the module and a package that it imports, its weights, and a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(architecture, "BACKBONES", dict(architecture.BACKBONES))
    for name in [name for name in sys.modules if name.partition(".")[0] == "helpers"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").touch()
    (tmp_path / "helpers" / "swish.py").write_text(SWISH)
    (tmp_path / "own.toml").write_text(STUDY)
    code = (
        "import nets, torch; from safetensors.torch import save_file; torch.manual_seed(3);"
        "save_file(nets.Net().state_dict(), 'mine.safetensors')"  # the head's, too
    )
    subprocess.run([sys.executable, "-B", "-c", code], check=True)
    return tmp_path


def study(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-m", "ablation.study", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def write(path: str, body: str) -> str:
    Path(path).write_text(f"import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n\n{body}")
    return path


def test_a_study_of_it(folder: Path) -> None:
    """It runs and goes on wherever the module is, until its code is another; what was made of it needs no code."""
    done = study("own.toml", "--store", "s")
    assert done.returncode == 0, done.stderr
    table = ablation.load_results("own", store="s")
    assert list(table.state) == ["finished"] * 8
    (folder / "elsewhere").mkdir()
    for name in ("nets.py", "helpers", "mine.safetensors"):
        shutil.move(name, "elsewhere")
    places = ("--set", "backbone.module=elsewhere/nets.py", "--set", "backbone.weights=elsewhere/mine.safetensors")
    more = study("own.toml", "--store", "s", "--trials", "2", *places)
    assert more.returncode == 0, more.stderr
    table = ablation.load_results("own", store="s")
    assert (table.kind == "trial").sum() == 8

    run = table[(table.strategy == "feature_extraction") & (table.truncate_at == "block4")].iloc[0].run_id
    with pytest.raises(InputError, match="its backbone cannot be made: module: nets.py: no such file"):
        ablation.load_model(run, store="s")
    there = {"weights": "elsewhere/mine.safetensors", "module": "elsewhere/nets.py"}
    model = ablation.load_model(run, store="s", **there)
    assert torch.equal(model.blocks.block4.unit4_1[0].bias, load_file(there["weights"])["top.0.bias"])

    swish = folder / "elsewhere" / "helpers" / "swish.py"
    swish.write_text(SWISH.replace("self.slope * x)", "2 * self.slope * x)"))
    changed = study("own.toml", "--store", "s", *places)
    assert changed.returncode == 2
    assert "study 'own' has trials that were made with other settings: backbone.name (was 'mine@" in changed.stderr
    sys.modules.pop("helpers.swish", None)
    with pytest.raises(InputError, match=r"elsewhere/nets.py: makes mine@\w+, but run \w+ was trained with mine@"):
        ablation.load_model(run, store="s", **there)

    shutil.rmtree("elsewhere")
    assert len(ablation.load_results("own", store="s")) == len(table)
    command = [sys.executable, "-m", "ablation.report", "own", "--store", "s"]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_its_name_covers_all_of_its_code(folder: Path) -> None:
    """What it imports, from wherever it is called; not its place, nor files that it does not import."""
    first = custom.load("nets.py", "mine")
    assert sorted(custom._code(Path("nets.py").resolve())) == ["", "helpers", "helpers.swish"]
    shutil.copytree(".", "copy")
    (folder / "copy" / "other.py").write_text("x = 1")
    assert custom.load("copy/../copy/nets.py", "mine") == first
    (folder / "copy" / "helpers" / "__init__.py").write_text("x = 2")
    assert custom.load("copy/nets.py", "mine") != first
    assert custom.load("nets.py", "drawn") != first


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("self.scale = 2.0", "self.scale = 3.0"),
        ("self._table = torch.tensor([1.0])", "self._table = torch.tensor([2.0])"),
        (
            "self.register_buffer('shift', torch.zeros(1), persistent=False)",
            "self.register_buffer('shift', torch.ones(1), persistent=False)",
        ),
    ],
)
def test_what_its_code_reads_elsewhere_is_part_of_its_name(folder: Path, here: str, there: str) -> None:
    """The very same code, but attributes and unsaved buffers differ, here by a file that it reads."""
    body = """
class Block(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)
        exec(open("settings").read())

def mine():
    return [Block()]
"""
    Path("settings").write_text(here)
    first = custom.load(write("net.py", body), "mine")
    Path("settings").write_text(there)
    assert custom.load("net.py", "mine") != first
    Path("settings").write_text(here)
    assert custom.load("net.py", "mine") == first


def test_stored_features_depend_on_its_code(folder: Path) -> None:
    """Two layers that look alike and have the same tensors, but compute something else."""
    digests = []
    for sign in ("+", "-"):
        body = f"""
class Block(nn.Module):
    def forward(self, x):
        return x {sign} 1

def mine():
    return [Block()]
"""
        name = custom.load(write("net.py", body), "mine")
        model = build_model(name, "block1", 4, 1, 2, 8)
        part = frozen_part(model, 1, Normalisation((0.5,) * 3, (0.25,) * 3), "float32")
        digests.append(part.layer_digests)
    assert digests[0] != digests[1]


def test_blocks_start_as_the_function_makes_them(folder: Path) -> None:
    """By the seed alone, whatever the function draws from, and without a trace in the global generators."""
    name = custom.load("nets.py", "drawn")
    biases = []
    for seed in (1, 1, 2):
        torch.rand(3), random.random(), np.random.rand()
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        blocks = build_blocks(name, "block1")
        initialise_blocks(blocks, name, None, generator(seed))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
        biases.append((blocks.block1.unit1_1.weight.sum().item(), *blocks.block1.unit1_1.bias.tolist()[:2]))
    assert biases[0] == biases[1]
    assert all(one != other for one, other in zip(biases[0], biases[2], strict=True))


def test_a_block_without_parameters_learns_unless_it_is_frozen(folder: Path) -> None:
    """Its dropout drops where the block is trained, and its statistics are kept or trained with the others."""
    body = """
def mine():
    return [nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1)]
"""
    name = custom.load(write("net.py", body), "mine")

    def model(frozen: int) -> TransferModel:
        made = build_model(name, "block4", 4, 1, 2, 8)
        apply_strategy(made, "fine_tune_top", freeze_depth=frozen, lr=1.0, backbone_lr_scale=1.0, weight_decay=0.0)
        set_training_mode(made, head_alone=False)
        return made

    for frozen in range(5):
        made = model(frozen)
        assert [block.training for block in made.blocks] == [number >= frozen for number in range(4)]
        assert ("blocks.block3.unit3_1.running_mean" in trained_tensors(made)) == (frozen < 3)
    set_training_mode(made := model(0), head_alone=True)
    assert not any(block.training for block in made.blocks)


def test_a_frozen_input_is_not_overwritten(folder: Path) -> None:
    name = custom.load("nets.py", "mine")
    assert not build_blocks(name, "block1").block1.unit1_1[0].inplace


def test_its_cuts(folder: Path) -> None:
    name = custom.load(write("net.py", "def mine(): return [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)]"), "mine")
    assert [row[:3] for row in cuts_table(name, 9).rows] == [
        ["unit1_1", "0", "4 x 7 x 7"], ["block1", "", "4 x 7 x 7"],
        ["unit2_1", "1", "5 x 3 x 3"], ["block2", "", "5 x 3 x 3"],
    ]  # fmt: skip
    command = [sys.executable, "-m", "ablation.backbones", "mine", "--module", "net.py", "--image-size", "9"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "5 x 3 x 3" in shown.stdout
    assert subprocess.run([*command[:-1], "3"], capture_output=True, text=True).stderr == (
        "error: function: mine(): block2 (1) fails on maps 4x1x1 of 3x3 images (Calculated padded input size per "
        "channel: (1 x 1). Kernel size: (3 x 3). Kernel size can't be greater than actual input size)\n"
    )


def test_its_weights(folder: Path) -> None:
    name = custom.load("nets.py", "mine")
    weights = read_weights(name, "mine.safetensors")
    assert sorted(weights.tensors) == [
        "layers.0.bias", "layers.0.weight", "stem.1.bias", "stem.1.weight", "stem.2.bias",
        "stem.2.running_mean", "stem.2.running_var", "stem.2.weight", "top.0.bias", "top.0.weight", "top.1.slope",
    ]  # fmt: skip
    # As training scripts save them.
    state = {f"module.{key}": tensor for key, tensor in load_file("mine.safetensors").items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, "mine.pth")
    assert read_weights(name, "mine.pth").digest == weights.digest
    save_file({"other": torch.ones(1)}, "other.safetensors", {"input_mean": json.dumps([0, 0, 0])})
    with pytest.raises(InputError, match=r"has none of mine@\w+'s tensors, such as stem.1.weight"):
        read_weights(name, "other.safetensors")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "module: net.py: no such file"),
        ("import nonesuch", "module: net.py: cannot be imported (ModuleNotFoundError: No module named 'nonesuch')"),
        ("def mine(:", "module: net.py: cannot be imported (SyntaxError: "),
        ("def other(): pass", "function: net.py has no function 'mine'"),
        ("def mine(): raise ZeroDivisionError('oh')", "function: mine() of net.py failed (ZeroDivisionError: oh)"),
        ("def mine(x): pass", "function: mine() of net.py failed (TypeError: mine() missing 1 required positional"),
        ("def mine(): pass", "function: mine() of net.py must return blocks: a list of modules, or a dict path -> "),
        ("def mine(): return nn.Linear(1, 2)", "-> module, not Linear"),
        ("def mine(): return []", "-> module, not nothing"),
        ("def mine(): return [3]", "function: mine() of net.py must return modules by their path, not 3 by '0'"),
        ("def mine(): return [c := nn.Conv2d(3, 3, 1), c]", "mine() of net.py: the blocks 0 and 1 share a tensor"),
        ("def mine(): return {'a': nn.Conv2d(3, 3, 1), 'a.b': nn.ReLU()}", "the block a.b is inside another"),
    ],
)
def test_a_module_that_is_wrong_is_refused(folder: Path, body: str | None, said: str) -> None:
    if body is not None:
        write("net.py", body)
    with pytest.raises(InputError) as refused:
        load_study(folder / "own.toml", overrides=[(["backbone", "module"], "net.py")])
    assert "own.toml, as set on the command line: backbone." in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def mine(): return [nn.Conv2d(3, 4, 3), nn.Conv2d(5, 6, 3)]",
         "function: mine(): block2 (1) fails on maps 4x10x10 of 12x12 images (Given groups=1, weight of size"),
        ("def mine(): return [nn.Flatten()]", "block1 (0) must make square maps NxCxHxH, but makes 2x432 of maps 2x3x"),
        ("def mine(): return [nn.Conv2d(3, 3, (1, 2))]", "but makes 2x3x12x11 of maps 2x3x12x12"),
        ("class B(nn.Module):\n    def forward(self, x): return F.relu_(x)\n"
         "def mine(): return [nn.Conv2d(3, 4, 1), B()]",
         "block2 (1) changes its input in place"),
        ("class B(nn.Module):\n    def forward(self, x): return [x]\ndef mine(): return [B()]",
         "but makes list of maps"),
        ("def mine():\n    c = nn.Conv2d(3, 4, 1)\n    nn.init.ones_(c.weight), nn.init.zeros_(c.bias)\n"
         "    return [c]",
         "mine() returns the same tensors whatever the random seed: pretrained ones, say"),
    ],
)  # fmt: skip
def test_blocks_that_do_not_work_are_refused(folder: Path, body: str, said: str) -> None:
    name = custom.load(write("net.py", body), "mine")
    deepest = architecture.block_names(name)[-1]
    with pytest.raises(ValueError) as refused:
        check_custom(name, [deepest], 12, may_start_random=True)
    assert said in str(refused.value)


def test_bad_blocks_are_refused_before_anything_is_written(folder: Path) -> None:
    write("net.py", "def mine(): return [nn.Flatten()]")
    before = sorted(folder.rglob("*"))
    refused = study(
        "own.toml", "--store", "s", "--set", "backbone.module=net.py", "--set", "factors.truncate_at=['block1']"
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: backbone.function: mine(): block1 (0) must make square maps")
    assert refused.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_from_scratch_needs_no_weights(folder: Path) -> None:
    text = STUDY.replace('weights = "mine.safetensors"\n', "").replace('"feature_extraction", ', "")
    (folder / "scratch.toml").write_text(text)
    spec = load_study(folder / "scratch.toml")
    assert spec.backbone.weights is None
    assert spec.content()["backbone"] == {"name": spec.backbone.name, "weights": None, "missing_layers": "error"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "vgg16"}, "backbone.name: not beside backbone.module, which takes its place"),
        ({"function": 3}, "backbone.function: must be a text, beside backbone.module"),
        ({"weights": "imagenet"}, "torchvision has no weights for mine@"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(folder: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as refused:
        load_study(folder / "own.toml", overrides=[(["backbone", key], value) for key, value in keys.items()])
    assert said in str(refused.value)
