"""Fair, resumable transfer-learning ablations: Optuna tunes every arm, MLflow shows it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation.analysis.dataframe import load_results
    from ablation.base.errors import InputError, StoreAway, StoreError
    from ablation.running.outputs import load_model
    from ablation.tracking.registry import load_champion

__all__ = [
    "InputError",
    "StoreAway",
    "StoreError",
    "__version__",
    "load_champion",
    "load_model",
    "load_results",
]

__version__ = "0.1.0"

_HOMES = {
    "InputError": "ablation.base.errors",
    "StoreAway": "ablation.base.errors",
    "StoreError": "ablation.base.errors",
    "load_champion": "ablation.tracking.registry",
    "load_model": "ablation.running.outputs",
    "load_results": "ablation.analysis.dataframe",
}


def __getattr__(name: str) -> Any:
    # torch and MLflow take seconds to import; `python -m ablation.study --help` must not wait for them.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
