"""Fair, resumable transfer-learning ablations: Optuna tunes every arm, MLflow shows it.

`load_results` returns a study's runs as a table, `load_model` rebuilds a run's network, and `load_champion` loads the
champion. They leave the caller's process as it was: environment, MLflow's and Optuna's settings, log levels, warning
filters and random generators.
"""

import random
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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    state = random.getstate()
    try:
        return getattr(import_module(_HOMES[name]), name)
    finally:
        random.setstate(state)  # rich draws from the caller's generator when it is imported
