"""A study's summary run: its report, its description, its forecast, and what is noted of the study as a whole."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric

from ablation.base.errors import StoreError
from ablation.base.files import temporary_folder
from ablation.tracking.client import ABOUT_FILE, FORECAST_FILE, RunStatus
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import download


class SummaryRun:
    """The summary run of a study's experiment; if a person has deleted it, the next call restores it.

    Every method raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used, or lacks the run, which was deleted for good.
    """

    def __init__(self, tracker: Tracker, key: str):
        """Name the run with a key; `begin` creates it."""
        self.tracker = tracker
        self.key = key

    def find(self) -> str | None:
        """Return the run's id; None before it exists."""
        return self.tracker.restored_run_id(self.key)

    def _required_id(self) -> str:
        run_id = self.find()
        if run_id is None:
            raise StoreError("the study's summary run was deleted for good: run the same command again")
        return run_id

    def begin(self, about: dict[str, Any], files: Mapping[str, bytes]) -> None:
        """Create or reopen the run.

        Args:
            about: the study's content, for the report; becomes the file `ABOUT_FILE`.
            files: other files of the run, name -> content.
        """
        self.find()
        study = self.tracker.study
        self.tracker.find_or_create(self.key, f"{study} summary", {"study": study, "kind": "summary"})
        for name, content in {**files, ABOUT_FILE: json.dumps(about, indent=2).encode()}.items():
            self.log_file(name, content)

    def tags(self) -> dict[str, str]:
        """Return the run's tags; none before it exists."""
        run_id = self.find()
        return {} if run_id is None else dict(self.tracker.client.get_run(run_id).data.tags)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags in their order."""
        run_id = self._required_id()
        for name, value in tags.items():
            self.tracker.client.set_tag(run_id, name, value)

    def log_file(self, name: str, content: bytes) -> None:
        """Log a file; one of the same name is replaced."""
        with temporary_folder() as folder:
            path = folder / name
            path.write_bytes(content)
            self.tracker.client.log_artifact(self._required_id(), str(path))

    def forecast(self) -> str | None:
        """Return the study's forecast as `log_forecast` logged it; None if it has not."""
        run_id = self.find()
        if run_id is None:
            return None
        address = self.tracker.client.get_run(run_id).info.artifact_uri
        with temporary_folder() as folder:
            file = download(self.tracker.client, address, FORECAST_FILE, folder)
            return None if file is None else file.read_text(encoding="utf-8")

    def log_forecast(self, table: str, metrics: Mapping[str, Sequence[float]]) -> None:
        """Log the study's forecast: a table, which the MLflow UI shows, and metrics.

        Args:
            table: JSON with `columns` and `data`, as `MlflowClient.log_table` writes it.
            metrics: name -> values, logged under the steps 1, 2, ...; those that the run has already are left out,
                because a process may have died between them and the table.
        """
        client, run_id = self.tracker.client, self._required_id()
        known = client.get_run(run_id).data.metrics
        now = time.time_ns() // 1_000_000
        points = [
            Metric(name, value, now, step)
            for name, values in metrics.items()
            if name not in known
            for step, value in enumerate(values, start=1)
        ]
        client.log_batch(run_id, metrics=points)
        tables = json.dumps([{"path": FORECAST_FILE, "type": "table"}])  # not log_table, which appends to a table
        client.set_tag(run_id, "mlflow.loggedArtifacts", tables)
        self.log_file(FORECAST_FILE, table.encode())

    def end(self, status: RunStatus) -> None:
        """Close the run."""
        if self.find() is not None:
            self.tracker.end_run(self.tracker.delete_doubles(self.key).info, status)

    def pause(self) -> None:
        """Mark the run as one that will resume, unless another process has ended it."""
        run_id = self.find()
        if run_id is not None and self.tracker.client.get_run(run_id).info.status == "RUNNING":
            self.tracker.client.update_run(run_id, status="SCHEDULED")
