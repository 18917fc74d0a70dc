"""Members of libraries that are used though they are private or undocumented: when one goes, its test says which."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from torch import nn

from tests.studies import REPOSITORY

# Where it is used, its dotted name, and why.
MEMBERS = [
    ("ablation/base/interrupts.py", "os._exit", "a second signal ends the process at once, whatever it waits for"),
    ("ablation/search/claims.py", "optuna.trial.FrozenTrial._trial_id",
     "optuna.Trial(study, id) is the only way to a trial that another process began"),
    ("ablation/search/space.py", "optuna.samplers.QMCSampler._find_sample_id",
     "overridden, so that trial n gets point n of the sequence whichever worker asks"),
    ("ablation/networks/transfer_model.py", "torch.nn.modules.batchnorm._BatchNorm",
     "what all kinds of batch normalisation are"),
    ("ablation/networks/strategies.py", "torch.nn.modules.batchnorm._BatchNorm",
     "what all kinds of batch normalisation are"),
    ("ablation/networks/custom_backbone.py", "torch.nn.modules.batchnorm._BatchNorm",
     "what all kinds of batch normalisation are"),
    ("ablation/networks/code_digest.py", "torch.nn.Module._non_persistent_buffers_set",
     "buffers that no state_dict has, but that the outputs depend on"),
    ("ablation/training/step.py", "torch.amp.GradScaler._per_optimizer_states",
     "a step whose capture failed must not count as unscaled"),
    ("ablation/training/compiler.py", "torch._dynamo.config.recompile_limit",
     "a study compiles more graphs of one function than torch allows by default"),
    ("ablation/tracking/trial_run.py", "mlflow.data.meta_dataset.MetaDataset._to_mlflow_entity",
     "logs a data set without the fluent API, which has a run of its own"),
    ("ablation/tracking/answers.py", "mlflow.utils.request_utils._get_http_response_with_retries",
     "an empty answer is no data, and a server's reason and its Retry-After are lost above it"),
    ("ablation/tracking/system_metrics.py",
     "mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor._shutdown_event",
     "ends the thread that measures, which is overridden"),
    ("ablation/networks/blocks.py", "torchvision.models.vgg.make_layers", "the narrow VGG has torchvision's layers"),
    ("ablation/networks/blocks.py", "torchvision.models.convnext.CNBlock", "its layer scale is initialised"),
    ("ablation/networks/blocks.py", "torchvision.models.vision_transformer.Encoder",
     "its position embedding is initialised"),
    ("ablation/networks/vision_transformers.py", "torchvision.models.vision_transformer.interpolate_embeddings",
     "position embeddings of other image sizes are torchvision's"),
    ("tests/studies.py", "mlflow.store.db.utils._get_managed_session_maker", "sets options for each session"),
    ("tests/victim_process.py", "mlflow.store.db.utils._verify_schema", "left out, because it takes seconds"),
]  # fmt: skip

# Objects that have a member which their class has not.
INSTANCES: dict[str, Any] = {
    "optuna.trial.FrozenTrial": lambda: optuna.trial.create_trial(value=0.0),
    "torch.nn.Module": nn.Module,
    "torch.amp.GradScaler": lambda: torch.amp.GradScaler("cpu"),
    "mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor": lambda: SystemMetricsMonitor("run"),
}


def find(name: str) -> Any:
    """Return what a dotted name stands for; raise AttributeError where its last part is missing."""
    if name in INSTANCES:
        return INSTANCES[name]()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, member = name.rpartition(".")
        return getattr(find(owner) if owner else importlib.import_module(name), member)


@pytest.mark.parametrize(("file", "name", "why"), MEMBERS, ids=[f"{m[1]} in {Path(m[0]).name}" for m in MEMBERS])
def test_it_is_there(file: str, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow's monitor makes a database in the working folder
    try:
        find(name)
    except (AttributeError, ModuleNotFoundError):
        pytest.fail(f"{name.split('.')[0]} has no {name} any more; {file} needs it: {why}")
    assert name.split(".")[-1] in (REPOSITORY / file).read_text(encoding="utf-8"), "not used any more: drop the entry"


@pytest.mark.parametrize(
    ("owner", "method"),
    [(optuna.samplers.QMCSampler, "_find_sample_id"), (SystemMetricsMonitor, "_shutdown_event")],
)
def test_what_is_overridden_is_what_the_library_uses(owner: type, method: str) -> None:
    """A method that the library itself no longer calls could be overridden without an error, and without effect."""
    functions = [function for name, function in inspect.getmembers(owner, inspect.isfunction) if name != method]
    assert any(method in function.__code__.co_names for function in functions)


def private_members(tree: ast.Module) -> Iterator[str]:
    """Yield the private names that a file takes from objects or modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ablation"):
            yield from (alias.name for alias in node.names)


def own_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a file defines: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_all_of_them_are_listed() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "ablation").rglob("*.py")}
    own = {name for tree in trees.values() for name in own_names(tree)}
    used = {
        (path.relative_to(REPOSITORY).as_posix(), name)
        for path, tree in trees.items()
        for name in private_members(tree)
        if name.startswith("_") and not name.startswith("__") and name not in own
    }
    listed = {(file, part) for file, name, _ in MEMBERS for part in name.split(".")}
    assert used <= listed
