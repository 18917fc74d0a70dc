"""A new SQLite database."""

import sqlite3
from pathlib import Path

import optuna
import pytest
from sqlalchemy import create_engine, text

from ablation.storage.new_database import build_database
from tests.storage.test_store import create_table


def test_two_processes_may_build_one_database_at_once(tmp_path: Path) -> None:
    """The second one begins and ends while the first one builds."""
    path = tmp_path / "some.db"
    url = f"sqlite:///{path}"

    def build(first_url: str) -> None:
        create_table(first_url)
        build_database(url, create_table)

    build_database(url, build)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM trials").fetchone() == (0,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.db"]


def test_a_crash_while_a_database_is_made_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    url = f"sqlite:///{path}"

    def crash(url: str) -> None:
        Path(url.removeprefix("sqlite:///")).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_database(url, crash)
    assert not path.exists()
    build_database(url, lambda url: optuna.storages.RDBStorage(url).engine.dispose())
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    build_database(url, crash)  # it is there, so nothing is built
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.db"]


def test_only_a_database_that_is_not_in_place_yet_is_written_without_waiting_for_the_disk(tmp_path: Path) -> None:
    def synchronous(url: str) -> int | None:
        engine = create_engine(url)
        with engine.connect() as connection:
            level: int | None = connection.scalar(text("PRAGMA synchronous"))
        engine.dispose()
        return level

    levels = []
    build_database(f"sqlite:///{tmp_path}/some.db", lambda url: levels.append(synchronous(url)))
    levels.append(synchronous(f"sqlite:///{tmp_path}/some.db"))
    assert levels == [0, 2]  # OFF; FULL, SQLite's default
