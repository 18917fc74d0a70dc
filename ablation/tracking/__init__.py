"""All of MLflow: an experiment per study, a flat run per trial, a summary run with the report, a registered champion.

MLflow is configured by variables of the environment and by log levels, which belong to the whole process. Commands own
their process and call `configure_mlflow`. Library functions run in `mlflow_settings`, which restores everything, so
that a notebook's own calls to MLflow stay as they were.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ablation.base.files import HOME_OF_THE_HOMELESS, is_home_known

# A variable that the user has set wins.
VARIABLES = {
    # Otherwise MLflow sends usage statistics on its user's behalf.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A call that gets no answer is given up after 10 seconds; `client.py` repeats it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for every run that ends
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for every copy of a file
}
if not is_home_known():
    VARIABLES["HOME"] = HOME_OF_THE_HOMELESS  # else MLflow cannot even be imported
LOG_LEVELS = {
    "mlflow": logging.WARNING,  # otherwise it announces every table of a new database
    "alembic": logging.WARNING,
    # Otherwise every sample announces what a GPU does not report, such as its power.
    "mlflow.system_metrics": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,  # otherwise a lost database prints pages of SQL
    "urllib3": logging.ERROR,  # otherwise a connection that breaks is told in the words of the library
    # Otherwise it complains where there is no pip, whose version it would write down.
    "mlflow.utils.environment": logging.ERROR,
}


def configure_mlflow() -> None:
    """Set MLflow's variables and log levels for the rest of this process, which must be a command's own."""
    _set_variables()
    _set_log_levels()
    check_answers()


class _Settings:
    lock = threading.Lock()
    users = 0  # calls of library functions under way, in all threads
    new_variables: list[str]  # that were not set before
    levels: dict[str, int]  # before
    checked_answers: bool  # before


@contextmanager
def mlflow_settings() -> Iterator[None]:
    """Set MLflow's variables and log levels in this context, and restore what they were before.

    Several threads may use it at once: the first to enter saves, the last to leave restores.
    """
    with _Settings.lock:
        if _Settings.users == 0:
            _Settings.new_variables, _Settings.levels = _set_variables(), _set_log_levels()
            _Settings.checked_answers = check_answers()
        _Settings.users += 1
    try:
        yield
    finally:
        with _Settings.lock:
            _Settings.users -= 1
            if _Settings.users == 0:
                _unset_variables(_Settings.new_variables)
                check_answers(_Settings.checked_answers)
                for name, level in _Settings.levels.items():
                    logging.getLogger(name).setLevel(level)


def _set_variables() -> list[str]:
    """Set the variables that the user has not set; return their names."""
    names = [name for name in VARIABLES if name not in os.environ]
    os.environ.update((name, VARIABLES[name]) for name in names)
    return names


def _unset_variables(names: list[str]) -> None:
    for name in names:
        if os.environ.get(name) == VARIABLES[name]:  # otherwise the user has set it in the meantime
            del os.environ[name]


def _set_log_levels() -> dict[str, int]:
    """Set the log levels; return what they were before."""
    levels = {name: logging.getLogger(name).level for name in LOG_LEVELS}
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    return levels


# MLflow decides at its import whether it sends usage statistics. Its import also sets log levels, which stay.
_new_variables = _set_variables()
try:
    from ablation.tracking.answers import check_answers
finally:
    _unset_variables(_new_variables)
