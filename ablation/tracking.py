"""All of MLflow but the registry: an experiment per study, a flat run per trial, a summary run with the report."""

import json
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

# Set before MLflow is imported: it would otherwise send usage statistics on its user's behalf.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A tracking server that does not answer is given up after 10 seconds; MLflow's own limits add up to many minutes. What
# it did not take is kept, so nothing is gained by trying again at once.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for every run that ends

import requests
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.version import VERSION

from ablation.interrupts import uninterrupted
from ablation.locks import POSTGRES_CONNECT_ARGS, opening
from ablation.outbox import Outbox
from ablation.spec import InputError, TrialSpec, first_line, nearest
from ablation.store import POSTGRESQL, Store, StoreAway, StoreError, build_database, sqlite_path

if TYPE_CHECKING:
    from ablation.train import EpochMetrics

CHECKPOINT_FILE = "checkpoint/best.safetensors"
PREDICTIONS_FILE = "test/predictions.safetensors"  # of a confirmation run
ABOUT_FILE = "about.json"  # of the summary run: what the report needs to know of the study besides its runs
SAMPLES_FILE = "samples.safetensors"  # of the summary run: training images that the report shows
RESUME_FOLDER = "resume"
REPORT_FOLDER = "report"  # of the summary run
KEY_TAG = "ablation.key"  # unique: finds a run again without having stored its id
NOTE_TAG = "mlflow.note.content"  # shown as a run's or an experiment's description
EXPERIMENT_NOTE_LIMIT = 5000  # characters; MLflow refuses longer ones
EPOCHS_PER_BATCH = 100  # MLflow takes 1,000 metrics in a batch; a batch is stored whole or not at all
POINTS_PER_BATCH = 10  # of system metrics, which are 8 and 5 for every GPU
NO_POINT = -1, 0  # step and timestamp (ms) before the first point of system metrics
AWAY_SECONDS = 10  # how long a server that did not answer is left alone

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]

logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it announces every table of a new database
logging.getLogger("alembic").setLevel(logging.WARNING)
# Else a GPU that does not tell everything, such as its power, is announced with every sample.
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # else a lost database prints pages of SQL
logger = logging.getLogger(__name__)


