"""A study's runs, read back from MLflow."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
    ABOUT_FILE,
    KEY_TAG,
    NOTE_TAG,
    REPORT_FOLDER,
    find_experiment,
    is_outage,
    mlflow_errors,
    reading_client,
    search_all_runs,
)


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow has it; `curves` holds the metrics that were asked for, a value per step."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    artifact_uri: str
    curves: dict[str, list[float]]


@dataclass(frozen=True)
class StudyRecord:
    """A study's experiment: its summary run, what that says of it (see `Tracker.begin_summary`), and its other runs."""

    experiment_id: str
    summary: RunRecord
    about: dict[str, Any]
    runs: list[RunRecord]


def _run_record(run: Run, curves: dict[str, list[float]] | None = None) -> RunRecord:
    data = run.data
    return RunRecord(
        run.info.run_id, run.info.status, data.tags, data.params, data.metrics, run.info.artifact_uri, curves or {}
    )


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


def read_study(store: Store, study: str, curves: Sequence[str]) -> StudyRecord:
    """Return a study's runs; `curves` are read of the confirmation runs, or of all trials where there are none.

    Raises:
        InputError: the store cannot be opened, or has no such study.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    with mlflow_errors(store):
        experiment = find_experiment(client, store, study)
        found = list(search_all_runs(client, experiment.experiment_id, "tags.kind != ''"))
        summaries = [run for run in found if run.data.tags["kind"] == "summary"]
        if not summaries:
            raise InputError(f"study {study!r} was made by an older version: run it once more, then it can be read")
        newest = _run_record(max(summaries, key=lambda run: run.info.start_time))
        about = _about(store, study, newest)
        # An experiment may hold the runs of another Optuna database, and a run that was made a moment ago.
        keys = set(about.get("arm_keys", []))
        others = [
            run
            for run in found
            if run.data.tags.get(KEY_TAG, "").rpartition("/")[0] in keys
            and run.data.tags["kind"] != "summary"
            and "study" in run.data.params
        ]
        shown = {run.info.run_id for run in others if run.data.tags["kind"] == "confirmation"}
        records = []
        for run in others:
            wanted = curves if not shown or run.info.run_id in shown else []
            histories = {name: client.get_metric_history(run.info.run_id, name) for name in wanted}
            values = {
                name: [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
                for name, history in histories.items()
            }
            records.append(_run_record(run, values))
    return StudyRecord(experiment.experiment_id, newest, about, records)


def _about(store: Store, study: str, summary: RunRecord) -> dict[str, Any]:
    try:
        with run_file(store, summary, ABOUT_FILE) as path:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (InputError, ValueError):
        raise InputError(f"study {study!r}: its summary run has no readable {ABOUT_FILE}: run it once more") from None
    return about


def artifact_path(store: Store, run: RunRecord, name: str) -> Path:
    """Return where an artifact of a run is in a store that has its own; it may have been moved or copied."""
    assert store.has_own_tracking
    # MLflow stored an absolute address; its end is <study>/<run>/artifacts.
    study, run_folder, artifacts = run.artifact_uri.rstrip("/").split("/")[-3:]
    return store.artifacts(study) / run_folder / artifacts / name


@contextmanager
def run_file(store: Store, run: RunRecord, name: str) -> Iterator[Path]:
    """Give the path of a run's artifact, a file or a folder; see `artifact_path`.

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
    """Put files (name -> content) into a run's folder `report`, and set the run's description (markdown).

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    with mlflow_errors(store), tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        if store.has_own_tracking:  # which may have been moved
            target = artifact_path(store, _run_record(client.get_run(run_id)), REPORT_FOLDER)
            target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        if not store.has_own_tracking:
            client.log_artifacts(run_id, folder, REPORT_FOLDER)
        client.set_tag(run_id, NOTE_TAG, note)
