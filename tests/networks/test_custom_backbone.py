"""Custom backbones: a function in a Python file that returns blocks."""

import functools
import json
import os
import py_compile
import random
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ablation
from ablation import backbones
from ablation.backbones import cuts_table
from ablation.base.command_line import run_command
from ablation.base.errors import InputError
from ablation.base.generators import generator
from ablation.data.normalisation import Normalisation
from ablation.networks import code_digest
from ablation.networks.blocks import build_blocks, initialise_blocks
from ablation.networks.custom_backbone import load_custom_backbone, make_custom_blocks
from ablation.networks.custom_checks import check_custom_blocks
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.timm_backbones import load_backbone
from ablation.networks.transfer_model import Head, TransferModel, build_model, set_training_mode
from ablation.networks.weights import read_weights
from ablation.spec import reading
from ablation.spec.architectures import ARCHITECTURES, block_names
from ablation.spec.reading import load_study
from ablation.training.sources import frozen_part
from ablation.training.state import trained_tensors
from tests.studies import Command, signal_handlers_kept

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


@pytest.fixture(scope="session")
def own_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the whole network, what is behind its blocks, too."""
    folder = tmp_path_factory.mktemp("own")
    write_nets(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        torch.manual_seed(3)
        network = runpy.run_path(str(folder / "nets.py"))["Net"]()
    for name in ("helpers", "helpers.swish"):
        del sys.modules[name]
    save_file(network.state_dict(), folder / "mine.safetensors")
    return folder / "mine.safetensors"


def write_nets(folder: Path) -> None:
    """Write the module and a package that it imports."""
    (folder / "nets.py").write_text(NETS)
    (folder / "helpers").mkdir()
    (folder / "helpers" / "__init__.py").touch()
    (folder / "helpers" / "swish.py").write_text(SWISH)


@pytest.fixture
def folder(tmp_path: Path, own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the module and a package that it imports, its weights, and a study."""
    monkeypatch.chdir(tmp_path)
    known = dict(ARCHITECTURES)
    write_nets(tmp_path)
    (tmp_path / "own.toml").write_text(STUDY)
    shutil.copy(own_weights, "mine.safetensors")
    yield tmp_path
    for name in ARCHITECTURES.keys() - known.keys():
        del ARCHITECTURES[name]


load = functools.partial(load_study, load_backbone=load_backbone)


def write(path: str, body: str) -> str:
    Path(path).write_text(f"import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n\n{body}")
    return path


