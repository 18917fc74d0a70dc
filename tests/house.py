"""The plan of the house, as rules that are checked: python -m tests.house

Each rule returns a line for every place that breaks it. `ablation/README.md` says why.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "ablation"

COMMANDS = ("__init__", "__main__", "study", "launch", "report", "compare", "predict", "backbones", "bench", "ui")
# From bottom to top: a folder imports only from folders before it.
FOLDERS = (
    "base", "storage", "spec", "networks", "data", "training", "search", "tracking", "analysis", "reporting",
    "planning", "running", "launching", "benchmark",
)  # fmt: skip
# Folders side by side, which do not know each other.
STRANGERS = {("spec", "storage"), ("tracking", "search"), ("tracking", "training"), ("tracking", "data"),
             ("search", "training"), ("search", "data"), ("tracking", "networks"), ("search", "networks"),
             ("running", "planning"), ("benchmark", "planning"), ("benchmark", "reporting"),
             ("planning", "tracking"), ("planning", "search"), ("planning", "reporting")}  # fmt: skip
# Large libraries, and where their work is; the command files may import any of them inside functions.
ONLY_IN = {
    "torch": {"base", "networks", "data", "training", "planning", "running", "benchmark", "tracking", "reporting"},
    "torchvision": {"networks", "data", "benchmark"},
    "safetensors": {"networks", "data", "analysis", "running", "benchmark"},
    "optuna": {"search"},
    "sqlalchemy": {"storage", "search", "tracking"},
    "mlflow": {"tracking"},
    "rich": {"base", "running"},
    "click": {"base"},
    "filelock": {"storage"},
    "requests": {"storage", "tracking"},
    "tenacity": {"base"},
    "sklearn": {"data"},
    "imagehash": {"data"},
    "datasets": {"data"},
    "scipy": {"analysis"},
    "statsmodels": {"analysis"},
    "altair": {"reporting"},
    "vl_convert": {"reporting"},
    "jinja2": {"reporting"},
    "pandas": {"tracking", "analysis", "reporting"},
    "pyarrow": {"data"},
    "pydantic": {"spec"},
    "yaml": {"launching"},
    "ray": {"launching"},
    "psutil": {"base", "planning", "benchmark", "launching"},
}
MOST_PARAMETERS = 6
MOST_LINES = 500
MOST_WORDS = 1800  # of the README


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield each file of the package, by its path in it, with its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def is_command(name: str) -> bool:
    return "/" not in name or name.endswith("/__main__.py")


def imported(tree: ast.AST) -> set[str]:
    """Return the modules that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names.add("." * node.level + module)
            if module.startswith("ablation"):  # `from ablation.analysis import statistics`
                names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield all functions and methods, inner ones included."""
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def top_level_files_are_commands() -> list[str]:
    """A file at the top is a command, a folder is a subject."""
    loose = [name for name, _ in modules() if "/" not in name and name.removesuffix(".py") not in COMMANDS]
    folders = {name.split("/")[0] for name, _ in modules() if not is_command(name)}
    return [f"{name} at the top is no command" for name in loose] + [
        f"{folder}/ has no place in the order of folders" for folder in sorted(folders - set(FOLDERS))
    ]


def imports_point_down() -> list[str]:
    """A folder imports only from folders below it, by absolute names."""
    lines = []
    for name, tree in modules():
        folder = name.split("/")[0]
        for module in sorted(imported(tree)):
            if module.startswith("."):
                lines.append(f"{name} imports {module}, not by an absolute name")
            steps = module.split(".")
            if is_command(name) or steps[0] != "ablation" or len(steps) < 2 or steps[1] in (folder, "__version__"):
                continue
            other = steps[1]
            below = FOLDERS[: FOLDERS.index(folder)]
            if other not in below or (folder, other) in STRANGERS:
                lines.append(f"{name} imports {module}")
    return lines


def libraries_stay_in_their_folders() -> list[str]:
    """Each large library stays in the folders whose work it is."""
    return [
        f"{name} imports {library}"
        for name, tree in modules()
        if not is_command(name)
        for library in sorted({module.split(".")[0] for module in imported(tree)})
        if name.split("/")[0] not in ONLY_IN.get(library, {name.split("/")[0]})
    ]


def no_circles() -> list[str]:
    """Inside a folder, no file imports one that imports it, directly or over others."""
    known = dict(modules())

    def imported_files(tree: ast.Module) -> set[str]:
        files = {module.removeprefix("ablation.").replace(".", "/") + ".py" for module in imported(tree)}
        return files & known.keys()

    edges = {name: imported_files(tree) for name, tree in known.items()}
    lines = []

    def follow(path: list[str]) -> None:
        for other in sorted(edges[path[-1]]):
            if other == path[0]:
                lines.append(" -> ".join([*path, other]))
            elif other not in path and other > path[0]:
                follow([*path, other])

    for name in known:
        follow([name])
    return lines


def no_imports_in_functions() -> list[str]:
    """Imports stand at the top of files, except in the command files."""
    return [
        f"{name}:{node.lineno} imports inside {function.name}()"
        for name, tree in modules()
        if not is_command(name)
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def at_most_six_parameters() -> list[str]:
    """Settings that travel together are one dataclass; a click command takes its options one by one."""
    lines = []
    for name, tree in modules():
        for function in functions(tree):
            if any("click" in ast.unparse(decorator) for decorator in function.decorator_list):
                continue
            arguments = function.args
            names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
            count = len([argument for argument in names if argument not in ("self", "cls")])
            if count > MOST_PARAMETERS:
                lines.append(f"{name}: {function.name}() takes {count} parameters")
    return lines


def files_are_short() -> list[str]:
    """A file is read in one sitting."""
    return [
        f"{path.relative_to(PACKAGE).as_posix()} has {lines} lines, more than {MOST_LINES}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]


def readme_is_short() -> list[str]:
    """The README is read in five minutes."""
    words = len((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    return [f"README.md has {words} words, more than {MOST_WORDS}"] if words > MOST_WORDS else []


def public_functions_have_docstrings() -> list[str]:
    """Public functions, methods and classes of the package say what they do."""
    lines = []
    for name, tree in modules():
        owners: list[ast.Module | ast.ClassDef] = [tree]
        owners += [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for owner in owners:
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                    continue
                if ast.get_docstring(node) is None and not _overrides(owner, node):
                    lines.append(f"{name}: {node.name}() has no docstring")
    return lines


def _overrides(owner: ast.AST, node: ast.AST) -> bool:
    """Whether a method takes its docstring from the class that it implements."""
    return isinstance(owner, ast.ClassDef) and bool(owner.bases) and owner.name in ("FileLocks", "PostgresLocks")


RULES = (
    top_level_files_are_commands,
    imports_point_down,
    libraries_stay_in_their_folders,
    no_circles,
    no_imports_in_functions,
    at_most_six_parameters,
    files_are_short,
    readme_is_short,
    public_functions_have_docstrings,
)


def main() -> int:
    """Print what the house looks like and what breaks its rules; return how many places do."""
    sizes = {name: len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name, _ in modules()}
    folders = sorted({name.split("/")[0] for name in sizes if not is_command(name)}, key=FOLDERS.index)
    print(f"{sum(map(is_command, sizes))} loose files, {len(folders)} folders, {sum(sizes.values())} lines")
    for folder in folders:
        files = {name.split("/")[1]: lines for name, lines in sizes.items() if name.startswith(f"{folder}/")}
        print(
            f"  {folder:<11} {len(files) - 1:>2} files, {sum(files.values()):>5} lines, longest {max(files.values())}"
        )
    broken = 0
    for rule in RULES:
        lines = rule()
        broken += len(lines)
        print(f"{rule.__name__.replace('_', ' ')}: {'yes' if not lines else f'{len(lines)} exceptions'}")
        for line in lines:
            print(f"    {line}")
    return broken


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
