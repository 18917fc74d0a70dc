"""The tables of `python -m ablation.backbones`."""

import sys
from pathlib import Path

import pytest
import timm

from ablation.backbones import all_backbones, cli, cuts_table, weights_table
from ablation.base.command_line import run_command
from ablation.base.errors import InputError
from ablation.networks import timm_backbones
from ablation.spec.architectures import ARCHITECTURES, cut_names
from tests.studies import signal_handlers_kept


def rows(name: str, image_size: int) -> dict[str, list[str]]:
    return {cut: others for cut, *others in cuts_table(name, image_size).rows}


def test_cuts_of_vgg16_by_hand() -> None:
    found = rows("vgg16", 32)
    assert list(found)[:4] == ["conv1_1", "conv1_2", "block1", "conv2_1"]
    first, second = 64 * 3 * 9 + 64, 64 * 64 * 9 + 64
    operations = 2 * 32 * 32 * (64 * 3 * 9 + 64 * 64 * 9)
    assert found["conv1_1"] == ["features.0, features.1", "64 x 32 x 32", f"{first:,}",
                                f"{2 * 32 * 32 * 64 * 3 * 9 / 1e9:.3f}"]  # fmt: skip
    assert found["block1"] == ["features.4", "64 x 16 x 16", f"{first + second:,}", f"{operations / 1e9:.3f}"]
    assert found["block5"][1:] == ["512 x 1 x 1", "14,714,688", "0.626"]  # 0.313 billion multiplications


def test_cuts_of_resnet50_at_224_pixels() -> None:
    found = rows("resnet50", 224)
    assert found["unit1_1"][:2] == ["conv1, bn1, relu", "64 x 112 x 112"]
    assert found["block1"][:2] == ["maxpool", "64 x 56 x 56"]
    assert found["unit2_3"][:2] == ["layer1.2", "256 x 56 x 56"]
    assert found["block2"] == ["", *found["unit2_3"][1:]]
    assert found["block5"][1:3] == ["2048 x 7 x 7", "23,508,032"]  # 25,557,032 less the classifier's 2,049,000


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cut_is_there(name: str) -> None:
    assert sorted(rows(name, 224)) == sorted(cut_names(name))


def test_small_images() -> None:
    table = cuts_table("convnext_tiny", 15)
    assert [cut for cut, *_ in table.rows][-1] == "block2"
    assert table.notes[-1] == "Deeper cuts need larger images: block4 needs 32 pixels."
    with pytest.raises(InputError, match="--image-size: 3 is too small for unit1_1, which needs 4"):
        cuts_table("convnext_tiny", 3)


def test_cuts_of_a_vision_transformer() -> None:
    table = cuts_table("vit_b_16", 32)
    found = {cut: others for cut, *others in table.rows}
    embedding = 3 * 16 * 16 * 768 + 768 + 768 + 5 * 768  # convolution, class token, positions of five tokens
    assert found["unit1_1"][:3] == ["conv_proj, class_token, encoder.pos_embedding", "5 x 768", f"{embedding:,}"]
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768  # attention, two linear layers, two norms
    assert found["block1"][1:3] == ["5 x 768", f"{embedding + layer:,}"]
    assert found["unit12_1"][0] == "encoder.layers.encoder_layer_11, encoder.ln"
    assert any("1 and those of 2 x 2 patches" in note for note in table.notes)
    with pytest.raises(InputError, match="--image-size: 40 is no multiple of the 16 pixels of a patch of vit_b_16"):
        cuts_table("vit_b_16", 40)


def test_weights() -> None:
    assert weights_table("resnet50").rows == [
        ["IMAGENET1K_V1", "76.13", "98", "224"],
        ["IMAGENET1K_V2 (imagenet)", "80.86", "98", "224"],
    ]
    assert weights_table("vgg16_narrow").rows == []
    features = next(row for row in weights_table("vgg16").rows if row[0] == "IMAGENET1K_FEATURES")
    assert features[1] == "-"  # torchvision has nan: of their classifier's layers there are none


def test_all_backbones_are_listed() -> None:
    assert ["resnet50", "5", "17"] in all_backbones().rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["timm:resnet_18"], f"error: name: timm {timm.__version__} has no 'resnet_18'; did you mean 'resnet18'?"),
        (["resnet5"], "error: unknown backbone 'resnet5'; did you mean 'resnet50'?"),
        (["resnet50", "--image-size", "0"], "error: Invalid value for '--image-size': 0 is not in the range x>=1."),
    ],
)
def test_bad_input(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["backbones", *arguments])
    with signal_handlers_kept():
        assert run_command(cli) == 2
    assert capsys.readouterr() == ("", f"{said}\n")


def test_without_weights_there_is_a_line_and_no_empty_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text("from torch import nn\n\n\ndef mine():\n    return [nn.Conv2d(3, 4, 3)]\n")
    monkeypatch.setattr(timm_backbones, "timm_weights", lambda backbone: [])
    for arguments, owner in (
        (["mine", "--module", str(tmp_path / "nets.py")], "torchvision"),
        (["timm:resnet18"], "timm"),
    ):
        cli.main(arguments, standalone_mode=False)
        said = capsys.readouterr().out
        assert said.splitlines()[-1] == f"Weights: {owner} has none; set backbone.weights to a file."
        assert "| backbone.weights |" not in said
        assert "| backbone.name |" not in said
