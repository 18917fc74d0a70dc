"""System metrics, which are logged when they are asked for. What else `tracking` does, whole studies test."""

import contextlib
import contextvars
import logging
import math
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from ablation import load_results
from ablation.analysis.results import read_results
from ablation.base.errors import StoreAway, StoreError
from ablation.running import trial
from ablation.search.claims import Claim
from ablation.search.patient_storage import ClaimLost
from ablation.storage.store import Store, find_store
from ablation.tracking.client import PatientClient
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import WORKER_TAG, checksum_tag, file_checksum, read_open_runs
from ablation.tracking.summary_run import SummaryRun
from ablation.tracking.system_metrics import SystemMonitor
from ablation.tracking.trial_run import TrialRun
from tests.studies import ONE_ARM, Command, arm_study, history, new_tracker, patched_train, runs

CPU = "system/cpu_utilization_percentage"
MEMORY = "system/system_memory_usage_megabytes"
ONE_TRIAL = [*ONE_ARM, "--trials", "1"]


def points(store: Path, run: Any, name: str = CPU) -> list[tuple[int, float]]:
    """Return a run's system metric, (step, value), in the order in which it was logged."""
    client = MlflowClient(f"sqlite:///{store.absolute()}/mlflow.db")
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def monitor_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "SystemMetrics" in thread.name]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point every fiftieth of a second."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")


def slowed(monkeypatch: pytest.MonkeyPatch, seen: list[list[str]]) -> None:
    """Let every epoch take long enough for a point, and note which monitor threads there are."""

    def wait(number: int, epoch: int) -> None:
        seen.append(monitor_threads())
        time.sleep(0.05)

    patched_train(monkeypatch, wait)


def test_a_short_trial_has_a_point_of_all_that_mlflow_measures(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MLflow's own monitor and its ten seconds there would be none."""
    seen: list[list[str]] = []
    slowed(monkeypatch, seen)
    assert command(study_file, "--store", "s", *ONE_TRIAL, "--set", "confirm.seeds=1", "--system-metrics") == 0
    assert set(map(len, seen)) == {1}
    assert monitor_threads() == []
    total = psutil.virtual_memory().total / 1e6
    for kind in ("trial", "confirmation"):
        (run,) = runs(Path("s"), "small", kind)
        assert {name for name in run.data.metrics if name.startswith("system/") and "/gpu_" not in name} == {
            CPU, MEMORY, "system/system_memory_usage_percentage", "system/disk_usage_percentage",
            "system/disk_usage_megabytes", "system/disk_available_megabytes", "system/network_receive_megabytes",
            "system/network_transmit_megabytes",
        }  # fmt: skip
        ((step, load),) = points(Path("s"), run)
        assert step == 0
        assert 0 < load <= 100  # of the time since the trial began; the first reading of a thread would be 0
        ((_, memory),) = points(Path("s"), run, MEMORY)
        assert 0 < memory < total


@pytest.mark.usefixtures("often")
def test_they_change_nothing_else(command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that was begun without goes on with them, asked for by MLflow's variable: same identity, same results."""
    seen: list[list[str]] = []
    slowed(monkeypatch, seen)
    arguments = [study_file, *ONE_ARM, "--trials"]
    assert command(*arguments, "2", "--store", "without") == 0
    assert command(*arguments, "1", "--store", "s") == 0
    assert set(map(len, seen)) == {0}  # not asked for, nothing is measured
    seen.clear()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    assert command(*arguments, "2", "--store", "s") == 0
    assert set(map(len, seen)) == {1}

    def content(store: str) -> Any:
        return arm_study(Path(store), "small/fine_tune_all").user_attrs["content"]

    assert content("s") == content("without")
    first, second = runs(Path("s"), "small")
    assert (CPU in first.data.metrics, CPU in second.data.metrics) == (False, True)
    for run, without in zip((first, second), runs(Path("without"), "small"), strict=True):
        assert run.data.params == without.data.params
        curves = history(Path("s"), run)
        assert {name: curve for name, curve in curves.items() if "system/" not in name} == history(
            Path("without"), without
        )
    tables = [load_results("small", store=store) for store in ("s", "without")]
    alone = ["run_id", "training_seconds"]
    assert tables[0].drop(columns=alone).equals(tables[1].drop(columns=alone))
    (arm,) = read_results(find_store("s"), "small").arms
    assert [name for run in arm.trials for name in run.curves if "system/" in name] == []


def test_their_rhythm(monkeypatch: pytest.MonkeyPatch) -> None:
    def rhythm() -> tuple[float, int]:
        monitor = SystemMonitor("sqlite://")
        return monitor.sampling_interval, monitor.samples_before_logging

    assert rhythm() == (1, 10)  # a mean of ten samples every ten seconds
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "30")
    assert rhythm() == (30, 1)  # as MLflow's users expect
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "3")
    assert rhythm() == (30, 3)
    monkeypatch.delenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL")
    assert rhythm() == (10, 3)


