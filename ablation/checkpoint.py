"""Checkpoints: written atomically, checked when read, never unpickled as code."""

import hashlib
import io
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


class CorruptCheckpoint(Exception):
    """The file is not what was written."""


def save_resume_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that a crash at any moment leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def load_resume_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_resume_checkpoint` wrote; its tensors come back on the device.

    Raises:
        CorruptCheckpoint: the content does not have its checksum, or cannot be read without running code.
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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or complete: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 of tensors, independent of their order, device and memory format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
