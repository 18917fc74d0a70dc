"""Ctrl-C and SIGTERM, delayed during calls that must not be interrupted."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    depth = 0  # of nested `uninterrupted` contexts
    is_waiting = False


def handle_interrupts() -> None:
    """Make Ctrl-C and SIGTERM (the signal that stops a container) raise KeyboardInterrupt from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    if _State.depth and not _State.is_waiting:
        _State.is_waiting = True
    else:
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of this context; a second signal is not delayed.

    An interrupted call to a database could leave its transaction open. The database would then be locked for whatever
    the process has to write before it ends.
    """
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        if _State.is_waiting and not _State.depth:
            _State.is_waiting = False
            raise KeyboardInterrupt
