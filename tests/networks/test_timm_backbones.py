"""timm's networks as blocks, against timm's own forward pass. Nothing is downloaded: weights are random or in files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from ablation import load_model
from ablation.backbones import cuts_table, weights_table
from ablation.base.errors import InputError
from ablation.base.generators import generator
from ablation.networks.blocks import build_blocks, expected_tensors, initialise_blocks, kept_parts
from ablation.networks.custom_backbone import make_custom_blocks
from ablation.networks.custom_checks import check_custom_blocks
from ablation.networks.strategies import Learning, _is_decayed, apply_strategy
from ablation.networks.timm_backbones import load_backbone, load_timm_backbone
from ablation.networks.transfer_model import Head, build_model
from ablation.networks.weights import check_layers, read_weights
from ablation.spec.architectures import ARCHITECTURES, block_names
from ablation.spec.reading import load_study
from tests.studies import Command, history, runs

# The number of feature stages, and of tokens beside the patches'. timm's test networks are tiny.
NETWORKS = {
    "test_resnet": (5, None), "test_efficientnet": (5, None), "test_convnext": (4, None), "test_vit": (6, 1),
    "resnet18": (5, None), "efficientnet_b0": (5, None), "convnext_atto": (4, None), "mobilenetv3_small_100": (5, None),
    "vit_tiny_patch16_224": (12, 1), "vit_small_patch14_reg4_dinov2": (12, 5), "mixer_s32_224": (8, 0),
    "swin_tiny_patch4_window7_224": (4, None),
}  # fmt: skip
SIZES = {"mixer_s32_224": 224, "vit_small_patch14_reg4_dinov2": 28}
TIMM_VERSION = tuple(int(number) for number in timm.__version__.split(".")[:3])


def own_network(name: str) -> Any:
    """Return timm's network at the test's image size, with statistics as of a trained one."""
    torch.manual_seed(1)
    size = SIZES.get(name, 32)
    network = timm.create_model(name, **({"img_size": size} if "vit" in name else {}))
    if name.startswith("swin"):
        network.set_input_size(img_size=size)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_cut_computes_what_timm_does(name: str) -> None:
    size = SIZES.get(name, 32)
    backbone, theirs = load_timm_backbone(f"timm:{name}", size), own_network(name)
    assert (len(block_names(backbone)), ARCHITECTURES[backbone].extra_tokens) == NETWORKS[name]
    expected: list[torch.Tensor] = []
    for stage in theirs.feature_info[:-1]:
        place = theirs.get_submodule(stage["module"])
        place.register_forward_hook(lambda module, inputs, output: expected.append(output.clone()))
    images = torch.randn(2, 3, size, size, generator=generator("images"))
    blocks = build_blocks(backbone, block_names(backbone)[-1], size).eval()
    tensors = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    initialise_blocks(blocks, backbone, tensors, generator(0))
    with torch.no_grad():
        expected.append(theirs.forward_features(images))
        activations = images
        for block, output in zip(blocks, expected, strict=True):
            activations = block(activations)
            maps = output.permute(0, 3, 1, 2) if name.startswith("swin") else output  # timm's are NHWC
            assert torch.equal(activations, maps)


@pytest.mark.parametrize("name", [
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_rmlp_pico_rw_256", "maxvit_pico_rw_256",
    "tiny_vit_5m_224", "vit_small_patch14_reg4_dinov2", "test_vit4",
])  # fmt: skip
def test_what_timm_does_not_decay_is_not_decayed(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    parameters = dict(network.named_parameters())
    undecayed = {path for path in network.no_weight_decay() & parameters.keys() if parameters[path].ndim > 1}
    # Of SwinV2, timm 1.0.29 named no parameter, and 1.0.31 does; 1.0.30 was not tried.
    assert undecayed or (name.startswith("swinv2") and TIMM_VERSION < (1, 0, 31))
    assert not [path for path in undecayed if _is_decayed(path, parameters[path])]
    weights = [path for path in parameters if path.endswith(("qkv.weight", "fc1.weight")) and "rel_pos" not in path]
    assert weights
    assert all(_is_decayed(path, parameters[path]) for path in weights)


@pytest.mark.parametrize(("name", "kinds"), [
    ("test_vit4", {"RmsNorm"}), ("convnextv2_atto", {"LayerNorm2d", "GlobalResponseNorm"}),
])  # fmt: skip
def test_timms_own_norms_are_norms(name: str, kinds: set[str]) -> None:
    backbone = load_timm_backbone(f"timm:{name}", 32)
    model = build_model(backbone, "block1", Head(1), 2, 32)
    apply_strategy(model, Learning("fine_tune_all", 0.1, learn="norms"))
    norms = {id(p) for m in model.blocks.modules() if type(m).__name__ in kinds for p in m.parameters(recurse=False)}
    assert norms == {id(parameter) for parameter in model.blocks.parameters() if parameter.requires_grad}
    assert kinds <= {type(module).__name__ for module in model.blocks.modules()}


def test_its_tensors_have_timms_names() -> None:
    """All but those of the classifier; those of the class token and the positions, which no module has, too."""
    backbone = load_timm_backbone("timm:test_vit", 32)
    theirs = timm.create_model("test_vit", img_size=32, num_classes=0).state_dict()
    found = expected_tensors(backbone, block_names(backbone)[-1])
    assert {key: shape for key, (_, shape) in found.items()} == {k: tuple(t.shape) for k, t in theirs.items()}
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight"} <= expected_tensors(backbone, "block1").keys()


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("resnet_18", 32, "has no 'resnet_18'; did you mean 'resnet18'?"),
        ("hf_hub:timm/resnet18.a1_in1k", 32, "has no 'hf_hub:timm/resnet18.a1_in1k'; did you mean"),
        ("", 32, "has no ''; timm.list_models() names all"),
        ("resnet18.a9_in1k", 32, "name: timm cannot make 'resnet18.a9_in1k' (Invalid pretrained tag (a9_in1k) for"),
        ("test_vit", 40, "name: timm:test_vit: 40 pixels are no multiple of the 16 pixels of a patch"),
        ("inception_v3", 32, "name: timm:inception_v3 does not run on images of 32 x 32 pixels (Calculated padded"),
        ("mixer_s32_224", 32, "name: timm:mixer_s32_224 does not run on images of 32 x 32 pixels (Input height (32)"),
        ("eva02_tiny_patch14_224", 28, "name: timm:eva02_tiny_patch14_224 is no row of blocks"),
        ("hrnet_w18_small", 32, "name: timm:hrnet_w18_small is no row of blocks"),
        ("levit_128s", 224, "name: timm:levit_128s is no row of blocks"),
    ],
)  # fmt: skip
def test_refusals(name: str, size: int, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        load_timm_backbone(f"timm:{name}", size)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # importing it raises ImportError
    file = tmp_path / "own.toml"
    file.write_text('question = "?"\ntrials_per_arm = 1\nepochs = 1\n[backbone]\nname = "timm:resnet18"\n')
    with pytest.raises(InputError) as refused:
        load_study(file, load_backbone=load_backbone)
    assert str(refused.value) == f"{file}: backbone.name: timm's networks need timm: python -m pip install timm"


def test_its_name_is_the_network_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of timm may compute something else; the image size counts where the network depends on it."""
    names = {size: load_timm_backbone("timm:test_vit", size) for size in (32, 48)}
    assert names[32] != names[48]
    resnet = load_timm_backbone("timm:test_resnet", 32)
    assert resnet == load_timm_backbone("timm:test_resnet", 48)
    assert resnet.partition("@")[0] == "timm:test_resnet"
    code = "from ablation.networks.timm_backbones import load_timm_backbone as load; print(load('timm:test_vit', 32))"
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip() == names[32]
    monkeypatch.setattr(timm, "__version__", "0.0")
    assert load_timm_backbone("timm:test_resnet", 32) != resnet


