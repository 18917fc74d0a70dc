"""Custom backbones: a function in a user's Python file that returns the blocks of a network.

A custom backbone is named FUNCTION@DIGEST, with a digest of its code and of the blocks that the function returns. So
what is stored of it (cached features, a study's identity, a model) is never mixed with another version of it, and the
file may be moved.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ablation.base.files import expand
from ablation.networks.code_digest import (
    IMPORTED_MODULES,
    MODULE_NAME,
    code_contents,
    forget_modules_beside,
    is_installed,
    module_description,
)
from ablation.spec.architectures import add_custom_architecture

DIGEST_LENGTH = 12  # hexadecimal digits, in the name

BLOCK_PATH = re.compile(r"\w+(\.\w+)*")  # a block's path in its network


@dataclass(frozen=True)
class _BackboneFunction:
    """A user's function, and its file."""

    path: Path
    name: str
    call: Callable[[], Any]

    def __str__(self) -> str:
        return f"function: {self.name}() of {self.path}"


_LOADED: dict[str, Callable[[int], dict[str, nn.Module]]] = {}  # makes a backbone's blocks from a seed, by its name


def load_custom_backbone(file: str, function: str) -> str:
    """Run a Python file and add the backbone that its function makes to `ARCHITECTURES`.

    Args:
        file: the file's path. It can import modules from its folder and from the working folder.
        function: the name of a function without arguments that returns the blocks in order: a list of modules, or a
            dict of modules by their path in the network that they come from, as in the names of its weights.

    Returns:
        The backbone's name.

    Raises:
        ValueError: the file or the function does not exist or fails, or the function returns no blocks, or other ones
            on each call. The message begins with the key of [backbone] that is wrong.
    """
    path = expand(file)
    if not path.is_file():
        raise ValueError(f"module: {file}: no such file")
    path = path.resolve()
    forget_modules_beside(path)
    before = dict(sys.modules)
    backbone_function = _BackboneFunction(path, function, _run_file(path, file, function))
    blocks = _call(backbone_function, 0)
    try:
        descriptions = [[place, module_description(block, path.parent)] for place, block in blocks.items()]
        _check_repeats(backbone_function, blocks, descriptions)
        IMPORTED_MODULES[path] |= {name for name, module in sys.modules.items() if module is not before.get(name)}
        with _isolated(path, 0):
            code = code_contents(path, IMPORTED_MODULES[path])
    except ValueError:
        raise
    except Exception as error:  # such as an attribute that cannot be read, or a module's file that no longer exists
        raise ValueError(f"{backbone_function} cannot be described ({_error_text(error)})") from None
    digest = hashlib.sha256(repr(descriptions).encode())
    for name, content in sorted(code.items()):
        digest.update(f"\0{name}\0".encode() + content)
    backbone = f"{function}@{digest.hexdigest()[:DIGEST_LENGTH]}"
    add_loaded_backbone(backbone, blocks, functools.partial(_call, backbone_function))
    return backbone


def add_loaded_backbone(
    backbone: str,
    blocks: Mapping[str, nn.Module],
    make_blocks: Callable[[int], dict[str, nn.Module]],
    extra_tokens: int | None = None,
) -> None:
    """Add a backbone, with its name in full, to `ARCHITECTURES`.

    Args:
        backbone: the name, which no other code or configuration has.
        blocks: its blocks by their path.
        make_blocks: makes new ones, with random numbers drawn from a seed.
        extra_tokens: see `Architecture`.
    """
    has_batch_norm = any(isinstance(module, _BatchNorm) for block in blocks.values() for module in block.modules())
    add_custom_architecture(backbone, len(blocks), has_batch_norm, extra_tokens)
    _LOADED[backbone] = make_blocks


def make_custom_blocks(backbone: str, seed: int) -> dict[str, nn.Module]:
    """Return new blocks of a loaded backbone by their path, with random numbers drawn from a seed.

    The random generators of torch, NumPy and Python are seeded for the call, and restored after it.
    """
    return _LOADED[backbone](seed)


