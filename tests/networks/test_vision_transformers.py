"""torchvision's vision transformer as blocks, against torchvision's own network."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, vit_b_16
from torchvision.models.vision_transformer import interpolate_embeddings

from ablation import load_model
from ablation.base.errors import InputError
from ablation.base.generators import generator
from ablation.networks.blocks import build_blocks, expected_tensors, feature_shape, initialise_blocks, kept_parts
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import Head, build_model, build_pool, feature_count
from ablation.networks.vision_transformers import TokenPool, can_resize
from ablation.networks.weights import check_layers, read_weights
from ablation.spec.architectures import block_names
from ablation.spec.reading import load_study
from tests.studies import Command, history, runs

LAST = "block12"


def trained(network: VisionTransformer) -> VisionTransformer:
    """Give a network biases, a class token and norms as of a trained one."""
    random = generator("trained")
    for parameter in network.parameters():
        if parameter.ndim == 1 or parameter is network.class_token:
            parameter.data += torch.randn(parameter.shape, generator=random) * 0.1
    return network.eval()


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    torch.manual_seed(0)
    return trained(vit_b_16(weights=None))


def tensors_of(network: VisionTransformer) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("heads")}


def blocks_of(network: VisionTransformer, cut: str, image_size: int) -> torch.nn.Sequential:
    blocks = build_blocks("vit_b_16", cut, image_size)
    tensors = {key: tensor.numpy() for key, tensor in tensors_of(network).items()}
    initialise_blocks(blocks, "vit_b_16", tensors, generator(0))
    return blocks.eval()


@pytest.mark.parametrize("image_size", [32, 224])
def test_every_cut_computes_what_torchvision_does(network: VisionTransformer, image_size: int) -> None:
    """At every size, with the positions that torchvision's own function interpolates."""
    with torch.device("meta"):
        theirs = vit_b_16(weights=None, image_size=image_size).eval()
    theirs.load_state_dict(interpolate_embeddings(image_size, 16, dict(network.state_dict())), assign=True)
    expected: dict[str, torch.Tensor] = {}

    def keep(name: str) -> None:
        place = theirs.get_submodule(name)
        place.register_forward_hook(lambda module, inputs, output: expected.update({name: output}))

    names = ["encoder.dropout", *(f"encoder.layers.encoder_layer_{number}" for number in range(12)), "encoder.ln"]
    for name in names:
        keep(name)
    images = torch.randn(2, 3, image_size, image_size, generator=generator("images"))
    with torch.no_grad():
        theirs(images)
        tokens = images
        blocks = blocks_of(network, LAST, image_size)
        for part in kept_parts("vit_b_16", LAST):
            tokens = blocks.get_submodule(f"block{part.block}.{part.name}")(tokens)
            assert torch.equal(tokens, expected[names.pop(0)]), part
    assert not names
    assert tokens.shape == (2, 1 + (image_size // 16) ** 2, 768)


def test_cuts() -> None:
    """A block is an encoder layer; the embedding is the first unit, and the last norm belongs to the last layer."""
    assert block_names("vit_b_16") == [f"block{number}" for number in range(1, 13)]
    paths = {cut: [part.path for part in kept_parts("vit_b_16", cut)] for cut in ("unit1_1", "block1", "block2")}
    first, second = "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"
    assert paths == {
        "unit1_1": ["embedding"], "block1": ["embedding", first], "block2": ["embedding", first, second]
    }  # fmt: skip
    last = [part.path for part in kept_parts("vit_b_16", LAST)][-2:]
    assert last == ["encoder.layers.encoder_layer_11", "encoder.ln"]
    assert len(block_names("vit_l_16")) == 24
    assert len(block_names("vit_h_14")) == 32


def test_its_tensors_have_torchvisions_names(network: VisionTransformer) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in tensors_of(network).items()}
    assert {key: shape for key, (_, shape) in expected_tensors("vit_b_16", LAST).items()} == expected
    assert {key for key, (unit, _) in expected_tensors("vit_b_16", "block1").items() if unit == "unit1_1"} == {
        "class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"
    }  # fmt: skip


def test_pool_by_hand() -> None:
    """The class token whole, beside the pooled map of the patches."""
    tokens_NTD = torch.tensor([[[9.0, -9.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 8.0]]])
    average = TokenPool(torch.nn.AvgPool2d(2), 2, 1)(tokens_NTD)
    assert average.tolist() == [[9.0, -9.0, 3.0, 2.0]]
    whole = TokenPool(torch.nn.Identity(), 2, 1)(tokens_NTD)  # a map of 2 numbers x 2 x 2, as convolutions make it
    assert whole.tolist() == [[9.0, -9.0, 1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.0, 8.0]]
    assert TokenPool(torch.nn.AvgPool2d(2), 2, 0)(tokens_NTD[:, 1:]).tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize(
    ("image_size", "head_pool", "features"),
    [(32, 1, 2), (32, 2, 5), (32, "flatten", 5), (64, 1, 2), (64, 2, 5), (64, "flatten", 17), (16, 2, 2)],
)
def test_features(image_size: int, head_pool: int | str, features: int) -> None:
    assert feature_count("vit_b_16", "block2", image_size, head_pool) == features * 768
    tokens_NTD = torch.zeros(1, 1 + (image_size // 16) ** 2, 768)
    assert build_pool("vit_b_16", "block2", image_size, head_pool)(tokens_NTD).shape == (1, features * 768)
    assert feature_shape("vit_b_16", "block2", image_size) == (768, image_size // 16, image_size // 16)


def test_weights_files(network: VisionTransformer, tmp_path: Path) -> None:
    """Both formats, weights for larger images, missing layers, and another network's."""
    tensors = tensors_of(network)
    kept = {key: tensors[key] for key in expected_tensors("vit_b_16", "block2")}
    save_file(kept, tmp_path / "two.safetensors", {"architecture": "vit_b_16", "input_mean": json.dumps([0.5] * 3)})
    torch.save(kept | {"heads.head.bias": torch.zeros(1000)}, tmp_path / "two.pth")
    one, other = (read_weights("vit_b_16", str(tmp_path / f"two.{suffix}")) for suffix in ("safetensors", "pth"))
    assert one.tensors.keys() == other.tensors.keys() == kept.keys()
    assert one.mean == (0.5, 0.5, 0.5)
    check_layers(one, "two", "vit_b_16", ["block1", "block2"])
    with pytest.raises(InputError, match=r"two: has no unit3_1 \(encoder.layers.encoder_layer_2.ln_1.weight\), which"):
        check_layers(one, "two", "vit_b_16", ["block3"])

    larger = kept | {"encoder.pos_embedding": torch.randn(1, 1 + 24**2, 768)}  # as torchvision's for 384 pixels
    torch.save(larger, tmp_path / "larger.pth")
    weights = read_weights("vit_b_16", str(tmp_path / "larger.pth"))
    blocks = build_blocks("vit_b_16", "unit1_1", 32)
    initialise_blocks(blocks, "vit_b_16", weights.tensors, generator(0))
    positions = interpolate_embeddings(32, 16, dict(larger))["encoder.pos_embedding"]
    assert torch.equal(blocks.block1.unit1_1.network.encoder.pos_embedding, positions)

    for shape in ((1, 6, 768), (1, 5, 512)):  # five patches are no square; another network's tokens
        torch.save(kept | {"encoder.pos_embedding": torch.zeros(shape)}, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"encoder.pos_embedding has shape .*: another architecture"):
            read_weights("vit_b_16", str(tmp_path / "other.pth"))
    assert not can_resize("encoder.ln.weight", (1, 5, 768), (1, 197, 768))


STUDY = """
question = "How to reuse it?"
trials_per_arm = 1
epochs = 2

[backbone]
name = "vit_b_16"
weights = "two.pth"

[data]
source = "digits"
limit = 40
val_fraction = 0.25

[fixed]
batch_size = 8
head_width = 8
truncate_at = "block2"
freeze_depth = 1

[factors]
strategy = ["feature_extraction", "fine_tune_top", "from_scratch"]

[search]
lr = { low = 1e-3, high = 1e-2, log = true }
"""


@pytest.mark.slow
def test_a_study_of_it(
    network: VisionTransformer, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached tokens train to the bit as those that are computed in every epoch."""
    monkeypatch.chdir(tmp_path)
    Path("vit.toml").write_text(STUDY)
    tensors = tensors_of(network)
    torch.save({key: tensors[key] for key in expected_tensors("vit_b_16", "block2")}, "two.pth")
    for store, cache in (("cached", "10"), ("computed", "0")):
        assert command("vit.toml", "--store", store, "--feature-cache", cache) == 0
    assert len(list(Path("cached").rglob("*.npy"))) == 4  # two kinds of frozen part, for training and validation images
    cached, computed = (runs(Path(store), "vit") for store in ("cached", "computed"))
    assert len(cached) == 3
    for one, other in zip(cached, computed, strict=True):
        assert one.data.params["strategy"] == other.data.params["strategy"]
        assert history(Path("cached"), one) == history(Path("computed"), other)
    model = load_model(cached[0].info.run_id, store="cached")  # its blocks are the file's, at four patches
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_images_that_are_no_patches_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "vit.toml"
    file.write_text(STUDY.replace("val_fraction", "image_size = 40\nval_fraction"))
    with pytest.raises(InputError, match="data.image_size: 40 is no multiple of the 16 pixels of a patch of vit_b_16"):
        load_study(file)
    file.write_text(STUDY.replace("val_fraction", "image_size = 8\nval_fraction"))
    with pytest.raises(InputError, match="data.image_size: 8 is too small for block2, which needs 16"):
        load_study(file)


def test_class_token_and_positions_are_not_decayed() -> None:
    model = build_model("vit_b_16", "block1", Head(4, 1), 2, 32)
    groups = apply_strategy(model, Learning("fine_tune_all", 0.1, weight_decay=0.1))
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    network = model.blocks.block1.unit1_1.network
    assert decays[id(network.class_token)] == decays[id(network.encoder.pos_embedding)] == 0
    assert decays[id(network.conv_proj.weight)] == 0.1
    assert decays[id(model.blocks.block1.unit1_2.self_attention.in_proj_weight)] == 0.1


def test_a_random_start() -> None:
    """As DeiT starts: the same for every cut, and no two layers alike."""
    deep, shallow = build_blocks("vit_b_16", "block2", 32), build_blocks("vit_b_16", "unit1_2", 32)
    for blocks in (deep, shallow):
        initialise_blocks(blocks, "vit_b_16", None, generator(5))
    state, others = deep.state_dict(), shallow.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in others.items())
    encoder = deep.block1.unit1_1.network.encoder
    first, second = deep.block1.unit1_2, deep.block2.unit2_1
    for tensor in (encoder.pos_embedding, first.self_attention.in_proj_weight, first.mlp[0].weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(first.self_attention.in_proj_weight, second.self_attention.in_proj_weight)
    assert not deep.block1.unit1_1.network.class_token.any()
    assert not first.self_attention.in_proj_bias.any()
    assert not first.self_attention.out_proj.bias.any()
    assert (first.ln_1.weight == 1).all()
