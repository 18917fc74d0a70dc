"""Studies that are interrupted, by Ctrl-C, an error, a signal or a full disk, and resumed."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch

from ablation.analysis.results import read_results
from ablation.base.interrupts import NAMES
from ablation.running import champion, session, trial
from ablation.running import study as running_study
from ablation.running.study_view import StudyView
from ablation.search.claims import Claim
from ablation.search.studies import trial_lock
from ablation.storage.locks import open_locks
from ablation.storage.store import find_store
from ablation.training.checkpoint import load_resume_checkpoint, save_resume_checkpoint
from ablation.training.feature_cache import FeatureCache
from tests.disks import small_disk
from tests.outcomes import outcome
from tests.studies import (
    ONE_ARM,
    Command,
    arm_study,
    client,
    history,
    patched_train,
    runs,
)
from tests.victims import Victims


@pytest.mark.parametrize(
    ("kind", "settings", "shown"),
    [
        ("bug", [], r".*, lr \S+ \(resumed\)"),
        ("ctrl-c", ["--set", "search={}", "--set", "fixed.lr=0.01"], r"\(resumed\)"),
    ],
)
def test_an_interrupted_trial_goes_on(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any,
    kind: str, settings: list[str], shown: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    arguments = [study_file, *ONE_ARM, *settings]
    assert command(*arguments, "--store", "whole") == 0

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):
            raise ZeroDivisionError if kind == "bug" else KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        if kind == "bug":
            with pytest.raises(ZeroDivisionError):
                command(*arguments, "--store", "s")
        else:
            capsys.readouterr()
            assert command(*arguments, "--store", "s") == 130
            assert f"python -m ablation.study {study_file} --" in capsys.readouterr().err
    paused = runs(Path("s"), "small")[1]
    assert paused.info.status == "SCHEDULED"
    assert arm_study(Path("s"), "small/fine_tune_all").trials[1].state is optuna.trial.TrialState.RUNNING
    assert [step for step, _ in history(Path("s"), paused)["val_loss"]] == [1]

    capsys.readouterr()
    assert command(*arguments, "--store", "s") == 0
    output = capsys.readouterr().out
    assert re.search(rf"^\[2/2\] fine_tune_all #1: {shown}$", output, re.MULTILINE)
    assert output.count("(resumed)") == 1
    whole, resumed = runs(Path("whole"), "small"), runs(Path("s"), "small")
    assert resumed[1].info.run_id == paused.info.run_id
    assert [run.info.status for run in resumed] == ["FINISHED"] * 2
    assert [history(Path("s"), run) for run in resumed] == [history(Path("whole"), run) for run in whole]
    assert not list(Path("s/checkpoints").rglob("*.ckpt"))


PHASES = {
    "decoding": (session, "load_split"),
    "features": (FeatureCache, "_compute"),
    "best": (trial, "record_best"),
    "test": (trial, "record_test"),
    "report": (running_study, "write_report"),
    "champion": (champion, "export_program"),
}


@pytest.mark.parametrize(("phase", "name"), list(zip(PHASES, NAMES, strict=True)))
def test_a_signal_pauses_a_study_in_every_phase(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, phase: str, name: str
) -> None:
    """Exit status 75 (130 for Ctrl-C); the same command ends the study, with nothing twice."""
    arguments = [study_file, "--store", "s", "--set", 'factors={strategy=["feature_extraction"]}']
    arguments += ["--set", "fixed.truncate_at=block1", "--trials", "1", "--set", "confirm.seeds=1"]
    owner, function = PHASES[phase]
    real: Any = vars(owner)[function]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.Signals[name])
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, interrupted)
        assert command(*arguments) == (130 if name == "SIGINT" else 75)
    if phase != "decoding":
        assert "RUNNING" not in {
            run.info.status for kind in ("trial", "summary") for run in runs(Path("s"), "small", kind)
        }
    assert command(*arguments) == 0
    found = [run for kind in ("trial", "confirmation", "summary") for run in runs(Path("s"), "small", kind)]
    assert [run.info.status for run in found] == ["FINISHED"] * 3
    assert [step for step, _ in history(Path("s"), found[1])["val_loss"]] == [1, 2, 3]
    assert len(history(Path("s"), found[1])["test_accuracy"]) == 1
    assert client(Path("s")).get_registered_model("small").aliases == {"champion": 1}


def test_a_signal_in_an_epoch_keeps_the_epoch(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It is saved and logged although a checkpoint is not due, the lock is free, and the rest equals a whole study."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 1000)
    one = [study_file, *ONE_ARM, "--trials", "1"]
    assert command(*one, "--store", "whole") == 0
    trained = []

    def fault(number: int, epoch: int) -> None:
        trained.append(epoch)
        if len(trained) == 2:
            signal.raise_signal(signal.SIGTERM)

    patched_train(monkeypatch, fault)
    assert command(*one, "--store", "s") == 75
    assert "pausing (SIGTERM): the running epoch has 18 s to end\n" in capfd.readouterr().err
    (paused,) = runs(Path("s"), "small")
    assert paused.info.status == "SCHEDULED"
    assert [step for step, _ in history(Path("s"), paused)["val_loss"]] == [1, 2]
    (checkpoint,) = Path("s/checkpoints").rglob("*.ckpt")
    assert checkpoint.name == "epoch-000002.ckpt"
    locks = open_locks(f"sqlite:///{Path('s/optuna.db').absolute()}")
    assert locks.are_taken([str(checkpoint.parent.relative_to(Path("s")))]) == [False]
    assert command(*one, "--store", "s") == 0
    assert trained == [1, 2, 3]
    (resumed,), (whole,) = runs(Path("s"), "small"), runs(Path("whole"), "small")
    assert history(Path("s"), resumed) == history(Path("whole"), whole)


@pytest.mark.parametrize("late", ["checkpoint", "best", "test", "end"])
def test_a_worker_that_was_frozen_does_not_write_over_its_successor(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """It loses its lock right before it would write: no file, no metric and no status of it is found afterwards."""
    arguments = [study_file, "--store", "s", *ONE_ARM, "--trials", "1"]
    arguments += ["--set", "confirm.seeds=1"] if late == "test" else []
    function = {"checkpoint": "_save", "best": "record_best", "test": "record_test", "end": "_end_trial"}[late]
    successor = open_locks(f"sqlite:///{Path('s/optuna.db').absolute()}")
    real: Any = vars(trial)[function]
    taken: list[str] = []

    def frozen(*args: Any) -> Any:
        claim = next(arg for arg in args if isinstance(arg, Claim))
        claim.release()
        taken.append(trial_lock(claim.key))
        assert successor.try_acquire(taken[0])
        return real(*args)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trial, function, frozen)
        patch.setattr(StudyView, "show_waiting", interrupted)
        assert command(*arguments) == 130
    (left,) = runs(Path("s"), "small", "confirmation" if late == "test" else "trial")
    api = client(Path("s"))
    assert left.info.status == "RUNNING"
    assert [file.path for file in api.list_artifacts(left.info.run_id, "test")] == []
    has_best = [file.path for file in api.list_artifacts(left.info.run_id, "checkpoint")] != []
    assert has_best == ("best_val_accuracy" in left.data.metrics) == (late in ("test", "end"))
    assert "test_accuracy" not in left.data.metrics
    assert bool(list(Path("s/checkpoints").rglob("*.ckpt"))) == (late != "checkpoint")
    successor.release(taken[0])
    assert command(*arguments) == 0
    (done,) = runs(Path("s"), "small", "confirmation" if late == "test" else "trial")
    assert done.info.run_id == left.info.run_id
    assert done.info.status == "FINISHED"
    twice = {name for name, points in history(Path("s"), done).items() if len(points) != len(dict(points))}
    assert twice == set()


def test_ctrl_c_in_the_middle_of_a_transaction(command: Command, study_file: Path) -> None:
    """While the trial's run is made: the database is not locked for what is written before the process ends."""
    interrupted = False

    def interrupt(connection: object, cursor: object, statement: str, *_: object) -> None:
        nonlocal interrupted
        if not interrupted and statement.startswith("INSERT INTO params"):
            interrupted = True
            signal.raise_signal(signal.SIGINT)

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", interrupt)
    try:
        assert command(study_file, "--store", "s", *ONE_ARM) == 130
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", interrupt)
    assert interrupted
    assert [run.info.status for run in runs(Path("s"), "small")] == ["SCHEDULED"]
    assert command(study_file, "--store", "s", *ONE_ARM) == 0
    assert [run.info.status for run in runs(Path("s"), "small")] == ["FINISHED"] * 2


