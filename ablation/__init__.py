"""Fair, resumable transfer-learning ablations: Optuna tunes every arm, MLflow shows it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation.frame import load_results
    from ablation.trial import load_model

__all__ = ["__version__", "load_model", "load_results"]

__version__ = "0.1.0"

_HOMES = {"load_model": "ablation.trial", "load_results": "ablation.frame"}


def __getattr__(name: str) -> Any:
    # torch and MLflow take seconds to import; `python -m ablation.study --help` must not wait for them.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
