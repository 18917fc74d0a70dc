"""A study's runs, read back from MLflow."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.storage.store import Store
from ablation.tracking.client import (
    KEY_TAG,
    NOTE_TAG,
    REPORT_FOLDER,
    STUDY_FILE,
    PatientClient,
    find_experiment,
    reading_client,
    search_all_runs,
)
from ablation.tracking.run_names import SEED_TAG


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow has it; `metrics` holds the last value of each, and the parameter `seed` is that of training."""

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
    params = {**data.params, **({"seed": data.tags[SEED_TAG]} if SEED_TAG in data.tags else {})}
    return RunRecord(run.info.run_id, run.info.status, data.tags, params, data.metrics, run.info.artifact_uri)


def read_run(store: Store, run_id: str) -> RunRecord:
    """Return a run of the store.

    Raises:
        InputError: there is no such run.
        StoreAway: the tracking server does not answer.
    """
    client = reading_client(store)
    try:
        return _run_record(client.get_run(run_id))
    except StoreError:
        raise InputError(f"{store.root}: has no MLflow run {run_id!r}") from None


def read_study(store: Store, study: str) -> StudyRecord:
    """Return a study's runs.

    Raises:
        InputError: the store cannot be opened, or has no such study.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
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
    _check_keys(study, records)
    return StudyRecord(experiment.experiment_id, newest, about, records)


def _check_keys(study: str, records: Iterable[RunRecord]) -> None:
    """Refuse results in which a trial has two runs.

    Raises:
        StoreError: names the trial.
    """
    counts = Counter(record.tags[KEY_TAG] for record in records)
    for record in records:
        tags = record.tags
        if counts[tags[KEY_TAG]] > 1:
            raise StoreError(
                f"study {study!r}: {tags['kind']} #{tags.get('trial')} of arm {tags.get('arm')} has "
                f"{counts[tags[KEY_TAG]]} MLflow runs; run the study once more, which deletes the doubles"
            )


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
        file = download(PatientClient(store), run.artifact_uri, name, Path(folder))
        if file is None:
            raise InputError(f"run {run.run_id} has no {name}: it did not end, or its checkpoint was not kept")
        yield file


def download(client: PatientClient, address: str, name: str, folder: Path) -> Path | None:
    """Download an artifact, a file or a folder, and check the sizes of its files.

    Args:
        client: of the store.
        address: of the artifacts, as MLflow stored it.
        name: the artifact's; "" is all that the address has.
        folder: where to put it.

    Returns:
        Its path; None if there is no such artifact.

    Raises:
        StoreAway: the server does not answer, or an answer was cut.
        StoreError: it refuses, or the folder cannot be written.
    """
    repository = client.ask(lambda: get_artifact_repository(address, tracking_uri=client.tracking_uri))
    sizes = _file_sizes(client, repository, name)
    if not sizes:
        return None

    def attempt() -> None:
        repository.download_artifacts(name, str(folder))  # type: ignore[no-untyped-call]
        for path, size in sizes.items():
            if size is not None and (folder / path).stat().st_size != size:
                raise StoreAway(f"MLflow does not answer (the download of {path} was cut)")

    client.ask(attempt)
    return folder / name


def _file_sizes(client: PatientClient, repository: ArtifactRepository, name: str) -> dict[str, int | None]:
    """Return the files of an artifact with their sizes in bytes, None where they are not known."""
    if name:
        parent = str(Path(name).parent)
        entries = client.ask(lambda: repository.list_artifacts(None if parent == "." else parent))
        file = next((entry for entry in entries if entry.path == name), None)
        if file is None or not file.is_dir:
            return {} if file is None else {name: file.file_size}
    sizes: dict[str, int | None] = {}
    for entry in client.ask(lambda: repository.list_artifacts(name or None)):
        sizes |= _file_sizes(client, repository, entry.path) if entry.is_dir else {entry.path: entry.file_size}
    return sizes


def log_report(store: Store, run_id: str, files: Mapping[str, bytes], note: str) -> None:
    """Put files (name -> content) into a run's artifact folder `report`, and set the run's description (Markdown).

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        if store.has_own_tracking:  # it may have been moved, so that MLflow has another address
            target = artifact_path(store, _run_record(client.get_run(run_id)), REPORT_FOLDER)
            target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        if not store.has_own_tracking:
            client.log_artifacts(run_id, folder, REPORT_FOLDER)
        client.set_tag(run_id, NOTE_TAG, note)
