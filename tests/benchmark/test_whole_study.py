import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch

from ablation.base.command_line import run_command
from ablation.bench import cli
from ablation.benchmark import whole_study
from ablation.benchmark.whole_study import OTHER, PARTS, START, Load, Stopwatch
from ablation.reporting import report
from ablation.running import trial
from tests.studies import patched_train, signal_handlers_kept

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


class Clock:
    """The time, which only passes when a test says so."""

    def __init__(self) -> None:
        self.now = self.process = 100.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.process


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(whole_study, "time", made)
    return made


def seconds(stopwatch: Stopwatch) -> dict[str, float]:
    return {part: spent for part, spent in stopwatch.seconds.items() if spent}


def test_time_counts_for_the_innermost_part(clock: Clock) -> None:
    stopwatch = Stopwatch()
    clock.now += 1
    with stopwatch.part("MLflow"):
        clock.now += 2
        with stopwatch.part("features"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    stopwatch.pause()
    assert seconds(stopwatch) == {OTHER: 17, "MLflow": 10, "features": 4}


def test_a_part_ends_with_an_error(clock: Clock) -> None:
    def fail() -> None:
        clock.now += 2
        raise ValueError

    stopwatch = Stopwatch()
    with pytest.raises(ValueError):
        stopwatch.part("MLflow")(fail)()
    clock.now += 1
    stopwatch.pause()
    assert seconds(stopwatch) == {"MLflow": 2, OTHER: 1}


def test_the_caller_of_a_generator_counts_for_itself(clock: Clock) -> None:
    def epochs() -> Iterator[int]:
        for number in range(3):
            clock.now += 10
            yield number

    stopwatch = Stopwatch()
    for _ in stopwatch.timed_generator(epochs, "training")():
        clock.now += 1
    stopwatch.pause()
    assert seconds(stopwatch) == {"training": 30, OTHER: 3}


def test_other_threads_do_not_count(clock: Clock) -> None:
    stopwatch = Stopwatch()

    def work() -> None:
        with stopwatch.part("MLflow"):
            clock.now += 5

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    stopwatch.pause()
    assert seconds(stopwatch) == {OTHER: 5}


def test_the_load_of_a_cpu_is_a_share_of_its_threads(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first trial's start to the last one's end."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def run_trial() -> str:
        clock.now, clock.process = clock.now + 10, clock.process + 18
        return "outcome"

    load = Load(CPU)
    run = load.trial()(run_trial)
    assert run() == "outcome"
    clock.now, clock.process = clock.now + 4, clock.process + 4
    run()
    clock.now += 100
    load.stop()
    assert (load.trials, load.seconds) == (2, 24)
    assert load.share == (18 + 4 + 18) / 24 / 4


def test_the_load_of_a_gpu_is_what_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later than the last trial, nothing counts."""
    monkeypatch.setattr(whole_study, "SAMPLE_SECONDS", 0.001)
    is_busy, loads = True, iter([20, 60])
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: next(loads, 100) if is_busy else 0)
    load = Load(GPU)

    def run_trial() -> None:
        deadline = time.monotonic() + 10
        while len(load._samples) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)

    load.trial()(run_trial)()
    is_busy = False
    time.sleep(0.05)
    load.stop()
    inside = [share for at, share in load._samples if at <= load._end[0]]
    assert inside[:3] == [0.2, 0.6, 1.0]
    assert load.share == pytest.approx(sum(inside) / len(inside))
    assert len(load._samples) > len(inside)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("pynvml"), RuntimeError("no driver"), pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)],
    ids=["no library", "no driver", "a MIG slice"],
)
def test_a_driver_that_does_not_say(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_study, "SAMPLE_SECONDS", 0.001)

    def refuse(device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    load = Load(GPU)
    load.trial()(lambda: time.sleep(0.02))()
    load.stop()
    assert load.share is None


def bench(arguments: list[object], monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: {})  # which takes seconds
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    monkeypatch.chdir(folder)
    with signal_handlers_kept():
        return run_command(cli)


def test_a_study_is_measured(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With every part of PARTS: a function that the package calls by another name now would count for the rest."""
    arguments = ["--study", study_file, "--trials", 1, "--epochs", 2, "--device", "cpu", "--output", "b.json"]
    settings = ["confirm.seeds=1", "search.pruner=median", 'factors.truncate_at=["block1"]']
    used = set()

    def noted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            used.add(name)
            return function(*args, **kwargs)

        return call

    functions = [each for part in PARTS.values() for each in part]
    for owner, name in functions:
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    before = trial.make_training
    assert bench([*arguments, *(f"--set={setting}" for setting in settings)], monkeypatch, tmp_path) == 0
    assert trial.make_training is before
    assert used == {name for _, name in functions}
    measured = json.loads((tmp_path / "b.json").read_text())
    assert (measured["trainings"], measured["is_whole"], measured["study"]) == (4, True, "small")
    parts = measured["seconds_of_parts"]
    assert all(parts[part] > 0 for part in (START, OTHER, *PARTS))
    assert sum(parts.values()) == pytest.approx(measured["seconds"])
    assert 0 < measured["seconds_between_trials"] < measured["seconds"] - parts[START]
    assert 0 < measured["device_share"] <= 1.1  # of two threads; MLflow's may compute, too
    output = capsys.readouterr()
    assert "| trainings | 4 |" in output.out
    assert "| training | " in output.out
    assert "stopped before" not in output.out
    assert "Which cut of a small network?" in output.err  # the study's own output


def test_a_study_that_is_stopped_is_told(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fault(number: int, epoch: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    patched_train(monkeypatch, fault)
    assert bench(["--study", study_file, "--epochs", 1, "--device", "cpu"], monkeypatch, tmp_path) == 130
    assert json.loads((tmp_path / "bench.json").read_text())["trainings"] == 2
    assert "The study was stopped before its end." in capsys.readouterr().out
