"""Which failures of a call pass, and which only a person can change."""

import sqlite3
from typing import Any

import psycopg
import pytest
import requests
import sqlalchemy.exc

from ablation.base.errors import StoreAway, StoreError
from ablation.storage.outages import failed_answer, find_outage


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """Return an error as an `except` gets it."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


def of_driver(text: str, kind: type[sqlalchemy.exc.DBAPIError] = sqlalchemy.exc.OperationalError) -> Exception:
    """Return SQLAlchemy's error for one that PostgreSQL's driver raised without a code."""
    return kind("SELECT 1", {}, psycopg.OperationalError(text))


def sqlite_error(code: int) -> Exception:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = code
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, error)


PASSING = {
    "reset": of_driver("server closed the connection unexpectedly"),
    "starting": of_driver("FATAL:  the database system is starting up"),
    "refused": of_driver("connection refused"),
    "full": of_driver("FATAL:  sorry, too many clients already"),
    "pool": sqlalchemy.exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
    "rollback": sqlalchemy.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
    "locked": sqlite_error(sqlite3.SQLITE_BUSY),
    "recovering": sqlite_error(sqlite3.SQLITE_BUSY | (1 << 8)),  # SQLITE_BUSY_RECOVERY
    "deadlock": sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.errors.DeadlockDetected("deadlock detected")),
    "shutdown": sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.errors.AdminShutdown("terminating")),
    "time-out": requests.ReadTimeout("Read timed out."),
    "http reset": requests.ConnectionError(ConnectionResetError(104, "Connection reset by peer")),
}
LASTING = {
    "password": of_driver('FATAL:  password authentication failed for user "a"'),
    "unknown": of_driver('FATAL:  database "x" does not exist'),
    "no right": sqlalchemy.exc.ProgrammingError("SELECT 1", {}, psycopg.errors.InsufficientPrivilege("no right")),
    "disk": sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.errors.DiskFull("no space left")),
    "no table": sqlalchemy.exc.ProgrammingError("SELECT 1", {}, psycopg.errors.UndefinedTable("no table")),
    "sqlite": sqlite_error(sqlite3.SQLITE_CORRUPT),
    "own": StoreError("x"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes(name: str) -> None:
    """Also behind the error of a library, whose cause or context it is."""
    assert isinstance(find_outage(PASSING[name], "X"), StoreAway)
    assert isinstance(find_outage(raised(RuntimeError("internal"), PASSING[name]), "X"), StoreAway)


@pytest.mark.parametrize("name", LASTING)
def test_what_does_not(name: str) -> None:
    assert find_outage(LASTING[name], "X") is None


def test_the_reason_is_the_server_s_own() -> None:
    assert str(find_outage(PASSING["starting"], "the database")) == (
        "the database does not answer (FATAL:  the database system is starting up)"
    )
    assert str(find_outage(PASSING["http reset"], "MLflow")) == "MLflow does not answer (Connection reset by peer)"


def answer(status: int, text: str = "", **headers: str) -> requests.Response:
    response: Any = requests.Response()
    response.status_code, response._content = status, text.encode()
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    response.reason = "Reason"
    return response  # type: ignore[no-any-return]


def test_answers() -> None:
    for status in (408, 425, 429, 500, 502, 503, 504, 507):
        assert failed_answer(answer(status), "MLflow") is not None, status
    for status in (200, 301, 400, 401, 403, 404, 409, 501):
        assert failed_answer(answer(status), "MLflow") is None, status
    away = failed_answer(answer(503, "the pool\nis exhausted", Retry_After="7"), "MLflow")
    assert away is not None
    assert (str(away), away.retry_after) == ("MLflow does not answer (503 Reason: the pool is exhausted)", 7)
    page = failed_answer(answer(502, "<html>" + "x" * 9000, Content_Type="text/html", Retry_After="soon"), "MLflow")
    assert page is not None
    assert (str(page), page.retry_after) == ("MLflow does not answer (502 Reason)", 0)