@pytest.mark.parametrize(("damaged", "first"), [(1, 2), (2, 1)])
def test_a_damaged_resume_checkpoint_is_passed_over(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, damaged: int, first: int
) -> None:
    """The trial goes on from the checkpoint before, or starts over where that is damaged, too; no step comes twice."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)

    def fault(number: int, epoch: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 130
    checkpoints = sorted(Path("s/checkpoints").rglob("*.ckpt"), reverse=True)
    assert [path.name for path in checkpoints] == ["epoch-000002.ckpt", "epoch-000001.ckpt"]
    for path in checkpoints[:damaged]:
        path.write_bytes(path.read_bytes()[:-7])
    trained = []
    patched_train(monkeypatch, lambda number, epoch: trained.append(epoch))
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 0
    message = "its checksum is wrong; resuming from the checkpoint before it, or from the start"
    assert caplog.text.count(message) == damaged
    assert trained == list(range(first, 4))
    (run,) = runs(Path("s"), "small")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(Path("s"), run)["val_loss"]] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["folders", "other files"])
def test_what_is_in_the_place_of_a_trials_files_is_replaced(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A folder, or a file of something else, where the last and the next resume checkpoint, the best epoch's and the
    predictions are to be."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    arguments = (study_file, *ONE_ARM, "--trials", "1", "--set", "confirm.seeds=1", "--store")
    assert command(*arguments, "whole") == 0

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(*arguments, "s") == 130
    last = max(Path("s/checkpoints").rglob("*.ckpt"))
    assert last.name == "epoch-000002.ckpt"
    for name in (last.name, "epoch-000003.ckpt", "best.safetensors", "predictions.safetensors"):
        path = last.with_name(name)
        path.unlink(missing_ok=True)
        if damage == "folders":
            (path / "x").mkdir(parents=True)
        else:
            path.write_bytes(b"something else" * 99)
    assert command(*arguments, "s") == 0
    stores = [f"sqlite:///{Path(store).absolute()}" for store in ("s", "whole")]
    resumed, whole = (outcome(f"{store}/mlflow.db", f"{store}/optuna.db") for store in stores)
    assert resumed == whole
    (run,) = runs(Path("s"), "small", "confirmation")
    assert read_results(find_store("s"), "small").left_out == []
    assert run.info.status == "FINISHED"


def test_another_kind_of_device_is_marked_on_the_run(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is made to say that a GPU wrote it; the trial goes on here, with its own precision."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)

    def fault(number: int, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 130
    (path,) = Path("s/checkpoints").rglob("*.ckpt")
    state = load_resume_checkpoint(path, torch.device("cpu"))
    assert state["devices"] == [(1, "cpu")]
    save_resume_checkpoint(path.parent, 1, {**state, "devices": [(1, "cuda")]})
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "2") == 0
    continued, other = runs(Path("s"), "small")
    assert continued.data.tags["device"] == "cuda from epoch 1, cpu from epoch 2"
    assert other.data.tags["device"] == "cpu"


def test_an_interrupted_trial_goes_on_with_its_weights_elsewhere(
    command: Command, study_file: Path, narrow_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(number: int, epoch: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 130
    shutil.copy(narrow_weights, "moved.safetensors")
    moved = ("--set", "backbone.weights=moved.safetensors")
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1", *moved) == 0
    (run,) = runs(Path("s"), "small")
    assert run.info.status == "FINISHED"


def test_a_study_keeps_its_precision_on_another_device(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settled by the first process, also for trials that begin later; an older store's by its first trial."""
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 0
    monkeypatch.setattr(session, "select_precision", lambda *_, **__: "bfloat16")
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "2") == 0
    with sqlite3.connect("s/optuna.db") as database:
        assert database.execute("DELETE FROM study_user_attributes WHERE key = 'precision'").rowcount == 1
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "3") == 0
    assert [run.data.params["precision"] for run in runs(Path("s"), "small")] == ["float32"] * 3
    assert command(study_file, "--store", "another", *ONE_ARM, "--trials", "1") == 0
    assert [run.data.params["precision"] for run in runs(Path("another"), "small")] == ["bfloat16"]


