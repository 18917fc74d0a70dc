"""torch.compile: one compiled forward pass for all networks of a process."""

import functools
from collections.abc import Callable

import torch

from ablation.base.errors import InputError
from ablation.base.text import first_line
from ablation.networks.transfer_model import TransferModel

Forward = Callable[[TransferModel, torch.Tensor, int], torch.Tensor]


def _forward(model: TransferModel, inputs: torch.Tensor, start: int) -> torch.Tensor:
    logits_BK: torch.Tensor = model(inputs, start)
    return logits_BK


@functools.cache
def compiled_forward(mode: str) -> Forward:
    """Return the forward pass of any network, compiled once per process and shape; uncompiled for the mode 'none'."""
    if mode == "none":
        return _forward
    torch._dynamo.config.recompile_limit = 256  # enough for all cuts, heads and batch sizes of a study
    return torch.compile(_forward, mode=mode, dynamic=False)


def check_compiler(mode: str, device: torch.device) -> None:
    """Refuse to compile if torch.compile does not work on this machine.

    Raises:
        InputError: has the first line of torch's error.
    """
    try:
        torch.compile(lambda x: (x.sin() + 1).relu(), mode=mode)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, by backend
        raise InputError(f"compile: torch.compile does not work here ({first_line(error)}); leave it at none") from None
