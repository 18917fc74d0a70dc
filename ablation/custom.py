"""A backbone of one's own: a function in a Python file that returns the blocks of a network.

It is called FUNCTION@DIGEST, by a digest of its code and of what it returns, so that whatever is kept of it - stored
features, a study's identity, a model - is never mixed with another version of it, and does not mind where the file is.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, is_dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from ablation import architecture

if TYPE_CHECKING:
    from torch import nn

INSTALLED = tuple(
    str(place) + os.sep
    for place in (
        Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    )
)  # fmt: skip
DIGEST_LENGTH = 12  # hexadecimal digits, in the name
# Not among what a study is: it may go on with newer ones of these, as a study of torchvision's networks may.
OUR_OWN = {"ablation", "numpy", "torch", "torchvision"}
MODULE_NAME = "ablation_custom_"  # begins the names under which users' files are imported
PATH = re.compile(r"\w+(\.\w+)*")  # of a block in its network


@dataclass(frozen=True)
class _Function:
    """Somebody's function, and its file."""

    path: Path
    name: str
    call: Callable[[], Any]

    def __str__(self) -> str:
        return f"function: {self.name}() of {self.path}"


_loaded: dict[str, _Function] = {}  # by the backbone's name
_imported: dict[Path, set[str]] = {}  # names of modules that were imported when a file was run


def is_custom(backbone: str) -> bool:
    """Say whether a backbone is somebody's own, by its name."""
    return "@" in backbone


def function_name(backbone: str) -> str:
    """Return the name of the function that makes a backbone."""
    return backbone.partition("@")[0]


def load(file: str, function: str) -> str:
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
    _forget_modules_beside(path)
    before = dict(sys.modules)
    found = _Function(path, function, _run(path, file, function))
    blocks = _make(found, 0)
    try:
        described = [[place, description(block, path.parent)] for place, block in blocks.items()]
        _check_repeats(found, blocks, described)
        new = {name for name, module in sys.modules.items() if module is not before.get(name)}
        _imported[path] |= new
        with _shielded(path, 0):
            code = _code(path, _imported[path])
    except ValueError:
        raise
    except Exception as error:  # of attributes that cannot be read, or a module's file that is gone
        raise ValueError(f"{found} cannot be described ({_said(error)})") from None
    digest = hashlib.sha256(repr(described).encode())
    for name, content in sorted(code.items()):
        digest.update(f"\0{name}\0".encode() + content)
    backbone = f"{function}@{digest.hexdigest()[:DIGEST_LENGTH]}"
    architecture.register(backbone, len(blocks), _has_batch_norm(blocks))
    _loaded[backbone] = found
    return backbone


def make_blocks(backbone: str, seed: int) -> "dict[str, nn.Module]":
    """Return new blocks of a loaded backbone by their path, their random numbers drawn from a seed.

    Whatever the function draws from (torch, NumPy, Python) is seeded, and left as it was before.
    """
    return _make(_loaded[backbone], seed)


# ---------------------------------------------------------------------------------------------- running somebody's code


def _run(path: Path, file: str, function: str) -> Callable[[], Any]:
    """Run a file; return a function of it."""
    name = f"{MODULE_NAME}{hashlib.sha256(str(path).encode()).hexdigest()[:DIGEST_LENGTH]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"module: {file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    with _shielded(path, 0):
        sys.modules[name] = module  # as dataclasses expect
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ValueError(f"module: {file}: cannot be imported ({_said(error)})") from None
    found: Callable[[], Any] | None = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"function: {file} has no function {function!r}")
    return found


def _make(function: _Function, seed: int) -> "dict[str, nn.Module]":
    with _shielded(function.path, seed):
        try:
            returned = function.call()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{function} failed ({_said(error)})") from None
    return _checked(returned, function)


def _said(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _shielded(path: Path, seed: int) -> Iterator[None]:
    """Run somebody's code here as a program of that file would run, and leave this process as it was.

    Random generators are seeded; modules beside the file and in the working folder are found first.
    """
    import numpy as np
    import torch

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


def _checked(returned: Any, function: _Function) -> "dict[str, nn.Module]":
    """Return what a function has returned as blocks by their path."""
    from torch import nn
    from torch.nn.parameter import is_lazy

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


def _has_batch_norm(blocks: "Mapping[str, nn.Module]") -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) for block in blocks.values() for module in block.modules())


def _check_repeats(function: _Function, blocks: "Mapping[str, nn.Module]", described: list[list[str]]) -> None:
    """Refuse a function that returns something else under the same seed, or draws what nothing keeps."""
    import torch

    again = _make(function, 0)
    for path, block in blocks.items():
        other = again[path].state_dict() if path in again else {}
        for name, tensor in block.state_dict().items():
            if name not in other or not torch.equal(tensor, other[name]):
                raise ValueError(f"{function} returns another {path}.{name} each time, whatever the random seed")
    others = _make(function, 1)
    if [[path, description(block, function.path.parent)] for path, block in others.items()] != described:
        raise ValueError(
            f"{function} draws random numbers, or reads the time, into attributes or into buffers that are not saved; "
            "make them buffers that are"
        )


# ------------------------------------------------------------------------------------------------- what it depends on


