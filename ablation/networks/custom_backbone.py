"""Custom backbones: a function in a user's Python file that returns the blocks of a network.

A custom backbone is called FUNCTION@DIGEST, by a digest of its code and of what it returns. So whatever is kept of it
(cached features, a study's identity, a model) is never mixed with another version of it, wherever the file is.
"""

import hashlib
import importlib.util
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ablation.networks.code_digest import (
    IMPORTED_MODULES,
    MODULE_NAME,
    code_contents,
    forget_modules_beside,
    module_description,
)
from ablation.spec.architectures import add_custom_architecture

DIGEST_LENGTH = 12  # hexadecimal digits, in the name

PATH = re.compile(r"\w+(\.\w+)*")  # of a block in its network


@dataclass(frozen=True)
class _BackboneFunction:
    """Somebody's function, and its file."""

    path: Path
    name: str
    call: Callable[[], Any]

    def __str__(self) -> str:
        return f"function: {self.name}() of {self.path}"


_LOADED: dict[str, _BackboneFunction] = {}  # by the backbone's name


def load_custom_backbone(file: str, function: str) -> str:
    """Run a Python file and add the backbone that a function of it makes to `architecture.BACKBONES`.

    Args:
        file: the file's path. Modules beside it and in the working folder can be imported.
        function: takes nothing, and returns the blocks in order: a list of modules, or a dict of them by their path in
            the network that they come from, by which a file of weights knows their tensors.

    Returns:
        The backbone's name.

    Raises:
        ValueError: the file or the function is not there, fails, returns something else, or something else each time.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"module: {file}: no such file")
    path = path.resolve()
    forget_modules_beside(path)
    before = dict(sys.modules)
    found = _BackboneFunction(path, function, _run_file(path, file, function))
    blocks = _call(found, 0)
    try:
        described = [[place, module_description(block, path.parent)] for place, block in blocks.items()]
        _check_repeats(found, blocks, described)
        new = {name for name, module in sys.modules.items() if module is not before.get(name)}
        IMPORTED_MODULES[path] |= new
        with _isolated(path, 0):
            code = code_contents(path, IMPORTED_MODULES[path])
    except ValueError:
        raise
    except Exception as error:  # of attributes that cannot be read, or a module's file that is gone
        raise ValueError(f"{found} cannot be described ({_error_text(error)})") from None
    digest = hashlib.sha256(repr(described).encode())
    for name, content in sorted(code.items()):
        digest.update(f"\0{name}\0".encode() + content)
    backbone = f"{function}@{digest.hexdigest()[:DIGEST_LENGTH]}"
    add_custom_architecture(backbone, len(blocks), _has_batch_norm(blocks))
    _LOADED[backbone] = found
    return backbone


def make_custom_blocks(backbone: str, seed: int) -> dict[str, nn.Module]:
    """Return new blocks of a loaded backbone by their path, their random numbers drawn from a seed.

    Whatever the function draws from (torch, NumPy, Python) is seeded, and left as it was before.
    """
    return _call(_LOADED[backbone], seed)


def _run_file(path: Path, file: str, function: str) -> Callable[[], Any]:
    """Run a file; return a function of it."""
    name = f"{MODULE_NAME}{hashlib.sha256(str(path).encode()).hexdigest()[:DIGEST_LENGTH]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"module: {file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    with _isolated(path, 0):
        sys.modules[name] = module  # as dataclasses expect
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ValueError(f"module: {file}: cannot be imported ({_error_text(error)})") from None
    found: Callable[[], Any] | None = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"function: {file} has no function {function!r}")
    return found


def _call(function: _BackboneFunction, seed: int) -> dict[str, nn.Module]:
    with _isolated(function.path, seed):
        try:
            returned = function.call()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{function} failed ({_error_text(error)})") from None
    return _checked_blocks(returned, function)


def _error_text(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _isolated(path: Path, seed: int) -> Iterator[None]:
    """Run somebody's code here as a program of that file would run, and leave this process as it was.

    Random generators are seeded; modules beside the file and in the working folder are found first.
    """
    states = random.getstate(), np.random.get_state()
    dtype, folder, arguments, places = torch.get_default_dtype(), Path.cwd(), sys.argv, sys.path
    sets_device = False
    sys.argv, sys.path = [str(path)], [str(path.parent), str(folder), *places]
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.enable_grad(), torch.device("cpu"):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            try:
                yield
            finally:
                sets_device = torch.get_default_device().type != "cpu"
                if sets_device:
                    torch.set_default_device(None)
    finally:
        sys.argv, sys.path = arguments, places
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        np.random.set_state(states[1])
    if sets_device:
        raise ValueError(f"module: {path}: sets torch's default device, which --device is for")


def _checked_blocks(returned: Any, function: _BackboneFunction) -> dict[str, nn.Module]:
    """Return what a function has returned as blocks by their path."""
    if isinstance(returned, list | tuple | nn.Sequential | nn.ModuleList):
        returned = {str(number): block for number, block in enumerate(returned)}
    if not isinstance(returned, Mapping | nn.ModuleDict) or not returned:
        what = "nothing" if returned is None or isinstance(returned, Mapping) else type(returned).__name__
        raise ValueError(f"{function} must return blocks: a list of modules, or a dict path -> module, not {what}")
    blocks = dict(returned.items())
    seen: dict[int, str] = {}
    for path, block in blocks.items():
        if not isinstance(path, str) or not isinstance(block, nn.Module):
            raise ValueError(f"{function} must return modules by their path, not {block!r:.60} by {path!r:.60}")
        if not PATH.fullmatch(path) or any(hasattr(nn.Module(), step) for step in path.split(".")):
            raise ValueError(f"{function}: {path!r} cannot be the path of a block")
        if any(other != path and f"{path}.".startswith(f"{other}.") for other in blocks):
            raise ValueError(f"{function}: the block {path} is inside another")
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            if is_lazy(tensor):
                raise ValueError(f"{function}: {path}.{name} has no shape yet: lazy modules cannot be used")
            if seen.setdefault(id(tensor), path) != path:
                raise ValueError(f"{function}: the blocks {seen[id(tensor)]} and {path} share a tensor")
        for name, parameter in block.named_parameters():
            if not parameter.requires_grad:
                raise ValueError(
                    f"{function}: {path}.{name} does not require gradients; the strategy says what is frozen, and a "
                    "tensor that is never trained is to be a buffer"
                )
        block.float().cpu()
        for module in block.modules():
            if hasattr(module, "inplace"):
                # A block's input may be kept: stored features must not change.
                module.inplace = False  # type: ignore[assignment]
    return blocks


def _has_batch_norm(blocks: Mapping[str, nn.Module]) -> bool:
    return any(isinstance(module, _BatchNorm) for block in blocks.values() for module in block.modules())


def _check_repeats(function: _BackboneFunction, blocks: Mapping[str, nn.Module], described: list[list[str]]) -> None:
    """Refuse a function that returns something else under the same seed, or draws what nothing keeps."""
    again = _call(function, 0)
    for path, block in blocks.items():
        other = again[path].state_dict() if path in again else {}
        for name, tensor in block.state_dict().items():
            if name not in other or not torch.equal(tensor, other[name]):
                raise ValueError(f"{function} returns another {path}.{name} each time, whatever the random seed")
    others = _call(function, 1)
    if [[path, module_description(block, function.path.parent)] for path, block in others.items()] != described:
        raise ValueError(
            f"{function} draws random numbers, or reads the time, into attributes or into buffers that are not saved; "
            "make them buffers that are"
        )