def test_a_trial_keeps_its_number_of_threads(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(number: int, epoch: int) -> None:
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with monkeypatch.context() as patch:
            patched_train(patch, fault)
            assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 130
        torch.set_num_threads(1)
        used = []
        patched_train(monkeypatch, lambda number, epoch: used.append(torch.get_num_threads()))
        assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "2", "--epochs", "3") == 0
    finally:
        torch.set_num_threads(before)
    assert used == [3, 3, 3, 1, 1, 1]
    assert [run.data.params["threads"] for run in runs(Path("s"), "small")] == ["3", "1"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    with small_disk(tmp_path / "disk", megabytes=3) as is_mounted:
        if not is_mounted:
            pytest.skip("no right to mount a small disk")
        yield tmp_path / "disk"


def test_a_full_disk_stops_the_study_and_loses_nothing(
    victims: Victims, small_study: Path, tmp_path: Path, disk: Path
) -> None:
    store = disk / "s"

    def command(*arguments: str) -> tuple[int, str]:  # this process must not hold a file of the disk
        (tmp_path / "steps.err").unlink(missing_ok=True)
        status = victims.run(tmp_path, [small_study, "--store", store, *arguments])
        return status, victims.errors(tmp_path)

    def rows(database: str, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(store / database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return sorted(connection.execute(query))

    status, errors = command("--trials", "99")
    assert status == 1
    *said, error = errors.splitlines()
    assert error.startswith("error: ")
    assert "full" in error or "No space" in error
    assert set(said) <= {"features that exceed --feature-cache, or the disk, are computed in every epoch"}
    finished = "SELECT run_uuid, key, step, value FROM metrics JOIN runs USING (run_uuid) WHERE status = 'FINISHED'"
    before = rows("mlflow.db", finished)
    assert before
    assert command("--status")[0] == 0

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert command("--trials", "99") == (2, f"error: --store: {store} cannot be written\n")

    subprocess.run(["mount", "-o", "remount,rw,size=20m", str(disk)], check=True)
    assert command("--trials", "1")[0] == 0  # the trial that was stopped goes on
    assert rows("mlflow.db", "SELECT DISTINCT status FROM runs") == [("FINISHED",)]
    assert rows("optuna.db", "SELECT DISTINCT state FROM trials") == [("COMPLETE",)]
    assert set(before) <= set(rows("mlflow.db", finished))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_continued_exactly(
    victims: Victims, command: Command, small_study: Path, tmp_path: Path, signal_number: int
) -> None:
    """The process dies in the middle of a trial; the same command ends with the same figures as one left alone."""
    arguments = [small_study, *ONE_ARM, "--epochs", "20", "--trials", "1"]
    victim = victims.start(tmp_path, [*arguments, "--store", tmp_path / "s"])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "s").rglob("*.ckpt")):
        assert not victims.has_ended(victim)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(victim, signal_number)
    assert victims.wait(victim) == (75 if signal_number == signal.SIGTERM else -signal.SIGKILL)
    frozen = arm_study(tmp_path / "s", "small/fine_tune_all").trials[0]
    assert frozen.state is optuna.trial.TrialState.RUNNING
    assert command(*arguments, "--store", tmp_path / "s") == 0
    assert command(*arguments, "--store", tmp_path / "whole") == 0
    (killed,), (whole,) = runs(tmp_path / "s", "small"), runs(tmp_path / "whole", "small")
    assert killed.info.status == "FINISHED"
    assert history(tmp_path / "s", killed) == history(tmp_path / "whole", whole)
    values = [arm_study(tmp_path / name, "small/fine_tune_all").trials[0] for name in ("s", "whole")]
    assert values[0].value == values[1].value
    assert values[0].intermediate_values == values[1].intermediate_values