class Tracker:
    """A study's experiment in MLflow.

    While a tracking server does not answer, what belongs to a trial waits in the trial's folder; see `TrialRun`.
    """

    def __init__(self, client: MlflowClient, store: Store, study: str, question: str):
        """Find the study's experiment or make it, which must not be done by several processes at once.

        Raises:
            InputError: MLflow does not let us read or write.
        """
        self.client = client
        self._store = store
        self._away_until = 0.0  # time.monotonic(); a server that did not answer is left alone for a while
        self._run_ids: dict[str, str] = {}  # by key
        with _opening_errors(store):
            experiment = client.get_experiment_by_name(study)
            if experiment is None:
                try:
                    location = None if _is_server(store) else _artifact_location(store, study)
                    client.create_experiment(study, artifact_location=location, tags={NOTE_TAG: question})
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine may have been faster
                        raise
                experiment = client.get_experiment_by_name(study)
            assert experiment is not None
            self.key: str = experiment.tags.get(KEY_TAG) or uuid.uuid4().hex
            # Written although it may be there: who may only read finds out here, and not in the first trial.
            client.set_experiment_tag(experiment.experiment_id, KEY_TAG, self.key)
        self.experiment_id = experiment.experiment_id
        # Where other machines may take a trial over, they must find its resume checkpoint.
        is_local = experiment.artifact_location == store.artifacts(study).as_uri()
        self.shares_checkpoints = store.has_remote_optuna and not is_local

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Make calls to MLflow in this context.

        Raises:
            StoreAway: a tracking server does not answer, or did not a moment ago.
            StoreError: MLflow refuses the call, or its database in the store cannot be used.
        """
        if time.monotonic() < self._away_until:
            raise StoreAway("MLflow did not answer a moment ago")
        try:
            with mlflow_errors(self._store):
                yield
        except StoreAway as away:
            if self._away_until == 0.0:
                logger.warning("%s; what it should get is kept", away)
            self._away_until = time.monotonic() + AWAY_SECONDS
            raise
        if self._away_until:
            logger.warning("MLflow answers again")
            self._away_until = 0.0

    def trial_run(self, key: str, folder: Path, owner: str) -> "TrialRun":
        """Return the run of a trial.

        Args:
            key: the trial's alone, also among studies of the same name.
            folder: where to keep what the server does not take.
            owner: who claimed the trial: what an earlier owner kept is no use to a later one, who logs everything.
        """
        return TrialRun(self, key, Outbox(folder / f"outbox{owner}"))

    def run_id(self, key: str) -> str | None:
        """Return the id of the run that a key finds, None where there is none."""
        if key not in self._run_ids:
            found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if not found:
                return None
            self._run_ids[key] = found[0].info.run_id
        return self._run_ids[key]

    def find_or_create(self, key: str, name: str, tags: dict[str, str]) -> tuple[str, bool]:
        """Return the id of the run that a key finds, and whether it was made now; one that was ended is reopened."""
        run_id = self.run_id(key)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id, False
        tags = {**tags, KEY_TAG: key, "mlflow.source.name": "ablation.study", "mlflow.source.type": "LOCAL"}
        self._run_ids[key] = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        return self._run_ids[key], True

    def reconcile(self, statuses: Callable[[], Mapping[str, RunStatus | None]]) -> None:
        """Close runs that say they go on though their trial has ended, or though there is no such trial.

        That happens where another machine ended a trial for one that could not reach the tracking server any more, and
        where an older copy of Optuna's database was put back.

        Args:
            statuses: returns the status that each trial's run should have, by the trial's key; None for those that go
                on. Asked after the runs, because a trial is there before its run. Runs of other arms belong to another
                database and are left alone.

        Raises:
            StoreAway: the tracking server does not answer.
        """
        with self.calls():
            runs = list(_all_runs(self.client, self.experiment_id, "tags.kind != 'summary' and status != 'FINISHED'"))
            expected = statuses() if runs else {}
            arms = {key.rpartition("/")[0] for key in expected}
            for run in runs:
                key = run.data.tags.get(KEY_TAG, "")
                if key.rpartition("/")[0] not in arms:
                    continue
                status = expected.get(key, "FAILED")
                if status is not None and run.info.status != status:
                    self.client.set_terminated(run.info.run_id, status)

    def mark_superseded(self, keys: Iterable[str]) -> None:
        """Tag confirmation runs of configurations that are not their arm's best any more.

        Raises:
            StoreAway: the tracking server does not answer.
        """
        with self.calls():
            for run_id in [run_id for key in keys if (run_id := self.run_id(key)) is not None]:
                self.client.set_tag(run_id, "superseded", "true")

    def begin_summary(self, key: str, study: str, about: dict[str, Any], files: Mapping[str, bytes]) -> None:
        """Make the study's summary run, which `key` finds, or go on with it; `about` is what the report needs to know.

        Raises:
            StoreAway: the tracking server does not answer.
        """
        with self.calls(), tempfile.TemporaryDirectory() as folder:
            run_id, _ = self.find_or_create(key, f"{study} summary", {"study": study, "kind": "summary"})
            for name, content in {**files, ABOUT_FILE: json.dumps(about, indent=2).encode()}.items():
                path = Path(folder) / name
                path.write_bytes(content)
                self.client.log_artifact(run_id, str(path))

    def end_summary(self, key: str, status: RunStatus) -> None:
        """Close the summary run.

        Raises:
            StoreAway: the tracking server does not answer.
        """
        with self.calls():
            run_id = self.run_id(key)
            if run_id is not None:
                self.client.set_terminated(run_id, status)

    def describe(self, text: str) -> None:
        """Set the experiment's description (markdown).

        Raises:
            StoreAway: the tracking server does not answer.
        """
        with self.calls():
            self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, text[:EXPERIMENT_NOTE_LIMIT])


class SystemMonitor(SystemMetricsMonitor):
    """MLflow's monitor of processor, memory, disk, network and GPUs, which keeps what it measures until it is taken.

    MLflow's own asks the store for the run after every sample, from its thread, ends for good where it gets no answer,
    and drops what it measured since it last wrote: all there is of a short trial. This one's thread never writes.
    """

    def __init__(self, tracking_uri: str):
        """Prepare to measure every second and keep the mean of 10 seconds, unless MLflow's variables say otherwise."""
        super().__init__("", tracking_uri=tracking_uri)  # type: ignore[no-untyped-call]
        variables = ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING")
        if not any(os.environ.get(name) for name in variables):  # else MLflow's defaults are 10 seconds and 1 sample
            self.sampling_interval, self.samples_before_logging = 1, 10
        self._points: list[dict[str, Any]] = []

    def monitor(self) -> None:
        """Measure until `finish` is called, and then once more: what the thread does."""
        try:
            self._measure()
        except Exception as error:  # of the system or a driver: training is worth more than its metrics
            logger.warning("system metrics end here: they cannot be read (%s)", first_line(error))

    def _measure(self) -> None:
        self.collect_metrics()  # type: ignore[no-untyped-call]
        self._forget()  # of the processor's load only the next reading says something
        samples = 0
        is_last = False
        while not is_last:
            is_last = self._shutdown_event.wait(self.sampling_interval)
            self.collect_metrics()  # type: ignore[no-untyped-call]
            samples += 1
            if is_last or samples % self.samples_before_logging == 0:
                self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        for monitor in self.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Keep a point, the means of some samples."""
        prefix = f"system/{self.node_id}/" if self.node_id else "system/"
        values = {prefix + name: value for name, value in metrics.items()}
        self._points.append({"timestamp": int(time.time() * 1000), "values": values})
        self._forget()

    def take(self) -> list[dict[str, Any]]:
        """Return the points that were not taken yet, the oldest first."""
        taken = self._points[:]
        del self._points[: len(taken)]  # the thread may have added one
        return taken


class TrialRun:
    """A trial's run in MLflow, made or found again by the trial's key.

    What a server does not take now waits in the outbox and goes first when it answers again. Whatever is called can be
    called again: a process may die between a call and the note that it was made.
    """

    def __init__(self, tracker: Tracker, key: str, outbox: Outbox):
        self._tracker = tracker
        self._client = tracker.client
        self._key = key
        self._outbox = outbox
        self._passed_on = 0  # the last epoch that was logged or kept
        self._logged: int | None = None  # the last epoch that the run has; None while that is not known
        self._monitor: SystemMonitor | None = None
        self._last_point: tuple[int, int] | None = None  # step and timestamp (ms) of system metrics, likewise

    @property
    def run_id(self) -> str | None:
        """The run's id; None while the server that gives it has not answered."""
        return self._tracker._run_ids.get(self._key)

    def start(
        self, spec: TrialSpec, dataset_source: str, device: str, files: dict[str, str], environment: dict[str, str]
    ) -> None:
        """Make or reopen the run, with the trial's parameters, tags, data set and text files (name -> content).

        `environment` says what the trial begins with: versions, device, commit.

        What a process that died has kept is dropped, because everything is logged anew from here.
        """
        self._outbox.clear()
        tags = {
            "study": spec.study,
            "arm": spec.arm,
            "kind": "trial" if spec.confirms is None else "confirmation",
            "strategy": spec.strategy,
            "truncate_at": spec.truncate_at,
            "trial": str(spec.trial),
            "device": device,
            "environment": json.dumps(environment),
        }
        if "commit" in environment:
            tags["mlflow.source.git.commit"] = environment["commit"]
        dataset = {"source": dataset_source, "name": spec.data_source, "digest": spec.data_digest[:8]}
        self._do("start", tags=tags, params=spec.to_params(), dataset=dataset, files=files)

    def log_epochs(self, history: Iterable["EpochMetrics"]) -> None:
        """Log epochs; those that the run has already are left out, so that it never has a step twice."""
        new = [asdict(epoch) for epoch in history if epoch.epoch > self._passed_on]
        if new:
            self._do("log_epochs", epochs=new)
            self._passed_on = new[-1]["epoch"]
        self._log_measured()

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Measure what this machine does in this context, in a thread; it is logged with epochs and when the run ends.

        Where it cannot be measured, a warning says so.
        """
        try:
            self._monitor = SystemMonitor(self._client.tracking_uri)
            self._monitor.start()  # type: ignore[no-untyped-call]
        except Exception as error:  # of the system or a driver
            logger.warning("there will be no system metrics: they cannot be read (%s)", first_line(error))
        try:
            yield
        finally:
            if self._monitor is not None:
                self._monitor.finish()  # type: ignore[no-untyped-call]

    def _log_measured(self) -> None:
        points = self._monitor.take() if self._monitor is not None else []
        if points:
            self._do("log_system_metrics", points=points)

    def log_devices(self, devices: str) -> None:
        """Mark a trial that went on with another kind of device: its figures are not those of one alone, to the bit."""
        self._do("set_tag", tag="device", value=devices)

    def log_result(self, values: Mapping[str, float], timestamp: int, checkpoint: Path) -> None:
        """Log the figures of the best epoch, which ended at `timestamp` (ms), and its checkpoint."""
        self._do("log_result", checkpoint, values=dict(values), timestamp=timestamp)

    def log_test(self, values: Mapping[str, float], timestamp: int, predictions: Path) -> None:
        """Log the figures and the predictions of the test split."""
        self._do("log_result", predictions, values=dict(values), timestamp=timestamp, folder="test")

    def delete_checkpoint(self) -> None:
        """Delete the checkpoint of this run; one that has none stays as it is."""
        self._do("delete_checkpoint", key=self._key)

    def delete_checkpoint_of(self, number: int) -> None:
        """Delete the checkpoint of the run of a trial of this arm; one that has none stays as it is."""
        self._do("delete_checkpoint", key=f"{self._key.rpartition('/')[0]}/{number}")

    def end(self, status: RunStatus, reason: str = "") -> None:
        """Close the run; a reason becomes a tag and the run's description."""
        self._log_measured()
        self._do("end", status=status, reason=reason)

    def pause(self) -> None:
        """Mark the run as one that will go on: neither running nor ended."""
        self._log_measured()
        self._do("pause")

    def complete(self) -> bool:
        """Hand over what waits and delete the resume checkpoints of an ended trial; return whether all is done."""
        if not self.deliver():
            return False
        if not self._tracker.shares_checkpoints:
            return True
        try:
            with self._tracker.calls():
                run_id = self._tracker.run_id(self._key)
                if run_id is not None and self._resume_checkpoints(run_id):
                    _delete_artifact(self._client, run_id, RESUME_FOLDER)
        except StoreAway:
            return False
        return True

    def deliver(self) -> bool:
        """Hand over what waits, in order; return whether nothing is left.

        What waits for a run that was deleted in MLflow is dropped.

        Raises:
            StoreError: MLflow refuses it.
        """
        for entry in self._outbox.entries():
            try:
                with self._tracker.calls():
                    if entry.call != "start" and self._tracker.run_id(self._key) is None:
                        logger.warning("what waited for the MLflow run of trial %s is dropped: it is gone", self._key)
                        self._outbox.clear()
                        return True
                    _CALLS[entry.call](self, entry.file, **entry.arguments)
            except StoreAway:
                return False
            except StoreError as error:
                raise StoreError(f"{error}; what it refuses is in {entry.path}") from None
            self._outbox.remove(entry)
        return True

    def _do(self, call: str, file: Path | None = None, **arguments: Any) -> None:
        if self.deliver():
            try:
                with self._tracker.calls():
                    _CALLS[call](self, file, **arguments)
                return
            except StoreAway:
                pass
        self._outbox.add(call, arguments, file)

    # ----------------------------------------------------- what the calls do, now or when they are delivered

    def _required_run_id(self) -> str:
        run_id = self._tracker.run_id(self._key)
        assert run_id is not None, "a run is started before anything else is logged"
        return run_id

    def _start(
        self, _: None, tags: dict[str, str], params: dict[str, str], dataset: dict[str, str], files: dict[str, str]
    ) -> None:
        kind = "" if tags["kind"] == "trial" else f"{tags['kind']} "
        run_id, is_new = self._tracker.find_or_create(self._key, f"{tags['arm']} {kind}#{tags['trial']}", tags)
        self._logged = 0 if is_new else self._last_logged_epoch(run_id)
        self._last_point = NO_POINT if is_new else None
        self._client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()])
        run = None if is_new else self._client.get_run(run_id)
        for tag in ("reason", NOTE_TAG):  # of an end that Optuna was never told
            if run is not None and tag in run.data.tags:
                self._client.delete_tag(run_id, tag)
        if run is None or run.inputs is None or not run.inputs.dataset_inputs:
            entity = MetaDataset(  # type: ignore[abstract]
                CodeDatasetSource({"mlflow.source.name": dataset["source"]}),
                name=dataset["name"],
                digest=dataset["digest"],  # as short as those that MLflow computes
            )._to_mlflow_entity()
            self._client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
        for name, text in files.items():
            self._client.log_text(run_id, text, name)

    def _last_logged_epoch(self, run_id: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(run_id, "val_accuracy")), default=0)

    def _log_epochs(self, _: None, epochs: list[dict[str, Any]]) -> None:
        run_id = self._required_run_id()
        if self._logged is None:
            self._logged = self._last_logged_epoch(run_id)
        new = [epoch for epoch in epochs if epoch["epoch"] > self._logged]
        for start in range(0, len(new), EPOCHS_PER_BATCH):
            metrics = [
                Metric(name, value, epoch["timestamp"], epoch["epoch"])
                for epoch in new[start : start + EPOCHS_PER_BATCH]
                for name, value in epoch.items()
                if name not in ("epoch", "timestamp")
            ]
            self._client.log_batch(run_id, metrics=metrics)
            self._logged = metrics[-1].step

    def _log_system_metrics(self, _: None, points: list[dict[str, Any]]) -> None:
        """Log points that are later than those that the run has, under the steps that follow."""
        run_id = self._required_run_id()
        if self._last_point is None:
            history = self._client.get_metric_history(run_id, next(iter(points[0]["values"])))
            self._last_point = max(((metric.step, metric.timestamp) for metric in history), default=NO_POINT)
        last_step, last_timestamp = self._last_point
        later = [point for point in points if point["timestamp"] > last_timestamp]
        numbered = list(enumerate(later, start=last_step + 1))
        for start in range(0, len(numbered), POINTS_PER_BATCH):
            metrics = [
                Metric(name, value, point["timestamp"], step)
                for step, point in numbered[start : start + POINTS_PER_BATCH]
                for name, value in point["values"].items()
            ]
            self._client.log_batch(run_id, metrics=metrics)
            self._last_point = metrics[-1].step, metrics[-1].timestamp

    def _set_tag(self, _: None, tag: str, value: str) -> None:
        self._client.set_tag(self._required_run_id(), tag, value)

    def _log_result(
        self, file: Path | None, values: dict[str, float], timestamp: int, folder: str = "checkpoint"
    ) -> None:
        run_id = self._required_run_id()
        self._client.log_batch(run_id, metrics=[Metric(name, value, timestamp, 0) for name, value in values.items()])
        if file is not None:
            self._client.log_artifact(run_id, str(file), folder)

    def _delete_checkpoint(self, _: None, key: str) -> None:
        run_id = self._tracker.run_id(key)
        if run_id is not None:
            _delete_artifact(self._client, run_id, CHECKPOINT_FILE)

    def _end(self, _: None, status: RunStatus, reason: str) -> None:
        run_id = self._required_run_id()
        if reason:
            self._client.log_batch(run_id, tags=[RunTag("reason", reason), RunTag(NOTE_TAG, reason)])
        self._client.set_terminated(run_id, status)

    def _pause(self, _: None) -> None:
        run_id = self._tracker.run_id(self._key)
        if run_id is not None:  # else it was not even started
            self._client.update_run(run_id, status="SCHEDULED")

    # -------------------------------------------- resume checkpoints, for a machine that takes the trial over

    def upload_resume_checkpoint(self, path: Path) -> None:
        """Put a resume checkpoint into the run's artifacts, and delete older ones but the last.

        While the server does not answer, nothing is done: only the latest checkpoint is of use.
        """
        if not self.deliver():  # which may be what makes the run
            return
        with suppress(StoreAway), self._tracker.calls():
            run_id = self._required_run_id()
            self._client.log_artifact(run_id, str(path), RESUME_FOLDER)
            for name in self._resume_checkpoints(run_id)[2:]:
                _delete_artifact(self._client, run_id, name)

    def download_resume_checkpoints(self, folder: Path, after: str) -> Iterator[Path]:
        """Download the run's resume checkpoints into a folder, the last epoch's first.

        Args:
            folder: where to.
            after: the name of the newest file that is at hand; only newer ones are downloaded.
        """
        with suppress(StoreAway), self._tracker.calls():
            run_id = self._tracker.run_id(self._key)
            for name in self._resume_checkpoints(run_id) if run_id else []:
                if Path(name).name > after:
                    yield Path(self._client.download_artifacts(str(run_id), name, str(folder)))

    def _resume_checkpoints(self, run_id: str) -> list[str]:
        return sorted((file.path for file in self._client.list_artifacts(run_id, RESUME_FOLDER)), reverse=True)


