"""The device of a process."""

import os

import pytest
import torch

from ablation.base import device
from ablation.base.device import cpu_computes_bfloat16, exact_float32, select_device, select_precision
from ablation.base.errors import InputError


def test_missing_devices_are_refused() -> None:
    assert select_device("cpu") == torch.device("cpu")
    beyond = torch.cuda.device_count()
    with pytest.raises(InputError, match=f"cuda:{beyond} is not available"):
        select_device(f"cuda:{beyond}")


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_cuda_devices_are_made_the_current_one(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own check of the device; only the last call, which needs a GPU, is recorded instead."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    before = torch.get_float32_matmul_precision()
    assert select_device(name) == torch.device("cuda", number)
    torch.set_float32_matmul_precision(before)
    assert current == [number]


@pytest.mark.parametrize(("before", "after"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_a_deterministic_study_can_follow_another(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch reads how much memory cuBLAS has once, at a process's first product, and refuses later ones by it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before or "")
    if before is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: None)
    precision = torch.get_float32_matmul_precision()
    select_device("cuda")
    torch.set_float32_matmul_precision(precision)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == after


def test_exact_float32_puts_back_what_was() -> None:
    torch.set_float32_matmul_precision("high")
    with exact_float32():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_uses_bfloat16_where_it_computes_it(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "cpu_computes_bfloat16", cpu_computes_bfloat16)  # which conftest replaces
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, instructions: True})
    assert select_precision("auto", cpu, is_faster_in_bfloat16=True) == "bfloat16"
    assert select_precision("auto", cpu, is_faster_in_bfloat16=False) == "float32"
    assert select_precision("float32", cpu, is_faster_in_bfloat16=True) == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, instructions: False})
    assert select_precision("auto", cpu, is_faster_in_bfloat16=True) == "float32"
    assert select_precision("bfloat16", cpu, is_faster_in_bfloat16=False) == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert select_precision("auto", cpu, is_faster_in_bfloat16=True) == "float32"
