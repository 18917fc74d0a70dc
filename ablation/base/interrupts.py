"""Signals that pause a command: at a safe point, within a grace period. A second signal ends the command at once.

A pause is a KeyboardInterrupt in the main thread. It waits for the end of a call to a database (`uninterrupted`) and of
the running epoch (`paused_at_checks`). A command that has not ended by itself when the grace period is over is ended:
what a process leaves behind can be resumed at any instruction.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

# Ctrl-C, the ends of a container and of a terminal, and what batch systems send before they end a job. Windows has two.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
# A shell and the kernel both send SIGHUP when a terminal closes; the kernel sends SIGXCPU every second.
REPEATED = ("SIGHUP", "SIGXCPU")
RESUME_ME, CTRL_C = 75, 130  # exit statuses of a paused command; 75 is EX_TEMPFAIL, "try again later"
GRACE_SECONDS = 30.0
WITH_PARENT = "ABLATION_WITH_PARENT"  # set for a command that pauses when its standard input is closed
EPOCH_SHARE = 0.6  # of the grace period, for the running epoch to end; the rest is for saving and uploading


@dataclass
class _State:
    """Where the pause of this process is."""

    grace: float = GRACE_SECONDS
    first: signal.Signals | None = None  # the signal that asked for it
    began: float = 0.0  # time.monotonic() of it
    is_waiting: bool = False  # for the end of a context below
    text: str = ""  # for what it waits, in words
    has_view: bool = False  # which shows the text
    is_late: bool = False  # the running epoch is no longer waited for
    uninterrupted_depth: int = 0
    checks_depth: int = 0
    own: Literal["parent", "late"] | None = None  # what a signal that this process sends itself means
    timers: list[threading.Timer] = field(default_factory=list)
    last_acts: list[Callable[[], object]] = field(default_factory=list)


_state = _State()


def handle_interrupts() -> None:
    """Let the signals in `NAMES` pause this process from now on; SIGHUP stays ignored where it is, as by `nohup`."""
    forget_interrupts()
    for number in (signal.Signals[name] for name in NAMES if hasattr(signal, name)):
        if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if WITH_PARENT in os.environ:
        stop_with_parent()


def forget_interrupts() -> None:
    """Forget the last pause, whose command has ended in this process."""
    global _state
    for timer in _state.timers:
        timer.cancel()
    _state = _State()


def set_grace(seconds: float) -> None:
    """Set the time in which a pause has to end."""
    _state.grace = seconds


def grace_left() -> float:
    """Return the seconds that a pause may still take; the whole grace period while there is none."""
    return _state.grace if _state.first is None else max(0.0, _state.began + _state.grace - time.monotonic())


def pause_status() -> int:
    """Return the exit status of a command that was paused: 130 after Ctrl-C, else 75, "resume me"."""
    return CTRL_C if _state.first in (None, signal.SIGINT) else RESUME_ME


def pause_requested() -> bool:
    """Return whether a pause waits for the next check, see `paused_at_checks`."""
    return _state.is_waiting


def pause_text() -> str:
    """Return for what a pause waits; "" without one."""
    return _state.text


def set_view(*, is_open: bool) -> None:
    """Leave `pause_text` to a view while it is open: a line on the standard error would be drawn over."""
    _state.has_view = is_open


def request_pause() -> None:
    """Pause this process, from any thread, as SIGTERM does; nothing happens if it pauses already."""
    _signal_main_thread("parent")


def stop_with_parent() -> None:
    """Pause this process once its parent closes the standard input: on purpose, or because it died."""

    def wait() -> None:
        os.read(0, 1)  # sys.stdin would still be locked at Python's exit
        request_pause()

    threading.Thread(target=wait, daemon=True).start()


def _signal_main_thread(meaning: Literal["parent", "late"]) -> None:
    _state.own = meaning
    if hasattr(signal, "pthread_kill"):  # it interrupts a sleep
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)


def _interrupt(number: int, _: object) -> None:
    meaning, _state.own = _state.own, None
    if _state.first is None:
        _state.first = signal.Signals(number)
        _state.began = time.monotonic()
        _set_timer(_state.grace, _end_late)
        if _state.checks_depth:
            _set_timer(EPOCH_SHARE * _state.grace, lambda: _signal_main_thread("late"))
            _state.text = (
                f"pausing ({_state.first.name}): the running epoch has {EPOCH_SHARE * _state.grace:.0f} s to end"
            )
            if not _state.has_view:
                _say(_state.text)
        _state.is_waiting = bool(_state.checks_depth or _state.uninterrupted_depth)
        if not _state.is_waiting:
            raise KeyboardInterrupt
    elif meaning == "late":
        _state.is_late = True
        _raise_if_due()
    elif meaning is None and signal.Signals(number).name not in REPEATED:
        _end_at_once()


def _raise_if_due() -> None:
    """Raise a pause that waits, unless it has to wait longer."""
    if _state.is_waiting and not _state.uninterrupted_depth and (_state.is_late or not _state.checks_depth):
        _state.is_waiting = False
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay a pause until the end of this context.

    An interrupted call to a database could leave its transaction open. The database would then be locked for whatever
    the process has to write before it ends.
    """
    _state.uninterrupted_depth += 1
    try:
        yield
    finally:
        _state.uninterrupted_depth -= 1
        _raise_if_due()


@contextmanager
def paused_at_checks() -> Iterator[None]:
    """Delay a pause until `pause_requested` is asked and this context is left, for a share of the grace period."""
    _state.checks_depth += 1
    try:
        yield
    finally:
        _state.checks_depth -= 1
        _raise_if_due()


@contextmanager
def doing_at_the_end(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` where a second signal, or the end of the grace period, ends the process in this context."""
    _state.last_acts.append(act)
    try:
        yield
    finally:
        _state.last_acts.remove(act)


def _set_timer(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    _state.timers.append(timer)


def _end_late() -> None:
    _say(f"the pause took longer than --grace {_state.grace:g}; the same command resumes from the last checkpoint")
    _end_at_once()


def _end_at_once() -> None:
    for act in _state.last_acts:
        with suppress(Exception):
            act()
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        os.write(2, b"\x1b[?25h")  # the cursor, which a live view hides
    os._exit(pause_status())


def _say(text: str) -> None:
    """Print a line to the standard error, past Python's buffers, which the interrupted code may be writing to."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{text}\n".encode())


if getattr(sys.modules["__main__"], "__package__", None) == "ablation":
    # A command is still importing what it needs. It has nothing to keep, and its traceback would help nobody.
    signal.signal(signal.SIGINT, lambda *_: os._exit(CTRL_C))
