"""Locks that die with their process: files on one machine, PostgreSQL's advisory locks between machines.

The claim lock of a store is held for the moment in which databases are created and trials claimed. A lock per study is
held for seconds to minutes, for whatever one process at a time may do to it: begin it, and write its summary, looks,
repairs, report and champion; also end a trial, where only the best checkpoint of an arm is kept. Another one of a study
is held while its forecast is computed. A lock per trial is held by the process that works on it. A process that dies,
however it dies, loses its locks, which is how others notice.

A process that holds a study's lock may acquire the claim lock, never the other way round: two processes would wait for
each other.
"""

import contextlib
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from filelock import FileLock, Timeout

from ablation.base.errors import StoreAway, StoreError
from ablation.base.retries import repeat_briefly
from ablation.storage.outages import store_error
from ablation.storage.store import POSTGRESQL, SQLITE, sqlite_path

if sys.platform != "win32":
    import fcntl

CLAIM_LOCK = "claim"  # the name of the claim lock
CONNECT_SECONDS = 10

# A host that disappears keeps its locks until the server's keepalives give up: after 30 s.
SERVER_OPTIONS = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"

POSTGRES_CONNECT_ARGS = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms; a write to a lost server ends then, too
}


def study_lock(study: str) -> str:
    """Return the name of a study's lock; where locks are files, it is a file in the folder `locks`."""
    return f"locks/{study}"  # the folder keeps a study called 'claim' apart from the claim lock


class Locks(Protocol):
    """Locks by name. A lock is held until it is released, the process ends, or its connection is lost."""

    def exclusive(self, name: str = CLAIM_LOCK) -> Any:
        """Return a context manager that waits for a lock and holds it; it may be nested."""

    def try_acquire(self, name: str) -> bool:
        """Acquire a lock; return False if another process holds it."""

    def release(self, name: str) -> None:
        """Release a lock; nothing happens if it was lost with its connection."""

    def release_all(self) -> None:
        """Release every lock."""

    def is_held(self, name: str) -> bool:
        """Return whether this process still holds the lock; it is lost with its connection."""

    def are_taken(self, names: Sequence[str]) -> list[bool | None]:
        """Return of each lock whether any process holds it; None if this user may not find out."""


def check_held(locks: Locks, name: str) -> None:
    """Check that this process still holds a lock, before it changes what the lock guards.

    Raises:
        StoreAway: it was lost with its connection, so that another process may hold it now.
    """
    if not locks.is_held(name):
        raise StoreAway("Optuna's database does not answer (the connection broke that held a lock)")


