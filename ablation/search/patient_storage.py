"""Optuna's database: its calls are repeated while it is away for a moment, and its errors translated."""

from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import sqlalchemy.exc
from optuna.storages import BaseStorage, get_storage

from ablation.base.errors import InputError, StoreError
from ablation.base.interrupts import uninterrupted
from ablation.base.retries import repeat_briefly
from ablation.base.text import first_line
from ablation.storage.outages import store_error

T = TypeVar("T")

DATABASE = "Optuna's database"  # what does not answer
# Calls that may not be repeated blindly: the database may have carried them out before its answer was lost. Who makes
# them begins again from the question whether they are still to be made.
ONCE = ("create_new_trial", "set_trial_state_values")


class ClaimLost(Exception):
    """Another process owns the trial, or has ended it, so the work of this process is discarded."""


class RecordMissing(StoreError):
    """The database does not have a study or a trial, any more."""


def ask_database(call: Callable[[], T], *, repeat: bool = True) -> T:
    """Return what a call to Optuna's database returns.

    Args:
        call: is repeated for a few seconds while the database is away.
        repeat: whether to do that.

    Raises:
        StoreAway: the database is away for longer.
        StoreError: it cannot be used; `RecordMissing` where it lacks what the call is about.
        ClaimLost: the call would change a trial that has ended.
    """

    def attempt() -> T:
        try:
            with uninterrupted():
                return call()
        except optuna.exceptions.UpdateFinishedTrialError:
            raise ClaimLost("another worker has ended it") from None
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            cause: Any = error if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else error.__cause__ or error
            raise store_error(cause, DATABASE, DATABASE) from None
        except (ValueError, LookupError, TypeError) as error:  # what Optuna makes of values that somebody overwrote
            if isinstance(error, InputError):
                raise
            reason = f"it holds what cannot be read: {first_line(error)}"
            kind = RecordMissing if isinstance(error, KeyError) else StoreError
            raise kind(f"{DATABASE} cannot be used ({reason})", reason) from None

    return repeat_briefly(attempt) if repeat else attempt()


def read_again(read: Callable[[], T]) -> T:
    """Return what a read returns; if an arm was deleted meanwhile, what a second read returns."""
    try:
        return read()
    except RecordMissing:
        return read()


def patient_storage(database: optuna.storages.RDBStorage) -> BaseStorage:
    """Return an Optuna storage that asks a database and raises as `ask_database` does.

    Its `remove_session` closes its connections, which would stay until the garbage is collected.
    """
    cached = get_storage(database)  # with Optuna's cache of ended trials

    def asking(name: str) -> Callable[..., Any]:
        method = getattr(cached, name)
        return lambda _, *args, **kwargs: ask_database(lambda: method(*args, **kwargs), repeat=name not in ONCE)

    def close(_: BaseStorage) -> None:
        database.remove_session()
        database.engine.dispose()

    methods = {name: asking(name) for name in BaseStorage.__abstractmethods__} | {"remove_session": close}
    storage: BaseStorage = type("PatientStorage", (BaseStorage,), methods)()
    return storage