def test_a_point_is_the_mean_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those taken after the first, with what is left at the end in a point of its own, under its machine's name."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_NODE_ID", "node1")
    monitor = SystemMonitor("sqlite://")
    loads = iter([0.0, 10.0, 20.0, 30.0, 50.0, 70.0])
    waits = iter([False, False, False, False, True])
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(loads))
    monkeypatch.setattr(monitor._shutdown_event, "wait", lambda seconds: next(waits))
    monitor.monitor()
    taken = monitor.pop_points()
    assert [point["values"]["system/node1/cpu_utilization_percentage"] for point in taken] == [15, 40, 70]
    assert monitor.pop_points() == []


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("way", "status"),
    [("pruned", 1), ("failed", 1), ("lost", 0), ("ctrl-c", 130)],
)
def test_the_thread_ends_with_the_training(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, way: str, status: int
) -> None:
    """However that ends; what was measured is logged before the run is closed or paused."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 1000)  # so that epochs write none of it
    errors = {
        "failed": MemoryError,
        "lost": ClaimLost("another worker has it"),
        "ctrl-c": KeyboardInterrupt,
    }
    during: list[int] = []
    after: dict[str, list[int]] = {"end": [], "pause": [], "release": []}

    def fault(number: int, epoch: int) -> None:
        time.sleep(0.05)
        during.append(len(monitor_threads()))
        if (number, epoch) == (0, 2) and way in errors:
            raise errors[way]

    def note(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def noting(*args: Any) -> Any:
            after[name].append(len(monitor_threads()))
            return real(*args)

        monkeypatch.setattr(owner, name, noting)

    patched_train(monkeypatch, fault)
    note(TrialRun, "end")
    note(TrialRun, "pause")
    note(Claim, "release")
    monkeypatch.setattr(trial, "should_prune", lambda claim: way == "pruned")
    arguments = [study_file, "--store", "s", *ONE_TRIAL, "--set", "search.pruner=median", "--system-metrics"]
    assert command(*arguments) == status
    assert set(during) == {1}
    assert {name for name, counts in after.items() if counts} == {
        "release", "pause" if way == "ctrl-c" else "end"
    }  # fmt: skip
    assert all(count == 0 for counts in after.values() for count in counts)
    (run,) = runs(Path("s"), "small")
    ends = {"pruned": "KILLED", "failed": "FAILED", "ctrl-c": "SCHEDULED"}
    assert run.info.status == ends.get(way, "FINISHED")
    steps = [step for step, _ in points(Path("s"), run)]
    assert len(steps) > 2
    assert steps == list(range(len(steps)))


@pytest.mark.usefixtures("often")
def test_a_killed_trial_goes_on_at_the_next_step(command: Command, study_file: Path) -> None:
    arguments = [str(study_file), *ONE_TRIAL, "--epochs", "12", "--store", "s", "--system-metrics"]
    code = (
        "import sys; from ablation import study; from ablation.running import trial;"
        "trial.CHECKPOINT_SECONDS = 0; sys.exit(study.main())"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while logged_points(Path("s")) < 3:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    before = logged_points(Path("s"))
    assert command(*arguments) == 0
    (run,) = runs(Path("s"), "small")
    for name in (CPU, MEMORY):
        steps = [step for step, _ in points(Path("s"), run, name)]
        assert steps == list(range(len(steps)))
        assert len(steps) > before


def logged_points(store: Path) -> int:
    if not (store / "mlflow.db").exists():
        return 0
    with (
        contextlib.closing(sqlite3.connect(store / "mlflow.db", timeout=60)) as database,
        contextlib.suppress(
            sqlite3.OperationalError  # the tables are being made
        ),
    ):
        (count,) = database.execute("SELECT count(*) FROM metrics WHERE key = ?", (CPU,)).fetchone()
        return int(count)
    return 0


def test_points_that_are_handed_over_twice_are_logged_once(tracker: Tracker, tmp_path: Path) -> None:
    """As by a process that died before it noted the first time; more of them than go into one batch."""
    client = tracker.client
    run_id, _ = tracker.find_or_create("a/0", "run", {})
    measured = [
        {"timestamp": 1000 + number, "values": {"system/x": number, "system/y": -number}} for number in range(25)
    ]
    for some in (measured[:23], measured[:23], measured):
        TrialRun(tracker, "a/0", tmp_path, "")._log_system_metrics(None, some)
    for name, sign in (("system/x", 1), ("system/y", -1)):
        logged = [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, name)]
        assert logged == [(number, 1000 + number, sign * number) for number in range(25)]


def test_points_that_ctrl_c_interrupts_are_counted(tracker: Tracker, tmp_path: Path) -> None:
    """It comes through at the end of the call that stores them; the others are logged when the run is paused."""
    run_id, _ = tracker.find_or_create("a/0", "run", {})
    run, real = TrialRun(tracker, "a/0", tmp_path, ""), tracker.client.log_batch

    def interrupted(_: object, *arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatientClient, "log_batch", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            run._do("log_system_metrics", points=[{"timestamp": 1, "values": {CPU: 1.0}}])
    run._do("log_system_metrics", points=[{"timestamp": 2, "values": {CPU: 2.0}}])
    assert [point.step for point in tracker.client.get_metric_history(run_id, CPU)] == [0, 1]


class Taken(Exception):
    """Another worker has the trial now."""


def test_a_clock_that_is_set_back(
    store: Store, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1970, in the middle of a run: its points are kept, also after a resume, and it does not end before it began.

    The last epoch that --status shows is the last one, not that with the latest time.
    """
    client = tracker.client
    run_id, _ = tracker.find_or_create("a/0", "trial 1", {})
    run = TrialRun(tracker, "a/0", tmp_path / "0", "")
    for first, resumed in ((1_790_000_000_000, run), (1_000, run), (3_000, TrialRun(tracker, "a/0", tmp_path, ""))):
        resumed._do("log_system_metrics", points=[{"timestamp": first + n, "values": {CPU: n}} for n in range(2)])
    assert sorted(step for step, _ in points(store.root, client.get_run(run_id))) == [0, 1, 2, 3, 4, 5]
    for epoch, timestamp in ((1, 1_790_000_000_000), (2, 2_000)):
        client.log_metric(run_id, "train_loss", 0.5, timestamp, epoch)
    assert [trial.last_epoch for trial in read_open_runs(store, "fake").values()] == [2_000]
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    tracker.end_run(client.get_run(run_id).info, "FINISHED")
    info = client.get_run(run_id).info
    assert (info.status, info.end_time - info.start_time) == ("FINISHED", 0)


