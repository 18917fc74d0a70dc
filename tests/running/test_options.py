import pytest

from ablation.running import options
from ablation.running.options import RunOptions, process_count


def test_every_worker_holds_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their supervisor has dropped its own by then."""
    assert process_count(RunOptions(device_name="cpu")) == 1
    assert process_count(RunOptions(device_name="cpu", workers=3)) == 3
    monkeypatch.setattr(options, "gpu_count", lambda: 4)
    monkeypatch.setattr(options, "check_device", lambda name: None)
    assert process_count(RunOptions()) == 4
    assert process_count(RunOptions(device_name="cuda:1")) == 1
