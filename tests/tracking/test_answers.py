"""A tracking server behind a proxy that lets single calls fail: an answer is checked before it is believed."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ablation.base.errors import StoreAway, StoreError
from ablation.base.retries import wait_out
from ablation.storage.outbox import Outbox
from ablation.storage.store import Store, find_store
from ablation.tracking.client import link_model, open_client
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import download
from ablation.tracking.trial_run import TrialRun
from tests.servers import HttpFault, HttpProxy, Server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("mlflow") / "server")
    yield started
    started.stop()


@pytest.fixture
def proxy(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpProxy]:
    started = HttpProxy(shared_server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", started.address)
    yield started
    started.close()


@pytest.fixture
def store(proxy: HttpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return find_store(None)


@pytest.fixture
def tracker(store: Store, request: Any) -> Tracker:
    client = open_client(store, create=True)
    assert client is not None
    return Tracker(client, store, f"study-{abs(hash(request.node.name))}", "?")


def first(proxy: HttpProxy, fault: HttpFault, part: str, times: int = 1) -> Callable[[], int]:
    """Let the first calls fail whose path contains a text; return a function that says how many did."""
    failed: list[str] = []

    def choose(method: str, path: str) -> HttpFault | None:
        if part not in path or len(failed) == times:
            return None
        failed.append(path)
        return fault

    proxy.fault = choose
    return lambda: len(failed)


@pytest.mark.parametrize("fault", ["reset", "503", "lost", "empty", "cut"])
def test_a_run_is_made_once(proxy: HttpProxy, tracker: Tracker, fault: HttpFault) -> None:
    """Whether or not the server carried out the call whose answer is missing; a search that finds nothing is asked
    again if its answer was empty."""
    for part in ("runs/search", "runs/create"):
        count = first(proxy, fault, part)
        run_id, _ = tracker.find_or_create(f"key/{part}", "run", {"kind": "trial"})
        assert count() == 1
        found = tracker.client.search_runs([tracker.experiment_id], f"tags.`ablation.key` = 'key/{part}'")
        assert [run.info.run_id for run in found] == [run_id]
    # The run is not new on resume, though the search for it is answered by an empty 200.
    count = first(proxy, fault, "runs/search")
    assert tracker.find_or_create("key/runs/create", "run", {"kind": "trial"}) == (run_id, False)
    assert count() == 1


@pytest.mark.parametrize("fault", ["503", "lost", "empty"])
def test_an_experiment_keeps_its_key(proxy: HttpProxy, store: Store, tracker: Tracker, fault: HttpFault) -> None:
    client = tracker.client
    study = client.get_experiment(tracker.experiment_id).name
    for part in ("experiments/get-by-name", "experiments/search", "/version", "set-experiment-tag"):
        count = first(proxy, fault, part)
        again = open_client(store, create=True)
        assert again is not None
        assert Tracker(again, store, study, "?").key == tracker.key
        assert count() == 1, part


@pytest.mark.parametrize("fault", ["empty", "cut"])
def test_a_404_is_believed_only_with_its_reason(proxy: HttpProxy, tracker: Tracker, fault: HttpFault) -> None:
    count = first(proxy, fault, "experiments/get-by-name")
    assert tracker.client.get_experiment_by_name("absent") is None
    assert count() == 1


def test_results_are_delivered_only_by_their_owner(tracker: Tracker, tmp_path: Path) -> None:
    """A process that loses the trial's lock between two calls leaves the rest to its successor."""
    tracker.find_or_create("key/owner", "run", {"kind": "trial"})
    outbox = Outbox(tmp_path / "outbox")
    for _ in range(3):
        outbox.add("pause", {})

    def ensure_held() -> None:
        if len(list(outbox.entries())) < 3:
            raise StoreAway("the lock was lost")

    assert not TrialRun(tracker, "key/owner", tmp_path, "", ensure_held).deliver()
    assert len(list(outbox.entries())) == 2


@pytest.mark.parametrize("fault", ["reset", "503", "cut"])
def test_curves_and_files_are_whole(
    proxy: HttpProxy, tracker: Tracker, tmp_path: Path, capfd: Any, caplog: Any, fault: HttpFault
) -> None:
    """And no library has drawn a progress bar or said anything of its own."""
    run_id, _ = tracker.find_or_create("key/0", "run", {"kind": "trial"})
    client = tracker.client
    for step in (1, 2, 3):
        client.log_metric(run_id, "loss", step / 4, step=step)
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(range(256)) * 20)
    count = first(proxy, fault, "mlflow-artifacts/artifacts/")
    client.log_artifact(run_id, str(file), "folder")
    assert count() == 1
    count = first(proxy, fault, "metrics/get-history")
    assert [point.value for point in client.get_metric_history(run_id, "loss")] == [0.25, 0.5, 0.75]
    assert count() == 1
    address = client.get_run(run_id).info.artifact_uri
    for part in ("mlflow-artifacts/artifacts?", "folder/file.bin"):
        count = first(proxy, fault, part)
        path = download(client, address, "folder/file.bin", tmp_path)
        assert count() == 1, part
        assert path is not None
        assert path.read_bytes() == file.read_bytes()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("by_its_process", [True, False])
