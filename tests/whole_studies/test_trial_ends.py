"""How trials end: diverged, out of memory, pruned; and which checkpoints are kept."""

import gc
import weakref
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import ablation
from ablation.analysis.results import read_results
from ablation.base.errors import InputError
from ablation.running import trial
from ablation.running.workbench import make_training
from ablation.storage.store import find_store
from ablation.training import compiler
from ablation.training.feature_cache import FeatureCache
from ablation.training.loop import train
from ablation.training.state import Training
from tests.studies import (
    CONFIRM,
    ONE_ARM,
    Command,
    arm_study,
    history,
    patched_train,
    runs,
)


def test_divergence_fails_the_trial_and_the_study_goes_on(command: Command, study_file: Path, capsys: Any) -> None:
    rates = ("--set", "search={lr={choices=[1e30, 0.01]}, sampler='random'}")
    assert command(study_file, "--store", "s", *ONE_ARM, *rates, "--trials", "6") == 0
    found = runs(Path("s"), "small")
    assert {(run.data.params["lr"], run.info.status) for run in found} == {("1e+30", "FAILED"), ("0.01", "FINISHED")}
    for run in found:
        frozen = arm_study(Path("s"), "small/fine_tune_all").trials[int(run.data.tags["trial"])]
        if run.info.status == "FAILED":
            assert "loss became" in run.data.tags["reason"]
            assert frozen.state is optuna.trial.TrialState.FAIL
            assert frozen.user_attrs["reason"] == run.data.tags["reason"]
    capsys.readouterr()
    assert command(study_file, "--store", "s", "--status") == 0
    output = capsys.readouterr().out
    failed = sum(run.info.status == "FAILED" for run in found)
    assert f"{6 - failed} finished, {failed} failed" in output
    assert "failed: the training loss became" in output
    assert command(study_file, "--store", "s", *ONE_ARM, *rates, "--trials", "6") == 0
    assert len(runs(Path("s"), "small")) == 6  # failed trials count
    assert command(study_file, "--store", "s", *ONE_ARM, *rates, "--trials", "7") == 0
    assert len(runs(Path("s"), "small")) == 7  # and a larger budget tops up


