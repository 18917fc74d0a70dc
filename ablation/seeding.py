"""Named seeds, determinism, and the choice of the device.

Every random number comes from a generator that is seeded by a name and the seeds above it, such as (trial seed,
'order', epoch). Nothing depends on how many numbers were drawn before, so an interrupted trial goes on exactly.
"""

import hashlib
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ablation.spec import InputError

if TYPE_CHECKING:
    import torch


def named_seed(*names: int | str) -> int:
    """Return a seed (0 to 2**63 - 1) that depends on the names and on nothing else."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: int | str) -> "torch.Generator":
    """Return a CPU generator seeded by `named_seed`; drawing on the CPU gives every device the same numbers."""
    import torch

    return torch.Generator().manual_seed(named_seed(*names))


def seed_globally(*names: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices), which layers and libraries may draw from."""
    import numpy as np
    import torch

    seed = named_seed(*names)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_device_name(name: str) -> str:
    """Return a device's name if it has the right form; whether the device is there is seen later.

    Raises:
        InputError: it is not auto, cpu, cuda, cuda:N or mps.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise InputError(f"--device: unknown device {name!r}; must be auto, cpu, cuda, cuda:N or mps")
    return name


def gpu_count() -> int:
    """Return the number of CUDA devices, without using any."""
    import torch

    return torch.cuda.device_count()


def check_device(name: str) -> "torch.device":
    """Return the device with this name, without using it; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        InputError: this machine does not have it.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    count = gpu_count()
    if name == "auto":
        name = "cuda" if count else "mps" if has_mps else "cpu"
    device = torch.device("cuda:0" if name == "cuda" else name)  # one without a number cannot be made the current one
    missing = {"cuda": (device.index or 0) >= count, "mps": not has_mps, "cpu": False}
    if missing[device.type]:
        found = f"{count} CUDA device{'s' * (count != 1)} found"
        raise InputError(f"--device: {name} is not available ({found}); use --device cpu")
    return device


def select_device(name: str) -> "torch.device":
    """Return the device with this name and make it this process's own; see `check_device`."""
    import torch

    device = check_device(name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
        torch.cuda.set_device(device)  # what is asked of "the current device" later is then asked of this one
    return device


def make_deterministic() -> None:
    """Make CUDA repeat its results to the bit (the CPU does anyway at the same number of threads)."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, says torch's documentation
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def autocast(device: "torch.device", precision: str) -> "torch.autocast":
    """Return a context in which layers compute in a precision ('float32', 'bfloat16', 'float16')."""
    import torch

    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let CUDA compute float32 in float32 here, not in TF32, whose 10 bits other devices do not repeat."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def select_precision(precision: str, device: "torch.device") -> str:
    """Resolve `auto`: bfloat16 on a CUDA device that computes it natively, float16 on an older one, else float32."""
    import torch

    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
