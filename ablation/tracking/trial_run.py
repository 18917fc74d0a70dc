"""A trial's run in MLflow. Calls that a server does not answer wait in an outbox on disk."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ablation.base.errors import StoreAway, StoreError
from ablation.base.machine import describe_process
from ablation.base.text import escape_markdown, first_line
from ablation.spec.arms import Arm, arms
from ablation.spec.colours import arm_colours
from ablation.spec.metrics import EpochMetrics, flat_values
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.outbox import OF_ANOTHER, Entry, Outbox
from ablation.tracking.client import CHECKPOINT_FILE, COLOUR_TAG, NOTE_TAG, RunStatus, guarded
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import WORKER_TAG, checksum_tag, download, file_checksum
from ablation.tracking.run_names import SEED_TAG, run_title
from ablation.tracking.system_metrics import SystemMonitor

logger = logging.getLogger(__name__)

RESUME_FOLDER = "resume"

PER_BATCH = 10  # epochs, or points of system metrics: MLflow takes 1,000 metrics at once, and stores all or none


class TrialRun:
    """A trial's run in MLflow, created or found by the trial's key.

    A call that a server does not answer waits in the outbox; when the server answers again, the outbox is delivered
    first. Every call can be repeated: a process may die between a call and the note that it was made. Calls for a run
    that a person has deleted are dropped: the trial ends as it would have. One that is resumed has a new run.

    Args:
        tracker: the study's experiment.
        key: unique to the trial, also among studies of the same name.
        folder: of the outbox.
        owner: the claim's. A later owner logs everything, so that it has no use for the outbox of an earlier one.
        ensure_held: called before every call: a process that was frozen must not write over its successor. It raises
            StoreAway while nobody knows whose the trial is, and another error if it is no longer this process's.
    """

    def __init__(
        self, tracker: Tracker, key: str, folder: Path, owner: str, ensure_held: Callable[[], object] = lambda: None
    ):
        self._tracker = tracker
        self._client = tracker.client
        self._key = key
        self._outbox = Outbox(folder / f"outbox{owner}")
        self._ensure_held = ensure_held
        self._last_passed_epoch = 0  # the last epoch that was logged or kept
        self._last_logged: int | None = None  # the last epoch of the run in MLflow; None until it is read
        self._monitor: SystemMonitor | None = None
        self._points: list[int] | None = None  # timestamps (ms) of the points in MLflow, by step; None until read
        self._has_no_result = False  # surely: this process has created the run, and logged none
        self._is_deleted = False  # whether a person has deleted the run in MLflow

    @property
    def run_id(self) -> str | None:
        """The run's id; None until the server that creates the run has answered."""
        info = self._tracker.run_infos.get(self._key)
        return None if info is None else info.run_id

    def start(
        self,
        spec: TrialSpec,
        study: StudySpec,
        arm: Arm,
        device: str,
        files: dict[str, str],
        environment: dict[str, str],
    ) -> None:
        """Create or reopen the run, with the trial's parameters, tags, data set and text files.

        The outbox of a process that died is dropped, because everything is logged again from here.

        Args:
            spec: the trial's.
            study: which it belongs to.
            arm: which it belongs to.
            device: the kind of device.
            files: name -> content.
            environment: versions, device and commit with which the trial begins.
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
            WORKER_TAG: json.dumps(describe_process()),
            SEED_TAG: str(spec.seed),
            COLOUR_TAG: arm_colours(arms(study))[arm.name],
            **({} if spec.repeat is None else {"repeat": str(spec.repeat)}),
        }
        if "commit" in environment:
            tags["mlflow.source.git.commit"] = environment["commit"]
        source = study.data.manifest or study.data.root or study.data.source
        dataset = {"source": source, "name": spec.data_source, "digest": spec.data_digest[:8]}
        params = {**spec.to_params(), "seed": str(spec.trial + 1)}  # a small number, for charts and tables
        name = run_title(arm, spec.trial, is_confirmation=spec.confirms is not None, repeat=spec.repeat)
        self._do("start", name=name, tags=tags, params=params, dataset=dataset, files=files)

    def log_epochs(self, history: Iterable[EpochMetrics]) -> None:
        """Log epochs; those that the run already has are left out, so that no step is logged twice."""
        new = [asdict(epoch) for epoch in history if epoch.epoch > self._last_passed_epoch]
        if new:
            self._do("log_epochs", epochs=new)
            self._last_passed_epoch = new[-1]["epoch"]
        self._log_points()

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Measure the use of this machine in this context, in a thread; points are logged with epochs and at the end.

        A failure to measure is a warning.
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

    def _log_points(self) -> None:
        points = self._monitor.pop_points() if self._monitor is not None else []
        if points:
            self._do("log_system_metrics", points=points)

    def log_devices(self, devices: str) -> None:
        """Mark a trial that resumed on another kind of device: its metrics are not those of one device, to the bit."""
        self._do("set_tag", tag="device", value=devices)

    def log_result(self, values: Mapping[str, float], timestamp: int, checkpoint: Path) -> None:
        """Log the metrics of the best epoch, which ended at `timestamp` (ms), and its checkpoint."""
        self._do("log_result", checkpoint, values=dict(values), timestamp=timestamp)

    def log_test(self, values: Mapping[str, float], timestamp: int, predictions: Path) -> None:
        """Log the metrics and the predictions of the test split."""
        self._do("log_result", predictions, values=dict(values), timestamp=timestamp, folder="test")

    def log_picture(self, path: Path) -> None:
        """Log a picture of the test, which the MLflow UI shows among the run's files."""
        self._do("log_result", path, values={}, timestamp=0, folder="test")

    def delete_checkpoint(self, key: str) -> None:
        """Delete the checkpoint of the run of a trial of this arm, if it has one."""
        self._do("delete_checkpoint", key=key)

    def end(self, status: RunStatus, reason: str = "") -> None:
        """Close the run; a reason becomes a tag and the run's description."""
        self._log_points()
        self._do("end", status=status, reason=reason)

    def pause(self) -> None:
        """Mark the run as one that will resume: neither running nor ended."""
        self._log_points()
        self._do("pause")

    def complete(self) -> bool:
        """Deliver the outbox and delete the resume checkpoints of an ended trial; return whether both succeeded."""
        if not self.deliver():
            return False
        if not self._tracker.shares_checkpoints:
            return True
        try:
            with self._tracker.calls():
                run_id = self._tracker.run_id(self._key)
                if run_id is not None and self._resume_checkpoints(run_id):
                    self._delete_artifact(run_id, RESUME_FOLDER)
        except StoreAway:
            return False
        return True

    def deliver(self) -> bool:
        """Deliver the calls in the outbox, in order; return whether the outbox is empty.

        Raises:
            StoreError: MLflow refuses a call.
        """
        try:
            self._ensure_held()
            for entry in self._outbox.entries():
                self._deliver(entry)
                self._outbox.remove(entry)
                self._ensure_held()
        except StoreAway:
            return False
        return True

    def _deliver(self, entry: Entry) -> None:
        """Make a call that waits in the outbox.

        Raises:
            StoreAway: the server does not answer, or another process, which owns the trial now, makes the calls.
            StoreError: MLflow refuses it.
        """
        try:
            self._make(entry.call, entry.file, entry.arguments)
        except (FileNotFoundError, StoreError) as error:
            if not entry.path.exists():
                raise StoreAway(OF_ANOTHER) from None
            if isinstance(error, FileNotFoundError):
                raise
            raise StoreError(f"{error}; the refused call is in {entry.path}") from None

    def _do(self, call: str, file: Path | None = None, **arguments: Any) -> None:
        if self.deliver():
            with suppress(StoreAway):
                self._make(call, file, arguments)
                return
        self._outbox.add(call, arguments, file)

    def _make(self, call: str, file: Path | None, arguments: Mapping[str, Any]) -> None:
        """Make a call, unless it is for a run that was deleted in MLflow.

        Raises:
            StoreAway: the server does not answer.
            StoreError: MLflow refuses it.
        """
        with self._tracker.calls(), guarded(self._ensure_held):
            # A trial may be paused before its run exists.
            if call in ("start", "pause") or self._tracker.run_id(self._key) is not None:
                try:
                    _CALLS[call](self, file, **arguments)
                    return
                except StoreError:
                    if call == "start" or not self._tracker.was_deleted(self._key):
                        raise
        if not self._is_deleted:
            self._is_deleted = True
            logger.warning("the MLflow run of trial %s was deleted; its results are dropped", self._key)

    # ------------------------------------------------------------- the calls, made now or when they are delivered

    def _required_run_id(self) -> str:
        run_id = self._tracker.run_id(self._key)
        assert run_id is not None, "a run is started before anything else is logged"
        return run_id

    def _start(
        self,
        _: None,
        tags: dict[str, str],
        params: dict[str, str],
        dataset: dict[str, str],
        files: dict[str, str],
        name: str,
    ) -> None:
        run_id, is_new = self._tracker.find_or_create(self._key, name, tags)
        self._last_logged = 0 if is_new else self._last_logged_epoch(run_id)
        self._points = [] if is_new else None
        run = None if is_new else self._client.get_run(run_id)
        self._has_no_result = is_new
        if run is not None:
            self._client.set_tag(run_id, WORKER_TAG, tags[WORKER_TAG])
            for tag in {"reason", NOTE_TAG} & {*run.data.tags}:  # of an end that did not reach Optuna
                self._client.delete_tag(run_id, tag)
        self._client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()])
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
        if self._last_logged is None:
            self._last_logged = self._last_logged_epoch(run_id)
        new = [epoch for epoch in epochs if epoch["epoch"] > self._last_logged]
        for batch in _batches(new):
            metrics = [
                Metric(name, value, epoch["timestamp"], epoch["epoch"])
                for epoch in batch
                for name, value in flat_values(epoch)
            ]
            self._client.log_batch(run_id, metrics=metrics)
            self._last_logged = batch[-1]["epoch"]

    def _log_system_metrics(self, _: None, points: list[dict[str, Any]]) -> None:
        """Log the points that the run does not have yet, under the next steps, whatever time their clock showed."""
        run_id = self._required_run_id()
        logged, self._points = self._points, None  # after Ctrl-C in a call, they are read again
        if logged is None:
            history = self._client.get_metric_history(run_id, next(iter(points[0]["values"])))
            logged = [metric.timestamp for metric in history]
        new = [point for point in points if point["timestamp"] not in logged]
        for batch in _batches(new):
            metrics = [
                Metric(name, value, point["timestamp"], step)
                for step, point in enumerate(batch, start=len(logged))
                for name, value in point["values"].items()
            ]
            self._client.log_batch(run_id, metrics=metrics)
            logged += [point["timestamp"] for point in batch]
        self._points = logged

    def _set_tag(self, _: None, tag: str, value: str) -> None:
        self._client.set_tag(self._required_run_id(), tag, value)

    def _log_result(
        self, file: Path | None, values: dict[str, float], timestamp: int, folder: str = "checkpoint"
    ) -> None:
        run_id = self._required_run_id()
        metrics, tags = [], []
        if values:  # a trial that is trained again, because Optuna's database was older, adds no second points
            logged = {} if self._has_no_result else self._client.get_run(run_id).data.metrics
            metrics = [Metric(name, value, timestamp, 0) for name, value in values.items() if name not in logged]
        if file is not None:
            self._client.log_artifact(run_id, str(file), folder)
            if file.suffix == ".safetensors":  # what is read again; pictures are for people
                tags = [RunTag(checksum_tag(f"{folder}/{file.name}"), file_checksum(file))]
        if metrics or tags:
            self._client.log_batch(run_id, metrics=metrics, tags=tags)
            self._has_no_result = False

    def _delete_checkpoint(self, _: None, key: str) -> None:
        run_id = self._tracker.run_id(key)
        if run_id is not None:
            self._delete_artifact(run_id, CHECKPOINT_FILE)

    def _end(self, _: None, status: RunStatus, reason: str) -> None:
        if self._tracker.has_server:  # else no call is carried out after it was given up
            self._tracker.delete_doubles(self._key)
        if reason:
            notes = [RunTag("reason", reason), RunTag(NOTE_TAG, escape_markdown(reason))]
            self._client.log_batch(self._required_run_id(), tags=notes)
        self._tracker.end_run(self._tracker.run_infos[self._key], status)

    def _pause(self, _: None) -> None:
        run_id = self._tracker.run_id(self._key)
        if run_id is not None:  # otherwise it was not even started
            self._client.update_run(run_id, status="SCHEDULED")

    # -------------------------------------------- resume checkpoints, for another machine that takes the trial over

    def upload_resume_checkpoint(self, path: Path) -> None:
        """Upload a resume checkpoint to the run's artifacts, and delete all older ones but the last.

        While the server does not answer, nothing is done: only the latest checkpoint is of use.
        """
        if not self.deliver():  # may create the run
            return
        with suppress(StoreAway), self._tracker.calls(), guarded(self._ensure_held):
            run_id = self._tracker.run_id(self._key)
            if run_id is None:  # it was deleted in MLflow
                return
            self._client.log_artifact(run_id, str(path), RESUME_FOLDER)
            for name in self._resume_checkpoints(run_id)[2:]:
                self._delete_artifact(run_id, name)

    def download_resume_checkpoints(self, folder: Path, after: str) -> Iterator[Path]:
        """Download the run's resume checkpoints into a folder, the last epoch's first; yield their paths.

        Args:
            folder: where to put them.
            after: the name of the newest local checkpoint; only newer ones are downloaded.
        """
        with suppress(StoreAway), self._tracker.calls():
            run_id = self._tracker.run_id(self._key)
            for name in self._resume_checkpoints(run_id) if run_id else []:
                if Path(name).name > after:
                    address = self._client.get_run(run_id).info.artifact_uri
                    if (path := download(self._client, address, name, folder)) is not None:
                        yield path

    def _delete_artifact(self, run_id: str, name: str) -> None:
        address = self._client.get_run(run_id).info.artifact_uri
        repository = get_artifact_repository(address, tracking_uri=self._client.tracking_uri)
        self._client.ask(lambda: repository.delete_artifacts(name))  # type: ignore[no-untyped-call]

    def _resume_checkpoints(self, run_id: str) -> list[str]:
        return sorted((file.path for file in self._client.list_artifacts(run_id, RESUME_FOLDER)), reverse=True)


def _batches(items: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    return (items[start : start + PER_BATCH] for start in range(0, len(items), PER_BATCH))


# By their names in an outbox: a method may be renamed, but not these, which are on users' disks.
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