# By the name under which they wait; a method's name may change, what waits on a disk may not.
_CALLS: dict[str, Callable[..., None]] = {
    "start": TrialRun._start,
    "log_epochs": TrialRun._log_epochs,
    "log_system_metrics": TrialRun._log_system_metrics,
    "set_tag": TrialRun._set_tag,
    "log_result": TrialRun._log_result,
    "delete_checkpoint": TrialRun._delete_checkpoint,
    "end": TrialRun._end,
    "pause": TrialRun._pause,
}


def _delete_artifact(client: MlflowClient, run_id: str, name: str) -> None:
    uri = client.get_run(run_id).info.artifact_uri
    get_artifact_repository(uri, tracking_uri=client.tracking_uri).delete_artifacts(name)  # type: ignore[no-untyped-call]


def _all_runs(client: MlflowClient, experiment_id: str, query: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment_id], query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def mlflow_errors(store: Store) -> Iterator[None]:
    """Raise what can go wrong with calls to MLflow as StoreAway (a server that may come back) or StoreError."""
    try:
        with uninterrupted():
            yield
    except (MlflowException, requests.RequestException, OSError) as error:
        reason = first_line(error)
        if store.has_remote_tracking and is_outage(error):
            raise StoreAway(f"MLflow does not answer ({reason})") from None
        raise StoreError(f"{_where(store)}: MLflow's store cannot be used ({reason})") from None


