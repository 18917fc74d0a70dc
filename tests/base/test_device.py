"""The device of a process."""

import pytest
import torch

from ablation.base.device import exact_float32, select_device, select_precision
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


def test_exact_float32_puts_back_what_was() -> None:
    torch.set_float32_matmul_precision("high")
    with exact_float32():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    torch.set_float32_matmul_precision("highest")


def test_precision_on_the_cpu() -> None:
    assert select_precision("auto", torch.device("cpu")) == "float32"
    assert select_precision("bfloat16", torch.device("cpu")) == "bfloat16"