def test_a_study_in_which_everything_failed(command: Command, study_file: Path, capsys: Any) -> None:
    rates = ("--set", "search={lr={choices=[1e30]}}")
    assert command(study_file, "--store", "s", *ONE_ARM, *rates, *CONFIRM) == 1
    output, errors = capsys.readouterr()
    assert errors.endswith("error: every trial failed; try a lower lr\n")
    assert "| fine_tune_all | 2 failed | - | - | none |" in output
    assert "There is nothing to report: study 'small' has no finished trial yet." in output
    (summary,) = runs(Path("s"), "small", kind="summary")
    assert summary.info.status == "FAILED"
    with pytest.raises(InputError, match="study 'small' has no finished trial yet"):
        read_results(find_store("s"), "small")
    with pytest.raises(InputError, match="has no study 'smal'; did you mean 'small'?"):
        read_results(find_store("s"), "smal")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines"),
         "out of memory on cpu: CUDA out of memory. Tried to allocate 2 GiB."),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
         "out of memory on cpu: cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (MemoryError(), "out of memory on cpu: MemoryError"),
    ],
)  # fmt: skip
def test_out_of_memory_fails_the_trial_and_is_released(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    models: list[weakref.ref[Any]] = []
    real = make_training

    def remembering(*args: Any) -> Any:
        assert all(model() is None for model in models), "the model of the trial before is still in memory"
        made = real(*args)
        models.append(weakref.ref(made.model))
        return made

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (0, 2):
            raise type(error)(*error.args)  # the given one would keep the frames alive

    monkeypatch.setattr(trial, "make_training", remembering)
    patched_train(monkeypatch, fault)
    assert command(study_file, "--store", "s", *ONE_ARM) == 0
    first, second = runs(Path("s"), "small")
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert first.data.tags["reason"] == reason
    assert len(models) == 2


def test_a_trial_that_features_leave_no_memory_goes_on_without_them(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that holds features: they are released once, then the trial is what it would have been."""
    released = iter([True, False])
    monkeypatch.setattr(FeatureCache, "release_device", lambda self: next(released))
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) in ((0, 2), (2, 2)):
            raise torch.OutOfMemoryError("CUDA out of memory")

    patched_train(monkeypatch, fault)
    assert command(study_file, "--store", "s", *ONE_ARM) == 0
    first, second = runs(Path("s"), "small")
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert [step for step, _ in history(Path("s"), first)["val_loss"]] == [1, 2, 3]


def test_a_trial_that_a_graph_leaves_no_memory_is_resumed_without_one(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, from the last checkpoint, and with nothing of the first attempt in memory, wherever it ended."""
    captures: list[bool] = []
    held: list[weakref.ref[Any]] = []

    def captured(training: Training, *sources_and_settings: Any) -> Any:
        gc.collect()
        assert all(thing() is None for thing in held), "a network or its features are in memory after their attempt"
        held.extend(weakref.ref(thing) for thing in (training.model, *sources_and_settings[:2]))
        captures.append(training.may_capture)
        training.has_graph = training.may_capture
        yield from train(training, *sources_and_settings)

    def full(workbench: Any, claim: Any, run: Any, training: Training) -> None:
        if len(training.history) == 2 and len(captures) != 2:  # while a generator has not ended
            raise torch.OutOfMemoryError("CUDA out of memory")
        save(workbench, claim, run, training)

    save = trial._save
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trial, "train", captured)
    monkeypatch.setattr(trial, "_save", full)
    assert command(study_file, "--store", "s", *ONE_ARM) == 0
    first, second = runs(Path("s"), "small")
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert [step for step, _ in history(Path("s"), first)["val_loss"]] == [1, 2, 3]
    assert captures == [True, False, True, False]


def test_a_trial_that_the_graphs_of_earlier_trials_leave_no_memory_is_resumed(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch.compile's modes with CUDA graphs keep them for each shape of network until they are released.

    A trial that had no other's graphs beside it would run out of memory again.
    """
    shapes: set[int] = set()
    attempts: list[str] = []

    def counted(spec: Any, workbench: Any) -> Any:
        attempts.append(f"{status} #{spec.trial}")
        return make_training(spec, workbench)

    def compile_(function: Any, **_: object) -> Any:
        def compiled(model: Any, *others: Any) -> Any:
            shapes.add(model.head[0].out_features)
            if len(shapes) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function(model, *others)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "reset", shapes.clear)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr("ablation.running.workbench.check_compiler", lambda *_: None)
    monkeypatch.setattr(trial, "make_training", counted)
    search = "search={head_width={choices=[8,16]}, lr={choices=[0.01]}, sampler='random'}"
    arguments = ("--set", "compile=reduce-overhead", "--set", search, *ONE_ARM, "--trials", "4")
    for room, status in ((1, "FINISHED"), (0, "FAILED")):
        compiler._compiled.cache_clear()
        shapes.clear()
        assert command(study_file, "--store", status, *arguments) == (room == 0)
        found = runs(Path(status), "small")
        assert {run.info.status for run in found} == {status}
        assert room == 0 or {run.data.params["head_width"] for run in found} == {"8", "16"}
    assert [attempt for attempt in attempts if "FAILED" in attempt] == [f"FAILED #{number}" for number in range(4)]
    compiler._compiled.cache_clear()
    assert "CUDA out of memory; resumed after earlier trials' graphs were released" in caplog.text


def test_pruned_runs_are_killed(command: Command, study_file: Path) -> None:
    search = ("--set", "search={pruner='median', sampler='random', lr={choices=[1e-6, 0.05]}}")
    assert command(study_file, "--store", "s", *ONE_ARM, *search, "--trials", "10", "--epochs", "4") == 0
    frozen = arm_study(Path("s"), "small/fine_tune_all").trials
    pruned = [t for t in frozen if t.state is optuna.trial.TrialState.PRUNED]
    assert pruned
    for run in runs(Path("s"), "small"):
        mine = frozen[int(run.data.tags["trial"])]
        assert run.info.status == ("KILLED" if mine in pruned else "FINISHED")
        epochs = [step for step, _ in history(Path("s"), run)["val_loss"]]
        assert epochs == list(range(1, len(mine.intermediate_values) + 1))
        if mine in pruned:
            assert len(epochs) < 4
            assert run.data.tags["reason"] == f"pruned after epoch {len(epochs)} of 4"


def test_only_the_arms_best_checkpoint_is_kept(command: Command, study_file: Path) -> None:
    best = ("--set", "tracking.checkpoints=best_per_arm")
    assert command(study_file, "--store", "s", *best, "--trials", "3") == 0
    kept = {path.parts[3] for path in Path("s/artifacts").rglob("best.safetensors")}
    found = runs(Path("s"), "small")
    leaders = set()
    for arm in {run.data.tags["arm"] for run in found}:
        mine = [run for run in found if run.data.tags["arm"] == arm]
        leaders.add(max(mine, key=lambda run: run.data.metrics["best_val_accuracy"]).info.run_id)
    assert len(found) == 12
    assert kept == leaders
    loser = next(run for run in found if run.info.run_id not in leaders)
    with pytest.raises(InputError, match="has no checkpoint/best.safetensors"):
        ablation.load_model(loser.info.run_id, store="s")