def is_outage(error: BaseException) -> bool:
    """Say whether a call failed because a server was not there, so that it may succeed later.

    MLflow's client raises the same class, with the same code as a server's fault, for whatever it refuses itself.
    """
    if isinstance(error, MlflowException):
        if type(error.__cause__).__name__ in ("OperationalError", "InterfaceError"):  # of a database
            return True
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        is_of_server = isinstance(error, RestException) or str(error).startswith("API request to")
        return is_of_server and (status >= 500 or error.error_code == "REQUEST_LIMIT_EXCEEDED")
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, requests.RequestException)


def _where(store: Store) -> str:
    return str(store.root / "mlflow.db") if store.has_own_tracking else "MLFLOW_TRACKING_URI"


def check_experiment(store: Store, study: str, key: str | None) -> None:
    """Refuse a study that could not log here, without changing anything.

    Args:
        store: where.
        study: its name.
        key: the key of the experiment that its trials were logged to, None where it has none.

    Raises:
        InputError: the store cannot be opened, its experiment was deleted or is elsewhere, or the store was moved.
    """
    client = open_client(store)
    with _opening_errors(store):
        experiment = client.get_experiment_by_name(study) if client is not None else None
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise InputError(f"the MLflow experiment {study!r} was deleted; restore it, or choose another --name")
    if key is not None and (experiment is None or experiment.tags.get(KEY_TAG) != key):
        raise InputError(
            f"the trials of study {study!r} were logged to another MLflow store than {_where(store)}; "
            "go on with that one, or choose another --name"
        )
    if experiment is None:
        return
    if store.has_own_tracking and experiment.artifact_location != store.artifacts(study).as_uri():
        raise InputError(
            f"--store: {store.root} is a copy, and MLflow keeps the address of its artifacts "
            f"({experiment.artifact_location}); it can be read here, but a study goes on where it was started"
        )


