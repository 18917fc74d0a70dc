"""A module imports only from modules above it, and each large library stays where its work is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ablation"

# From top to bottom: what a module may import is what stands above it.
ORDER = [
    "scores", "architecture", "custom", "spec", "design", "store", "interrupts", "command_line", "locks", "outbox",
    "seeding", "environment", "blocks", "weights", "datasets", "data", "gallery", "models", "strategies",
    "features", "train", "probe", "checkpoint", "search", "tracking", "trial", "tables", "view", "backbones",
    "results", "frame", "stats", "plan", "analysis", "figures", "report", "registry", "champion", "champion_model",
    "predict", "demo", "workers", "study", "bench", "ui", "__main__",
]  # fmt: skip
TORCH = {
    "custom",
    "seeding",
    "weights",
    "data",
    "gallery",
    "backbones",
    "blocks",
    "models",
    "strategies",
    "features",
    "environment",
    "train",
    "probe",
    "checkpoint",
    "trial",
    "plan",
    "champion",
    "champion_model",
    "demo",
    "bench",
}
ONLY_IN = {
    "torch": TORCH,
    "torchvision": {"datasets", "backbones", "blocks", "weights", "data", "bench"},
    "safetensors": {"weights", "data", "gallery", "trial", "results", "frame", "demo", "bench"},
    "optuna": {"search"},
    "sqlalchemy": {"locks", "search", "tracking"},
    "mlflow": {"tracking", "registry", "champion_model"},
    "rich": {"view"},
    "click": {"command_line", "backbones", "ui", "predict", "report", "study", "bench"},
    "filelock": {"locks"},
    "requests": {"tracking"},
    "sklearn": {"data"},
    "scipy": {"stats"},
    "matplotlib": {"figures"},
    "jinja2": {"report"},
    "pandas": {"champion_model", "frame"},
    "pydantic": {"spec"},
    "psutil": {"probe", "environment", "bench"},
}


def imported(module: str) -> set[str]:
    """Return what a module imports anywhere, `ablation.x` for our own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            own = node.module == "ablation"
            found.update(f"ablation.{alias.name}" for alias in node.names) if own else found.add(node.module or "")
    return found


def test_order_is_complete() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_from_above(module: str) -> None:
    above = {f"ablation.{name}" for name in ORDER[: ORDER.index(module)]} | {"ablation.__version__"}
    assert {name for name in imported(module) if name.startswith("ablation")} <= above


@pytest.mark.parametrize("module", ORDER)
def test_large_libraries_stay_where_their_work_is(module: str) -> None:
    used = {name.split(".")[0] for name in imported(module)}
    assert {name for name in used if module not in ONLY_IN.get(name, {module})} == set()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--list"], 0),
        (["vgg_trunkation"], 2),
        (["vgg_truncation", "--set", "search.lr.low=-1"], 2),
        (["vgg_truncation", "--set", "data.source=imagefolder", "--set", "data.root=/nonexistent"], 2),
        (["vgg_truncation", "--set", "backbone.weights=/nonexistent.safetensors"], 2),
        (["vgg_truncation", "--device", "gpu"], 2),
        (["vgg_truncation", "--store", "/dev/null"], 2),
        (["vgg_truncation", "--nonsense"], 2),
    ],
)
def test_quick_answers_import_nothing_large(arguments: list[str], status: int, tmp_path: Path) -> None:
    code = (
        "import sys; from ablation import study; sys.argv = ['study', *sys.argv[1:]]; status = study.main();"
        "print(sorted({'torch', 'mlflow', 'optuna', 'sklearn'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"[] {status}"
    assert len(done.stderr.splitlines()) == (1 if status == 2 else 0)
    assert list(tmp_path.iterdir()) == []  # nothing was written
