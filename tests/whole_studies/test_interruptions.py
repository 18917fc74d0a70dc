"""Studies that are interrupted, by Ctrl-C, an error, a signal or a full disk, and resumed."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch

from ablation.running import session, trial
from ablation.training.checkpoint import load_resume_checkpoint, save_resume_checkpoint
from tests.studies import (
    ONE_ARM,
    Command,
    arm_study,
    history,
    patched_train,
    runs,
)


@pytest.mark.parametrize("kind", ["bug", "ctrl-c"])
def test_an_interrupted_trial_goes_on(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: Any
) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    assert command(study_file, "--store", "whole", *ONE_ARM) == 0

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):
            raise ZeroDivisionError if kind == "bug" else KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        if kind == "bug":
            with pytest.raises(ZeroDivisionError):
                command(study_file, "--store", "s", *ONE_ARM)
        else:
            capsys.readouterr()
            assert command(study_file, "--store", "s", *ONE_ARM) == 130
            assert f"python -m ablation.study {study_file} --store s" in capsys.readouterr().err
    paused = runs(Path("s"), "small")[1]
    assert paused.info.status == "SCHEDULED"
    assert arm_study(Path("s"), "small/fine_tune_all").trials[1].state is optuna.trial.TrialState.RUNNING
    assert [step for step, _ in history(Path("s"), paused)["val_loss"]] == [1]

    capsys.readouterr()
    assert command(study_file, "--store", "s", *ONE_ARM) == 0
    assert "[2/2] fine_tune_all #1: " in (output := capsys.readouterr().out)
    assert output.count("(resumed)") == 1
    whole, resumed = runs(Path("whole"), "small"), runs(Path("s"), "small")
    assert resumed[1].info.run_id == paused.info.run_id
    assert [run.info.status for run in resumed] == ["FINISHED"] * 2
    assert [history(Path("s"), run) for run in resumed] == [history(Path("whole"), run) for run in whole]
    assert not list(Path("s/checkpoints").rglob("*.ckpt"))


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


def test_runs_of_another_optuna_database_are_left_alone(command: Command, study_file: Path) -> None:
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 0
    Path("s/optuna.db").unlink()
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1") == 0
    first, second = runs(Path("s"), "small")
    assert len(history(Path("s"), first)["val_loss"]) == len(history(Path("s"), second)["val_loss"]) == 3
    assert len(runs(Path("s"), "small", kind="summary")) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_study_and_loses_nothing(study_file: Path, small_disk: Path) -> None:
    store = small_disk / "s"

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:  # this process must not hold a file of the disk
        return subprocess.run(
            [sys.executable, "-m", "ablation.study", str(study_file), "--store", str(store), *arguments],
            capture_output=True, text=True, cwd=study_file.parent,
        )  # fmt: skip

    def rows(database: str, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(store / database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return sorted(connection.execute(query))

    full = command("--trials", "99")
    assert full.returncode == 1
    *said, error = full.stderr.splitlines()
    assert error.startswith("error: ")
    assert "full" in error or "No space" in error
    assert set(said) <= {"features that exceed --feature-cache, or the disk, are computed in every epoch"}
    finished = "SELECT run_uuid, key, step, value FROM metrics JOIN runs USING (run_uuid) WHERE status = 'FINISHED'"
    before = rows("mlflow.db", finished)
    assert before
    assert command("--status").returncode == 0

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    unwritable = command("--trials", "99")
    assert (unwritable.returncode, unwritable.stderr) == (2, f"error: --store: {store} cannot be written\n")

    subprocess.run(["mount", "-o", "remount,rw,size=20m", str(small_disk)], check=True)
    assert command("--trials", "1").returncode == 0  # the trial that was stopped goes on
    assert rows("mlflow.db", "SELECT DISTINCT status FROM runs") == [("FINISHED",)]
    assert rows("optuna.db", "SELECT DISTINCT state FROM trials") == [("COMPLETE",)]
    assert set(before) <= set(rows("mlflow.db", finished))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_continued_exactly(
    command: Command, study_file: Path, tmp_path: Path, signal_number: int
) -> None:
    """The process dies in the middle of a trial; the same command ends with the same figures as one left alone."""
    arguments = [study_file, *ONE_ARM, "--epochs", "30", "--trials", "1"]
    code = (
        "import sys; from ablation import study; from ablation.running import trial;"
        "trial.CHECKPOINT_SECONDS = 0; sys.exit(study.main())"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments), "--store", str(tmp_path / "s")],
                              cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / "s").rglob("*.ckpt")):
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal_number)
    victim.wait()
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