def open_client(store: Store, *, create: bool = False) -> MlflowClient | None:
    """Return a client on the store; None where a database has none of MLflow's tables, unless `create`.

    Raises:
        InputError: the store cannot be opened, or its server has another major version than this client.
    """
    # Otherwise MLflow makes ./mlruns for a default experiment that nobody asked for.
    os.environ.setdefault("MLFLOW_DEFAULT_ARTIFACT_ROOT", (store.root / "artifacts").as_uri())
    with _opening_errors(store), opening(store.tracking_uri, create=create):
        if not _is_server(store) and not create and not _has_tables(store):
            return None
        build_database(store.tracking_uri, lambda url: MlflowClient(url).search_experiments(max_results=1))
        client = MlflowClient(tracking_uri=_client_uri(store))
        theirs = _server_version(store) if _is_server(store) else VERSION
        client.search_experiments(max_results=1)  # whether it lets us
    if theirs.split(".")[0] != VERSION.split(".")[0]:
        raise InputError(f"MLFLOW_TRACKING_URI: the server is MLflow {theirs}, which does not go with MLflow {VERSION}")
    return client


@contextmanager
def _opening_errors(store: Store) -> Iterator[None]:
    """Raise what can go wrong while a store is opened as InputError, in one line."""
    import sqlalchemy.exc

    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"MLFLOW_TRACKING_URI: needs {error.name}; install ablation[postgresql]") from None
    except InputError:
        raise
    except (
        MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.RequestException, StoreAway, OSError, ValueError
    ) as error:  # fmt: skip
        reason = first_line(getattr(error, "orig", None) or error)
        raise InputError(f"{_where(store)}: cannot be opened as MLflow's store ({reason})") from None


