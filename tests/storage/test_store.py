"""Stores: where their databases are, and how these are created."""

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from ablation.base import files, retries
from ablation.base.errors import InputError, StoreAway
from ablation.search.studies import open_storage
from ablation.storage.store import build_database, find_store


def create_table(url: str) -> None:
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    with database:
        database.execute("CREATE TABLE trials (number)")
    database.close()


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


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    default = find_store(None)
    assert default.root == tmp_path / "mlruns"
    assert default.has_own_optuna
    assert default.has_own_tracking
    assert default.is_empty
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://u:secret@nowhere/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    given = find_store(None)
    assert (given.optuna_url, given.tracking_uri) == ("postgresql://u:secret@nowhere/x", "http://127.0.0.1:1")
    assert not given.is_empty
    chosen = find_store("here")
    assert chosen.optuna_url == f"sqlite:///{tmp_path}/here/optuna.db"
    assert chosen.has_own_tracking
    monkeypatch.setattr(retries, "BRIEF_SECONDS", 0.0)
    with pytest.raises(StoreAway, match="the name of its host is unknown") as caught:
        open_storage(given)
    assert "secret" not in str(caught.value)


def test_sqlite_on_a_network_file_system_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4"),
              SimpleNamespace(mountpoint=f"{tmp_path}/local", fstype="xfs")]  # fmt: skip
    monkeypatch.setattr(files.psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "local").mkdir()
    find_store(str(tmp_path / "local" / "mlruns")).check_writable()
    with pytest.raises(InputError, match=r"optuna.db|mlflow.db") as refused:
        find_store(str(tmp_path / "mlruns")).check_writable()
    assert "(nfs4)" in str(refused.value)
    assert "set OPTUNA_STORAGE to a PostgreSQL and MLFLOW_TRACKING_URI to a server" in str(refused.value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://u@h/x")
    with pytest.raises(InputError, match="mlflow.db"):
        find_store(None).check_writable()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000")
    find_store(None).check_writable()  # resume checkpoints may lie on such a file system
    assert list(tmp_path.iterdir()) == [tmp_path / "local"]
