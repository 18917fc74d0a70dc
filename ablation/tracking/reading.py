"""A study's runs, read back from MLflow."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ablation.base.errors import InputError, StoreAway
from ablation.base.text import first_line
from ablation.storage.store import Store
from ablation.tracking.client import (
    KEY_TAG,
    NOTE_TAG,
    REPORT_FOLDER,
    STUDY_FILE,
    find_experiment,
    is_outage,
    mlflow_errors,
    reading_client,
    search_all_runs,
)


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow has it; `metrics` holds the last value of each."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    artifact_uri: str


@dataclass(frozen=True)
class StudyRecord:
    """A study's experiment: its summary run, that run's description of it (see `Tracker.begin_summary`), other runs."""

    experiment_id: str
    summary: RunRecord
    about: dict[str, Any]
    runs: list[RunRecord]


def _run_record(run: Run) -> RunRecord:
    data = run.data
    return RunRecord(run.info.run_id, run.info.status, data.tags, data.params, data.metrics, run.info.artifact_uri)


def read_run(store: Store, run_id: str) -> RunRecord:
    """Return a run of the store.

    Raises:
        InputError: there is no such run.
    """
    client = reading_client(store)
    try:
        return _run_record(client.get_run(run_id))
    except MlflowException:
        raise InputError(f"{store.root}: has no MLflow run {run_id!r}") from None


def read_study(store: Store, study: str) -> StudyRecord:
    """Return a study's runs.

    Raises:
        InputError: the store cannot be opened, or has no such study.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    with mlflow_errors(store):
        experiment = find_experiment(client, store, study)
        runs = list(search_all_runs(client, experiment.experiment_id, "tags.kind != ''"))
        summaries = [run for run in runs if run.data.tags["kind"] == "summary"]
        if not summaries:
            raise InputError(f"study {study!r} has no summary run: run the study once more, then it can be read")
        newest = _run_record(max(summaries, key=lambda run: run.info.start_time))
        about = _about(store, study, newest)
        # An experiment may hold the runs of another Optuna database, and a run that was made a moment ago.
        keys = set(about.get("arm_keys", []))
        records = [
            _run_record(run)
            for run in runs
            if run.data.tags.get(KEY_TAG, "").rpartition("/")[0] in keys
            and run.data.tags["kind"] != "summary"
            and "study" in run.data.params
        ]
    return StudyRecord(experiment.experiment_id, newest, about, records)


def read_curves(store: Store, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """Return the histories of metrics, a value per step: run id -> metric -> values. Each is a request of its own.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)

    def values(run_id: str, metric: str) -> list[float]:
        history = client.get_metric_history(run_id, metric)
        return [point.value for point in sorted(history, key=lambda point: point.step)]

    metrics = tuple(metrics)
    with mlflow_errors(store):
        return {run_id: {metric: values(run_id, metric) for metric in metrics} for run_id in run_ids}


def _about(store: Store, study: str, summary: RunRecord) -> dict[str, Any]:
    try:
        with run_file(store, summary, STUDY_FILE) as path:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (InputError, ValueError):
        raise InputError(f"study {study!r}: its summary run has no readable {STUDY_FILE}: run it once more") from None
    return about


def artifact_path(store: Store, run: RunRecord, name: str) -> Path:
    """Return the path of a run's artifact in a store with its own database, which may have been moved or copied."""
    return artifact_folder(store, run.artifact_uri, levels=3) / name


def artifact_folder(store: Store, address: str, levels: int) -> Path:
    """Return the folder of artifacts in a store with a database of its own, which may have been moved or copied.

    Args:
        store: where they are now.
        address: the absolute address that MLflow stored.
        levels: how many names at its end are below the store's folder of artifacts: 3 for a run
            (<study>/<run>/artifacts), 4 for a logged model (<study>/models/<model>/artifacts).
    """
    assert store.has_own_tracking
    study, *folders = address.rstrip("/").split("/")[-levels:]
    return store.artifacts(study).joinpath(*folders)


@contextmanager
def run_file(store: Store, run: RunRecord, name: str) -> Iterator[Path]:
    """Yield the path of a run's artifact, a file or a folder; it is downloaded unless the store has its own database.

    Raises:
        InputError: the run has no such artifact.
        StoreAway: the tracking server does not answer.
    """
    if store.has_own_tracking:
        path = artifact_path(store, run, name)
        if not path.exists():
            raise InputError(f"run {run.run_id} has no {name}: it did not end, or its checkpoint was not kept")
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        client = MlflowClient(tracking_uri=store.tracking_uri)
        try:
            path = Path(client.download_artifacts(run.run_id, name, folder))
        except (MlflowException, requests.RequestException, OSError) as error:
            if store.has_remote_tracking and is_outage(error):
                raise StoreAway(f"MLflow does not answer ({first_line(error)})") from None
            raise InputError(f"run {run.run_id} has no {name} ({first_line(error)})") from None
        yield path


def log_report(store: Store, run_id: str, files: Mapping[str, bytes], note: str) -> None:
    """Put files (name -> content) into a run's artifact folder `report`, and set the run's description (Markdown).

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    with mlflow_errors(store), tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        if store.has_own_tracking:  # it may have been moved, so that MLflow has another address
            target = artifact_path(store, _run_record(client.get_run(run_id)), REPORT_FOLDER)
            target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        if not store.has_own_tracking:
            client.log_artifacts(run_id, folder, REPORT_FOLDER)
        client.set_tag(run_id, NOTE_TAG, note)
