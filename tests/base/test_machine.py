"""What a run records about the machine."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ablation.base import machine
from ablation.base.machine import describe_environment

CPU = torch.device("cpu")


def test_the_checkout_is_the_folder_of_the_package() -> None:
    assert Path(machine.__file__).resolve() == machine.CHECKOUT / "ablation" / "base" / "machine.py"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    assert "commit" not in describe_environment(CPU)  # as in an installed copy
    git("init", "--quiet")
    assert "commit" not in describe_environment(CPU)  # nothing is committed yet
    (tmp_path / "file").write_text("old")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert describe_environment(CPU)["commit"] == commit
    (tmp_path / "file").write_text("new")
    assert describe_environment(CPU)["commit"] == f"{commit}-dirty"


def test_memory_is_what_the_control_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a job on a cluster's node are inside others, and the smallest rest counts."""
    groups = [tmp_path / "job", tmp_path]
    groups[0].mkdir()
    monkeypatch.setattr(machine, "control_groups", lambda: groups)
    free = machine.available_memory()
    assert free > 30_000
    for group, limit in zip(groups, (10_000, 30_000), strict=True):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("9000\n")
        (group / "memory.stat").write_text("anon 7000\nactive_file 300\ninactive_file 200\nslab_reclaimable 50\n")
    assert machine.available_memory() == 10_000 - 9_000 + 550
    (groups[0] / "memory.max").write_text("max\n")
    assert machine.available_memory() == 30_000 - 9_000 + 550
    (groups[1] / "memory.max").write_text("max\n")
    assert machine.available_memory() > 30_000
