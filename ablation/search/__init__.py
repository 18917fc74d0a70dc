"""All of Optuna: search spaces and samplers, a study per arm, trials claimed and ended."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


def configure_optuna() -> None:
    """Silence Optuna's announcements for the rest of this process, which must be a command's own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Otherwise a connection that breaks is told as several lines of SQL; `patient_storage.py` repeats the call.
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's announcements in this context, for functions of the library."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
