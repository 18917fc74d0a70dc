"""What the code of a custom backbone depends on, as a digest."""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from torch import nn

INSTALLED = tuple(
    str(place) + os.sep
    for place in (
        Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    )
)  # fmt: skip

# Not among what a study is: it may go on with newer ones of these, as a study of torchvision's networks may.
OUR_OWN = {"ablation", "numpy", "torch", "torchvision"}
MODULE_NAME = "ablation_custom_"  # begins the names under which users' files are imported

IMPORTED_MODULES: dict[Path, set[str]] = {}  # names of modules that were imported when a file was run


def module_description(module: nn.Module, folder: Path | None = None) -> str:
    """Return what a module's computation depends on besides its code and its tensors.

    That is the attributes of it, of the modules in it and of their classes, and the buffers that are not saved with it;
    what code reads from files or the environment whenever it runs cannot be seen. `folder` is left out of texts, which
    then do not depend on it.
    """
    standard = vars(nn.Module()).keys()
    parts = []
    for path, inner in module.named_modules():
        own: dict[str, Any] = {}
        for kind in reversed(type(inner).__mro__):
            if not kind.__module__.startswith(("torch.", "builtins")):
                own |= {n: v for n, v in vars(kind).items() if not n.startswith("__") and not hasattr(v, "__get__")}
        own |= {name: value for name, value in vars(inner).items() if name not in standard}
        own |= {name: inner.get_buffer(name) for name in inner._non_persistent_buffers_set}
        parts.append([path, type(inner).__qualname__, _plain_value(own, str(folder) if folder else None, ())])
    return repr(parts)


def _plain_value(value: Any, folder: str | None, around: tuple[int, ...]) -> Any:
    """Return a value as something whose repr is the same in every process; `around` are the objects that it is in."""
    if id(value) in around:
        return "..."
    plain = functools.partial(_plain_value, folder=folder, around=(*around, id(value)))
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


def forget_modules_beside(path: Path) -> None:
    """Let modules beside a file be imported anew: they may have changed, or be those of another one's folder."""
    IMPORTED_MODULES.setdefault(path, set())
    beside = tuple(str(loaded.parent) + os.sep for loaded in IMPORTED_MODULES)
    for name, module in list(sys.modules.items()):
        file = _file(module)
        if file is not None and name != "__main__" and file.startswith(beside):
            del sys.modules[name]


def code_contents(path: Path, imported: Iterable[str]) -> dict[str, bytes]:
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
