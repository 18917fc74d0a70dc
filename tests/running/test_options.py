import pytest

from ablation.running import options
from ablation.running.options import RunOptions, worker_devices, workers_on


def test_each_worker_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_devices(RunOptions(device_name="cpu")) == ["cpu"]
    assert worker_devices(RunOptions(device_name="cpu", workers=3)) == ["cpu"] * 3
    monkeypatch.setattr(options, "gpu_count", lambda: 4)
    monkeypatch.setattr(options, "check_device", lambda name: None)
    for name in ("auto", "cuda"):
        assert worker_devices(RunOptions(device_name=name)) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert worker_devices(RunOptions(device_name="cpu")) == ["cpu"]
    assert worker_devices(RunOptions(device_name="cuda:1")) == ["cuda:1"]


@pytest.mark.parametrize(("visible", "shared"), [("0", 3), ("MIG-a,MIG-b", 2), ("MIG-a,MIG-b,MIG-c", 1)])
def test_workers_that_share_a_device_or_a_slice(visible: str, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers_on("cuda", ["cuda"] * 3) == shared
    assert workers_on("cuda:1", ["cuda:0", "cuda:1", "cuda:0"]) == 1