@pytest.mark.parametrize("calls", range(1, 6))
def test_a_worker_that_was_frozen_between_two_calls_writes_no_more(
    calls: int, store: Store, tracker: Tracker, tmp_path: Path
) -> None:
    """Neither a file nor a status: it looks whose the trial is before each call to MLflow."""
    client = tracker.client
    run_id, _ = tracker.find_or_create("a/0", "run", {})
    predictions = tmp_path / "predictions.safetensors"
    predictions.write_bytes(b"its own")
    looked = 0

    def successor_ends() -> None:
        """Take the trial over and end it, after so many looks."""
        nonlocal looked
        looked += 1
        if looked == calls + 1:
            contextvars.Context().run(end, TrialRun(tracker, "a/0", tmp_path / "other", ""), b"the other's")
        if looked > calls:
            raise Taken

    def end(run: TrialRun, content: bytes) -> None:
        predictions.write_bytes(content)
        run.log_test({"test_accuracy": 0.5}, 1, predictions)
        run.end("FINISHED")

    frozen = TrialRun(tracker, "a/0", tmp_path / "frozen", "", successor_ends)
    with pytest.raises(Taken):
        end(frozen, b"its own")
    left = client.get_run(run_id)
    assert left.info.status == "FINISHED"
    (file,) = store.artifacts("fake").rglob("predictions.safetensors")
    assert file.read_bytes() == b"the other's"
    assert left.data.tags[checksum_tag("test/predictions.safetensors")] == file_checksum(file)
    assert len(client.get_metric_history(run_id, "test_accuracy")) == 1


