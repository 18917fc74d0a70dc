"""What a network that torch cannot export costs: a line."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ablation.base.errors import InputError
from ablation.networks.transfer_model import Head, TransferModel
from ablation.running.export import export_program, trace


class Branching(nn.Module):
    """It computes in a way that depends on values."""

    def forward(self, maps_NCSS: torch.Tensor) -> torch.Tensor:
        return maps_NCSS * 0 if float(maps_NCSS.abs().mean()) > 1e6 else maps_NCSS


def network(block: nn.Module) -> TransferModel:
    model = TransferModel(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), block)), nn.AvgPool2d(4), 4, Head(0), 5)
    model.image_size, model.input_mean, model.input_std = 4, [0.5] * 3, [0.5] * 3
    return model.eval()


IMAGES_NSSC = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)


def test_it_is_refused_without_torchs_own_pages(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^torch\.export cannot export it \(.*data-dependent.*\)$") as refused:
        trace(network(Branching()), IMAGES_NSSC)
    assert "\n" not in str(refused.value)
    print("still heard", file=sys.stderr)
    assert capfd.readouterr() == ("", "still heard\n")


def test_a_program_takes_any_number_of_images(tmp_path: Path) -> None:
    export_program(network(nn.ReLU()), IMAGES_NSSC, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    for number in (1, 7):
        assert program(IMAGES_NSSC[:1].expand(number, 4, 4, 3)).sum(1).tolist() == pytest.approx([1.0] * number)