@pytest.mark.usefixtures("exported_champions")
def test_a_study_of_it(folder: Path, command: Command, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, and resumes wherever the module is, until its code changes; its results need no code."""
    monkeypatch.chdir(folder)  # `command` has one of its own
    deep = ("--set", 'factors.truncate_at=["block4"]')
    assert command("own.toml", "--store", "s", *deep) == 0
    table = ablation.load_results("own", store="s")
    assert list(table.state) == ["finished"] * 4
    (folder / "elsewhere").mkdir()
    for name in ("nets.py", "helpers", "mine.safetensors"):
        shutil.move(name, "elsewhere")
    places = (
        "--set",
        "backbone.module=elsewhere/nets.py",
        "--set",
        "backbone.weights=elsewhere/mine.safetensors",
        *deep,
    )
    assert command("own.toml", "--store", "s", "--trials", "2", *places) == 0
    table = ablation.load_results("own", store="s")
    assert (table.kind == "trial").sum() == 4

    run = table[table.strategy == "feature_extraction"].iloc[0].run_id
    with pytest.raises(InputError, match="its backbone cannot be built: module: nets.py: no such file"):
        ablation.load_model(run, store="s")
    there = {"weights": "elsewhere/mine.safetensors", "module": "elsewhere/nets.py"}
    model = ablation.load_model(run, store="s", **there)
    assert torch.equal(model.blocks.block4.unit4_1[0].bias, load_file(there["weights"])["top.0.bias"])

    swish = folder / "elsewhere" / "helpers" / "swish.py"
    swish.write_text(SWISH.replace("self.slope * x)", "2 * self.slope * x)"))
    capsys.readouterr()
    assert command("own.toml", "--store", "s", *places) == 2
    error = capsys.readouterr().err
    assert "study 'own' has trials that were made with other settings: backbone.name (was 'mine@" in error
    with pytest.raises(InputError, match=r"elsewhere/nets.py: defines mine@\w+, but run \w+ was trained with mine@"):
        ablation.load_model(run, store="s", **there)

    shutil.rmtree("elsewhere")
    assert len(ablation.load_results("own", store="s")) == len(table)
    report = [sys.executable, "-m", "ablation.report", "own", "--store", "s"]  # a process that never loaded the code
    done = subprocess.run(report, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_name_covers_all_of_its_code(folder: Path) -> None:
    """What it imports, from wherever it is called; not its place, nor files that it does not import."""
    first = load_custom_backbone("nets.py", "mine")
    assert load_custom_backbone("nets.py", "mine") == first
    shutil.copytree(".", "copy")
    (folder / "copy" / "other.py").write_text("x = 1")
    assert load_custom_backbone("copy/../copy/nets.py", "mine") == first
    (folder / "copy" / "helpers" / "__init__.py").write_text("x = 2")
    assert load_custom_backbone("copy/nets.py", "mine") != first
    assert load_custom_backbone("nets.py", "drawn") != first


@pytest.mark.parametrize(
    ("lines", "helper"),
    [
        ("from helpers import swish", "helpers/swish.py"),
        ("from helpers import *", "helpers/__init__.py"),
        ("import importlib\nimportlib.import_module('dynamic')", "dynamic.py"),
        ("import sys\nsys.path.append('lib')\nimport far", "lib/far.py"),
        ("import elsewhere", "../path/elsewhere.py"),  # on PYTHONPATH, say
        ("def later():\n    import lazy", "lazy.py"),  # not yet imported
    ],
)
def test_all_that_it_may_run_is_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str, helper: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("path")
    monkeypatch.syspath_prepend(path)
    file = path / "elsewhere.py" if helper.startswith("..") else folder / helper
    file.parent.mkdir(exist_ok=True)
    write("net.py", f"{lines}\ndef mine():\n    return [nn.Conv2d(3, 4, 1)]")

    def named(content: str) -> str:
        file.write_text(content)
        return load_custom_backbone("net.py", "mine")

    assert named("x = 1") == named("x = 1") != named("x = 2")


def test_its_name_is_the_same_in_every_process(folder: Path) -> None:
    """Whatever the hash seed, and though objects have addresses and files a place."""
    body = """
import logging, os, functools

class Block(nn.Conv2d):
    kinds = {"a", "b", "c", "d"}

    def __init__(self):
        super().__init__(3, 4, 1)
        self.where = os.path.dirname(os.path.abspath(__file__))
        self.act = functools.partial(torch.clamp, min=0)
        self.table = dict.fromkeys({"x", "y", "z", "w"})
        self.me = [self, object(), lambda x: x, logging.getLogger("mine")]

    def extra_repr(self):
        return repr(self.me[1])

def mine():
    return [Block()]
"""
    write("net.py", body)
    (folder / "there").mkdir()
    shutil.copy("net.py", "there")
    code = (
        "import sys; from ablation.networks.custom_backbone import load_custom_backbone;"
        "print(load_custom_backbone(sys.argv[1], 'mine'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "there/net.py"], env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{load_custom_backbone('net.py', 'mine')}\n"


def test_each_gets_its_own_helpers(folder: Path) -> None:
    """Two networks whose helpers are called alike, and one whose helper changes while Python runs."""
    names = []
    for place, factor in (("a", 2), ("b", 3), ("b", 4)):
        (folder / place).mkdir(exist_ok=True)
        write(f"{place}/net.py", "import helper\ndef mine(): return [helper.Block()]")
        block = f"class Block(nn.Module):\n    def forward(self, x): return {factor} * x"
        write(f"{place}/helper.py", block)
        names.append(load_custom_backbone(f"{place}/net.py", "mine"))
    one = torch.ones(1, 3, 2, 2)
    assert [make_custom_blocks(name, 0)["0"](one).max().item() for name in names] == [2, 3, 4]
    assert len(set(names)) == 3


def test_bytecode_is_neither_read_nor_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file has bytecode of an older version with the same size and time, which Python would use."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (folder / "package").mkdir()
    Path("package/__init__.py").touch()
    net = "import helper\nfrom package import inner\ndef mine(): return [helper.Block(), inner.Block(), Own()]\n"
    files = {"net.py": net + "class Own", "helper.py": "class Block", "package/inner.py": "class Block"}

    def write_all(factor: int) -> None:
        for file, beginning in files.items():
            write(file, f"{beginning}(nn.Module):\n    def forward(self, x): return {factor} * x")
            os.utime(file, (1e9, 1e9))

    write_all(2)
    caches = [Path(py_compile.compile(file, doraise=True)) for file in files]
    before = [cache.read_bytes() for cache in caches]
    write_all(3)
    blocks = make_custom_blocks(load_custom_backbone("net.py", "mine"), 0)
    assert [block(torch.ones(1)).item() for block in blocks.values()] == [3, 3, 3]
    assert [cache.read_bytes() for cache in caches] == before
    assert sorted(folder.rglob("*.pyc")) == sorted(folder / cache for cache in caches)


def test_bytecode_of_installed_packages_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(folder / "site-packages")
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "installed_one.py").touch()
    load_custom_backbone(write("net.py", "import installed_one\ndef mine(): return [nn.Conv2d(3, 4, 1)]"), "mine")
    assert [cache.parent for cache in folder.rglob("*.pyc")] == [folder / "site-packages" / "__pycache__"]


def test_this_package_is_not_the_users_code(folder: Path) -> None:
    """A file may import it, and stand beside it, as in the repository."""
    assert code_digest.is_installed(ablation.__file__)
    assert code_digest.is_installed(reading.__file__)
    body = "import ablation.spec.reading\ndef mine(): return [nn.Conv2d(3, 4, 1)]"
    load_custom_backbone(write("net.py", body), "mine")
    assert code_digest.code_contents(folder / "net.py", ["ablation.spec.reading"]).keys() == {""}


def test_this_process_stays_as_it_was(folder: Path) -> None:
    """Though the file changes all that it can."""
    body = """
import os, sys, warnings

def mine():
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("error")
    os.chdir("/")
    sys.path.insert(0, "nowhere")
    assert sys.argv[1:] == []
    sys.argv.append("mine")
    return [nn.Conv2d(3, 4, 1)]
"""
    before = sys.argv[:], sys.path[:], Path.cwd(), torch.get_default_dtype(), warnings.filters[:]
    finders = sys.meta_path[:]
    load_custom_backbone(write("net.py", body), "mine")
    assert (sys.argv, sys.path, Path.cwd(), torch.get_default_dtype(), warnings.filters) == before
    assert sys.meta_path == finders
    assert torch.is_grad_enabled()
    body = "def mine():\n    torch.set_default_device('meta')\n    return [nn.Conv2d(3, 4, 1)]"
    with pytest.raises(ValueError, match="sets torch's default device"):
        load_custom_backbone(write("net.py", body), "mine")
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("self.scale = 2.0", "self.scale = 3.0"),
        ("self._table = torch.tensor([1.0])", "self._table = torch.tensor([2.0])"),
        ("Block.scale = 2.0", "Block.scale = 3.0"),
        ("self.act = torch.relu", "self.act = torch.tanh"),
        ("self.own = Own(2)", "self.own = Own(3)"),
        ("self.act = functools.partial(torch.clamp, min=0)", "self.act = functools.partial(torch.clamp, min=1)"),
        ("self.cfg = types.SimpleNamespace(depth=[1])", "self.cfg = types.SimpleNamespace(depth=[2])"),
        ("self.act = (lambda k: lambda x: k * x)(1)", "self.act = (lambda k: lambda x: k * x)(2)"),
        (
            "self.register_buffer('shift', torch.zeros(1), persistent=False)",
            "self.register_buffer('shift', torch.ones(1), persistent=False)",
        ),
    ],
)
def test_what_its_code_reads_elsewhere_is_part_of_its_name(folder: Path, here: str, there: str) -> None:
    """The very same code, but attributes and unsaved buffers differ, here by a file that it reads."""
    body = """
import functools, types

class Own:
    def __init__(self, factor):
        self.factor, self.me = factor, self

class Block(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)
        exec(open("settings").read(), globals(), {"self": self})

def mine():
    return [Block()]
"""
    Path("settings").write_text(here)
    first = load_custom_backbone(write("net.py", body), "mine")
    Path("settings").write_text(there)
    assert load_custom_backbone("net.py", "mine") != first
    Path("settings").write_text(here)
    assert load_custom_backbone("net.py", "mine") == first


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
        name = load_custom_backbone(write("net.py", body), "mine")
        model = build_model(name, "block1", Head(4, 1), 2, 8)
        part = frozen_part(model, 1, Normalisation((0.5,) * 3, (0.25,) * 3), "float32")
        digests.append(part.layer_digests)
    assert digests[0] != digests[1]


def test_blocks_start_as_the_function_makes_them(folder: Path) -> None:
    """By the seed alone, whatever the function draws from, and without a trace in the global generators."""
    name = load_custom_backbone("nets.py", "drawn")
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
    name = load_custom_backbone(write("net.py", body), "mine")

    def model(frozen: int) -> TransferModel:
        made = build_model(name, "block4", Head(4, 1), 2, 8)
        apply_strategy(made, Learning("fine_tune_top", lr=1.0, freeze_depth=frozen))
        set_training_mode(made, made.learning_layers)
        return made

    for frozen in range(5):
        made = model(frozen)
        assert [layer.training for layer in made.layers] == [number >= frozen for number in range(4)]
        assert ("blocks.block3.unit3_1.running_mean" in trained_tensors(made)) == (frozen < 3)
    set_training_mode(made := model(0), range(0))
    assert not any(layer.training for layer in made.layers)


def test_scalars_and_integers_keep_their_shape_and_value(folder: Path) -> None:
    body = """
class B(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)
        self.scale = nn.Parameter(torch.rand(()))
        self.register_buffer("index", torch.zeros(2, dtype=torch.int64))

def mine():
    return [B()]
"""
    name = load_custom_backbone(write("net.py", body), "mine")
    tensors = make_custom_blocks(name, 5)["0"].state_dict() | {"index": torch.tensor([2**24 + 1, -3])}
    for file in ("net.safetensors", "net.pth"):
        state = {f"0.{key}": tensor for key, tensor in tensors.items()}
        (save_file if file.endswith("rs") else torch.save)(state, file)
        blocks = build_blocks(name, "block1")
        initialise_blocks(blocks, name, read_weights(name, file).tensors, generator(0))
        found = blocks.block1.unit1_1.state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_a_frozen_input_is_not_overwritten(folder: Path) -> None:
    name = load_custom_backbone("nets.py", "mine")
    assert not build_blocks(name, "block1").block1.unit1_1[0].inplace


def test_its_cuts(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = load_custom_backbone(
        write("net.py", "def mine(): return [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)]"), "mine"
    )
    assert [row[:3] for row in cuts_table(name, 9).rows] == [
        ["unit1_1", "0", "4 x 7 x 7"], ["block1", "", "4 x 7 x 7"],
        ["unit2_1", "1", "5 x 3 x 3"], ["block2", "", "5 x 3 x 3"],
    ]  # fmt: skip
    command = ["backbones", "mine", "--module", "net.py", "--image-size"]
    monkeypatch.setattr(sys, "argv", [*command, "9"])
    with signal_handlers_kept():
        assert run_command(backbones.cli) == 0
    assert "5 x 3 x 3" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "3"])
    with signal_handlers_kept():
        assert run_command(backbones.cli) == 2
    assert capsys.readouterr().err == (
        "error: function: mine(): block2 (1) fails on maps 3x4x1x1 (Calculated padded input size per "
        "channel: (1 x 1). Kernel size: (3 x 3). Kernel size can't be greater than actual input size)\n"
    )


def test_its_weights(folder: Path) -> None:
    name = load_custom_backbone("nets.py", "mine")
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
        ("def mine(): raise ZeroDivisionError('oh')", "function: mine() of {net} failed (ZeroDivisionError: oh)"),
        ("def mine(x): pass", "function: mine() of {net} failed (TypeError: mine() missing 1 required positional"),
        ("def mine(): pass", "function: mine() of {net} must return blocks: a list of modules, or a dict path -> "),
        ("def mine(): return nn.Linear(1, 2)", "-> module, not Linear"),
        ("def mine(): return []", "-> module, not nothing"),
        ("def mine(): return [3]", "function: mine() of {net} must return modules by their path, not 3 by '0'"),
        ("def mine(): return [c := nn.Conv2d(3, 3, 1), c]", "mine() of {net}: the blocks 0 and 1 share a tensor"),
        ("def mine(): return {'a': nn.Conv2d(3, 3, 1), 'a.b': nn.ReLU()}", "the block a.b is inside another"),
        ("def mine(): return {'a..b': nn.ReLU()}", "mine() of {net}: 'a..b' cannot be the path of a block"),
        ("def mine(): return {'forward': nn.ReLU()}", "mine() of {net}: 'forward' cannot be the path of a block"),
        ("def mine(): return [nn.LazyConv2d(4, 1)]", "0.weight has no shape yet: lazy modules cannot be used"),
        ("def mine(): return [nn.Conv2d(3, 4, 1).requires_grad_(False)]", "0.weight does not require gradients"),
        ("def mine(): raise SystemExit(0)", "function: mine() of {net} failed (SystemExit: 0)"),
        ("raise SystemExit", "module: net.py: cannot be imported (SystemExit)"),
        (
            "import os\ndef mine():\n    torch.manual_seed(int.from_bytes(os.urandom(4)))\n"
            "    return [nn.Conv2d(3, 4, 1)]",
            "returns another 0.weight each time, whatever the random seed",
        ),
        (
            "def mine():\n    c = nn.Conv2d(3, 4, 1)\n    c.omega = torch.rand(3)\n    return [c]",
            "draws random numbers, or reads the time, into attributes",
        ),
        (
            "import time\ndef mine():\n    c = nn.Conv2d(3, 4, 1)\n    c.made = time.time()\n    return [c]",
            "draws random numbers, or reads the time, into attributes",
        ),
    ],
)
def test_a_module_that_is_wrong_is_refused(folder: Path, body: str | None, said: str) -> None:
    if body is not None:
        write("net.py", body)
    with pytest.raises(InputError) as refused:
        load_study(folder / "own.toml", load_backbone=load_backbone, overrides=[(["backbone", "module"], "net.py")])
    assert "own.toml, as set on the command line: backbone." in str(refused.value)
    assert said.format(net=folder / "net.py") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def mine(): return [nn.Conv2d(3, 4, 3), nn.Conv2d(5, 6, 3)]",
         "function: mine(): block2 (1) fails on maps 3x4x10x10 (Given groups=1, weight of size"),
        ("def mine(): return [nn.Flatten()]",
         "block1 (0) must make square maps NxCxHxH of torch.float32, but makes 3x432 of torch.float32 of maps"),
        ("def mine(): return [nn.Conv2d(3, 3, (1, 2))]", "but makes 3x3x12x11 of torch.float32"),
        ("class B(nn.Module):\n    def forward(self, x): return x[:, :, 20:, 20:]\ndef mine(): return [B()]",
         "3x3x0x0"),
        ("class B(nn.Module):\n    def forward(self, x): return x.double()\ndef mine(): return [B()]", "torch.float64"),
        ("class B(nn.Module):\n    def forward(self, x): return [x]\ndef mine(): return [B()]",
         "but makes list of maps"),
        ("class B(nn.Module):\n    def forward(self, x): return F.relu_(x)\n"
         "def mine(): return [nn.Conv2d(3, 4, 1), B()]",
         "block2 (1) changes its input in place"),
        ("class B(nn.Module):\n    def forward(self, x):\n        x.data.mul_(2)\n        return x + 1\n"
         "def mine(): return [B()]",
         "block1 (0) changes its input in place"),
        ("def mine(): return [nn.BatchNorm2d(3, track_running_stats=False)]",
         "has an output for each image that depends on the other images of the batch"),
        ("class B(nn.Module):\n    def forward(self, x): return F.dropout(x)\ndef mine(): return [B()]",
         "computes something else each time in evaluation mode"),
        ("class B(nn.BatchNorm2d):\n    def forward(self, x):\n        self.running_mean += 1\n        return x + 0\n"
         "def mine(): return [B(3)]",
         "changes its own tensors in evaluation mode"),
        ("class B(nn.Conv2d):\n    def forward(self, x): return torch.from_numpy(super().forward(x).numpy())\n"
         "def mine(): return [B(3, 3, 1)]",
         "mine(): its blocks cannot be trained (Can't call numpy() on Tensor that requires grad"),
        ("import threading\ndef mine():\n    c = nn.Conv2d(3, 4, 1)\n    c.lock = threading.Lock()\n    return [c]",
         "mine(): its blocks cannot be copied (cannot pickle"),
        ("def mine():\n    c = nn.Conv2d(3, 4, 1)\n    c.weight.data = torch.arange(12.0).view(4, 3, 1, 1)\n"
         "    return [nn.Conv2d(3, 3, 1), c]",
         "mine() returns the same 1.weight whatever the random seed: perhaps a pretrained one"),
    ],
)  # fmt: skip
def test_blocks_that_do_not_work_are_refused(folder: Path, body: str, said: str) -> None:
    name = load_custom_backbone(write("net.py", body), "mine")
    with pytest.raises(ValueError) as refused:
        check_custom_blocks(name, block_names(name)[-1], 12, learns=True, starts_random=True)
    assert said in str(refused.value)


def test_bad_blocks_are_refused_before_anything_is_written(
    folder: Path, command: Command, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # `command` has one of its own
    write("net.py", "def mine(): return [nn.Flatten()]")
    before = sorted(folder.rglob("*"))
    changes = ("--set", "backbone.module=net.py", "--set", "factors.truncate_at=['block1']")
    assert command("own.toml", "--store", "s", *changes) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: backbone.function: mine(): block1 (0) must make square maps")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_from_scratch_needs_no_weights(folder: Path) -> None:
    text = STUDY.replace('weights = "mine.safetensors"\n', "").replace('"feature_extraction", ', "")
    (folder / "scratch.toml").write_text(text)
    spec = load(folder / "scratch.toml")
    assert spec.backbone.weights is None
    assert spec.content()["backbone"] == {"name": spec.backbone.name, "weights": None, "missing_layers": "error"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "vgg16"}, "backbone.name: not allowed together with backbone.module, which replaces it"),
        ({"function": 3}, "backbone.function: must be a text, together with backbone.module"),
        ({"weights": "imagenet"}, "torchvision has no weights for mine@"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(folder: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as refused:
        load_study(
            folder / "own.toml",
            load_backbone=load_backbone,
            overrides=[(["backbone", key], value) for key, value in keys.items()],
        )
    assert said in str(refused.value)