def description(module: "nn.Module", folder: Path | None = None) -> str:
    """Return what a module's computation depends on besides its code and its tensors.

    That is the attributes of it, of the modules in it and of their classes, and the buffers that are not saved with it;
    what code reads from files or the environment whenever it runs cannot be seen. `folder` is left out of texts, which
    then do not depend on it.
    """
    from torch import nn

    standard = vars(nn.Module()).keys()
    parts = []
    for path, inner in module.named_modules():
        own: dict[str, Any] = {}
        for kind in reversed(type(inner).__mro__):
            if not kind.__module__.startswith(("torch.", "builtins")):
                own |= {n: v for n, v in vars(kind).items() if not n.startswith("__") and not hasattr(v, "__get__")}
        own |= {name: value for name, value in vars(inner).items() if name not in standard}
        own |= {name: inner.get_buffer(name) for name in inner._non_persistent_buffers_set}
        parts.append([path, type(inner).__qualname__, _plain(own, str(folder) if folder else None, ())])
    return repr(parts)


def _plain(value: Any, folder: str | None, around: tuple[int, ...]) -> Any:
    """Return a value as something whose repr is the same in every process; `around` are the objects that it is in."""
    if id(value) in around:
        return "..."
    plain = functools.partial(_plain, folder=folder, around=(*around, id(value)))
    if isinstance(value, str):
        return value.replace(folder, "") if folder else value
    if value is None or isinstance(value, bool | int | float | complex | bytes):
        return value
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a tensor
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    if hasattr(value, "tobytes") and hasattr(value, "shape"):  # an array
        content = plain(value.tolist()) if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
        return [str(value.dtype), value.shape, content]
    if isinstance(value, Mapping):
        return sorted(([plain(key), plain(inner)] for key, inner in value.items()), key=repr)
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, functools.partial):
        return ["partial", plain(value.func), plain(value.args), plain(value.keywords)]
    if isinstance(value, MethodType):
        return [value.__qualname__, plain(value.__self__)]
    if isinstance(value, FunctionType):
        return [value.__qualname__, plain(value.__closure__ or ()), plain(value.__defaults__ or ())]
    if isinstance(value, CellType):
        return plain(value.cell_contents)
    for name in ("__qualname__", "__name__"):  # of a class, a function of C, a module
        if hasattr(value, name):
            return getattr(value, name)
    kind = type(value)
    if kind.__module__ == "torch":  # a dtype, say
        return str(value)
    is_users = kind.__module__ in sys.modules and _file(sys.modules[kind.__module__]) is not None
    if (is_users or is_dataclass(value) or isinstance(value, SimpleNamespace)) and not hasattr(value, "named_modules"):
        return [kind.__qualname__, plain(getattr(value, "__dict__", {}))]
    return kind.__qualname__  # a logger, say, which leads to all others


def _is_installed(file: str) -> bool:
    """Say whether a module's file belongs to Python, to an installed package or to this one, not to the user."""
    return bool({"site-packages", "dist-packages"} & {*Path(file).parts}) or file.startswith(INSTALLED)


def _file(module: ModuleType) -> str | None:
    """Return the file of a module that is neither Python's nor of an installed package, None for others."""
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and Path(file).is_absolute() and not _is_installed(file) else None


def _forget_modules_beside(path: Path) -> None:
    """Let modules beside a file be imported anew: they may have changed, or be those of another one's folder."""
    _imported.setdefault(path, set())
    beside = tuple(str(loaded.parent) + os.sep for loaded in _imported)
    for name, module in list(sys.modules.items()):
        file = _file(module)
        if file is not None and name != "__main__" and file.startswith(beside):
            del sys.modules[name]


def _code(path: Path, imported: Iterable[str]) -> dict[str, bytes]:
    """Return all code that a file runs: its own and that of modules by content, of installed packages by version.

    Args:
        path: the file.
        imported: the names of modules that were imported when it was run. Those that the user's code names in an import
            are looked for, too: they may have been there before, or be imported later.
    """
    found = {"": path.read_bytes()}
    named = _imported_names(found[""], "")
    waiting = {*imported, *named}
    while waiting:
        name = waiting.pop()
        file = _file(sys.modules[name]) if name in sys.modules else _file_to_be(name)
        if file is None or name in found or name.startswith(MODULE_NAME) or not Path(file).is_file():
            continue
        found[name] = Path(file).read_bytes()
        if file.endswith(".py"):
            package = name if Path(file).name == "__init__.py" else name.rpartition(".")[0]
            more = _imported_names(found[name], package)
            named |= more
            waiting |= more
    packages = {name.partition(".")[0] for name in named} - found.keys() - OUR_OWN - sys.stdlib_module_names
    distributions = packages_distributions() if packages else {}
    for package in packages:
        for distribution in sorted(set(distributions.get(package, []))):
            found[f"{package} of {distribution}"] = version(distribution).encode()
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


def _file_to_be(name: str) -> str | None:
    """Return the file that importing a module would run, None where it is not the user's."""
    top, *steps = name.split(".")
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        if spec is None:
            return None
        if not steps:
            is_users = spec.origin is not None and Path(spec.origin).is_file() and not _is_installed(spec.origin)
            return spec.origin if is_users else None
        for place in spec.submodule_search_locations or []:
            file = Path(place).joinpath(*steps)
            for candidate in (file.with_suffix(".py"), file / "__init__.py"):
                if candidate.is_file() and not _is_installed(str(candidate)):
                    return str(candidate)
    return None
