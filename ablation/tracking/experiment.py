"""A study's experiment in MLflow."""

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from mlflow.entities import Run, RunInfo, ViewType

from ablation.base.errors import StoreAway, StoreError
from ablation.base.retries import repeat_briefly
from ablation.storage.store import Store
from ablation.tracking.client import (
    AWAY_SECONDS,
    KEY_TAG,
    NOTE_TAG,
    PatientClient,
    RunStatus,
    artifact_location,
    is_server,
    opening_errors,
    search_all_runs,
)

logger = logging.getLogger(__name__)

EXPERIMENT_NOTE_LIMIT = 5000  # characters; MLflow refuses longer ones


class Tracker:
    """A study's experiment in MLflow.

    While a tracking server does not answer, the calls of a trial wait in the trial's folder; see `TrialRun`.

    Every method raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """

    def __init__(
        self, client: PatientClient, store: Store, study: str, question: str, experiment_id: str | None = None
    ):
        """Find the study's experiment or create it; only one process at a time may do this.

        One that was deleted is restored.

        Args:
            client: of the store's MLflow.
            store: where the study is.
            study: its name.
            question: of the study.
            experiment_id: its experiment, which somebody may have renamed; None where it is called like the study.

        Raises:
            InputError: MLflow refuses to read or write.
            StoreAway: the tracking server does not answer.
        """
        self.client = client
        self.study = study
        self.away: StoreAway | None = None  # why the server did not answer the last call
        self._away_until = 0.0  # time.monotonic(); no calls of trials until then
        self.run_infos: dict[str, RunInfo] = {}  # by key: of the runs in use; only their ids and begins stay true
        self.has_server = is_server(store)
        with opening_errors(store):
            by_name = experiment_id is None
            experiment = client.get_experiment_by_name(study) if by_name else client.get_experiment(experiment_id)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            if experiment is None:
                try:
                    location = None if self.has_server else artifact_location(store, study)
                    client.create_experiment(study, artifact_location=location, tags={NOTE_TAG: question})
                except StoreError as error:
                    if error.code != "RESOURCE_ALREADY_EXISTS":  # another machine may have been faster
                        raise
                experiment = client.get_experiment_by_name(study)
            assert experiment is not None
            self.key: str = experiment.tags.get(KEY_TAG) or uuid.uuid4().hex
            # Written even if it exists: a lack of permission shows here, and not in the first trial.
            client.set_experiment_tag(experiment.experiment_id, KEY_TAG, self.key)
        self.experiment_id = experiment.experiment_id
        # Another machine that takes a trial over must find its resume checkpoint.
        is_local = experiment.artifact_location == store.artifacts(study).as_uri()
        self.shares_checkpoints = store.has_remote_optuna and not is_local

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Pause the calls of trials, which can keep them, to a server that is away.

        Raises:
            StoreAway: the server does not answer, or did not answer a moment ago.
        """
        if self.away is not None and time.monotonic() < self._away_until:
            raise StoreAway(str(self.away))
        try:
            yield
        except StoreAway as away:
            if self.away is None:
                logger.warning("%s; results are kept until it does", away)
            self.away = away
            self._away_until = time.monotonic() + max(AWAY_SECONDS, away.retry_after)
            raise
        if self.away is not None:
            logger.warning("MLflow answers again")
            self.away = None

    def run_id(self, key: str) -> str | None:
        """Return the id of the run with a key; None where there is none."""
        if key not in self.run_infos:
            runs = self._runs(key)
            if not runs:
                return None
            self.run_infos[key] = max(runs, key=_completeness).info
        run_id: str = self.run_infos[key].run_id
        return run_id

    def was_deleted(self, key: str) -> bool:
        """Return whether a person has deleted the run with a key, which this process found or created before."""
        self.run_infos.pop(key, None)
        return self.run_id(key) is None

    def restored_run_id(self, key: str) -> str | None:
        """Return the id of the run with a key, None where there is none; one that a person has deleted is restored."""
        if self.was_deleted(key) and (deleted := self._runs(key, ViewType.DELETED_ONLY)):
            self.client.restore_run(max(deleted, key=_completeness).info.run_id)
        return self.run_id(key)

    def _runs(self, key: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        runs: list[Run] = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", view)
        return runs

    def delete_doubles(self, key: str) -> Run:
        """Delete all runs with a key but the one in use: a server may carry out a call after it was given up.

        Returns:
            The run in use.

        Raises:
            StoreError: a person has deleted it.
        """
        used = self.run_id(key)
        runs = {run.info.run_id: run for run in self._runs(key)}
        if used not in runs:
            raise StoreError(f"the MLflow run of {key} was deleted")
        for run_id in runs.keys() - {used}:
            self.client.delete_run(run_id)
        return runs[used]

    def find_or_create(self, key: str, name: str, tags: dict[str, str]) -> tuple[str, bool]:
        """Return the id of the run with a key, and whether the run is new; one that had ended is reopened."""
        tags = {**tags, KEY_TAG: key, "mlflow.source.name": "ablation.study", "mlflow.source.type": "LOCAL"}
        self.run_infos.pop(key, None)  # another process may have deleted it as a double

        def attempt() -> tuple[str, bool]:
            run_id = self.run_id(key)
            if run_id is not None:
                self.client.update_run(run_id, status="RUNNING")
                return run_id, False
            self.run_infos[key] = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info
            return self.run_infos[key].run_id, True

        return repeat_briefly(attempt)

    def end_run(self, run: RunInfo, status: RunStatus) -> None:
        """Close a run. Its end is not before its begin, though the clock may have been set back: MLflow shows both."""
        self.client.set_terminated(run.run_id, status, max(run.start_time, time.time_ns() // 1_000_000))

    def reconcile(self, statuses: Callable[[], Mapping[str, RunStatus | None]]) -> None:
        """Leave one run of every trial that has ended, and close those that are open.

        A run is open although its trial has ended, or does not exist, where another machine ended a trial for one that
        could not reach the tracking server any more, and where an older copy of Optuna's database was restored.

        Args:
            statuses: returns the status that each trial's run should have, by the trial's key; None for trials that
                have not ended. It is called after the runs are read, because a trial exists before its run. Runs of
                other arms belong to another database and are left alone.
        """
        runs_by_key: dict[str, list[Run]] = {}
        for run in search_all_runs(self.client, self.experiment_id, "tags.kind != 'summary'"):
            runs_by_key.setdefault(run.data.tags.get(KEY_TAG, ""), []).append(run)
        expected = statuses() if runs_by_key else {}
        arms = {key.rpartition("/")[0] for key in expected}
        for key, runs in runs_by_key.items():
            status = expected.get(key, "FAILED")
            if key.rpartition("/")[0] not in arms or status is None:
                continue
            run, *doubles = sorted(runs, key=_completeness, reverse=True)
            for double in doubles:
                self.client.delete_run(double.info.run_id)
            if run.info.status not in ("FINISHED", status):
                self.end_run(run.info, status)

    def mark_superseded(self, keys: Collection[str]) -> None:
        """Tag confirmation runs, by their keys, whose configuration is not their arm's best any more, once each."""
        query = "tags.superseded = 'true'"
        marked = search_all_runs(self.client, self.experiment_id, query) if keys else ()
        marked_keys = {run.data.tags.get(KEY_TAG) for run in marked}
        for key in keys:
            if key not in marked_keys and (run_id := self.run_id(key)) is not None:
                self.client.set_tag(run_id, "superseded", "true")

    def describe(self, text: str) -> None:
        """Set the experiment's description (markdown)."""
        self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, text[:EXPERIMENT_NOTE_LIMIT])


def _completeness(run: Run) -> tuple[bool, int, int, int]:
    """Return a key by which the run with the most in it is the last; of equals, the one that was created first."""
    data, info = run.data, run.info
    return info.status == "FINISHED", len(data.metrics), len(data.params), -info.start_time
