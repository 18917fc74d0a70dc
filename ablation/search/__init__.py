"""All of Optuna: search spaces and samplers, a study per arm, trials claimed and ended."""

import warnings

import optuna


def configure_optuna() -> None:
    """Silence Optuna's announcements for the rest of this process, which must be a command's own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
