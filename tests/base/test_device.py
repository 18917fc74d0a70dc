import hashlib

import pytest
import torch

from ablation.base.command_line import check_device_name
from ablation.base.device import exact_float32, select_device, select_precision
from ablation.base.errors import InputError
from ablation.base.seeds import generator, named_seed


def test_named_seed_is_the_hash_of_its_names() -> None:
    digest = hashlib.sha256(b"0\0trial\x001").digest()
    assert named_seed(0, "trial", 1) == int.from_bytes(digest[:8], "big") // 2
    assert named_seed(0, "trial", 1) != named_seed(0, "trial", 2)
    assert named_seed(1, "2") != named_seed(12, "")
    assert 0 <= named_seed("x") < 2**63


def test_generators_of_one_name_agree() -> None:
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))
    assert not torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "b")))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CPU", "", "cuda:0:1"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must be auto, cpu, cuda, cuda:N or mps"):
        check_device_name(name)


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
