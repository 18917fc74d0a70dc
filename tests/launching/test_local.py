"""Workers on this machine: their number, their GPUs, and their processes."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ablation.base.device import slice_variable
from ablation.base.errors import InputError
from ablation.launching import local
from ablation.launching.request import Launch
from ablation.running import options
from ablation.running.options import RunOptions, worker_devices
from tests.launching.slurm_cluster import wait_for


def launch_of(workers: int | None = None, **settings: str) -> Launch:
    return Launch(
        study="cuts", label="ablation-cuts-0", study_file=Path("cuts.toml"), arguments=("--epochs", "1"),
        workers=workers, grace=30, options={name.replace("_", "-"): value for name, value in settings.items()},
        folder=Path("launch"), working_folder=Path.cwd(),
    )  # fmt: skip


def test_it_is_the_study_with_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"{sys.executable} -m ablation.study cuts.toml --epochs 1"
    assert local.compose(launch_of()) == command
    assert local.compose(launch_of(3)) == f"{command} --workers 3"
    ended = dataclasses.replace(launch_of(3), arguments=("--",))
    assert local.compose(ended) == f"{sys.executable} -m ablation.study cuts.toml --workers 3 --"
    monkeypatch.setattr(local, "gpu_count", lambda: 2)
    assert local.compose(launch_of(per_gpu="3")) == f"{command} --workers 6"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b,MIG-c")
    assert local.compose(launch_of(per_gpu="2")) == f"{command} --workers 6"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"partition": "x"}, "partition is unknown on local"), ({"per_gpu": "2"}, "no CUDA device"),
     ({"per_gpu": "0"}, "must be auto or a number from 1, got '0'")],
)  # fmt: skip
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str) -> None:
    monkeypatch.setattr(local, "gpu_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match=message):
        local.compose(launch_of(**settings))


def test_each_worker_gets_a_mig_slice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "gpu_count", lambda: 1)  # a process of CUDA sees the first slice alone
    monkeypatch.setattr(options, "check_device", lambda name: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a, MIG-b")
    assert worker_devices(RunOptions()) == ["auto", "auto"]
    assert [slice_variable(worker)["CUDA_VISIBLE_DEVICES"] for worker in (1, 2, 3)] == ["MIG-a", "MIG-b", "MIG-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234,GPU-5678")
    assert slice_variable(1) == {}  # CUDA numbers whole GPUs itself


def test_a_process_that_ends_while_it_is_looked_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, lives = subprocess.Popen(["true"]), psutil.Process()
    gone = psutil.Process(ended.pid)
    ended.wait()
    monkeypatch.setattr(local, "_processes", lambda label: iter([gone, lives]))
    assert [worker.id for worker in local.workers("ablation-cuts-0", {})] == [str(lives.pid)]


def test_its_processes_are_found_and_paused() -> None:
    child = "import time; time.sleep(60)"
    parent = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[2], 'ablation.study'])\n"
        "import os, signal; signal.signal(signal.SIGTERM, lambda *_: (child.kill(), os._exit(75)))\n"
        "child.wait()"
    )
    label = f"ablation-cuts-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, "ablation.study", child], env={**os.environ, local.LABEL_VARIABLE: label}
    )
    try:
        wait_for(lambda: [w.id for w in local.workers(label, {})] not in ([], [str(process.pid)]), 20)
        (worker,) = local.workers(label, {})
        assert worker.since[:10] == time.strftime("%Y-%m-%d", time.localtime())
        assert local.workers(f"{label}0", {}) == []
        local.cancel(label, {})
        assert process.wait(20) == 75
        wait_for(lambda: local.workers(label, {}) == [], 20)  # on busy cores it takes a moment to die
    finally:
        process.kill()
        process.wait()
