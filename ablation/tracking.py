"""All of MLflow: one experiment per study, one flat run per trial, and a summary run with the study's table."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# Set before MLflow is imported: it would otherwise send usage statistics on its user's behalf.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A tracking server that does not answer is given up after seconds; MLflow's own limits add up to many minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ablation.spec import InputError, TrialSpec, first_line
from ablation.store import Store, build_database

if TYPE_CHECKING:
    from ablation.train import EpochMetrics

CHECKPOINT_FILE = "checkpoint/best.safetensors"
KEY_TAG = "ablation.key"  # unique in the experiment: finds a run again without having stored its id
NOTE_TAG = "mlflow.note.content"  # shown as a run's or an experiment's description
METRICS_PER_BATCH = 1000  # MLflow's limit

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]

logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it announces every table of a new database
logging.getLogger("alembic").setLevel(logging.WARNING)


class Tracker:
    """A study's experiment in MLflow."""

    def __init__(self, store: Store, study: str, question: str):
        """Open MLflow's store, making it and the experiment where they do not exist; see `check_experiment`.

        Raises:
            InputError: the store cannot be opened.
        """
        self.client, experiment = open_experiment(store, study)
        if experiment is None:
            location = store.artifacts(study).as_uri() if store.has_own_tracking else None
            self.experiment_id = self.client.create_experiment(
                study, artifact_location=location, tags={NOTE_TAG: question}
            )
        else:
            self.experiment_id = experiment.experiment_id

    def start_trial(self, key: str, spec: TrialSpec, dataset_source: str, files: dict[str, str]) -> str:
        """Return the id of a trial's run, made or reopened, with its parameters, tags, data set and text files.

        `key` is the trial's alone, also among studies of the same name.
        """
        tags = {
            "study": spec.study,
            "arm": spec.arm,
            "kind": "trial",
            "strategy": spec.strategy,
            "truncate_at": spec.truncate_at,
            "trial": str(spec.trial),
        }
        run = self._find_or_create(key, f"{spec.arm} #{spec.trial}", tags)
        self.client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in spec.to_params().items()])
        if run.inputs is None or not run.inputs.dataset_inputs:
            dataset = MetaDataset(  # type: ignore[abstract]
                CodeDatasetSource({"mlflow.source.name": dataset_source}),
                name=spec.data_source,
                digest=spec.data_digest[:8],  # as short as those that MLflow computes
            )
            self.client.log_inputs(
                run.info.run_id,
                [DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])],
            )
        for name, text in files.items():
            self.client.log_text(run.info.run_id, text, name)
        return str(run.info.run_id)

    def _find_or_create(self, key: str, name: str, tags: dict[str, str]) -> Run:
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            if found[0].info.status != "RUNNING":
                self.client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]
        tags = {**tags, KEY_TAG: key, "mlflow.source.name": "ablation.study", "mlflow.source.type": "LOCAL"}
        return self.client.create_run(self.experiment_id, tags=tags, run_name=name)

    def log_epochs(self, run_id: str, history: Iterable["EpochMetrics"]) -> None:
        """Log epochs in one batch; logged again, they are dropped by MLflow as exact duplicates."""
        metrics = []
        for epoch in history:
            values = asdict(epoch)
            step, timestamp = values.pop("epoch"), values.pop("timestamp")
            metrics += [Metric(name, value, timestamp, step) for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])

    def log_result(self, run_id: str, best: "EpochMetrics", checkpoint: Path | None) -> None:
        """Log the best epoch's figures and, if given, its checkpoint."""
        values = {"best_val_accuracy": best.val_accuracy, "best_epoch": best.epoch}
        self.client.log_batch(run_id, metrics=[Metric(k, v, best.timestamp, 0) for k, v in values.items()])
        if checkpoint is not None:
            self.client.log_artifact(run_id, str(checkpoint), "checkpoint")

    def delete_checkpoint(self, run_id: str) -> None:
        """Delete a run's checkpoint; a run that has none stays as it is."""
        uri = self.client.get_run(run_id).info.artifact_uri
        get_artifact_repository(uri).delete_artifacts(CHECKPOINT_FILE)  # type: ignore[no-untyped-call]

    def end_run(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        """Close a run; a reason becomes a tag and the run's description."""
        if reason:
            self.client.log_batch(run_id, tags=[RunTag("reason", reason), RunTag(NOTE_TAG, reason)])
        self.client.set_terminated(run_id, status)

    def pause_run(self, run_id: str) -> None:
        """Mark a run as one that will go on: neither running nor ended."""
        self.client.update_run(run_id, status="SCHEDULED")

    def last_logged_epoch(self, run_id: str) -> int:
        """Return the last epoch that a run has, 0 where it has none."""
        return max((metric.step for metric in self.client.get_metric_history(run_id, "val_accuracy")), default=0)

    def write_summary(self, key: str, study: str, table: str) -> None:
        """Put the study's table into its summary run, which `key` finds."""
        run = self._find_or_create(key, f"{study} summary", {"study": study, "kind": "summary"})
        self.client.set_tag(run.info.run_id, NOTE_TAG, table)
        self.client.log_text(run.info.run_id, table, "summary.md")
        self.client.set_terminated(run.info.run_id, "FINISHED")


def check_experiment(store: Store, study: str) -> None:
    """Refuse a study that could not log here, without changing anything.

    Raises:
        InputError: the store cannot be opened, its experiment was deleted, or the store was moved.
    """
    if store.has_own_tracking and not (store.root / "mlflow.db").exists():
        return
    _, experiment = open_experiment(store, study)
    if experiment is None:
        return
    if experiment.lifecycle_stage == "deleted":
        raise InputError(f"the MLflow experiment {study!r} was deleted; restore it, or choose another --name")
    if store.has_own_tracking and experiment.artifact_location != store.artifacts(study).as_uri():
        raise InputError(
            f"--store: {store.root} is a copy, and MLflow keeps the address of its artifacts "
            f"({experiment.artifact_location}); it can be read here, but a study goes on where it was started"
        )


def open_experiment(store: Store, study: str) -> tuple[MlflowClient, Any]:
    """Return a client on the store and the study's experiment, None where there is none.

    Raises:
        InputError: the store cannot be opened.
    """
    import sqlalchemy.exc

    # Otherwise MLflow makes ./mlruns for a default experiment that nobody asked for.
    os.environ.setdefault("MLFLOW_DEFAULT_ARTIFACT_ROOT", str(store.root / "artifacts"))
    where = store.root / "mlflow.db" if store.has_own_tracking else "MLFLOW_TRACKING_URI"
    try:
        if store.has_own_tracking:
            build_database(store.root / "mlflow.db", lambda url: MlflowClient(url).search_experiments(max_results=1))
        client = MlflowClient(tracking_uri=store.tracking_uri)
        return client, client.get_experiment_by_name(study)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        raise InputError(f"{where}: cannot be opened as MLflow's store ({first_line(error)})") from None


def read_run(store: Store, run_id: str) -> Run:
    """Return a run of the store.

    Raises:
        InputError: there is no such run.
    """
    if store.has_own_tracking and not (store.root / "mlflow.db").exists():
        raise InputError(f"{store.root}: is no store, or an empty one")
    client, _ = open_experiment(store, "")
    try:
        return client.get_run(run_id)
    except MlflowException:
        raise InputError(f"{store.root}: has no MLflow run {run_id!r}") from None


@contextmanager
def run_file(store: Store, run: Run, name: str) -> Iterator[Path]:
    """Give the path of a run's artifact; one in the store is found there even if the store was moved or copied.

    Raises:
        InputError: the run has no such artifact.
    """
    import tempfile

    if store.has_own_tracking:
        # MLflow stored an absolute address; its end is <study>/<run>/artifacts.
        study, run_folder, artifacts = run.info.artifact_uri.rstrip("/").split("/")[-3:]
        path = store.artifacts(study) / run_folder / artifacts / name
        if not path.is_file():
            raise InputError(f"run {run.info.run_id} has no {name}: it did not end, or its checkpoint was not kept")
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        client = MlflowClient(tracking_uri=store.tracking_uri)
        try:
            path = Path(client.download_artifacts(run.info.run_id, name, folder))
        except (MlflowException, OSError) as error:
            raise InputError(f"run {run.info.run_id} has no {name} ({first_line(error)})") from None
        yield path
