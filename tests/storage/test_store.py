"""Stores: where their databases are, and how these are created."""

import importlib
import multiprocessing
import os
import re
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablation.base import files, retries
from ablation.base.command_line import run_command
from ablation.base.errors import InputError, StoreAway
from ablation.search.studies import open_storage
from ablation.storage.new_database import build_database
from ablation.storage.store import (
    ADDRESSES,
    DATABASES,
    LONGEST_PATH,
    WRITTEN,
    find_store,
    find_store_to_write,
)
from ablation.tracking.client import open_client
from tests.other_user import as_nobody, folder_for_all, needs_root
from tests.studies import signal_handlers_kept


def create_table(url: str) -> None:
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    with database:
        database.execute("CREATE TABLE trials (number)")
    database.close()


def test_optunas_grpc_proxy_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", "grpc://localhost:13000")
    with pytest.raises(InputError, match="proxy has no lock that dies with its worker; name the PostgreSQL behind it"):
        find_store(None)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("", "--store: is empty; name a folder, or leave it out"),
        ("sqlite:///mlruns/mlflow.db", "--store: sqlite:///mlruns/mlflow.db is no folder; OPTUNA_STORAGE and MLFLOW_"),
        (
            "http://127.0.0.1:5000",
            "--store: http://127.0.0.1:5000 is no folder; OPTUNA_STORAGE and MLFLOW_TRACKING_URI",
        ),
    ],
)
def test_what_names_no_folder_is_refused(option: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        find_store(option)


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    default = find_store(None)
    assert default.root == tmp_path / "mlruns"
    assert default.has_own_optuna
    assert default.has_own_tracking
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://u:secret@nowhere/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    given = find_store(None)
    assert (given.optuna_url, given.tracking_uri) == ("postgresql://u:secret@nowhere/x", "http://127.0.0.1:1")
    chosen = find_store("here")
    assert chosen.optuna_url == f"sqlite:///{tmp_path}/here/optuna.db"
    assert chosen.has_own_tracking
    monkeypatch.setattr(retries, "BRIEF_SECONDS", 0.0)
    with pytest.raises(StoreAway, match="the name of its host is unknown") as caught:
        open_storage(given)
    assert "secret" not in str(caught.value)


def test_one_database_for_both_is_refused_however_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    host = "postgresql://me:secret@host/one"
    for optuna_url, tracking_uri in (
        ("", "sqlite:///mlruns/optuna.db"), ("", f"sqlite:///{tmp_path}/link/mlruns/../mlruns/optuna.db"),
        ("sqlite:///link/mlruns/mlflow.db", ""), (host, f"{host}?sslmode=require"),
        (host, "postgresql+psycopg://other@host/one"),
    ):  # fmt: skip
        monkeypatch.setenv("OPTUNA_STORAGE", optuna_url)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        with pytest.raises(InputError, match="need two databases"):
            find_store(None)
    for optuna_url, tracking_uri in ((host, f"{host}_more"), (host, "http://host/one"), ("", "sqlite:///optuna.db")):
        monkeypatch.setenv("OPTUNA_STORAGE", optuna_url)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        assert find_store(None).tracking_uri == tracking_uri


@pytest.mark.parametrize(
    "address", ["postgresql+psycopg2://me:hush@h/d", "mysql://me:hush@h/d", "file:///mlruns", "foo", "sqlite:///"]
)
@pytest.mark.parametrize(
    ("variable", "server"), [("OPTUNA_STORAGE", ""), ("MLFLOW_TRACKING_URI", "http://HOST:PORT, ")]
)
def test_an_address_of_another_kind_is_refused_with_those_that_are_taken(
    variable: str, server: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)
    taken = f"{server}sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    with pytest.raises(InputError, match=f"^{variable}: must be {re.escape(taken)}$"):
        find_store(None)


@pytest.mark.parametrize("variable", DATABASES)
@pytest.mark.parametrize("name", ["o.db?timeout=3", "o.db?isolation_level=IMMEDIATE", "50%.db", "a\n?b.db"])
def test_options_of_a_sqlite_address_are_refused(
    variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the libraries would take them for a part of the file's name."""
    monkeypatch.setenv(variable, f"sqlite:///{tmp_path}/{name}")
    with pytest.raises(InputError, match=f"^{variable}: the address of a SQLite file can hold neither % nor [?]"):
        find_store(None)
    find_store(str(tmp_path / "named"))  # wins over the environment
    monkeypatch.setenv(variable, "postgresql://u:p%40q@h/d?sslmode=require")
    find_store(None)


@pytest.mark.skipif(os.name == "nt", reason="the environment is Unicode there")
@pytest.mark.parametrize("variable", ADDRESSES)
def test_an_address_that_is_not_utf8_is_refused_and_not_shown(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "postgresql://u:se\udcffcret@nowhere/x")
    with pytest.raises(InputError, match=f"^{variable}: is not UTF-8$"):
        find_store(None)


@pytest.mark.skipif(os.name == "nt", reason="other limits")
def test_long_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as SQLite can make and open its databases there; a longer one is refused before anything is written."""
    longest = tmp_path / ("n" * 255)
    longest /= "m" * (LONGEST_PATH - len(str(longest)) - 1)
    store = find_store(str(longest))
    store.check_writable()
    store.prepare()
    for url in (store.optuna_url, store.tracking_uri):
        build_database(url, create_table)
    assert sorted(path.name for path in longest.iterdir()) == ["mlflow.db", "optuna.db"]
    with pytest.raises(InputError, match=f"has {LONGEST_PATH + 1} bytes, and SQLite opens no file below more"):
        find_store(f"{longest}m")
    with pytest.raises(InputError, match="--store: .* cannot be used .File name too long"):
        find_store(str(tmp_path / ("n" * 256))).check_writable()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="--store: .*a cannot be (used|written)"):
        find_store(str(tmp_path / "a")).prepare()
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://u@h/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(os, "getcwd", lambda: f"{longest}m")
    assert find_store(None).root.name == "mlruns"  # without a database in it


@pytest.mark.skipif(os.name == "nt", reason="names that Windows refuses")
def test_paths_with_signs_that_addresses_and_templates_know(tmp_path: Path) -> None:
    """Both databases are in the folder that was named; Optuna takes an address for a template with braces."""
    store = find_store(str(tmp_path / "a # b & c; $HOME 'd' \"e\" `f` \\g é (h) [i] {j} }k{ ~ + = @ : * !"))
    store.prepare()
    assert open_storage(store, create=True) is not None
    assert open_client(store, create=True) is not None
    assert {path.name for path in store.root.iterdir()} >= {"optuna.db", "mlflow.db"}
    assert list(tmp_path.iterdir()) == [store.root]
    for sign in "%?":
        with pytest.raises(InputError, match="which databases cannot open"):
            find_store(str(tmp_path / f"x{sign}y"))


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


@needs_root
@pytest.mark.parametrize("name", ["optuna.db", "mlflow.db"])
@pytest.mark.parametrize("state", ["in WAL mode", "left in the middle of a transaction"])
def test_a_database_that_must_be_written_to_be_read(name: str, state: str) -> None:
    """By somebody who may not write: one line that says so; SQLite's says that something was to be written."""
    with folder_for_all() as folder:
        store = find_store(str(folder))
        assert open_storage(store, create=True) is not None
        assert open_client(store, create=True) is not None

        def leave() -> None:
            database = sqlite3.connect(folder / name, isolation_level=None)
            if state == "in WAL mode":
                database.execute("PRAGMA journal_mode=wal")
                return
            database.execute("PRAGMA cache_size=1")
            database.execute("BEGIN")
            database.execute("CREATE TABLE more(content)")
            database.executemany("INSERT INTO more VALUES(?)", [("x" * 3000,)] * 100)
            os._exit(0)  # as if it were killed

        child = multiprocessing.get_context("fork").Process(target=leave)
        child.start()
        child.join()
        for path in folder.iterdir():
            path.chmod(0o644)

        def refuse() -> str:
            with pytest.raises(InputError) as refused:
                (open_storage if name == "optuna.db" else open_client)(store)
            return str(refused.value)

        assert "this user may not write it, and it must be written before it can be read" in as_nobody(refuse)


@needs_root
@pytest.mark.parametrize("name", WRITTEN)
def test_a_store_of_another_user_is_refused_before_anything_is_written(name: str) -> None:
    """Its folder may be written, but not what its owner made in it, with a umask of 022."""
    with folder_for_all() as folder:
        folder.chmod(0o777)
        store = find_store(str(folder))
        (folder / name).touch(0o644) if "." in name else (folder / name).mkdir(0o755)

        def refuse() -> str:
            with pytest.raises(InputError) as refused:
                store.check_writable()
            return str(refused.value)

        needed = "a group that may write its folder (g+ws) and its files (g+w)"
        said = f"--store: {folder / name} cannot be written: the users of a store need {needed}"
        assert as_nobody(refuse) == said
        (folder / name).chmod(0o777)
        assert as_nobody(store.check_writable) is None


@pytest.mark.skipif(os.name == "nt", reason="no groups")
@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        (0o2775, 0o022, 0o002), (0o2770, 0o077, 0o007), (0o2775, 0o002, 0o002), (0o2775, 0o027, 0o007),
        (0o2755, 0o022, 0o022), (0o775, 0o022, 0o022), (0o700, 0o077, 0o077), (None, 0o077, 0o077),
    ],
)  # fmt: skip
def test_a_command_writes_for_the_group_whose_folder_the_store_is(
    tmp_path: Path, mode: int | None, before: int, after: int
) -> None:
    """A folder of another mode, and one that is not there yet, is its user's; a notebook's process stays as it is."""
    root = tmp_path / "s"
    if mode is not None:
        root.mkdir()
        root.chmod(mode)
    of_tests = os.umask(before)
    try:
        store = find_store(str(root))
        store.check_writable()
        assert os.umask(before) == before
        assert find_store_to_write(str(root)) == store
        assert os.umask(before) == after
    finally:
        os.umask(of_tests)


@needs_root
def test_a_folder_that_may_not_be_reached_is_refused_by_what_uses_it() -> None:
    with folder_for_all() as folder:
        (folder / "closed" / "s").mkdir(parents=True)
        (folder / "closed").chmod(0o700)
        assert as_nobody(lambda: str(find_store_to_write(str(folder / "closed" / "s")).root)).endswith("closed/s")


@needs_root
@pytest.mark.parametrize(
    "arguments", [("report", "a"), ("compare", "a", "b"), ("study", "--status", "a"), ("study", "--list")]
)
def test_a_store_that_may_not_be_entered_is_refused_by_what_reads_it(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cli = importlib.import_module(f"ablation.{arguments[0]}").cli
    with folder_for_all() as folder:
        store = folder / "closed" / "s"
        store.mkdir(parents=True)
        monkeypatch.setattr(sys, "argv", [*arguments, "--store", str(store)])

        def status() -> int:
            with signal_handlers_kept():
                return run_command(cli)

        status()  # so that everything is imported
        (folder / "closed").chmod(0o700)
        capfd.readouterr()
        assert as_nobody(status) == 2
        assert capfd.readouterr().err == f"error: {store}/optuna.db: Permission denied\n"
