"""Whether a failed call means that a server or a database is away for a while, so that waiting helps."""

import re
import socket
import sqlite3
from collections.abc import Iterator

import requests
import sqlalchemy.exc

from ablation.base.errors import StoreAway, StoreError
from ablation.base.text import first_line

# HTTP: time-out, too early, too many requests. All of 5xx as well, except 501: the server will never know the call.
OUTAGE_STATUSES = {408, 425, 429, *range(500, 600)} - {501}
# PostgreSQL's classes of errors that pass: connection, rollback by the server, resources, operator's intervention.
PASSING_CLASSES = ("08", "40", "53", "57")
DISK_FULL = "53100"
# What only a person can change. At a connection's start PostgreSQL sends no code, only its text.
LASTING_TEXTS = re.compile(
    r"authentication failed|does not exist|permission denied|pg_hba\.conf|not permitted|no password supplied"
    r"|invalid (port|connection option|dsn|integer|value)",
    re.IGNORECASE,
)
LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# MLflow's downloads keep of an error nothing but its text.
NETWORK_TEXTS = re.compile(
    r"does not answer|Connection (aborted|broken|refused|reset)|IncompleteRead|Read timed out|RemoteDisconnected"
)


def find_outage(error: BaseException, who: str) -> StoreAway | None:
    """Return the outage behind a failed call; None where waiting would not help.

    Args:
        error: what the call raised. The errors that it was raised from, or while handling, count as well.
        who: what was called, such as "Optuna's database".
    """
    for cause in _chain(error):
        if isinstance(cause, StoreAway):
            return cause
        if isinstance(cause, sqlalchemy.exc.DBAPIError):
            return StoreAway(_text(who, _reason(cause.orig or cause))) if _is_passing(cause) else None
        if isinstance(cause, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.PendingRollbackError):
            return StoreAway(_text(who, _reason(cause)))
        if isinstance(cause, requests.RequestException):
            return _of_request(cause, who)
        if isinstance(cause, ConnectionError | TimeoutError):
            return StoreAway(_text(who, _reason(cause)))
    if NETWORK_TEXTS.search(str(error)):
        return StoreAway(_text(who, "the connection broke"))
    return None


def store_error(error: Exception, who: str, what: str, code: str = "") -> StoreAway | StoreError:
    """Return a failed call's error in the words of the store, or of the database behind it.

    Args:
        error: what the call raised.
        who: what was called, if it does not answer.
        what: what cannot be used, if waiting would not help.
        code: MLflow's name for the error.
    """
    reason = first_line(getattr(error, "orig", None) or error)
    return find_outage(error, who) or StoreError(f"{what} cannot be used ({reason})", reason, code)


def failed_answer(response: requests.Response, who: str) -> StoreAway | None:
    """Return the outage that a server's answer reports by its status; None for all other answers."""
    if response.status_code not in OUTAGE_STATUSES:
        return None
    said = f"{response.status_code} {response.reason or ''}".strip()
    if not response.headers.get("Content-Type", "").startswith("text/html"):  # a page says no more than the status
        text = re.sub(r"\s+", " ", response.text[:1000]).strip()
        said += f": {text[:200]}" if text else ""
    return StoreAway(_text(who, said), _retry_after(response))


def _retry_after(response: requests.Response) -> float:
    """Return the seconds of a Retry-After; a date, which needs both clocks to agree, counts as none."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _of_request(error: requests.RequestException, who: str) -> StoreAway | None:
    if error.response is not None:
        return failed_answer(error.response, who)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return None
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return None
    if isinstance(error, requests.Timeout):
        return StoreAway(_text(who, "no answer in time"))
    return StoreAway(_text(who, _reason(error)))


def _is_passing(error: sqlalchemy.exc.DBAPIError) -> bool:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", 0) & 0xFF in LOCKED  # the rest is detail
    code = getattr(original, "sqlstate", None)
    if code:
        return str(code) != DISK_FULL and str(code).startswith(PASSING_CLASSES)
    if error.connection_invalidated:
        return True
    is_of_connection = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    return is_of_connection and not LASTING_TEXTS.search(str(original))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then those behind it: causes, contexts, and what urllib3 and requests wrap."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    """Return why a connection failed in the words of the system or the server, without those of the libraries."""
    causes = list(_chain(error))
    for part in [*reversed(causes), *(part for cause in causes for part in _parts(cause))]:
        if isinstance(part, socket.gaierror):
            return "the name of its host is unknown"
        if isinstance(part, OSError) and part.strerror and not isinstance(part, requests.RequestException):
            return part.strerror
    text = first_line(error)
    if re.search(r"RemoteDisconnected|without response", text):
        return "the connection was closed without an answer"
    if re.search(r"IncompleteRead|InvalidChunkLength", text):
        return "the answer was cut"
    if re.search(r"NameResolutionError|resolve host|service not known", text):
        return "the name of its host is unknown"
    return "the connection failed" if "ConnectionPool" in text else text


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors among an error's arguments, at any depth."""
    for part in (*error.args, getattr(error, "reason", None)):
        if isinstance(part, BaseException):
            yield part
            yield from _parts(part)


def opening_reason(error: Exception) -> str:
    """Return in words why a database could not be opened."""
    reason = getattr(error, "reason", "") or first_line(error)
    if "attempt to write a readonly database" in reason:  # although it was only to be read
        return (
            "this user may not write it, and it must be written before it can be read: it is in WAL mode, or a process "
            "died while it wrote; a copy of the folder can be read"
        )
    return str(reason)


def _text(who: str, reason: str) -> str:
    return f"{who} does not answer ({reason})"