class FileLocks(Locks):
    """Locked files in a folder (`flock`, or what `filelock` uses elsewhere); for processes of one machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._exclusive: dict[str, FileLock] = {}  # one object per name, so that it can be nested
        self._held: dict[str, FileLock] = {}

    @contextlib.contextmanager
    def exclusive(self, name: str = CLAIM_LOCK) -> Iterator[None]:
        lock = self._exclusive.setdefault(name, file_lock(self.folder / f"{name}.lock"))
        self._acquire(lock, timeout=-1)
        try:
            yield
        finally:
            lock.release()

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
        return name in self._held or (name in self._exclusive and self._exclusive[name].is_locked)

    def are_taken(self, names: Sequence[str]) -> list[bool | None]:
        return [self._is_taken(name) for name in names]

    def _is_taken(self, name: str) -> bool | None:
        file, claim_file = self.folder / name / "lock", self.folder / f"{CLAIM_LOCK}.lock"
        if name in self._held:
            return True
        if not _exists(file):
            return False
        claim_path = claim_file if _exists(claim_file) else self.folder
        if not (os.access(file, os.W_OK) and os.access(claim_path, os.W_OK)):
            # A claim holds the claim lock itself, and would wait for itself.
            return None if self.is_held(CLAIM_LOCK) else _is_locked_read_only(file, claim_file)
        with self.exclusive():  # else a claim could mistake this test for another owner, or the folder could go
            lock = self._acquire(file_lock(file)) if file.exists() else None
            if lock is None:
                return file.exists()
            lock.release()
            return False


def _exists(file: Path) -> bool:
    """Return whether a file exists; also True where this user may not find out."""
    try:
        return file.exists()
    except PermissionError:
        return True


def _is_locked_read_only(file: Path, claim_file: Path) -> bool | None:
    """Return whether a process holds a file's lock, for a user who may only read; None if that cannot be known.

    A shared `flock` needs no right to write. The claim lock is shared meanwhile: else a claim could mistake this test
    for another owner.
    """
    if sys.platform == "win32":
        return None
    try:
        with claim_file.open("rb") as claim_descriptor, file.open("rb") as descriptor:
            fcntl.flock(claim_descriptor, fcntl.LOCK_SH)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False  # closing the files releases both
    except FileNotFoundError:
        return False  # its process has just ended the trial, or no trial was ever claimed here
    except OSError:  # the files may not be read, or the file system has no such locks
        return None


def file_lock(path: Path) -> FileLock:
    """Return the lock of a file, which dies with its process; a context manager that waits for it."""
    return FileLock(path, fallback_to_soft=False)  # a "soft" lock is a mere file, which outlives its process


class PostgresLocks(Locks):
    """Advisory locks of a PostgreSQL database, on their own connection: the server releases them when it ends."""

    def __init__(self, url: str):
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.pool.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={**POSTGRES_CONNECT_ARGS, "options": SERVER_OPTIONS},
        )
        self._connection: Any = None
        self._held: set[str] = set()
        self._depths: Counter[str] = Counter()  # of nested `exclusive`, by name

    def _ask(self, sql: str, name: str | None = None) -> Any:
        if self._held:  # they are lost with the connection, which their owner has to know
            return self._ask_once(sql, name)
        return repeat_briefly(lambda: self._ask_once(sql, name))

    def _ask_once(self, sql: str, name: str | None = None) -> Any:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            values = {} if name is None else {"key": _advisory_key(name)}
            return self._connection.execute(sqlalchemy.text(sql), values).scalar()
        except sqlalchemy.exc.SQLAlchemyError as error:
            self.close()
            raise store_error(error, "the database", "the database") from None
        except BaseException:  # after Ctrl-C in the middle, the connection's state is unknown
            self.close()
            raise

    def close(self) -> None:
        """End the connection, and with it every lock."""
        self._held.clear()
        if self._connection is not None:
            with contextlib.suppress(Exception):  # the connection may be broken
                self._connection.invalidate()
                self._connection.close()
        self._connection = None

    @contextlib.contextmanager
    def exclusive(self, name: str = CLAIM_LOCK) -> Iterator[None]:
        if self._depths[name] == 0:
            self._ask("SELECT pg_advisory_lock(:key)", name)
            self._held.add(name)
        self._depths[name] += 1
        try:
            yield
        finally:
            self._depths[name] -= 1
            if self._depths[name] == 0:
                self.release(name)

    def try_acquire(self, name: str) -> bool:
        if name in self._held:  # the server would count it twice
            return False
        if self._ask("SELECT pg_try_advisory_lock(:key)", name):
            self._held.add(name)
        return name in self._held

    def release(self, name: str) -> None:
        if name in self._held:
            self._held.discard(name)
            with contextlib.suppress(StoreAway):  # the lock is lost then
                self._ask_once("SELECT pg_advisory_unlock(:key)", name)

    def release_all(self) -> None:
        self.close()

    def is_held(self, name: str) -> bool:
        if name in self._held:
            with contextlib.suppress(StoreAway):
                self._ask_once("SELECT 1")
        return name in self._held

    def are_taken(self, names: Sequence[str]) -> list[bool | None]:
        if not names:
            return []
        taken = self._ask(
            "SELECT array_agg((classid::bigint << 32) | objid::bigint) "
            "FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
            "WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND datname = current_database()"
        )
        return [_advisory_key(name) in (taken or []) for name in names]


def _advisory_key(name: str) -> int:
    """Return the 64-bit number by which PostgreSQL knows a lock."""
    digest = hashlib.sha256(f"ablation\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def open_locks(url: str) -> Locks:
    """Return the locks of the database at an address; all processes that use the database share them."""
    return FileLocks(sqlite_path(url).parent) if url.startswith(SQLITE) else PostgresLocks(url)


@contextlib.contextmanager
def opening(url: str, *, create: bool) -> Iterator[None]:
    """Open a database in this context, and create its tables if `create`, which several processes cannot do at once.

    On a server, even reading waits for the claim lock, because another process may be half-way through creating the
    tables. A SQLite file appears only when it is complete, so reading it needs no lock and writes nothing.
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
