"""A trained network as a program of `torch.export`, which needs torch alone to run.

Legend: N images, C channels, S their side in pixels, K classes.
"""

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from ablation.base.errors import InputError
from ablation.base.text import first_line
from ablation.data.images import normalise
from ablation.data.normalisation import Normalisation
from ablation.networks.transfer_model import TransferModel

EXAMPLE_IMAGES = 2  # shown with the model; with a single one, export would fix the number of images at 1


class Classifier(nn.Module):
    """A trained network with its preprocessing: pixels as they are in a file go in, class probabilities come out."""

    def __init__(self, model: TransferModel):
        super().__init__()
        self.model = model
        (r_mean, g_mean, b_mean), (r_std, g_std, b_std) = model.input_mean, model.input_std
        self.normalisation = Normalisation((r_mean, g_mean, b_mean), (r_std, g_std, b_std), model.image_size)

    def forward(self, images_NSSC: torch.Tensor) -> torch.Tensor:
        """Return probabilities NK (float32) for RGB images (uint8)."""
        images_NCSS = normalise(images_NSSC.permute(0, 3, 1, 2), self.normalisation)
        logits_NK: torch.Tensor = self.model(images_NCSS)
        return logits_NK.softmax(1)


def trace(model: TransferModel, images_NSSC: torch.Tensor) -> ExportedProgram:
    """Return a network, frozen layers included, as a program.

    Args:
        model: as `load_model` returns it.
        images_NSSC: at least two images, uint8; the program takes any number of that size.

    Raises:
        InputError: torch cannot export the network.
    """
    dynamic = ({0: torch.export.Dim("N")},)
    try:
        with redirect_stderr(io.StringIO()):  # of a network that it cannot trace, torch logs and prints pages
            return torch.export.export(Classifier(model).eval(), (images_NSSC,), dynamic_shapes=dynamic)
    except Exception as error:  # torch raises many kinds for a network that it cannot trace
        raise InputError(f"torch.export cannot export it ({first_line(error)})") from None


def export_program(model: TransferModel, images_NSSC: torch.Tensor, path: Path) -> None:
    """Write a network as a program into a file, .pt2; see `trace`.

    Raises:
        InputError: torch cannot export the network.
    """
    torch.export.save(trace(model, images_NSSC), path)
