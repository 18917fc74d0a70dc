"""The errors that every command turns into one line and an exit status."""


class InputError(ValueError):
    """The user's input is wrong. The text is the one line that the user sees."""


class StoreError(Exception):
    """A store cannot be used any more: the disk is full, a file cannot be written, or a reply is invalid."""


class StoreAway(Exception):
    """A server (Optuna's database or MLflow) does not answer at the moment."""
