"""The errors that every command turns into one line and an exit status."""


class InputError(ValueError):
    """The user's input is wrong. The text is the one line that the user sees."""


class NoSuchStudy(InputError):
    """A store has no study of a name, or is empty."""


class StoreError(Exception):
    """A store cannot be used any more: the disk is full, a file cannot be written, or a reply is invalid.

    `reason` is why, in the words of the system or the library. `code` is MLflow's name for it, such as
    RESOURCE_ALREADY_EXISTS. Both may be "".
    """

    def __init__(self, text: str, reason: str = "", code: str = ""):
        super().__init__(text)
        self.reason = reason
        self.code = code


class NothingLearned(Exception):
    """Every trial of a study failed. The text says what to change."""


class StoreAway(Exception):
    """A server or database (Optuna's or MLflow's) does not answer at the moment; it may do so later.

    `retry_after`: the seconds after which it asks to be called again; 0 if it does not say.
    """

    def __init__(self, text: str, retry_after: float = 0.0):
        super().__init__(text)
        self.retry_after = retry_after
