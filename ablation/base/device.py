"""The device of a process: its selection, memory, determinism and precision."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ablation.base.errors import InputError
from ablation.base.text import plural

# Texts with which the allocators of the CPU, of MPS and of CUDA's libraries raise a plain RuntimeError.
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def gpu_count() -> int:
    """Return the number of CUDA devices, without initialising any."""
    return torch.cuda.device_count()


def mig_slices() -> list[str]:
    """Return the MIG slices that CUDA_VISIBLE_DEVICES names; a process of CUDA can use the first one alone."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [name for name in names if name.startswith("MIG-")]


def slice_variable(worker: int) -> dict[str, str]:
    """Return the variable by which a worker, counted from 1, gets a MIG slice of its own; none where there are none."""
    slices = mig_slices()
    return {"CUDA_VISIBLE_DEVICES": slices[(worker - 1) % len(slices)]} if slices else {}


def check_device(name: str) -> torch.device:
    """Return the device with this name, without initialising it; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        InputError: this machine does not have it.
    """
    has_mps = torch.backends.mps.is_available()
    count = gpu_count()
    if name == "auto":
        name = "cuda" if count else "mps" if has_mps else "cpu"
    device = torch.device("cuda:0" if name == "cuda" else name)  # set_device needs a number
    missing = {"cuda": (device.index or 0) >= count, "mps": not has_mps, "cpu": False}
    if missing[device.type]:
        raise InputError(f"--device: {name} is not available ({plural(count, 'CUDA device')} found); use --device cpu")
    return device


def select_device(name: str) -> torch.device:
    """Return the device with this name and make it this process's current one; see `check_device`."""
    device = check_device(name)
    if device.type == "cuda":
        # What `make_deterministic` needs for cuBLAS: torch reads it once, at a process's first product of matrices.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_float32_matmul_precision("high")  # TF32 for operations that autocast leaves in float32
        torch.cuda.set_device(device)  # libraries use the current device
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the machine ran out of memory."""
    is_plain = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return is_plain or isinstance(error, torch.OutOfMemoryError | MemoryError)


def free_memory(device: torch.device) -> None:
    """Release the device memory that torch caches."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def make_deterministic() -> None:
    """Make CUDA's results bit-identical between runs; the CPU's are anyway at the same number of threads.

    The device comes from `select_device`.
    """
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def autocast(device: torch.device, precision: str, *, keeps_casts: bool = True) -> torch.autocast:
    """Return a context in which layers compute in a precision ('float32', 'bfloat16', 'float16').

    `keeps_casts` says whether a parameter is cast once in the context; a CUDA graph must cast it at every replay.
    """
    is_on = precision != "float32"
    return torch.autocast(device.type, getattr(torch, precision), enabled=is_on, cache_enabled=keeps_casts)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Make CUDA compute float32 without TF32 in this context: other devices cannot reproduce TF32's 10 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def select_precision(precision: str, device: torch.device, *, is_faster_in_bfloat16: bool) -> str:
    """Resolve `auto`: bfloat16 where the device computes it natively, float16 on an older CUDA device, else float32.

    Args:
        precision: 'auto', or what is returned unchanged.
        device: the device that trains.
        is_faster_in_bfloat16: whether the network is, on a CPU that computes it natively.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and is_faster_in_bfloat16 and cpu_computes_bfloat16() else "float32"


def cpu_computes_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 that torch's oneDNN uses; emulation would be slower."""
    capabilities = torch.cpu.get_capabilities()  # 'bf16' is Arm's name
    has_instructions = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return has_instructions and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