def test_a_double_is_deleted_when_its_trial_ends(tracker: Tracker, tmp_path: Path, by_its_process: bool) -> None:
    """The server carried out a creation after its client had given up."""
    run_id, _ = tracker.find_or_create("key/0", "run", {"kind": "trial"})
    tracker.client.log_metric(run_id, "loss", 1.0)
    late = tracker.client.create_run(tracker.experiment_id, tags={"ablation.key": "key/0", "kind": "trial"})
    other = tracker.client.create_run(tracker.experiment_id, tags={"ablation.key": "key/1", "kind": "trial"})
    if by_its_process:
        TrialRun(tracker, "key/0", tmp_path, "").end("FINISHED")
    else:
        tracker.reconcile(lambda: {"key/0": "FINISHED", "key/1": None})
    left = {run.info.run_id: run.info.status for run in tracker.client.search_runs([tracker.experiment_id])}
    assert left == {run_id: "FINISHED", other.info.run_id: "RUNNING"}
    assert late.info.run_id not in left


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stays_away_says_why(proxy: HttpProxy, tracker: Tracker) -> None:
    proxy.fault = lambda method, path: "503"
    with pytest.raises(StoreAway) as caught:
        tracker.client.get_experiment(tracker.experiment_id)
    assert str(caught.value) == "MLflow does not answer (503 Service Unavailable: busy)"
    assert caught.value.retry_after == 1
    proxy.fault = lambda method, path: "reset"
    with pytest.raises(StoreAway, match="closed without an answer|reset by peer"):
        tracker.client.get_experiment(tracker.experiment_id)


def test_a_refusal_is_not_waited_for(proxy: HttpProxy, tracker: Tracker) -> None:
    before = sum(proxy.counts.values())
    with pytest.raises(StoreError) as caught:
        tracker.client.get_run("0" * 32)
    assert caught.value.code == "RESOURCE_DOES_NOT_EXIST"
    assert sum(proxy.counts.values()) == before + 1


def test_a_deletion_whose_answer_was_lost_is_done(proxy: HttpProxy, tracker: Tracker) -> None:
    run_id, _ = tracker.find_or_create("key/0", "run", {"kind": "trial"})
    count = first(proxy, "lost", "runs/delete-tag")
    tracker.client.set_tag(run_id, "reason", "x")
    tracker.client.delete_tag(run_id, "reason")
    assert count() == 1
    assert "reason" not in tracker.client.get_run(run_id).data.tags


@pytest.mark.parametrize("fault", ["lost", "503"])
def test_a_model_is_linked_once(proxy: HttpProxy, tracker: Tracker, fault: HttpFault) -> None:
    """MLflow refuses the second of two calls; the first may have been carried out although its answer was lost."""
    run_id, _ = tracker.find_or_create("key/0", "run", {"kind": "confirmation"})
    models = [tracker.client.create_logged_model(tracker.experiment_id, f"model-{n}", run_id) for n in range(2)]
    count = first(proxy, fault, "runs/outputs")
    for model in [*models, *models]:
        link_model(tracker.client, run_id, model.model_id)
    assert count() == 1
    outputs = tracker.client.get_run(run_id).outputs.model_outputs
    assert sorted(output.model_id for output in outputs) == sorted(model.model_id for model in models)


@pytest.mark.parametrize("fault", ["lost", "503"])
def test_an_experiment_is_restored_though_the_answer_was_lost(
    proxy: HttpProxy, store: Store, tracker: Tracker, fault: HttpFault
) -> None:
    """It cannot be restored twice."""
    client, study = tracker.client, tracker.client.get_experiment(tracker.experiment_id).name
    client.delete_experiment(tracker.experiment_id)
    count = first(proxy, fault, "experiments/restore")
    again = wait_out(lambda: Tracker(client, store, study, "?", tracker.experiment_id), 60)
    assert count() == 1
    assert again.key == tracker.key
    assert client.get_experiment(tracker.experiment_id).lifecycle_stage == "active"
