"""The code of a custom backbone, and the values that it depends on, in a form that can be digested."""

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
        Path(__file__).parents[1], *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    )
)  # fmt: skip

# Their versions are not part of a study's identity: a study may resume with newer ones, whatever its backbone.
IGNORED_PACKAGES = {"ablation", "numpy", "torch", "torchvision"}
MODULE_NAME = "ablation_custom_"  # prefix of the names under which users' files are imported

# By the path of a file that was run: the names of the modules that were imported meanwhile.
IMPORTED_MODULES: dict[Path, set[str]] = {}


def module_description(module: nn.Module, folder: Path | None = None) -> str:
    """Return a text of the values on which a module's computation depends, besides its code and its saved tensors.

    They are the attributes of the module, of its submodules and of their classes, and the buffers that are not saved.
    Code that reads files or the environment on each call is not covered. `folder` is removed from texts, so that the
    result does not depend on the place of the user's file.
    """
    standard = vars(nn.Module()).keys()
    parts = []
    for path, inner in module.named_modules():
        attributes: dict[str, Any] = {}
        for kind in reversed(type(inner).__mro__):
            if not kind.__module__.startswith(("torch.", "builtins")):
                members = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
                attributes |= {name: value for name, value in members.items() if not hasattr(value, "__get__")}
        attributes |= {name: value for name, value in vars(inner).items() if name not in standard}
        attributes |= {name: inner.get_buffer(name) for name in inner._non_persistent_buffers_set}
        parts.append([path, type(inner).__qualname__, _plain_value(attributes, str(folder) if folder else None, ())])
    return repr(parts)


def _plain_value(value: Any, folder: str | None, around: tuple[int, ...]) -> Any:  # noqa: C901 - a case per type
    """Return an equivalent whose repr is the same in every process; `around`: ids of the objects that contain it."""
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
    for name in ("__qualname__", "__name__"):  # of a class, a C function, or a module
        if hasattr(value, name):
            return getattr(value, name)
    kind = type(value)
    if kind.__module__ == "torch":  # such as a dtype
        return str(value)
    is_users = kind.__module__ in sys.modules and _user_file(sys.modules[kind.__module__]) is not None
    if (is_users or is_dataclass(value) or isinstance(value, SimpleNamespace)) and not hasattr(value, "named_modules"):
        return [kind.__qualname__, plain(getattr(value, "__dict__", {}))]
    return kind.__qualname__  # such as a logger, which refers to all others


def is_installed(file: str) -> bool:
    """Return whether a module's file belongs to Python, an installed package or this one, and not to the user."""
    return bool({"site-packages", "dist-packages"} & {*Path(file).parts}) or file.startswith(INSTALLED)


def _user_file(module: ModuleType) -> str | None:
    """Return the file of a user's module, None for modules of Python and of installed packages."""
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and Path(file).is_absolute() and not is_installed(file) else None


def forget_modules_beside(path: Path) -> None:
    """Forget the modules in the folders of all users' files, so that the next import reads them again.

    They may have changed, or another folder may have modules of the same names.
    """
    IMPORTED_MODULES.setdefault(path, set())
    folders = tuple(str(loaded.parent) + os.sep for loaded in IMPORTED_MODULES)
    for name, module in list(sys.modules.items()):
        file = _user_file(module)
        if file is not None and name != "__main__" and file.startswith(folders):
            del sys.modules[name]


def code_contents(path: Path, imported: Iterable[str]) -> dict[str, bytes]:
    """Return the code that a file runs: the source of the user's modules by name, the versions of installed packages.

    Args:
        path: the file, whose name in the result is "".
        imported: the names of the modules that were imported when the file was run. Modules that the user's code names
            in an import are added: they may have been imported before, or may be imported later.
    """
    contents = {"": path.read_bytes()}
    named = _imported_names(contents[""], "")
    waiting = {*imported, *named}
    while waiting:
        name = waiting.pop()
        file = _user_file(sys.modules[name]) if name in sys.modules else _importable_file(name)
        if file is None or name in contents or name.startswith(MODULE_NAME) or not Path(file).is_file():
            continue
        contents[name] = Path(file).read_bytes()
        if file.endswith(".py"):
            package = name if Path(file).name == "__init__.py" else name.rpartition(".")[0]
            names = _imported_names(contents[name], package)
            named |= names
            waiting |= names
    packages = {name.partition(".")[0] for name in named} - contents.keys() - IGNORED_PACKAGES - sys.stdlib_module_names
    distributions = packages_distributions() if packages else {}
    for package in packages:
        for distribution in sorted(set(distributions.get(package, []))):
            contents[f"{package} of {distribution}"] = version(distribution).encode()
    return contents


def _imported_names(source: bytes, package: str) -> set[str]:
    """Return each module that a source file names in an import, and names in it that may be modules of a package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    # Importing a.b also runs a.
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)} - {""}


def _importable_file(name: str) -> str | None:
    """Return the file that an import of a module would run, None if it is not the user's."""
    top, *steps = name.split(".")
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        if spec is None:
            return None
        if not steps:
            is_users = spec.origin is not None and Path(spec.origin).is_file() and not is_installed(spec.origin)
            return spec.origin if is_users else None
        for place in spec.submodule_search_locations or []:
            file = Path(place).joinpath(*steps)
            for candidate in (file.with_suffix(".py"), file / "__init__.py"):
                if candidate.is_file() and not is_installed(str(candidate)):
                    return str(candidate)
    return None
