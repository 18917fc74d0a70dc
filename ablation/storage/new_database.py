"""A new SQLite database, complete when it gets its name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from ablation.base.files import replacing
from ablation.storage.store import SQLITE, sqlite_path, sqlite_url


def build_database(url: str, build: Callable[[str], object]) -> None:
    """Create a SQLite database under a temporary name, and rename it when it is complete.

    Otherwise a process that dies while it creates the tables would leave half a database, which nothing can open.
    Servers create their tables in a transaction, so nothing is done for those.

    Args:
        url: the database's address; nothing is done if the file exists.
        build: opens the database at an address and creates its tables.
    """
    if url.startswith(SQLITE) and not (path := sqlite_path(url)).exists():
        with replacing(path) as temporary:
            temporary.touch()  # with the permissions of any new file: SQLite lets no group write
            with _unsynchronised():
                build(sqlite_url(temporary))


@contextmanager
def _unsynchronised() -> Iterator[None]:
    """Let SQLite not wait for the disk after each of MLflow's many migrations: `replacing` waits once, at the end."""

    def leave_writing_to_the_system(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", leave_writing_to_the_system)
    try:
        yield
    finally:
        event.remove(Engine, "connect", leave_writing_to_the_system)