def _run_file(path: Path, file: str, function: str) -> Callable[[], Any]:
    """Run a file and return its function of a given name."""
    name = f"{MODULE_NAME}{hashlib.sha256(os.fsencode(path)).hexdigest()[:DIGEST_LENGTH]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"module: {file}: is not a Python file")
    _compile_from_source(spec)
    module = importlib.util.module_from_spec(spec)
    with _isolated(path, 0):
        sys.modules[name] = module  # dataclasses expect it there
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ValueError(f"module: {file}: cannot be imported ({_error_text(error)})") from None
    call: Callable[[], Any] | None = getattr(module, function, None)
    if not callable(call):
        raise ValueError(f"function: {file} has no function {function!r}")
    return call


def _call(function: _BackboneFunction, seed: int) -> dict[str, nn.Module]:
    with _isolated(function.path, seed):
        try:
            returned = function.call()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{function} failed ({_error_text(error)})") from None
    return checked_blocks(returned, str(function))


def _error_text(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Source(SourceFileLoader):
    """Loads a module from its source alone.

    Bytecode in `__pycache__` counts as current if the source has the same size and time of change in seconds, so a file
    that was edited twice within a second would run in its older version.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source; no bytecode is read or written."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _compile_from_source(spec: ModuleSpec) -> None:
    """Let a module be loaded from its source if it is the user's."""
    if type(spec.loader) is SourceFileLoader and not is_installed(spec.loader.path):
        spec.loader = _Source(spec.loader.name, spec.loader.path)


class _SourceFinder:
    """Finds modules as Python's other finders do; the user's are loaded from source."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return where a module is, None if no finder knows it."""
        for finder in list(sys.meta_path):
            if finder is cls or not hasattr(finder, "find_spec"):  # Python passes over finders without it, too
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _compile_from_source(spec)
                return spec
        return None


@contextmanager
def _isolated(path: Path, seed: int) -> Iterator[None]:
    """Run the user's code as if its file were a program of its own, and restore the state of this process afterwards.

    Random generators are seeded; modules in the file's folder and in the working folder come first, and are compiled
    from source.
    """
    states = random.getstate(), np.random.get_state()
    dtype, folder, arguments, places = torch.get_default_dtype(), Path.cwd(), sys.argv, sys.path
    sets_device = False
    sys.argv, sys.path = [str(path)], [str(path.parent), str(folder), *places]
    sys.meta_path.insert(0, _SourceFinder)
    importlib.invalidate_caches()  # a folder's list of files, too, is reread only once its time of change differs
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
        with suppress(ValueError):  # the user's code may have removed it
            sys.meta_path.remove(_SourceFinder)
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        np.random.set_state(states[1])
    if sets_device:
        raise ValueError(f"module: {path}: sets torch's default device; use --device instead")


def checked_blocks(returned: Any, function: str) -> dict[str, nn.Module]:
    """Check the blocks that a function has returned; return them by their path, on the CPU and in float32.

    Raises:
        ValueError: the message begins with `function`, which says where they come from.
    """
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
        if not BLOCK_PATH.fullmatch(path) or any(hasattr(nn.Module(), step) for step in path.split(".")):
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
                    f"{function}: {path}.{name} does not require gradients; the strategy decides what is frozen, and a "
                    "tensor that is never trained must be a buffer"
                )
        block.float().cpu()
        for module in block.modules():
            if hasattr(module, "inplace"):
                # A block's input may be a cached feature, which must not change.
                module.inplace = False  # type: ignore[assignment]
    return blocks


def _check_repeats(function: _BackboneFunction, blocks: Mapping[str, nn.Module], descriptions: list[list[str]]) -> None:
    """Refuse a function whose blocks differ under the same seed, or that has random values which are not saved."""
    again = _call(function, 0)
    for path, block in blocks.items():
        other = again[path].state_dict() if path in again else {}
        for name, tensor in block.state_dict().items():
            if name not in other or not torch.equal(tensor, other[name]):
                raise ValueError(f"{function} returns another {path}.{name} each time, whatever the random seed")
    others = _call(function, 1)
    if [[path, module_description(block, function.path.parent)] for path, block in others.items()] != descriptions:
        raise ValueError(
            f"{function} draws random numbers, or reads the time, into attributes or into buffers that are not saved; "
            "make them buffers that are saved"
        )
