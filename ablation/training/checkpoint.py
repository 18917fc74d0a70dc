"""Checkpoints: written atomically, checked when read, never unpickled as code."""

import hashlib
import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ablation.base.files import write_over


class CorruptCheckpoint(Exception):
    """The file's content differs from what was written, or does not fit the training."""


def save_resume_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> Path:
    """Write tensors and plain values so that a crash at any moment leaves the file whole or absent; return its path.

    The latest of the older checkpoints in the folder is kept, in case this one cannot be read.

    Raises:
        StoreError: the disk is full, or cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"epoch-{epoch:06}.ckpt"
    write_over(path, hashlib.sha256(content).digest() + content)
    for old in resume_checkpoints(folder)[2:]:
        old.unlink()
    return path


def resume_checkpoints(folder: Path) -> list[Path]:
    """Return the resume checkpoints in a folder, the latest epoch first."""
    return sorted((path for path in folder.glob("epoch-*.ckpt") if path.is_file()), reverse=True)


def load_resume_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Return the state that `save_resume_checkpoint` wrote, with its tensors on the device.

    Raises:
        CorruptCheckpoint: the checksum is wrong, or the content cannot be read without running code.
    """
    content = path.read_bytes()
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        raise CorruptCheckpoint(f"{path} is damaged: its checksum is wrong")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}") from None
    return state


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 of tensors, independent of their order, device and memory format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
