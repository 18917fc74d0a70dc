"""The trials that train now: which worker has each, since when, and its last sign of life."""

from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.text import Table
from ablation.search.studies import ArmStudies, TrialRecord, trial_key
from ablation.storage.store import Store
from ablation.tracking.reading import OpenRun, read_open_runs


@dataclass(frozen=True)
class RunningTrial:
    """A trial whose lock a process holds, and what its MLflow run says of that process; "-" for what is not known."""

    trial: str
    """Its name, such as 'block1,fine_tune_all #3'."""
    host: str
    process: str
    """The process's number on its host."""
    job: str
    """The engine's id of the worker, see `JOB_VARIABLE`."""
    since: str
    """When the trial began first."""
    last_sign: str
    """When the last epoch ended that it has logged, at most 15 seconds and an epoch ago while it lives."""


def running_trials(
    study: str, store: Store, studies: ArmStudies, trials: dict[str, list[TrialRecord]]
) -> list[RunningTrial]:
    """Return the running trials of a study, in the order of its arms; `trials` are those of `trial_records`."""
    running = [record for records in trials.values() for record in records if record.state == "running"]
    if not running:
        return []
    try:
        runs = read_open_runs(store, study)
    except (InputError, StoreAway, StoreError):  # their workers write them when MLflow is back
        runs = {}
    return [_running_trial(studies, record, runs) for record in running]


def _running_trial(studies: ArmStudies, record: TrialRecord, runs: dict[str, OpenRun]) -> RunningTrial:
    study = (studies.tuning if record.confirms is None else studies.confirmation)[record.arm]
    run = runs.get(trial_key(study, record.number), OpenRun({}, None, None))
    worker: dict[str, Any] = run.worker
    return RunningTrial(
        trial=record.name,
        host=str(worker.get("host", "-")),
        process=str(worker.get("process", "-")),
        job=str(worker.get("job", "-")),
        since=_time(run.began),
        last_sign=_time(run.last_epoch),
    )


def _time(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000).isoformat(timespec="seconds")


def running_table(running: list[RunningTrial]) -> Table:
    """Return the table of the running trials, for `--status`."""
    rows = [list(astuple(trial)) for trial in running]
    columns = ["trial", "host", "process", "job", "since", "last epoch"]
    return Table("Running trials", columns, rows, optional=["job", "since"])
