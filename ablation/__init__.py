"""Fair, resumable transfer-learning ablations: Optuna tunes every arm, MLflow shows it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation.trial import load_model

__all__ = ["__version__", "load_model"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch and MLflow take seconds to import; `python -m ablation.study --help` must not wait for them.
    if name == "load_model":
        from ablation.trial import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
