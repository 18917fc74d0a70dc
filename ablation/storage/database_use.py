"""What a study takes of its databases: bytes, and connections to PostgreSQL."""

import contextlib
import threading
from collections.abc import Iterator

import sqlalchemy

from ablation.storage.store import Store, sqlite_path

SAMPLING_SECONDS = 0.5  # between two counts of connections


def database_bytes(url: str) -> int | None:
    """Return the bytes of a database; None for a server of MLflow."""
    if url.startswith("sqlite"):
        return sqlite_path(url).stat().st_size
    if not url.startswith("postgresql"):
        return None
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
        return int(connection.exec_driver_sql("select pg_database_size(current_database())").scalar_one())


@contextlib.contextmanager
def connections(store: Store) -> Iterator[list[int]]:
    """Yield a list whose only item is, after the block, the most connections to Optuna's PostgreSQL; 0 for SQLite."""
    most, is_over = [0], threading.Event()
    if not store.has_remote_optuna:
        yield most
        return
    engine = sqlalchemy.create_engine(store.optuna_url)
    query = "select count(*) from pg_stat_activity where datname = current_database() and pid != pg_backend_pid()"

    def sample() -> None:
        with engine.connect() as connection:
            while not is_over.wait(SAMPLING_SECONDS):
                most[0] = max(most[0], int(connection.exec_driver_sql(query).scalar_one()))
                connection.rollback()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        is_over.set()
        thread.join()
        engine.dispose()
