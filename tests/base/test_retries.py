"""Calls that fail for a moment: how often and for how long they are repeated, by a clock that the tests move."""

from collections.abc import Callable

import pytest

from ablation.base.errors import StoreAway, StoreError
from ablation.base.retries import repeat_briefly, wait_out


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, none of which is really made."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(made))
    return made


def failing(times: int, *, retry_after: float = 0.0, error: type[Exception] = StoreAway) -> Callable[[], int]:
    """Return a function that fails some times, then returns how often it was called."""
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise StoreAway("busy", retry_after) if error is StoreAway else error("no")
        return len(calls)

    return call


def test_a_call_is_repeated_for_a_few_seconds(pauses: list[float]) -> None:
    assert repeat_briefly(failing(3)) == 4
    with pytest.raises(StoreAway, match="busy"):
        repeat_briefly(failing(1000))
    assert sum(pauses) < 10
    pauses.clear()
    with pytest.raises(StoreError):  # a refusal is none
        repeat_briefly(failing(1, error=StoreError))
    assert pauses == []


def test_what_a_server_asks_for_is_respected(pauses: list[float]) -> None:
    assert repeat_briefly(failing(1, retry_after=3)) == 2
    assert pauses == [3]
    with pytest.raises(StoreAway):  # longer than a call may take: who waits for longer has to know
        repeat_briefly(failing(1, retry_after=60))
    assert pauses == [3]
    pauses.clear()
    assert wait_out(failing(1, retry_after=60), patience=120, say=lambda text: None) == 2
    assert pauses == [60]


def test_it_is_said_once_what_is_waited_for(pauses: list[float]) -> None:
    said: list[str] = []
    assert wait_out(failing(5), patience=900, say=said.append) == 6
    assert said == ["busy; waiting for up to 15 min"]


def test_whoever_states_no_patience_has_that_of_a_start(pauses: list[float]) -> None:
    said: list[str] = []
    assert wait_out(failing(1), patience=None, say=said.append) == 2
    assert said == ["busy; waiting for up to 2 min"]


def test_patience_has_an_end(pauses: list[float]) -> None:
    with pytest.raises(StoreAway):
        wait_out(failing(1000), patience=120, say=lambda text: None)
    assert 119 < sum(pauses) <= 121
    assert max(pauses) <= 30
