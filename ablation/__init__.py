"""Fair, resumable transfer-learning ablations: Optuna tunes every arm, MLflow shows it.

`open_study` returns a study's answer, tables and report, `load_results` its runs as a table; `load_model` rebuilds a
run's network, and `load_champion` loads the champion. They leave the caller's process as it was: the addresses in its
environment, MLflow's and Optuna's settings, log levels, warning filters and random generators. `OpenStudy` and
`Champion` are what they return.
"""

import random
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation.analysis.dataframe import load_results
    from ablation.base.errors import InputError, StoreAway, StoreError
    from ablation.reporting.open_study import OpenStudy, open_study
    from ablation.running.outputs import load_model
    from ablation.tracking.registry import Champion, load_champion

__all__ = [
    "Champion",
    "InputError",
    "OpenStudy",
    "StoreAway",
    "StoreError",
    "__version__",
    "load_champion",
    "load_model",
    "load_results",
    "open_study",
]

__version__ = "0.1.0"

_HOMES = {
    "Champion": "ablation.tracking.registry",
    "InputError": "ablation.base.errors",
    "OpenStudy": "ablation.reporting.open_study",
    "StoreAway": "ablation.base.errors",
    "StoreError": "ablation.base.errors",
    "load_champion": "ablation.tracking.registry",
    "load_model": "ablation.running.outputs",
    "load_results": "ablation.analysis.dataframe",
    "open_study": "ablation.reporting.open_study",
}


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # to a type checker, names that are not there would be there

    def __getattr__(name: str) -> Any:
        # torch and MLflow take seconds to import; `python -m ablation.study --help` must not wait for them.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        state = random.getstate()
        try:
            with warnings.catch_warnings():
                # Those of other packages, which would end the import where a caller makes warnings errors, and that of
                # Optuna's progress bar in a notebook without a package of Jupyter's; nothing here draws one.
                warnings.simplefilter("ignore")
                return getattr(import_module(_HOMES[name]), name)
        finally:
            random.setstate(state)  # rich draws from the caller's generator when it is imported
