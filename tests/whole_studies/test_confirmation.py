"""Confirmation runs: trained with seeds of their own, evaluated once on the test split, superseded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablation.analysis.results import read_results
from ablation.data.reading import load_split
from ablation.running import outputs, session, trial
from ablation.running.outputs import _save_predictions
from ablation.running.workbench import Workbench
from ablation.storage.store import find_store
from ablation.training.feature_cache import FeatureCache
from tests.studies import (
    CONFIRM,
    ONE_ARM,
    Command,
    client,
    history,
    patched_train,
    runs,
    sampled_rates,
)


def evaluations(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None] = lambda: None) -> list[int]:
    """Return a list that gets the number of images of every evaluation of the test split; `fault` is called after."""
    seen: list[int] = []
    real = _save_predictions

    def counting(path: Path, model: str, workbench: Workbench, *arguments: Any) -> None:
        real(path, model, workbench, *arguments)
        seen.append(len(workbench.session.images.test_labels_N))
        fault()

    monkeypatch.setattr(outputs, "_save_predictions", counting)
    return seen


def test_the_test_split_is_evaluated_once_per_confirmation_run(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process dies right after the evaluation, before anybody was told of it."""
    arguments = (study_file, "--store", "s", *ONE_ARM, *CONFIRM)

    def crash() -> None:
        if len(seen) == 1:
            raise KeyboardInterrupt

    reads: set[tuple[int, bool]] = set()
    source = FeatureCache.source

    def noting(self: FeatureCache, images: Any, *others: Any, beside: Any = None) -> Any:
        reads.add((len(images), beside is not None))
        return source(self, images, *others, beside=beside)

    monkeypatch.setattr(FeatureCache, "source", noting)
    seen = evaluations(monkeypatch, crash)
    assert command(*arguments) == 130
    assert command(*arguments) == 0
    assert seen == [360, 360]
    # Those for validation always beside those of the training, which stay on a GPU for the next trial, and those of the
    # test split beside those for validation.
    assert reads == {(150, False), (50, True), (360, True)}
    confirmations = runs(Path("s"), "small", kind="confirmation")
    assert [run.info.status for run in confirmations] == ["FINISHED"] * 2
    assert command(*arguments, "--set", "confirm.seeds=3") == 0
    assert seen == [360, 360, 360]  # more seeds top up


def test_nothing_that_chooses_reads_a_test_figure(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test images and labels of pure noise change test figures, and no choice: no trial, no checkpoint, no champion."""
    arguments = (study_file, *ONE_ARM, "--set", 'factors={strategy=["feature_extraction", "fine_tune_all"]}', *CONFIRM)
    assert command(*arguments, "--store", "real") == 0
    noise = np.random.default_rng(0)
    real = load_split

    def noisy(*args: Any, **kwargs: Any) -> Any:
        images, split = real(*args, **kwargs)
        pixels = noise.integers(0, 256, images.test_images_NHWC.shape, np.uint8)
        labels = noise.permutation(images.test_labels_N)
        return replace(images, test_images_NHWC=pixels, test_labels_N=labels), split

    monkeypatch.setattr(session, "load_split", noisy)
    assert command(*arguments, "--store", "noise") == 0

    def chosen(store: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"champion": None}
        names = {}
        for kind in ("trial", "confirmation"):
            for run in runs(store, "small", kind):
                key = names[run.info.run_id] = (run.data.tags["arm"], kind, run.data.tags["trial"])
                curves = {name: h for name, h in history(store, run).items() if not name.startswith("test")}
                folder = store / "artifacts" / "small" / run.info.run_id / "artifacts"
                found[key] = (run.data.params, curves, (folder / "checkpoint" / "best.safetensors").stat().st_size)
        version = client(store).get_model_version_by_alias("small", "champion")
        found["champion"] = names[version.run_id]
        return found

    def test_accuracies(store: Path) -> list[float]:
        return [run.data.metrics["test_accuracy"] for run in runs(store, "small", "confirmation")]

    assert chosen(Path("noise")) == chosen(Path("real"))
    assert test_accuracies(Path("noise")) != test_accuracies(Path("real"))


def test_a_larger_budget_supersedes(command: Command, study_file: Path) -> None:
    """The first trial's rate is hopeless; when the second is better, the confirmation of the first is left out."""
    seed = next(seed for seed in range(99) if sampled_rates(seed, [1e-6, 0.03], 2) == [1e-6, 0.03])
    arguments = (study_file, "--store", "s", *ONE_ARM, "--set", f"seed={seed}", "--set",
                 "search={lr={choices=[1e-6, 0.03]}, sampler='random'}", "--set", "confirm.seeds=1")  # fmt: skip
    assert command(*arguments, "--trials", "1") == 0
    assert command(*arguments, "--trials", "2") == 0
    old, new = runs(Path("s"), "small", kind="confirmation")
    assert (old.data.params["confirms"], old.data.tags["superseded"]) == ("0", "true")
    assert new.data.params["confirms"] == "1"
    assert "superseded" not in new.data.tags
    result = read_results(find_store("s"), "small")
    (arm,) = result.arms
    assert [run.run_id for run in arm.confirmations] == [new.info.run_id]
    assert [run.run_id for run in arm.superseded] == [old.info.run_id]
    assert result.test_evaluations == 2


def test_an_interrupted_confirmation_run_goes_on(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    arguments = (study_file, *ONE_ARM, "--trials", "1", *CONFIRM)
    assert command(*arguments, "--store", "whole") == 0

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(*arguments, "--store", "s") == 130
    (summary,) = runs(Path("s"), "small", kind="summary")
    assert summary.info.status == "SCHEDULED"
    assert command(*arguments, "--store", "s") == 0
    whole, resumed = (runs(Path(store), "small", kind="confirmation") for store in ("whole", "s"))
    assert [run.info.status for run in resumed] == ["FINISHED"] * 2
    assert [history(Path("s"), run) for run in resumed] == [history(Path("whole"), run) for run in whole]