def test_a_random_start_is_timms_by_the_seed_alone() -> None:
    backbone = load_timm_backbone("timm:test_vit", 32)
    state = torch.get_rng_state()
    first, again, other = (make_custom_blocks(backbone, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    key = "network.blocks.1.attn.qkv.weight"
    assert torch.equal(first["stage2"].get_parameter(key), again["stage2"].get_parameter(key))
    assert not torch.equal(first["stage2"].get_parameter(key), other["stage2"].get_parameter(key))
    torch.manual_seed(1)
    theirs = timm.create_model("test_vit")
    assert torch.equal(first["stage2"].get_parameter(key), theirs.blocks[1].attn.qkv.weight)


def test_weights_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are fitted to the image size as timm does; images are normalised as timm's configuration says."""
    backbone, theirs = load_timm_backbone("timm:test_vit", 32), timm.create_model("test_vit")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "vit.pth")
    weights = read_weights(backbone, str(tmp_path / "vit.pth"))
    assert (weights.mean, weights.std) == (tuple(theirs.pretrained_cfg["mean"]), tuple(theirs.pretrained_cfg["std"]))
    assert theirs.pos_embed.shape == (1, 101, 64)  # of 160 pixels
    theirs.set_input_size(img_size=32)
    assert np.array_equal(weights.tensors["pos_embed"], theirs.pos_embed.detach().numpy())
    assert np.array_equal(weights.tensors["cls_token"], theirs.cls_token.detach().numpy())

    torch.save(theirs.state_dict(), tmp_path / "small.pth")  # of 32 pixels: as it is, without a network to fit it
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", None)
        assert read_weights(backbone, str(tmp_path / "small.pth")).digest == weights.digest
    theirs.set_input_size(img_size=64)
    torch.save(theirs.state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"pos_embed has shape \[1, 17, 64\], but unit1_1 of timm:test_vit@"):
        read_weights(backbone, str(tmp_path / "other.pth"))

    two = {key: tensor for key, tensor in weights.tensors.items() if not key.startswith(("blocks.2", "norm"))}
    torch.save({key: torch.from_numpy(tensor) for key, tensor in two.items()}, tmp_path / "two.pth")
    two_layers = read_weights(backbone, str(tmp_path / "two.pth"))
    check_layers(two_layers, "two.pth", backbone, ["block2"])
    with pytest.raises(InputError, match=r"two.pth: has no unit3_1 \(blocks.2.norm1.weight\), which truncate_at = "):
        check_layers(two_layers, "two.pth", backbone, ["block3"])


def test_timms_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm makes of them is taken; a failed download is one line."""
    backbone, network = load_timm_backbone("timm:test_resnet", 32), own_network("test_resnet")
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: network if pretrained else real(name))
    weights = read_weights(backbone, "pretrained")
    assert weights.tensors.keys() == expected_tensors(backbone, "block5").keys()
    assert np.array_equal(weights.tensors["conv1.0.weight"], network.conv1[0].weight.detach().numpy())

    def offline(name: str, pretrained: bool = False) -> Any:
        if pretrained:
            raise OSError("We couldn't connect\nto the Hub")
        return real(name)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError) as refused:
        read_weights(backbone, "pretrained")
    assert str(refused.value) == (
        "backbone.weights: timm has no weights for timm:test_resnet, or they could not be downloaded (We couldn't "
        "connect); name a local file with --set backbone.weights=FILE"
    )


def test_its_cuts() -> None:
    backbone = load_timm_backbone("timm:resnet18", 64)
    table = {cut: others for cut, *others in cuts_table(backbone, 64).rows}
    assert table["unit1_1"][:2] == ["conv1, bn1, act1", "64 x 32 x 32"]
    assert table["unit2_1"][:2] == ["maxpool, layer1", "64 x 16 x 16"]
    assert table["block5"][1:3] == ["512 x 2 x 2", "11,176,512"]  # 11,689,512 less the classifier's 513,000
    assert ["timm:resnet18.a3_in1k", "160"] in weights_table(backbone).rows
    assert [part.path for part in kept_parts(backbone, "block2")] == ["stage1", "stage2"]


STUDY = """
question = "Which cut?"
trials_per_arm = 1
epochs = 1

[backbone]
name = "{name}"
{weights}

[data]
source = "digits"
limit = 60
val_fraction = 0.25
image_size = {size}

[fixed]
batch_size = 16
head_width = 8

[factors]
truncate_at = ["block1", "block3"]
strategy = {strategies}

[search]
lr = {{ low = 1e-3, high = 1e-1, log = true }}
"""


def write_study(folder: Path, name: str, weights: str, strategies: str, size: int = 32) -> Path:
    file = folder / "own.toml"
    file.write_text(STUDY.format(name=name, weights=weights, strategies=strategies, size=size))
    return file


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('weights = "imagenet"', "backbone: weights of timm:test_vit are 'pretrained' or in a file"),
        ('weights = "none.pth"', None),
    ],
)
def test_keys(tmp_path: Path, keys: str, said: str | None) -> None:
    file = write_study(tmp_path, "timm:test_vit", keys, '["from_scratch"]')
    if said is None:
        content = load_study(file, load_backbone=load_backbone).content()["backbone"]
        assert content["weights"] == "file"
        assert content["name"] == load_timm_backbone("timm:test_vit", 32)
        return
    with pytest.raises(InputError) as refused:
        load_study(file, load_backbone=load_backbone)
    assert str(refused.value) == f"{file}: {said}"


def test_timms_weights_are_its_networks_alone(tmp_path: Path) -> None:
    file = write_study(tmp_path, "vgg11", 'weights = "pretrained"', '["feature_extraction"]')
    with pytest.raises(InputError, match="weights = 'pretrained' is for timm's networks"):
        load_study(file)
    plain = write_study(tmp_path, "timm:test_resnet", "", '["feature_extraction"]')
    assert load_study(plain, load_backbone=load_backbone).backbone.weights == "pretrained"


def test_a_study_of_it(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """All strategies, with a file's weights; cached features train to the bit as computed ones; models are rebuilt."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), "own.pth")
    strategies = '["feature_extraction", "fine_tune_top", "fine_tune_all", "from_scratch"]'
    file = write_study(tmp_path, "timm:test_vit", 'weights = "own.pth"', strategies)
    shallow = ("--set", "fixed.freeze_depth=1", "--set", 'factors.truncate_at=["block3"]')
    assert command(str(file), "--store", "s", *shallow) == 0
    finished = runs(Path("s"), "own")
    assert len(finished) == 4
    assert list(Path("s").rglob("*.npy"))
    backbone = load_timm_backbone("timm:test_vit", 32)
    assert {run.data.params["backbone"] for run in finished} == {backbone}
    frozen = next(run for run in finished if run.data.params["strategy"] == "feature_extraction")
    model = load_model(frozen.info.run_id, store="s")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert command(str(file), "--store", "computed", "--feature-cache", "0", *shallow) == 0
    for cached, computed in zip(finished, runs(Path("computed"), "own"), strict=True):
        assert history(Path("s"), cached) == history(Path("computed"), computed)


def test_blocks_are_checked_on_the_studys_images() -> None:
    backbone = load_timm_backbone("timm:vit_tiny_patch16_224", 48)
    check_custom_blocks(backbone, block_names(backbone)[-1], 48, learns=True, starts_random=True)
    with pytest.raises(ValueError, match=r"name: timm:vit_tiny_patch16_224: block1 \(stage1\) fails on maps 3x3x32"):
        check_custom_blocks(backbone, "block1", 32, learns=False, starts_random=False)
