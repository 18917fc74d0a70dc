"""Ctrl-C and SIGTERM, which wait for the end of a call that must not be left in the middle."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    calls = 0  # under way
    is_waiting = False


def handle_interrupts() -> None:
    """Let Ctrl-C and SIGTERM, which a container gets when it is stopped, raise KeyboardInterrupt from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    if _State.calls and not _State.is_waiting:
        _State.is_waiting = True
    else:
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of this context; a second one does not wait.

    A call to a database that is left in the middle can keep its transaction open, and so the database locked for what
    is to be written before the process ends.
    """
    _State.calls += 1
    try:
        yield
    finally:
        _State.calls -= 1
        if _State.is_waiting and not _State.calls:
            _State.is_waiting = False
            raise KeyboardInterrupt
