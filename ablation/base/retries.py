"""Calls to servers that fail for a moment: repeated at once for seconds, or waited for, as long as patience lasts.

A failure of the network or of a server is a `StoreAway`. Wrappers around the clients of the two stores repeat each call
by `repeat_briefly`; who needs an answer, and can ask again from the start, uses `wait_out` around all of the question.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, stop_before_delay
from tenacity.wait import wait_random_exponential

from ablation.base.errors import StoreAway
from ablation.base.text import format_duration

T = TypeVar("T")

BRIEF_SECONDS = 5.0  # for which a single call is repeated without a word
START_PATIENCE = 120.0  # seconds, where nothing is lost by ending
DELIVERY_PATIENCE = 900.0  # seconds, where results are to be delivered
LONGEST_PAUSE = 30.0  # seconds between two attempts

IS_AWAY = retry_if_exception_type(StoreAway)

logger = logging.getLogger(__name__)


def repeat_briefly(call: Callable[[], T]) -> T:
    """Return what a call returns; it is repeated for a few seconds, with growing random pauses, while it fails.

    Args:
        call: may be repeated: a failure may mean that only the answer was lost.

    Raises:
        StoreAway: the last failure, or one after which the server asks for a longer pause.
    """
    random_pause = wait_random_exponential(multiplier=0.1, max=2)

    def pause(state: RetryCallState) -> float:
        return max(random_pause(state), _failure(state).retry_after)

    return Retrying(retry=IS_AWAY, wait=pause, stop=stop_before_delay(BRIEF_SECONDS), reraise=True)(call)


def wait_out(operation: Callable[[], T], patience: float | None, say: Callable[[str], None] = logger.warning) -> T:
    """Return what an operation returns; it is begun again, after growing random pauses, while a server is away.

    A pause is at least as long as the server asks for (Retry-After), but never longer than the patience that is left.

    Args:
        operation: may be repeated from its start.
        patience: seconds after which the last failure is raised; None is `START_PATIENCE`.
        say: called once, with what is waited for and why.

    Raises:
        StoreAway: the server was away for longer.
    """
    limit = START_PATIENCE if patience is None else patience
    random_pause = wait_random_exponential(multiplier=1, max=LONGEST_PAUSE)

    def pause(state: RetryCallState) -> float:
        left = limit - (state.seconds_since_start or 0.0)
        return max(0.0, min(left, max(random_pause(state), _failure(state).retry_after)))

    def announce(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            say(f"{_failure(state)}; waiting for up to {format_duration(limit)}")

    stop = stop_after_delay(limit)
    return Retrying(retry=IS_AWAY, wait=pause, stop=stop, before_sleep=announce, reraise=True)(operation)


def _failure(state: RetryCallState) -> StoreAway:
    failure = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(failure, StoreAway)
    return failure
