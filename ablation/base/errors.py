"""The errors that every command turns into one line and an exit status."""


class InputError(ValueError):
    """Something the user gave is wrong; its text is the one line the user gets."""


class StoreError(Exception):
    """A store can no longer be used: the disk is full, it cannot be written, an answer makes no sense."""


class StoreAway(Exception):
    """A server does not answer for now: Optuna's database, or MLflow."""
