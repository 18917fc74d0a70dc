"""The MLflow client: what it refuses, notices and finds, whatever MLflow's own settings and limits are."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.store.entities import PagedList

from ablation.base.errors import InputError, StoreError
from ablation.storage.store import Store, find_store
from ablation.tracking.client import PatientClient, all_pages, folder_to_name, open_client, ui_command
from ablation.tracking.experiment import Tracker


def test_a_refused_call_is_noticed_though_mlflow_would_log_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(find_store(str(tmp_path)), create=True)
    assert client is not None
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    no_run = "0" * 32
    for call in (
        lambda: client.log_batch(no_run, [Metric("loss", 1, 1, 1)]),
        lambda: client.log_metric(no_run, "loss", 1),
        lambda: client.log_param(no_run, "epochs", "1"),
        lambda: client.set_tag(no_run, "arm", "a"),
    ):
        with pytest.raises(StoreError, match="not found"):
            call()


def test_a_run_is_marked_as_superseded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of every study asks for it again; runs that MLflow lacks are left out."""
    store = find_store(str(tmp_path))
    client = open_client(store, create=True)
    assert client is not None
    tracker = Tracker(client, store, "fake", "?")
    ids = [tracker.find_or_create(f"a/{number}", f"{number}", {"kind": "confirmation"})[0] for number in range(3)]
    marked: list[str] = []
    set_tag = client.set_tag
    monkeypatch.setattr(
        PatientClient, "set_tag", lambda _, run_id, *tag: (marked.append(run_id), set_tag(run_id, *tag)), raising=False
    )
    for keys in (["a/1"], ["a/0", "a/1", "a/9"], ["a/0", "a/1", "a/9"], []):
        tracker.mark_superseded(keys)
    assert marked == [ids[1], ids[0]]
    assert [client.get_run(run_id).data.tags.get("superseded") for run_id in ids] == ["true", "true", None]


def test_all_pages_of_a_search_are_read() -> None:
    pages = {None: ("ab", "second"), "second": ("", "third"), "third": ("c", "")}
    asked = []

    def search(*arguments: str, limit: int, page_token: str | None) -> PagedList[str]:
        asked.append((arguments, limit))
        return PagedList(*pages[page_token])

    assert list(all_pages(search, "query", limit=2)) == ["a", "b", "c"]
    assert asked == [(("query",), 2)] * 3


@pytest.mark.parametrize(
    ("scheme", "driver", "way"),
    [("mysql", "MySQLdb", "it is not installed"), ("postgresql+psycopg", "psycopg", "install ablation[postgresql]")],
)
def test_a_missing_driver_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, driver: str, way: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(InputError) as caught:
        open_client(Store(tmp_path, f"{scheme}://me@127.0.0.1:1/x", f"sqlite:///{tmp_path}/optuna.db"))
    assert str(caught.value) == f"MLFLOW_TRACKING_URI: needs {driver}; {way}"


def test_a_command_names_a_store_that_it_would_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_to_name(find_store(None)) is None
    assert folder_to_name(find_store("mlruns")) is None
    assert folder_to_name(find_store("s t")) == tmp_path / "s t"
    assert ui_command(find_store("s t"), "small") == "python -m ablation.ui small --store 's t'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert folder_to_name(find_store(None)) is None
    assert folder_to_name(replace(find_store(None), root=tmp_path / "other")) is None
