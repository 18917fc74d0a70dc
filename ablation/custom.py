"""A backbone of one's own: a function in a Python file that returns the blocks of a network.

It is called FUNCTION@DIGEST, by a digest of its code and of what it returns, so that whatever is kept of it - stored
features, a study's identity, a model - is never mixed with another version of it, and does not mind where the file is.
"""

import ast
import hashlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation import architecture

if TYPE_CHECKING:
    from torch import nn

DIGEST_LENGTH = 12  # hexadecimal digits, in the name
# Not among what a study is: it may go on with newer ones of these, as a study of torchvision's networks may.
OUR_OWN = {"ablation", "numpy", "torch", "torchvision"}

_makers: dict[str, Callable[[int], "dict[str, nn.Module]"]] = {}  # by the backbone's name


def is_custom(backbone: str) -> bool:
    """Say whether a backbone is somebody's own, by its name."""
    return "@" in backbone


def function_name(backbone: str) -> str:
    """Return the name of the function that makes a backbone."""
    return backbone.partition("@")[0]


def load(file: str, function: str) -> str:
    """Run a Python file and add the backbone that a function of it makes to `architecture.BACKBONES`.

    Args:
        file: the file's path. Modules beside it can be imported, as in a program that is run from its folder.
        function: takes nothing, and returns the blocks in order: a list of modules, or a dict of them by their path in
            the network that they come from, by which a file of weights knows their tensors.

    Returns:
        The backbone's name.

    Raises:
        ValueError: the file or the function is not there, fails, or returns something else.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"module: {file}: no such file")
    make = _maker(path, function)
    blocks = make(0)
    digest = hashlib.sha256()
    try:
        code = _code(path)
    except (SyntaxError, OSError) as error:  # of a module that has not been imported yet
        raise ValueError(f"module: {path}: what it imports cannot be read ({_said(error)})") from None
    for name, content in sorted(code.items()):
        digest.update(f"{name}\0".encode() + content)
    for place, block in blocks.items():
        digest.update(f"{place}\0{block}\0{description(block)}".encode())
    name = f"{function}@{digest.hexdigest()[:DIGEST_LENGTH]}"
    architecture.register(name, len(blocks), _has_batch_norm(blocks))
    _makers.setdefault(name, make)
    return name


def make_blocks(backbone: str, seed: int) -> "dict[str, nn.Module]":
    """Return new blocks of a loaded backbone by their path, their random numbers drawn from a seed.

    Whatever the function draws from (torch, NumPy, Python) is seeded, and left as it was before.
    """
    return _makers[backbone](seed)


def description(module: "nn.Module") -> str:
    """Return all that a module's computation depends on besides its class and its tensors.

    That is the plain attributes of it and of the modules in it, and the buffers that are not saved with it.
    """
    from torch import nn

    standard = vars(nn.Module()).keys()
    parts = []
    for path, inner in module.named_modules():
        own = {name: value for name, value in vars(inner).items() if name not in standard}
        own |= {name: inner.get_buffer(name) for name in sorted(inner._non_persistent_buffers_set)}
        parts.append([path, type(inner).__qualname__, {name: _plain(value) for name, value in sorted(own.items())}])
    return repr(parts)


def _plain(value: Any) -> Any:
    """Return a value as something whose repr is the same in every process: objects by their class alone."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a tensor
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    if hasattr(value, "tobytes") and hasattr(value, "shape"):  # an array
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(inner)] for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_plain(inner)) for inner in value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


# -------------------------------------------------------------------------------------------- the file and its function


def _maker(path: Path, function: str) -> "Callable[[int], dict[str, nn.Module]]":
    """Run a file; return what makes a function's blocks from a seed."""
    import torch

    module_name = f"ablation_custom_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:DIGEST_LENGTH]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"module: {path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # as dataclasses and pickle expect
    with _seeded(0), _importing_from(path.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ValueError(f"module: {path}: cannot be imported ({_said(error)})") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"function: {path} has no function {function!r}")

    def make(seed: int) -> "dict[str, nn.Module]":
        with _seeded(seed), _importing_from(path.parent), torch.device("cpu"):
            try:
                returned = found()
            except Exception as error:
                raise ValueError(f"function: {function}() of {path} failed ({_said(error)})") from None
        return _checked(returned, f"{function}() of {path}")

    return make


def _said(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _checked(returned: Any, who: str) -> "dict[str, nn.Module]":
    """Return what a function has returned as blocks by their path, ready to be trained."""
    from torch import nn

    if isinstance(returned, list | tuple | nn.Sequential | nn.ModuleList):
        returned = {str(number): block for number, block in enumerate(returned)}
    if not isinstance(returned, Mapping) or not returned:
        what = "nothing" if not returned and isinstance(returned, Mapping | None) else type(returned).__name__
        raise ValueError(f"function: {who} must return blocks: a list of modules, or a dict path -> module, not {what}")
    blocks = dict(returned)
    seen: dict[int, str] = {}
    for path, block in blocks.items():
        if not isinstance(path, str) or not isinstance(block, nn.Module):
            raise ValueError(f"function: {who} must return modules by their path, not {block!r:.60} by {path!r:.60}")
        if any(other != path and f"{path}.".startswith(f"{other}.") for other in blocks):
            raise ValueError(f"function: {who}: the block {path} is inside another")
        for tensor in (*block.parameters(), *block.buffers()):
            if seen.setdefault(id(tensor), path) != path:
                raise ValueError(f"function: {who}: the blocks {seen[id(tensor)]} and {path} share a tensor")
        block.float().cpu().requires_grad_(True)
        for module in block.modules():
            if hasattr(module, "inplace"):
                # A block's input may be kept: stored features must not change.
                module.inplace = False  # type: ignore[assignment]
    return blocks


def _has_batch_norm(blocks: "Mapping[str, nn.Module]") -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) for block in blocks.values() for module in block.modules())


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported here, before any others of their name."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        with suppress(ValueError):  # the file itself may have taken it out
            sys.path.remove(str(folder.resolve()))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators here, and leave them as they were."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _code(path: Path) -> dict[str, bytes]:
    """Return a file and all that it imports: files beside it or in the working folder by content, others by version.

    Imports are found by their names in the code, whether they have been run or not.
    """
    roots = [path.parent.resolve(), Path.cwd()]
    found: dict[str, bytes] = {}
    waiting = [("", path.resolve())]
    while waiting:
        name, file = waiting.pop()
        if name in found:
            continue
        found[name] = file.read_bytes()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imported_names(found[name], package):
            top = imported.partition(".")[0]
            if top in sys.stdlib_module_names or top in OUR_OWN:
                continue
            places = [place for root in roots if (place := _file_of(root, imported)) is not None]
            if places:
                waiting.append((imported, places[0]))
            elif _file_of(roots[0], top) is None and _file_of(roots[1], top) is None:
                with suppress(PackageNotFoundError):
                    found[f"{top}=="] = version(top).encode()
    return found


def _imported_names(source: bytes, package: str) -> set[str]:
    """Return every module that a source file names in an import, and what may be a module of a package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    # Importing a.b runs a, too.
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)} - {""}


def _file_of(root: Path, module: str) -> Path | None:
    """Return the file of a module below a folder, None where it is not there."""
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