def _client_uri(store: Store) -> str:
    """Return the address for MLflow's client: that of PostgreSQL says how long to wait for a server that is lost."""
    if not store.tracking_uri.startswith(POSTGRESQL):
        return store.tracking_uri
    mark = "&" if "?" in store.tracking_uri else "?"
    return f"{store.tracking_uri}{mark}{urlencode(POSTGRES_CONNECT_ARGS)}"


def _is_server(store: Store) -> bool:
    return store.tracking_uri.startswith(("http://", "https://"))


def _artifact_location(store: Store, study: str) -> str:
    """Return where a study's artifacts go, where clients write them themselves."""
    if store.has_own_tracking:
        return store.artifacts(study).as_uri()
    return f"{os.environ['MLFLOW_DEFAULT_ARTIFACT_ROOT'].rstrip('/')}/{study}"


def _server_version(store: Store) -> str:
    """Return a server's version, or ours where it does not say: then it is something else that speaks MLflow."""
    credentials = get_default_host_creds(store.tracking_uri)  # type: ignore[no-untyped-call]
    response = http_request(credentials, "/version", "GET")  # type: ignore[no-untyped-call]
    text = response.text.strip()
    return text if response.status_code == 200 and re.fullmatch(r"\d+\.\d+\S*", text) else VERSION


