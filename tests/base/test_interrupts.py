"""Signals that pause a command: when they take effect, and how the process ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ablation.base import interrupts
from ablation.base.interrupts import (
    NAMES,
    handle_interrupts,
    pause_requested,
    pause_status,
    pause_text,
    paused_at_checks,
    request_pause,
    set_grace,
    set_view,
    uninterrupted,
)
from tests.studies import signal_handlers_kept


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    with signal_handlers_kept():
        handle_interrupts()
        yield


@pytest.mark.parametrize("name", NAMES)
def test_it_waits_for_the_outermost_end(name: str) -> None:
    done = []

    def call() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.Signals[name])
                done.append("inner")
            done.append("outer")
        done.append("after")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert done == ["inner", "outer"]
    with uninterrupted():
        pass  # nothing is left of it
    assert pause_status() == (130 if name == "SIGINT" else 75)


def test_it_comes_through_a_call_that_fails() -> None:
    def call() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        call()


def test_an_epoch_ends_before_the_pause(capfd: pytest.CaptureFixture[str]) -> None:
    asked = []

    @paused_at_checks()
    def epoch() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGUSR1)
        asked.append(pause_requested())

    with pytest.raises(KeyboardInterrupt):
        epoch()
    assert asked == [True]
    assert not pause_requested()
    assert capfd.readouterr().err == "pausing (SIGUSR1): the running epoch has 18 s to end\n"


def test_an_epoch_that_takes_too_long_is_given_up_but_no_call_to_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_end_late", lambda: None)  # else it would end this process
    set_grace(0.1)
    done = []

    @paused_at_checks()
    def epoch() -> None:
        signal.raise_signal(signal.SIGTERM)
        with uninterrupted():
            time.sleep(0.2)
            done.append("the call")
        done.append("the epoch")

    with pytest.raises(KeyboardInterrupt):
        epoch()
    assert done == ["the call"]


def test_a_request_of_the_parent_is_no_second_signal() -> None:
    """A batch system signals the supervisor and its workers, and the supervisor then asks its workers to pause."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    request_pause()
    signal.raise_signal(signal.SIGHUP)  # a shell and the kernel both send it
    assert pause_status() == 75


def process(code: str, *, ignores_hangup: bool = False) -> "subprocess.Popen[str]":
    """Start a process that handles signals and prints a line when it is ready."""
    head = (
        "import signal, sys, time\n"
        "from ablation.base.interrupts import *\n"
        "from ablation.base import interrupts\n"
        "handle_interrupts()\n"
    )
    head = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{head}" if ignores_hangup else head
    started = subprocess.Popen(
        [sys.executable, "-c", head + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


STUCK = (
    "try:\n"
    "    print('ready', flush=True); time.sleep(60)\n"
    "except KeyboardInterrupt:\n"
    "    print('pausing', flush=True); time.sleep(60)\n"
)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_process_at_once(number: int, status: int) -> None:
    stuck = process(f"end = doing_at_the_end(lambda: print('last', flush=True)); end.__enter__()\n{STUCK}")
    assert stuck.stdout is not None
    stuck.send_signal(number)
    assert stuck.stdout.readline() == "pausing\n"
    stuck.send_signal(number)
    assert stuck.wait(20) == status
    assert stuck.stdout.read() == "last\n"


def test_the_end_of_the_grace_period_ends_the_process() -> None:
    stuck = process(f"set_grace(0.2)\n{STUCK}")
    assert stuck.stderr is not None
    stuck.send_signal(signal.SIGTERM)
    assert stuck.wait(20) == 75
    assert "longer than --grace 0.2" in stuck.stderr.read()


@pytest.mark.parametrize("ignores_hangup", [False, True])
def test_nohup_keeps_its_meaning(ignores_hangup: bool) -> None:
    code = "try: print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(pause_status())"
    waiting = process(code, ignores_hangup=ignores_hangup)
    waiting.send_signal(signal.SIGHUP)
    if ignores_hangup:
        time.sleep(0.2)
        assert waiting.poll() is None
        waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(20) == 75


def test_ctrl_c_during_the_first_imports_shows_no_traceback() -> None:
    """The command's module is stopped in the middle of its imports."""
    code = (
        "import sys, types, os, signal\n"
        "sys.modules['__main__'].__package__ = 'ablation'\n"
        "import ablation.base.command_line\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_library_user_keeps_the_handlers() -> None:
    code = "import signal, ablation.base.command_line; print(signal.getsignal(2) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_the_grace_period_of_an_ended_command_is_over() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    timers = list(interrupts._state.timers)
    assert timers
    interrupts.forget_interrupts()
    assert all(timer.finished.is_set() for timer in timers)


@pytest.mark.parametrize("has_view", [False, True])
def test_a_pause_is_announced_once(capfd: pytest.CaptureFixture[str], has_view: bool) -> None:
    """By a view that is open, else on the standard error."""
    set_view(is_open=has_view)
    assert pause_text() == ""

    def epoch() -> None:
        with paused_at_checks():
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        epoch()
    assert pause_text() == "pausing (SIGINT): the running epoch has 18 s to end"
    assert capfd.readouterr().err == ("" if has_view else f"{pause_text()}\n")
