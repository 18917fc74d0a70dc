"""Ctrl-C and SIGTERM, which wait for the end of a call."""

import signal
from collections.abc import Iterator

import pytest

from ablation.base.interrupts import handle_interrupts, uninterrupted
from tests.studies import signal_handlers_kept


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    with signal_handlers_kept():
        handle_interrupts()
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_for_the_outermost_end(number: int) -> None:
    done = []

    def call() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(number)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert done == ["inner", "outer"]
    with uninterrupted():
        pass  # nothing is left of it
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_a_second_one_does_not_wait() -> None:
    done = []

    def call() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("first")
            signal.raise_signal(signal.SIGINT)
            done.append("second")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert done == ["first"]
    with uninterrupted():
        pass


def test_it_comes_through_a_call_that_fails() -> None:
    def call() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        call()