def test_a_trial_that_is_trained_again_adds_no_second_point(store: Store, tracker: Tracker, tmp_path: Path) -> None:
    """By the process that created its run, where a lack of memory let it begin anew, and by another one."""
    tags = {"arm": "a", WORKER_TAG: "{}"}
    dataset = {"source": "digits", "name": "digits", "digest": "0"}
    file = tmp_path / "best.safetensors"
    file.write_bytes(b"weights")
    timestamps = iter(range(1, 5))
    for process in (tracker, new_tracker(store, "fake")):
        run = TrialRun(process, "a/0", tmp_path / "trial", "")
        run._do("start", name="trial 1", tags=tags, params={}, dataset=dataset, files={})
        for _ in range(2):
            run.log_result({"best_val_accuracy": 0.5}, next(timestamps), file)
    history = tracker.client.get_metric_history(run.run_id, "best_val_accuracy")
    assert [point.timestamp for point in history] == [1]


@pytest.mark.parametrize("is_away", [False, True])
def test_what_comes_for_a_run_that_was_deleted_is_dropped(
    tracker: Tracker, tmp_path: Path, caplog: Any, is_away: bool
) -> None:
    """Also what waits for a server that was away; it is said once."""
    client = tracker.client
    run_id, _ = tracker.find_or_create("a/0", "run", {})
    run = TrialRun(tracker, "a/0", tmp_path / "trial", "")
    file = tmp_path / "best.safetensors"
    file.write_bytes(b"weights")
    if is_away:
        tracker.away, tracker._away_until = StoreAway("MLflow does not answer"), math.inf
        run.log_devices("cpu")
        assert len(list(tmp_path.rglob("000001.json"))) == 1
        tracker.away = None
    client.delete_run(run_id)
    run.log_devices("cpu")
    run.log_result({"best_val_accuracy": 0.5}, 1, file)
    run.upload_resume_checkpoint(file)
    run.pause()
    run.end("FINISHED")
    assert run.complete()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the MLflow run of trial a/0 was deleted; its results are dropped"]
    left = client.get_run(run_id)
    assert (left.info.status, left.data.metrics, "device" in left.data.tags) == ("RUNNING", {}, False)


