"""Which worker trains which trial, as --status and a launch's --status show it."""

import os
import platform
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ablation.launch import show_workers
from ablation.launching.request import EngineWorker
from ablation.running import trial
from ablation.running.running_trials import RunningTrial, running_table
from ablation.running.status import read_status
from ablation.storage.store import find_store
from tests.studies import ONE_ARM, Command, patched_train


@pytest.fixture
def seen(command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[RunningTrial]]:
    """What --status says before each epoch of a trial and of its confirmation run."""
    found: list[list[RunningTrial]] = []
    monkeypatch.setenv("ABLATION_JOB", "17_2")
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)  # epochs are logged with a checkpoint
    patched_train(monkeypatch, lambda *_: found.append(read_status("small", find_store("s"))[1]))
    arguments = [*ONE_ARM, "--trials", 1, "--epochs", 2, "--set", "confirm.seeds=1"]
    assert command(study_file, "--store", "s", *arguments) == 0
    assert read_status("small", find_store("s"))[1] == [], "nothing runs any more"
    return found


def test_a_running_trial_has_its_worker_and_its_last_epoch(seen: list[list[RunningTrial]]) -> None:
    assert [len(trials) for trials in seen] == [1] * 4
    first, second, confirmation, _ = (trials[0] for trials in seen)
    assert (first.host, first.process, first.job) == (platform.node(), str(os.getpid()), "17_2")
    assert (first.trial, confirmation.trial) == ("fine_tune_all #0", "fine_tune_all confirmation #0")
    assert first.last_sign == "-"
    assert second.since == first.since <= second.last_sign <= datetime.now().isoformat(timespec="seconds")
    assert time.time() - datetime.fromisoformat(first.since).timestamp() < 600
    (row, *_) = running_table([second]).rows
    assert row == [second.trial, second.host, second.process, "17_2", second.since, second.last_sign]


def test_a_resumed_trial_has_its_new_worker(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(number: int, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    found: list[RunningTrial] = []
    arguments = (study_file, "--store", "s", *ONE_ARM, "--trials", 1, "--epochs", 2)
    monkeypatch.setenv("ABLATION_JOB", "17_2")
    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(*arguments) == 130
    monkeypatch.setenv("ABLATION_JOB", "18_1")
    patched_train(monkeypatch, lambda *_: found.extend(read_status("small", find_store("s"))[1]))
    assert command(*arguments) == 0
    assert {running.job for running in found} == {"18_1"}


def test_an_engines_workers_are_shown_with_their_trials(capsys: Any) -> None:
    """A job by its id, with all its processes; a pod by its name; a process by its number on its host."""
    running = [
        RunningTrial("a #0", "n1", "40", "17_1", "10:00", "10:05"),
        RunningTrial("a #1", "n1", "43", "17_1", "10:00", "10:07"),
        RunningTrial("b #0", "n1", "41", "-", "10:01", "10:06"),
        RunningTrial("b #1", "n2", "41", "-", "10:01", "10:08"),
        RunningTrial("b #2", "n2", "42", "-", "10:01", "10:09"),
        RunningTrial("c #0", "pod-x", "1", "-", "10:02", "10:10"),
    ]
    workers = [EngineWorker(name, "running", "n1", "09:59") for name in ("17_1", "41", "42", "17_3", "pod-x")]
    show_workers(workers, "slurm", "label", running, "newest output: a.log")
    text = capsys.readouterr().out
    assert "| 17_1 | running | n1 | 09:59 | a #0, a #1 | 10:05, 10:07 |" in text
    assert "| 41 | running | n1 | 09:59 | b #0 | 10:06 |" in text
    assert "| 42 | running | n1 | 09:59 | - | - |" in text, "that process is another host's"
    assert "| 17_3 | running | n1 | 09:59 | - | - |" in text
    assert "| pod-x | running | n1 | 09:59 | c #0 | 10:10 |" in text