def _has_tables(store: Store) -> bool:
    import sqlalchemy

    if not store.has_remote_tracking:
        return sqlite_path(store.tracking_uri).exists()
    engine = sqlalchemy.create_engine(_client_uri(store))
    try:
        return bool(sqlalchemy.inspect(engine).has_table("experiments"))
    finally:
        engine.dispose()


# ------------------------------------------------------------------------------------------------------- reading


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


def reading_client(store: Store) -> MlflowClient:
    """Return a client on a store that holds something.

    Raises:
        InputError: the store cannot be opened, or is empty.
        StoreAway: the tracking server does not answer.
        StoreError: it answers with a fault.
    """
    if _is_server(store):
        with mlflow_errors(store):  # one that is away may come back, which `open_client` does not tell
            MlflowClient(tracking_uri=_client_uri(store)).search_experiments(max_results=1)
    client = open_client(store)
    if client is None:
        raise InputError(f"{_where(store)}: is no store, or an empty one")
    return client


def find_study(client: MlflowClient, store: Store, study: str) -> Experiment:
    """Return a study's experiment.

    Raises:
        InputError: there is no such study.
    """
    experiment = client.get_experiment_by_name(study)
    if experiment is None or KEY_TAG not in experiment.tags:
        known = [found.name for found in client.search_experiments() if KEY_TAG in found.tags]
        raise InputError(f"{_where(store)}: has no study {study!r}{nearest(study, known) if known else ''}")
    return experiment


def _record(run: Run, curves: dict[str, list[float]] | None = None) -> RunRecord:
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
        return _record(client.get_run(run_id))
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
        experiment = find_study(client, store, study)
        found = list(_all_runs(client, experiment.experiment_id, "tags.kind != ''"))
        summaries = [run for run in found if run.data.tags["kind"] == "summary"]
        if not summaries:
            raise InputError(f"study {study!r} was made by an older version: run it once more, then it can be read")
        newest = _record(max(summaries, key=lambda run: run.info.start_time))
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
            records.append(_record(run, values))
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
            target = artifact_path(store, _record(client.get_run(run_id)), REPORT_FOLDER)
            target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        if not store.has_own_tracking:
            client.log_artifacts(run_id, folder, REPORT_FOLDER)
        client.set_tag(run_id, NOTE_TAG, note)