def test_a_file_that_another_process_has_delivered_is_no_error(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the entry and its file away in the moment before this one's upload."""
    client = tracker.client
    tracker.find_or_create("a/0", "run", {})
    file = tmp_path / "predictions.safetensors"
    file.write_bytes(b"predictions")
    run = TrialRun(tracker, "a/0", tmp_path / "trial", "")
    run._outbox.add("log_result", {"values": {}, "timestamp": 1, "folder": "test"}, file)
    real, refused = client.log_artifact, StoreError("MLflow's store cannot be used (no space)")

    def upload(_: object, *arguments: str) -> None:
        if not is_there:
            run._outbox.clear()
            real(*arguments)
        raise refused

    monkeypatch.setattr(PatientClient, "log_artifact", upload, raising=False)
    is_there = True
    with pytest.raises(StoreError, match=r"no space\); the refused call is in .*000001.json"):
        run.deliver()
    is_there = False
    assert not run.deliver()


def test_a_run_without_its_file_has_no_metrics_of_it(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tracker.client
    run_id, _ = tracker.find_or_create("a/0", "run", {})
    file = tmp_path / "predictions.safetensors"
    file.write_bytes(b"predictions")

    def upload(*_: object) -> None:
        raise StoreError("MLflow's store cannot be used (no space)")

    monkeypatch.setattr(PatientClient, "log_artifact", upload, raising=False)
    with pytest.raises(StoreError, match="no space"):
        TrialRun(tracker, "a/0", tmp_path / "trial", "").log_test({"test_accuracy": 0.5}, 1, file)
    data = client.get_run(run_id).data
    assert "test_accuracy" not in data.metrics
    assert checksum_tag("test/predictions.safetensors") not in data.tags


def test_a_call_that_is_refused_for_another_reason_is_an_error(tracker: Tracker, tmp_path: Path) -> None:
    tracker.find_or_create("a/0", "run", {})
    predictions = tmp_path / "predictions.safetensors"
    predictions.write_bytes(b"predictions")
    with pytest.raises(StoreError, match='Invalid value "50 %"'):
        TrialRun(tracker, "a/0", tmp_path / "trial", "").log_test({"50 %": 0.5}, 1, predictions)


def test_a_summary_that_another_process_has_ended_is_not_paused(tracker: Tracker) -> None:
    client = tracker.client
    run_id, _ = tracker.find_or_create("a/summary", "summary", {})
    for before, after in (("RUNNING", "SCHEDULED"), ("FINISHED", "FINISHED")):
        client.update_run(run_id, status=before)
        SummaryRun(tracker, "a/summary").pause()
        assert client.get_run(run_id).info.status == after


def test_a_summary_that_somebody_deleted_is_restored_with_all_that_it_holds(store: Store, tracker: Tracker) -> None:
    """Whichever process needs it next: the one that began it, another one, or that of a restart."""
    client = tracker.client
    begun, other = (SummaryRun(each, "a/summary") for each in (tracker, new_tracker(store, "fake")))
    assert other.tags() == {}
    begun.begin({}, {})
    begun.set_tags({"sealed": "yes"})
    run_id = begun.find()
    needs: list[Callable[[], object]] = [
        lambda: begun.set_tags({"decided": "no"}),
        lambda: other.set_tags({"decided": "yes"}),
        lambda: other.log_forecast("{}", {}),
        lambda: begun.pause(),
        lambda: SummaryRun(new_tracker(store, "fake"), "a/summary").begin({}, {}),
        lambda: begun.end("FINISHED"),
    ]
    for need in needs:
        client.delete_run(run_id)
        need()
        (run,) = client.search_runs([tracker.experiment_id])
        assert (run.info.run_id, run.data.tags["sealed"]) == (run_id, "yes")
    assert (run.info.status, run.data.tags["decided"]) == ("FINISHED", "yes")


def test_a_machine_that_cannot_be_measured_trains_all_the_same(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """In trial 0 the monitor does not start, in trial 1 it ends after a while."""
    real, fails = NetworkMonitor._set_initial_metrics, [True, False]

    def failing_once(self: NetworkMonitor) -> None:
        if fails.pop(0):
            raise FileNotFoundError(2, "No such file or directory", "/proc/net/dev")
        real(self)

    monkeypatch.setattr(NetworkMonitor, "_set_initial_metrics", failing_once)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: 1 / 0)
    assert command(study_file, "--store", "s", *ONE_ARM, "--system-metrics") == 0
    assert [run.info.status for run in runs(Path("s"), "small")] == ["FINISHED"] * 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "there will be no system metrics: they cannot be read ([Errno 2] No such file or directory: '/proc/net/dev')",
        "system metrics end here: they cannot be read (division by zero)",
    ]


def test_a_gpu_that_does_not_tell_its_power_is_no_news(caplog: Any) -> None:
    logging.getLogger("mlflow.system_metrics.metrics.gpu_monitor").warning("Encountered error Not Supported")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often", "must be a number above 0, got 'often'"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "-1", "must be a number above 0, got '-1'"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "nan", "must be a number above 0, got 'nan'"),
        ("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1.5", "must be a whole number above 0, got '1.5'"),
        ("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "maybe", "'maybe' is not a valid boolean"),
    ],
)
def test_variables_that_mlflow_could_not_use_are_refused(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, variable: str, text: str,
    expected: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv(variable, text)
    assert command(study_file) == 2
    error = capsys.readouterr().err
    assert variable in error
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("mlruns").exists()
