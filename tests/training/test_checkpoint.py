import errno
import os
from pathlib import Path

import pytest
import torch

from ablation.base.errors import StoreError
from ablation.base.files import write_atomically
from ablation.training.checkpoint import (
    CorruptCheckpoint,
    load_resume_checkpoint,
    resume_checkpoints,
    save_resume_checkpoint,
    tensors_digest,
)

CPU = torch.device("cpu")


def test_round_trip(tmp_path: Path) -> None:
    state = {"tensor": torch.arange(3.0), "nested": [{"epoch": 3, "lr": 0.1 + 0.2, "name": "x", "none": None}]}
    path = save_resume_checkpoint(tmp_path / "new", 3, state)
    loaded = load_resume_checkpoint(path, CPU)
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert loaded["nested"] == state["nested"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["epoch-000003.ckpt"]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    assert resume_checkpoints(tmp_path / "none") == []
    for epoch in (8, 9, 10, 11):
        save_resume_checkpoint(tmp_path, epoch, {"epoch": epoch})
    assert [load_resume_checkpoint(path, CPU)["epoch"] for path in resume_checkpoints(tmp_path)] == [11, 10]
    assert len(list(tmp_path.iterdir())) == 2


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = save_resume_checkpoint(tmp_path, 1, {"tensor": torch.arange(300.0)})
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], whole[:10], b"", whole[:700] + b"\xff" + whole[701:], b"\0" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint):
            load_resume_checkpoint(path, CPU)


def test_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = save_resume_checkpoint(tmp_path, 1, {"evil": Evil()})
    with pytest.raises(CorruptCheckpoint):
        load_resume_checkpoint(path, CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write_atomically(tmp_path / "c", b"old")

    def crash(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), crash)
    with pytest.raises(StoreError, match=f"{tmp_path} cannot be written .No space left on device."):
        write_atomically(tmp_path / "c", b"new and longer")
    assert (tmp_path / "c").read_bytes() == b"old"


def test_digest_does_not_depend_on_layout() -> None:
    images = torch.randn(2, 3, 4, 5)
    same = images.to(memory_format=torch.channels_last)
    first = tensors_digest([("a", images), ("b", torch.ones(1))])
    assert tensors_digest([("b", torch.ones(1)), ("a", same)]) == first
    assert tensors_digest([("b", torch.ones(1)), ("a", images + 1)]) != first
    assert tensors_digest([("c", torch.ones(1)), ("a", images)]) != first
    assert tensors_digest([]) == tensors_digest({}.items())
