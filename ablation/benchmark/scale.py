"""A study whose trainings return at once: what a trial costs beside its training, as a store and its workers grow."""

import contextlib
import io
import multiprocessing
import statistics
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import Any
from unittest import mock

from ablation.analysis.results import read_results
from ablation.running import trial as trials
from ablation.running.options import RunOptions
from ablation.running.repair import stored_differences
from ablation.running.session import Session, open_session
from ablation.running.study import begin_summary
from ablation.running.trial import Outcome
from ablation.running.workbench import Workbench
from ablation.running.worker import work_until_done
from ablation.search import configure_optuna
from ablation.search.claims import Claim, report_epochs
from ablation.search.status import trial_records
from ablation.search.studies import ArmStudies, open_storage, study_arms
from ablation.spec.metrics import EpochMetrics
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.database_use import connections, database_bytes
from ablation.storage.locks import open_locks
from ablation.storage.store import Store
from ablation.tracking import configure_mlflow
from ablation.tracking.trial_run import TrialRun

ARMS = ("block1", "block2", "block3", "block4", "block5")


def simulated_spec(count: int) -> StudySpec:
    """Return a study of five arms and `count` trials in all, none of which is confirmed."""
    return StudySpec.model_validate(
        {
            "name": f"scale-{uuid.uuid4().hex[:8]}",  # servers may have the one of an earlier measurement
            "question": "What does a trial cost?",
            "trials_per_arm": max(1, count // len(ARMS)),
            "epochs": 1,
            "backbone": {"name": "vgg16", "weights": None},
            "data": {"source": "digits", "limit": 200},
            "fixed": {"strategy": "from_scratch"},
            "factors": {"truncate_at": list(ARMS)},
            "search": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}},
            "confirm": {"seeds": 0},
        }
    )


def no_training(
    workbench: Workbench,
    claim: Claim,
    spec: TrialSpec,
    run: TrialRun,
    on_epoch: Callable[[TrialSpec, EpochMetrics], None],
) -> Outcome:
    """Take the place of a trial's training: log an epoch and an empty checkpoint, at once."""
    del workbench
    accuracy = 0.5 + claim.trial.number % 100 / 1000
    now = time.time_ns() // 1_000_000
    epoch = EpochMetrics(1, 1.0, accuracy, 1.0, accuracy, 0.01, 1000.0, now, accuracy, accuracy)
    on_epoch(spec, epoch)
    run.log_epochs([epoch])
    report_epochs(claim, [epoch], spec.goal)
    checkpoint = claim.folder / "best.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(b"")
    values = {"best_val_accuracy": accuracy, "best_epoch": 1, "trained_parameters": 1, "training_seconds": 0.0}
    run.log_result(values, now, checkpoint)
    return Outcome("finished", accuracy)


def work(store: Store, content: dict[str, Any]) -> list[float]:
    """Run trials of the simulated study with this content until none is left.

    Returns:
        Each trial's seconds of the processor, from its training to that of the next one.
    """
    configure_mlflow()
    configure_optuna()
    used: list[float] = []

    def train(*arguments: Any) -> Outcome:
        used.append(time.process_time())
        return no_training(*arguments)

    with mock.patch.object(trials, "_train_and_record", train), contextlib.redirect_stdout(io.StringIO()):
        work_until_done(_open(store, StudySpec(**content), is_worker=True))
    return [after - before for before, after in pairwise(used)]


def _open(store: Store, spec: StudySpec, *, is_worker: bool) -> Session:
    return open_session(spec, store, RunOptions(device_name="cpu"), is_worker=is_worker)


def scale(store: Store, count: int, workers: int) -> dict[str, Any]:
    """Run a simulated study in a new store, and measure it.

    Args:
        store: where; its databases may be servers.
        count: the number of trials.
        workers: the number of processes; one works in this process.
    """
    spec = simulated_spec(count)
    with contextlib.redirect_stdout(io.StringIO()):
        begin_summary(_open(store, spec, is_worker=False))
    used: list[float] = []
    with connections(store) as most:
        if workers == 1:
            used = work(store, spec.model_dump(mode="json"))
        else:
            run_processes(store, spec, workers)
    storage = open_storage(store)
    assert storage is not None
    studies = study_arms(storage, spec.name)
    starts = sorted(t.datetime_start.timestamp() for s in studies.all() for t in s.trials if t.datetime_start)
    cycles = [after - before for before, after in pairwise(starts)]
    tenth = max(1, len(cycles) // 10)
    return {
        "trials": len(starts),
        "workers": workers,
        "claims_per_second": len(cycles) / (starts[-1] - starts[0]),
        "first_tenth_seconds": statistics.median(cycles[:tenth]),
        "last_tenth_seconds": statistics.median(cycles[-tenth:]),
        "processor_seconds": statistics.median(used[-tenth:]) if used else None,
        "status_seconds": _seconds(lambda: _status(store, studies, spec.name)),
        "results_seconds": _seconds(lambda: read_results(store, spec.name)),
        "optuna_bytes": database_bytes(store.optuna_url),
        "mlflow_bytes": database_bytes(store.tracking_uri),
        "connections": most[0] or None,
    }


def run_processes(store: Store, spec: StudySpec, workers: int) -> None:
    """Let several processes work on the simulated study; they share the memory of what they import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    content = spec.model_dump(mode="json")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(work, [store] * workers, [content] * workers))


def _status(store: Store, studies: ArmStudies, name: str) -> None:
    studies.ended.clear()
    trial_records(studies, open_locks(store.optuna_url))
    stored_differences(store, name)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
