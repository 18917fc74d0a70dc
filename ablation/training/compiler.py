"""torch.compile: one compiled forward pass, with its gradients, for all networks of a process."""

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


def compiled_forward(mode: str) -> Forward:
    """Return the forward pass of any network, compiled once per process and shape; uncompiled for the mode 'none'."""
    return _forward if mode == "none" else _compiled(mode)


@functools.cache
def _compiled(mode: str) -> Forward:
    """Return the forward pass in a mode of torch.compile.

    On CUDA, all modes but 'default' run it and its backward pass in CUDA graphs. Logits and gradients are then in
    memory that the next call overwrites, so a step must be done with those of the step before.
    """
    torch._dynamo.config.recompile_limit = 256  # enough for all cuts, heads and batch sizes of a study
    compiled: Forward = torch.compile(_forward, mode=mode, dynamic=False)
    if mode == "default":
        return compiled

    def of_next_step(model: TransferModel, inputs: torch.Tensor, start: int) -> torch.Tensor:
        # Otherwise a step without a backward pass, such as one that ran out of memory, would keep its memory for good.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(model, inputs, start)

    return of_next_step


def has_compiled() -> bool:
    """Return whether something is compiled."""
    return _compiled.cache_info().currsize > 0


def release_compiled() -> None:
    """Drop what was compiled, and the memory of its CUDA graphs; it is compiled again when it is needed."""
    if has_compiled():
        torch.compiler.reset()
        _compiled.cache_clear()


def check_compiler(mode: str, device: torch.device) -> None:
    """Refuse to compile if torch.compile does not work on this machine.

    Raises:
        InputError: has the first line of torch's error.
    """
    try:
        torch.compile(lambda x: (x.sin() + 1).relu(), mode=mode)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, by backend
        raise InputError(f"compile: torch.compile does not work here ({first_line(error)}); leave it at none") from None
