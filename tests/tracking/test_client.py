"""The MLflow client: what it refuses, notices and finds, whatever MLflow's own settings and limits are."""

import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.store.entities import PagedList

from ablation.base.errors import InputError, StoreError
from ablation.search.studies import open_storage
from ablation.storage.store import Store, find_store
from ablation.tracking.client import PatientClient, all_pages, find_experiment, folder_to_name, open_client, ui_command
from ablation.tracking.experiment import Tracker
from tests.studies import REPOSITORY


def test_a_refused_call_is_noticed_though_mlflow_would_log_in_threads(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tracker.client
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


def test_a_run_is_marked_as_superseded_once(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of every study asks for it again; runs that MLflow lacks are left out."""
    client = tracker.client
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


@pytest.mark.parametrize("name", ["a'b", "small ", "' or tags.study != '"])
def test_a_name_that_no_study_has_is_not_asked_for(store: Store, tracker: Tracker, name: str) -> None:
    """A query could not hold it. An experiment that somebody has given such a name is found by it, however."""
    client = tracker.client
    with pytest.raises(InputError, match=re.escape(f"has no study {name!r}")):
        find_experiment(client, store, name)
    client.rename_experiment(tracker.experiment_id, name)
    assert find_experiment(client, store, name).experiment_id == tracker.experiment_id


def test_a_missing_driver_is_named_with_the_packages_of_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the extra: PyPI's `ablation` is another project."""
    address = "postgresql+psycopg://me@127.0.0.1:1/x"
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError) as of_mlflow:
        open_client(Store(tmp_path, address, f"sqlite:///{tmp_path}/optuna.db"))
    with pytest.raises(InputError) as of_optuna:
        open_storage(Store(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", address))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = " ".join(f"'{package}'" for package in project["optional-dependencies"]["postgresql"])
    for caught, variable in ((of_mlflow, "MLFLOW_TRACKING_URI"), (of_optuna, "OPTUNA_STORAGE")):
        assert str(caught.value) == f"{variable}: needs psycopg: python -m pip install {packages}"


def test_a_command_names_a_store_that_it_would_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_to_name(find_store(None)) is None
    assert folder_to_name(find_store("mlruns")) is None
    assert folder_to_name(find_store("s t")) == tmp_path / "s t"
    assert ui_command(find_store("s t"), "small") == "python -m ablation.ui small --store 's t'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert folder_to_name(find_store(None)) is None
    assert folder_to_name(replace(find_store(None), root=tmp_path / "other")) is None
