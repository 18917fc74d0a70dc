"""Locks that die with their process: files on one machine, PostgreSQL's advisory locks between machines.

One lock is exclusive for the moment in which databases are made and trials claimed; one per trial is held by the
process that works on it. A process that dies, however it dies, loses its locks, which is how others notice.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from filelock import FileLock, Timeout

from ablation.base.errors import StoreAway, StoreError
from ablation.base.text import first_line
from ablation.storage.store import POSTGRESQL, SQLITE, sqlite_path

EXCLUSIVE = "claim"  # the name of the exclusive lock
CONNECT_SECONDS = 10

# A host that is lost without a goodbye keeps its locks until the server's keepalives give it up: after 30 s.
SERVER_OPTIONS = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"

POSTGRES_CONNECT_ARGS = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms; a write to a lost server ends then, too
}


class Locks(Protocol):
    """Locks by name. What `try_acquire` took is held until `release`, the process's end, or a lost connection."""

    def exclusive(self) -> Any:
        """Return a context manager that waits for the one exclusive lock and holds it; it may be nested."""

    def try_acquire(self, name: str) -> bool:
        """Take a lock, or return False where another holder lives."""

    def release(self, name: str) -> None:
        """Free a lock; one that was lost with its connection is free already."""

    def release_all(self) -> None:
        """Free every lock."""

    def is_held(self, name: str) -> bool:
        """Return whether this process still holds the lock; that of `exclusive` is called EXCLUSIVE.

        Raises:
            StoreAway: the server does not answer, so nobody knows.
        """

    def is_taken(self, name: str) -> bool:
        """Return whether any process holds the lock."""


class FileLocks:
    """Locked files in a folder (`flock`, or what `filelock` uses elsewhere); for processes of one machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._exclusive = file_lock(folder / "claim.lock")  # one object, so that it may be taken again within
        self._held: dict[str, FileLock] = {}

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        self._acquire(self._exclusive, timeout=-1)
        try:
            yield
        finally:
            self._exclusive.release()

    def _acquire(self, lock: FileLock, timeout: float = 0) -> FileLock | None:
        folder = Path(lock.lock_file).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
        except Timeout:
            return None
        except OSError as error:
            raise StoreError(f"{folder} cannot be written ({error.strerror})") from None
        return lock

    def try_acquire(self, name: str) -> bool:
        lock = self._acquire(file_lock(self.folder / name / "lock"))
        if lock is not None:
            self._held[name] = lock
        return lock is not None

    def release(self, name: str) -> None:
        lock = self._held.pop(name, None)
        if lock is not None:
            lock.release()

    def release_all(self) -> None:
        for name in list(self._held):
            self.release(name)

    def is_held(self, name: str) -> bool:
        return self._exclusive.is_locked if name == EXCLUSIVE else name in self._held

    def is_taken(self, name: str) -> bool:
        file = self.folder / name / "lock"
        if name in self._held:
            return True
        if not os.access(file, os.W_OK):
            return False  # there is none, or nobody could run here
        with self.exclusive():  # a claim must not take our look for another owner, nor the folder go while we look
            lock = self._acquire(file_lock(file)) if file.exists() else None
            if lock is None:
                return file.exists()
            lock.release()
            return False


def file_lock(path: Path) -> FileLock:
    """Return a lock of a file, which dies with its process; a context manager that waits for it."""
    return FileLock(path, fallback_to_soft=False)  # a "soft" lock is a mere file, which outlives its process


class PostgresLocks:
    """Advisory locks of a PostgreSQL database, on a connection of their own: the server frees them when it ends."""

    def __init__(self, url: str):
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.pool.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={**POSTGRES_CONNECT_ARGS, "options": SERVER_OPTIONS},
        )
        self._connection: Any = None
        self._held: set[str] = set()
        self._depth = 0  # of nested `exclusive`

    def _ask(self, sql: str, name: str | None = None) -> Any:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            values = {} if name is None else {"key": _advisory_key(name)}
            return self._connection.execute(sqlalchemy.text(sql), values).scalar()
        except sqlalchemy.exc.SQLAlchemyError as error:
            self.close()
            reason = first_line(getattr(error, "orig", None) or error)
            raise StoreAway(f"the database does not answer ({reason})") from None
        except BaseException:  # Ctrl-C in the middle leaves a connection of which nobody knows the state
            self.close()
            raise

    def close(self) -> None:
        """End the connection, and with it every lock."""
        self._held.clear()
        if self._connection is not None:
            with contextlib.suppress(Exception):  # it may be what is broken
                self._connection.invalidate()
                self._connection.close()
        self._connection = None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        if self._depth == 0:
            self._ask("SELECT pg_advisory_lock(:key)", EXCLUSIVE)
            self._held.add(EXCLUSIVE)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.release(EXCLUSIVE)

    def try_acquire(self, name: str) -> bool:
        if name in self._held:  # the server would count it twice
            return False
        if self._ask("SELECT pg_try_advisory_lock(:key)", name):
            self._held.add(name)
        return name in self._held

    def release(self, name: str) -> None:
        if name in self._held:
            self._held.discard(name)
            with contextlib.suppress(StoreAway):  # then it is lost anyway
                self._ask("SELECT pg_advisory_unlock(:key)", name)

    def release_all(self) -> None:
        self.close()

    def is_held(self, name: str) -> bool:
        self._ask("SELECT 1")
        return name in self._held

    def is_taken(self, name: str) -> bool:
        return bool(
            self._ask(
                "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
                "WHERE locktype = 'advisory' AND objsubid = 1 AND datname = current_database() "
                "AND (classid::bigint << 32) | objid::bigint = :key",
                name,
            )
        )


def _advisory_key(name: str) -> int:
    """Return the 64-bit number by which PostgreSQL knows a lock."""
    digest = hashlib.sha256(f"ablation\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def open_locks(url: str) -> Locks:
    """Return the locks that belong to a database, by its address; they are shared by all who use that database."""
    return FileLocks(sqlite_path(url).parent) if url.startswith(SQLITE) else PostgresLocks(url)


@contextlib.contextmanager
def opening(url: str, *, create: bool) -> Iterator[None]:
    """Open a database in this context, and make its tables if `create`: several processes at once cannot do that.

    Even to look is to wait on a server, where another process may be half-way through. A SQLite file appears only when
    it is complete, so nothing is written there for a look.
    """
    if url.startswith(POSTGRESQL):
        locks = PostgresLocks(url)
        try:
            with locks.exclusive():
                yield
        finally:
            locks.close()
    elif create and url.startswith(SQLITE):
        with FileLocks(sqlite_path(url).parent).exclusive():
            yield
    else:
        yield
