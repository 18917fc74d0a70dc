"""Whole studies, from the command line to both stores."""

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
from PIL import Image
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, f1_score

import ablation
from ablation.analysis.results import load_predictions, read_results
from ablation.base.errors import InputError
from ablation.data import reading
from ablation.data.images import Normalisation, to_device
from ablation.data.reading import load_images, load_split, split_seed, split_train_val
from ablation.planning import probe
from ablation.planning.probe import Speed
from ablation.reporting.report import build_report
from ablation.running import checks, outputs, trial
from ablation.running.outputs import _save_predictions
from ablation.running.workbench import Workbench, make_training
from ablation.spec.reading import load_study
from ablation.spec.schema import study_schema
from ablation.spec.study import Data
from ablation.spec.trial import TrialSpec
from ablation.storage.store import find_store
from ablation.training.checkpoint import load_resume_checkpoint, save_resume_checkpoint
from ablation.training.evaluation import evaluate
from ablation.training.feature_cache import FeatureCache
from ablation.training.sources import ImageSource, frozen_part
from tests.studies import (
    CONFIRM,
    ONE_ARM,
    REPOSITORY,
    STUDY,
    Command,
    arm_study,
    client,
    history,
    patched_train,
    runs,
    sampled_rates,
)

# ------------------------------------------------------------------------------------------------- a finished study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, narrow_weights: Path) -> Path:
    """The folder of a study that has run: small.toml and its store."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(STUDY.format(weights=narrow_weights))
    done = subprocess.run(
        [sys.executable, "-m", "ablation.study", "small.toml", "--store", "store", *CONFIRM],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_every_trial_is_a_finished_run(finished: Path) -> None:
    found = runs(finished / "store", "small")
    assert len(found) == 8
    assert {(run.data.tags["arm"], run.data.tags["trial"]) for run in found} == {
        (f"{cut},{strategy}", number)
        for cut in ("block1", "conv2_1") for strategy in ("feature_extraction", "fine_tune_all") for number in "01"
    }  # fmt: skip
    for run in found:
        assert run.info.status == "FINISHED"
        assert run.data.tags["study"] == "small"
        assert run.data.tags["arm"] == f"{run.data.tags['truncate_at']},{run.data.tags['strategy']}"
        assert "mlflow.parentRunId" not in run.data.tags
        (dataset,) = run.inputs.dataset_inputs
        assert dataset.dataset.name == "digits"
        curves = history(finished / "store", run)
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert [step for step, _ in curves[name]] == [1, 2, 3]
        assert curves["best_val_accuracy"] == [(0, max(value for _, value in curves["val_accuracy"]))]


def test_optuna_and_mlflow_agree(finished: Path) -> None:
    for run in runs(finished / "store", "small"):
        optuna_study = arm_study(finished / "store", f"small/{run.data.tags['arm']}")
        assert optuna_study.metric_names == ["val_accuracy"]  # what Optuna's dashboard calls the objective
        frozen = optuna_study.trials[int(run.data.tags["trial"])]
        assert frozen.state is optuna.trial.TrialState.COMPLETE
        assert frozen.value == run.data.metrics["best_val_accuracy"]
        assert frozen.user_attrs["run_id"] == run.info.run_id
        assert list(frozen.intermediate_values.items()) == history(finished / "store", run)["val_accuracy"]


def test_parameters_rebuild_the_trial(finished: Path) -> None:
    for run in runs(finished / "store", "small"):
        spec = TrialSpec.from_params(run.data.params)
        assert spec.to_params() == run.data.params
        assert (spec.epochs, spec.batch_size, spec.data_limit, spec.num_classes) == (3, 32, 200, 10)
        frozen = arm_study(finished / "store", f"small/{spec.arm}").trials[spec.trial]
        assert {name: getattr(spec, name) for name in frozen.params} == frozen.params


def test_artifacts(finished: Path, narrow_weights: Path) -> None:
    for run in runs(finished / "store", "small"):
        folder = finished / "store" / "artifacts" / "small" / run.info.run_id / "artifacts"
        assert run.info.artifact_uri == folder.as_uri()
        assert (folder / "study.toml").read_text() == (finished / "small.toml").read_text()
        assert json.loads((folder / "study.json").read_text())["fixed"]["batch_size"] == 32
        with safe_open(folder / "checkpoint" / "best.safetensors", framework="pt") as file:
            names = set(file.keys())
        frozen = run.data.tags["strategy"] == "feature_extraction"
        assert any(name.startswith("blocks.") for name in names) != frozen


def test_checkpoints_rebuild_models_with_the_same_accuracy(finished: Path) -> None:
    images = load_images(Data(source="digits"))
    split = split_train_val(images.train_labels_N, 0.25, 200, split_seed(0))
    val = to_device(images.train_images_NHWC, images.train_labels_N, split.val_N, torch.device("cpu"))
    for run in runs(finished / "store", "small"):
        model = ablation.load_model(run.info.run_id, store=str(finished / "store"))
        frozen = frozen_part(model, 0, Normalisation(tuple(model.input_mean), tuple(model.input_std)), "float32")
        evaluation = evaluate(model, ImageSource(val, frozen, "none"), "float32")
        curves = history(finished / "store", run)
        assert evaluation.accuracy == run.data.metrics["best_val_accuracy"]
        assert any(evaluation.loss == pytest.approx(value, rel=1e-5) for _, value in curves["val_loss"])
        assert model.classes == [str(digit) for digit in range(10)]


def test_other_weights_are_refused(finished: Path, tmp_path: Path) -> None:
    run = next(r for r in runs(finished / "store", "small") if r.data.tags["strategy"] == "feature_extraction")
    tensors = load_file(run.data.params["weights"])
    tensors["features.0.weight"][0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other.safetensors: not the weights that run \w+ was trained with"):
        ablation.load_model(run.info.run_id, store=str(finished / "store"), weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="has no MLflow run 'nonsense'"):
        ablation.load_model("nonsense", store=str(finished / "store"))


def test_confirmation_runs_train_the_best_trial_again_with_seeds_of_their_own(finished: Path) -> None:
    store = finished / "store"
    trials, confirmations = runs(store, "small"), runs(store, "small", kind="confirmation")
    assert len(confirmations) == 8
    assert min(run.info.start_time for run in confirmations) >= max(run.info.end_time for run in trials)
    specs = [TrialSpec.from_params(run.data.params) for run in confirmations]
    assert len({spec.seed for spec in specs}) == 8  # also among arms
    assert {spec.seed for spec in specs}.isdisjoint(TrialSpec.from_params(run.data.params).seed for run in trials)
    for spec, run in zip(specs, confirmations, strict=True):
        mine = [trial for trial in trials if trial.data.tags["arm"] == spec.arm]
        best = max(mine, key=lambda trial: (trial.data.metrics["best_val_accuracy"], -int(trial.data.tags["trial"])))
        tuned = TrialSpec.from_params(best.data.params)
        assert spec.confirms == tuned.trial
        changes = {"trial": spec.trial, "confirms": tuned.trial, "seed": spec.seed}
        assert spec == tuned.model_copy(update=changes)
        assert run.info.status == "FINISHED"
        assert "superseded" not in run.data.tags
        curves = history(store, run)
        assert curves["best_val_accuracy"] == [(0, max(value for _, value in curves["val_accuracy"]))]
        other = arm_study(store, f"small/{spec.arm}/confirmation").trials[spec.trial]
        assert (other.value, other.user_attrs["run_id"]) == (curves["best_val_accuracy"][0][1], run.info.run_id)


def test_test_figures_belong_to_the_checkpoint_and_to_confirmation_runs_alone(finished: Path) -> None:
    """An independent evaluation of the stored checkpoint gives the stored figures and predictions."""
    store = finished / "store"
    for run in runs(store, "small"):
        assert not [name for name in run.data.metrics if name.startswith("test")]
    images = load_images(Data(source="digits"))
    for run in runs(store, "small", kind="confirmation"):
        model = ablation.load_model(run.info.run_id, store=str(store))
        pixels = torch.from_numpy(images.test_images_NHWC).permute(0, 3, 1, 2) / 255
        mean, std = torch.tensor(model.input_mean), torch.tensor(model.input_std)
        with torch.no_grad():
            logits_NK = model((pixels - mean[:, None, None]) / std[:, None, None])
        labels_N = torch.from_numpy(images.test_labels_N)
        found = load_predictions(
            store / "artifacts" / "small" / run.info.run_id / "artifacts" / "test" / "predictions.safetensors"
        )
        assert found.probabilities_NK.dtype == np.float16
        np.testing.assert_allclose(found.probabilities_NK, logits_NK.softmax(1).numpy(), atol=1e-3)
        np.testing.assert_array_equal(found.labels_N, images.test_labels_N)
        np.testing.assert_array_equal(found.predicted_N, logits_NK.argmax(1).numpy())
        accuracy = (logits_NK.argmax(1) == labels_N).double().mean().item()
        assert run.data.metrics["test_accuracy"] == accuracy == (found.predicted_N == found.labels_N).mean()
        loss = torch.nn.functional.cross_entropy(logits_NK, labels_N).item()
        assert run.data.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_results_are_read_from_mlflow_alone(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    shutil.copytree(finished / "store", store, ignore=shutil.ignore_patterns("optuna.db", "checkpoints"))
    result = read_results(find_store(str(store)), "small")
    assert (result.missing_trials, result.missing_confirmations, result.test_evaluations) == (0, 0, 8)
    assert (result.train_images, result.val_images, result.test_images) == (150, 50, 360)
    found = {run.info.run_id: run for run in runs(finished / "store", "small", kind="confirmation")}
    assert len(result.arms) == 4
    for arm in result.arms:
        assert [trial.number for trial in arm.trials] == [run.number for run in arm.confirmations] == [0, 1]
        assert arm.correct_SN.shape == (2, 360)
        for run, correct_N in zip(arm.confirmations, arm.correct_SN, strict=True):
            metrics = found[run.run_id].data.metrics
            assert (run.val_accuracy, run.test_accuracy) == (metrics["best_val_accuracy"], metrics["test_accuracy"])
            assert correct_N.mean() == run.test_accuracy
            assert [len(run.curves[name]) for name in ("train_loss", "val_accuracy")] == [3, 3]
            assert run.environment["torch"] == torch.__version__
            trained = sum(
                tensor.numel()
                for name, tensor in ablation.load_model(run.run_id, store=str(store)).named_parameters()
                if name.startswith("head") or arm.arm.levels["strategy"] == "fine_tune_all"
            )
            assert run.trained_parameters == trained


def test_the_report_has_the_images_that_the_network_got(finished: Path, tmp_path: Path) -> None:
    """In a copy of the store; without them, as older versions left it, it is read all the same."""
    store = tmp_path / "copy"
    shutil.copytree(finished / "store", store, ignore=shutil.ignore_patterns("optuna.db", "checkpoints"))
    result = read_results(find_store(str(store)), "small")
    images = load_images(Data(source="digits"))
    split = split_train_val(images.train_labels_N, 0.25, 200, split_seed(0))
    assert result.samples is not None
    assert result.samples.augmentations == []
    assert result.samples.normalisation == Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32)
    for k, images_IVSSC in zip(result.samples.classes_R, result.samples.images_RIVSSC, strict=True):
        learnt = [number for number in split.train_N if images.train_labels_N[number] == k]
        learnt_from = {images.train_images_NHWC[number].tobytes() for number in learnt}
        assert {image.tobytes() for image in images_IVSSC[:, 0]} <= learnt_from
    runs_of_arms = [run for arm in result.arms for run in arm.confirmations]
    assert len(runs_of_arms) == 8
    for run in runs_of_arms:
        assert run.predictions is not None
        assert run.predictions.mistakes is not None
        wrong = [n for n in range(360) if run.predictions.predicted_N[n] != images.test_labels_N[n]]
        surest = sorted(wrong, key=lambda n: (-run.predictions.probabilities_NK[n].max(), n))[:12]
        assert list(run.predictions.mistakes.numbers_M) == surest
        np.testing.assert_array_equal(run.predictions.mistakes.images_MSSC, images.test_images_NHWC[surest])
    report = build_report(result)
    assert {"samples.png", "mistakes.svg"} <= report.figures.keys()

    for path in store.rglob("predictions.safetensors"):
        tensors = {n: array for n, array in safetensors_numpy.load_file(path).items() if "mistake" not in n}
        safetensors_numpy.save_file(tensors, path)
    (samples,) = store.rglob("samples.safetensors")
    samples.unlink()
    old = build_report(read_results(find_store(str(store)), "small"))
    assert not {"samples.png", "mistakes.svg"} & old.figures.keys()
    assert old.answer == report.answer


def test_results_as_a_table(finished: Path) -> None:
    """Every run is a row, with the figures that MLflow has of it."""
    table = ablation.load_results("small", store=str(finished / "store"))
    assert dict(table.dtypes.astype(str)) == {
        "run_id": "string", "arm": "string", "kind": "string", "number": "int64", "state": "string",
        "reason": "string", "is_best": "bool", "is_superseded": "bool", "val_accuracy": "float64",
        "best_epoch": "Int64", "test_accuracy": "float64", "test_balanced_accuracy": "float64",
        "test_macro_f1": "float64", "test_loss": "float64", "trained_parameters": "Int64",
        "training_seconds": "float64", "seed": "int64", "truncate_at": "string", "strategy": "string",
        "freeze_depth": "Int64", "head_width": "int64", "head_pool": "string", "lr": "float64",
        "backbone_lr_scale": "float64", "head_warmup_epochs": "int64", "optimizer": "string",
        "weight_decay": "float64", "max_grad_norm": "float64", "label_smoothing": "float64", "class_weights": "string",
        "schedule": "string",
        "batch_size": "int64", "augmentation": "string",
    }  # fmt: skip
    found = {
        run.info.run_id: run
        for kind in ("trial", "confirmation")
        for run in runs(finished / "store", "small", kind=kind)
    }
    assert len(table) == len(found) == 4 * (2 + 2)
    for row in table.itertuples():
        run = found[row.run_id]
        assert (row.arm, row.kind, row.number) == (
            run.data.tags["arm"],
            run.data.tags["kind"],
            int(run.data.tags["trial"]),
        )
        assert (row.state, row.reason, row.is_superseded) == ("finished", "", False)
        assert row.val_accuracy == run.data.metrics["best_val_accuracy"]
        assert row.best_epoch == run.data.metrics["best_epoch"]
        assert row.trained_parameters == run.data.metrics["trained_parameters"]
        assert row.lr == float(run.data.params["lr"])
        assert row.head_pool == run.data.params["head_pool"]
        expected = run.data.metrics.get("test_accuracy")
        assert row.test_accuracy == expected if expected is not None else np.isnan(row.test_accuracy)
    result = read_results(find_store(str(finished / "store")), "small")
    confirmed = [run for arm in result.arms for run in arm.confirmations]
    scores = table.set_index("run_id").loc[[run.run_id for run in confirmed]]
    for run, balanced, f1 in zip(confirmed, scores.test_balanced_accuracy, scores.test_macro_f1, strict=True):
        assert balanced == pytest.approx(balanced_accuracy_score(run.predictions.labels_N, run.predictions.predicted_N))
        assert f1 == pytest.approx(f1_score(run.predictions.labels_N, run.predictions.predicted_N, average="macro"))
    best = table[table.is_best]
    assert list(best.arm) == sorted(set(table.arm), key=list(table.arm).index)
    trials = table[table.kind == "trial"]
    assert list(best.val_accuracy) == [trials[trials.arm == arm].val_accuracy.max() for arm in best.arm]
    assert table.freeze_depth.isna().all()
    assert list(table.backbone_lr_scale.isna()) == [strategy == "feature_extraction" for strategy in table.strategy]
    with pytest.raises(InputError, match="smal"):
        ablation.load_results("smal", store=str(finished / "store"))


def test_summary_report_and_output(finished: Path) -> None:
    store = finished / "store"
    (summary,) = runs(store, "small", kind="summary")
    assert summary.info.status == "FINISHED"
    output = (finished / "output.txt").read_text()
    report = build_report(read_results(find_store(str(store)), "small"))
    assert report.answer in output
    folder = store / "artifacts" / "small" / summary.info.run_id / "artifacts" / "report"
    for place in (folder, store / "reports" / "small"):
        assert (place / "report.html").read_text() == report.html
        assert (place / "report.md").read_text() == report.markdown
    note = summary.data.tags["mlflow.note.content"]
    confirmations = runs(store, "small", kind="confirmation")
    experiment = client(store).get_experiment_by_name("small")
    assert report.answer in note
    for run in confirmations:
        assert f"(#/experiments/{experiment.experiment_id}/runs/{run.info.run_id})" in note
    assert "python -m mlflow ui --backend-store-uri sqlite:///store/mlflow.db" in output
    description = experiment.tags["mlflow.note.content"]
    assert description == f"**{report.answer}**\n\nWhich cut of a small network?"


def test_a_copied_store_is_read_where_it_is(finished: Path, tmp_path: Path, command: Command, capsys: Any) -> None:
    store = tmp_path / "copy"
    shutil.copytree(finished / "store", store)
    (store / "mlflow.db").chmod(0o600)
    run = runs(store, "small")[0]
    original = finished / "store" / "artifacts"
    original.rename(original.with_name("hidden"))
    try:
        ablation.load_model(run.info.run_id, store=str(store))
    finally:
        original.with_name("hidden").rename(original)
    toml = finished / "small.toml"
    assert command(toml, "--status", "--store", store) == 0
    output = capsys.readouterr().out
    assert "small: 16 of 16 runs ended (2 trials and 2 confirmation runs per arm)" in output
    assert sum(run.info.run_id in output for run in runs(store, "small")) == 4  # one per arm
    assert command(toml, "--trials", "3", "--store", store) == 2
    assert "is a copy, and MLflow keeps the address of its artifacts" in capsys.readouterr().err


def test_running_again_adds_nothing_and_a_changed_study_is_refused(
    finished: Path, command: Command, capsys: Any
) -> None:
    toml, store = finished / "small.toml", finished / "store"

    def figures() -> dict[str, Any]:
        found = [*runs(store, "small"), *runs(store, "small", kind="confirmation")]
        return {run.info.run_id: history(store, run) for run in found}

    before = figures()
    assert len(before) == 16
    assert command(toml, "--store", store, *CONFIRM) == 0
    assert figures() == before
    assert len(runs(store, "small", kind="summary")) == 1
    capsys.readouterr()
    assert command(toml, "--store", store, "--trials", "3", "--set", "fixed.weight_decay=0.001") == 2
    error = capsys.readouterr().err
    assert "fixed.weight_decay (was 0.0005, is 0.001)" in error
    assert "--name small-2" in error
    assert len(error.splitlines()) == 1
    assert len(runs(store, "small")) == 8


# ------------------------------------------------------------------------------------------------------ confirmation


def evaluations(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None] = lambda: None) -> list[int]:
    """Return a list that gets the number of images of every evaluation of the test split; `fault` is called after."""
    seen: list[int] = []
    real = _save_predictions

    def counting(path: Path, model: str, workbench: Workbench, training: Any) -> None:
        real(path, model, workbench, training)
        seen.append(len(workbench.test_labels_N))
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

    seen = evaluations(monkeypatch, crash)
    assert command(*arguments) == 130
    assert command(*arguments) == 0
    assert seen == [360, 360]
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

    monkeypatch.setattr(checks, "load_split", noisy)
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


# --------------------------------------------------------------------------------------------------- things go wrong


def test_a_new_study_is_written_and_checked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It loads as it is written, and also with every default that it shows."""
    assert command("--new", "mine") == 0
    path = Path("studies/mine.toml")
    written = path.read_text()
    schema = written.splitlines()[0].removeprefix("#:schema ")
    assert json.loads(Path(schema).read_text()) == study_schema()
    content = load_study(path).content()
    path.write_text(re.sub(r"^# (\w+ *=)", r"\1", written, flags=re.MULTILINE))
    shown = load_study(path).content()
    assert shown["data"].pop("limit") == 1000
    assert content["data"].pop("limit") is None
    assert shown == content
    path.write_text(written)

    capsys.readouterr()
    assert command("--check", "mine") == 2
    assert "data.root: pictures: there is no such folder; it must hold train/<class>/*" in capsys.readouterr().err
    for split in ("train", "test"):
        for name in ("a", "b"):
            Path("pictures", split, name).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (40, 30)).save(Path("pictures", split, name, f"{number}.png"))
    with monkeypatch.context() as patch:
        patch.setattr(reading, "available_memory", lambda: 10_000)
        assert command("--check", "mine") == 2
    assert command("--check", "mine") == 0
    assert "6 arms, 78 trainings on 20 images of 2 classes" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.name for path in Path().iterdir()) == ["pictures", "studies"]  # nothing else was written


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vgg_truncation", "error: --new: there is a study 'vgg_truncation': "),
        ("../mine", "error: the study's name '../mine' must be"),
    ],
)
def test_a_new_study_that_cannot_be(command: Command, name: str, said: str, capsys: Any) -> None:
    assert command("--new", name) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not list(Path().iterdir())


def test_check_reads_the_weights(command: Command, study_file: Path, narrow_weights: Path, capsys: Any) -> None:
    assert command("--check", study_file) == 0
    assert command("--check", study_file, "--set", "backbone.name=vgg16") == 2
    assert "holds vgg16_narrow, but backbone.name is vgg16" in capsys.readouterr().err
    assert command("--check", study_file, "--set", "backbone={name='vgg16', weights='IMAGENET1K_V9'}") == 2
    said = capsys.readouterr().err
    assert "torchvision has no 'IMAGENET1K_V9' for vgg16; did you mean 'IMAGENET1K_V1'?" in said
    assert not list(Path().iterdir())


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
    assert command(study_file, "--store", "s", *ONE_ARM, *rates, *CONFIRM) == 0
    output = capsys.readouterr().out
    assert "| fine_tune_all | 2 failed | - | - | none |" in output
    assert "There is nothing to report: study 'small' has no finished trial yet." in output
    (summary,) = runs(Path("s"), "small", kind="summary")
    assert summary.info.status == "FAILED"
    with pytest.raises(InputError, match="study 'small' has no finished trial yet"):
        read_results(find_store("s"), "small")
    with pytest.raises(InputError, match="has no study 'smal'; did you mean 'small'?"):
        read_results(find_store("s"), "smal")


def test_a_study_of_a_newer_version_is_refused(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    shutil.copytree(finished / "store", store)
    (about,) = store.rglob("about.json")
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "version": "9.0", "spec": {**content["spec"], "temperature": 1}}))
    with pytest.raises(InputError, match="study 'small' was made by ablation 9.0, which this version cannot read"):
        read_results(find_store(str(store)), "small")


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
    assert output.count("(continued)") == 1
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
    assert caplog.text.count("its checksum is wrong; going on from the one before, or from the start") == damaged
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
    # Another device may have another precision; the trial keeps the one that it began with.
    monkeypatch.setattr(trial, "select_precision", lambda *_: "bfloat16")
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1", *moved) == 0
    (run,) = runs(Path("s"), "small")
    assert (run.info.status, run.data.params["precision"]) == ("FINISHED", "float32")


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


# -------------------------------------------------------------------------------------------------- refusals, plans


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "which study? --list lists them"),
        (("vgg_truncatoin",), "no study 'vgg_truncatoin'; did you mean 'vgg_truncation'?"),
        (("other.toml",), "other.toml: no such file"),
        (("{file}", "--name", "../x"), "the study's name '../x' must be"),
        (("{file}", "--demo", "--name", "x"), "--name: a demo is always called NAME-demo"),
        (("{file}", "--epochs", "ten"), "'ten' is not a valid integer"),
        (("{file}", "--feature-cache", "inf"), "--feature-cache: must be a number of GB, got inf"),
        (("{file}", "--feature-cache", "nan"), "--feature-cache: must be a number of GB, got nan"),
        (("{file}", "--feature-cache", "-1"), "Invalid value for '--feature-cache'"),
        (("{file}", "--trials", "0"), "trials_per_arm: input should be greater than or equal to 1"),
        (("{file}", "--device", "tpu"), "--device: unknown device 'tpu'"),
        (("{file}", "--device", "cuda:77"), "--device: cuda:77 is not available"),
        (("{file}", "--set", "data.limit=99999"), "data.limit: 99999 is more than the 1437 training images"),
        (("{file}", "--set", "data.limit=11"), "data.val_fraction: 3 of 11 images for validation, but 10 classes"),
        (("{file}", "--set", 'data.classes=["1","x"]'), "data.classes: no class 'x'; known: 0, 1"),
        (("{file}", "--set", "backbone.weights=no.pth"), "backbone.weights: no.pth: no such file"),
        (("{file}", "--set", "backbone.name=vgg16"), "holds vgg16_narrow, but backbone.name is vgg16"),
        (("{file}", "--store", "{file}"), "is not a folder"),
        (("{file}", "--status"), "has no study 'small'"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    command: Command, study_file: Path, arguments: tuple[str, ...], expected: str, capsys: Any
) -> None:
    assert command(*(argument.format(file=study_file) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_tracking_store_that_refuses_leaves_nothing_behind(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert command(study_file) == 2
    error = capsys.readouterr().err
    assert "MLFLOW_TRACKING_URI: cannot be opened as MLflow's store" in error
    assert "secret" not in error
    assert list(Path().iterdir()) == []


def test_a_deleted_experiment_is_not_written_to(command: Command, study_file: Path, capsys: Any) -> None:
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "1", "--epochs", "1") == 0
    api = client(Path("s"))
    api.delete_experiment(api.get_experiment_by_name("small").experiment_id)
    capsys.readouterr()
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", "2", "--epochs", "1") == 2
    assert "the MLflow experiment 'small' was deleted; restore it" in capsys.readouterr().err
    assert arm_study(Path("s"), "small/fine_tune_all").user_attrs["content"]["trials_per_arm"] == 1


def test_lacking_layers_are_refused_unless_asked_for(
    command: Command, study_file: Path, narrow_weights: Path, capsys: Any
) -> None:
    tensors = load_file(narrow_weights)
    save_file({k: v for k, v in tensors.items() if k.split(".")[1] in ("0", "2")}, "block1.safetensors")
    weights = ("--set", "backbone.weights=block1.safetensors", "--trials", "1", "--epochs", "1", "--store", "s")
    assert command(study_file, *weights) == 2
    assert (
        "block1.safetensors: has no conv2_1 (features.5.weight), which truncate_at = conv2_1" in capsys.readouterr().err
    )
    assert not Path("s").exists()
    assert command(study_file, *weights, "--set", "backbone.missing_layers=random") == 0
    for run in runs(Path("s"), "small"):
        ablation.load_model(run.info.run_id, store="s")  # frozen random layers are rebuilt, too


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml")))
def test_every_study_plans(command: Command, capsys: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # What it measures is tested in test_probe.py; here it would take minutes.
    monkeypatch.setattr(probe, "measure_training", lambda kind, conditions: Speed(0.1, 1e-3, 1e-4, 1e-4))
    monkeypatch.setattr(probe, "measure_frozen", lambda part, conditions: (1e-3, 1e-3))
    assert command(name, "--plan") == 0
    output = capsys.readouterr().out
    assert re.search(r"\d+ arms?, \d+ trainings, ", output)
    assert "cannot" not in output.partition("What a smaller budget would give up")[0]
    assert list(Path().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml")))
def test_every_study_is_measured(command: Command, capsys: Any, name: str) -> None:
    assert command(name, "--plan") == 0
    output = capsys.readouterr().out
    assert re.search(r"With one worker on \w+(:0)?, the study takes about \d", output)
    assert "cannot run" not in output
    assert list(Path().iterdir()) == []


def test_plan_by_hand(command: Command, study_file: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.01)
    before = sorted(Path().rglob("*"))
    assert command(study_file, "--plan") == 0
    output = capsys.readouterr().out
    # block1 of the narrow network: 3*8*9+8 + 8*8*9+8 = 808; the widest head, on 8*2*2 features: 32*16+16 + 170 = 698.
    assert "| block1,feature_extraction | 698 | 1,506 | 0.0 MB |" in output
    assert "| block1,fine_tune_all | 1,506 | 1,506 | 0.0 MB |" in output
    # conv2_1 adds 8*16*9+16 = 1168; its head has 64*16+16 + 170 = 1210.
    assert "| conv2_1,fine_tune_all | 3,186 | 3,186 | 0.0 MB |" in output
    assert "4 arms, 8 trainings, 24 epochs: an arm has 2 trials and 0 confirmation runs" in output
    assert "What frozen layers compute takes up to 0.1 MB in the store" in output
    assert re.search(r"With one worker on \w+(:0)?, the study takes about \d", output)
    assert re.search(r"\| half the trials \| 1 \| 0 \| [^|]+ \| 10 % \| - \|", output)
    assert "cannot run" not in output
    assert command(study_file, "--plan", *CONFIRM) == 0
    output = capsys.readouterr().out
    assert "4 arms, 16 trainings, 48 epochs: an arm has 2 trials and 2 confirmation runs" in output
    assert sorted(Path().rglob("*")) == before
    assert command(study_file, "--plan", "--device", "cuda:99") == 2
    assert "--device: cuda:99 is not available" in capsys.readouterr().err


def test_list(command: Command, capsys: Any) -> None:
    assert command("--list") == 0
    output = capsys.readouterr().out
    assert "| vgg_truncation | Which VGG-16 truncation point transfers best to CIFAR-10? |" in output
    assert "published_result" in output


# ------------------------------------------------------------------------------------------------------- the demo


def test_demo_in_small(command: Command, capsys: Any) -> None:
    """The demo, and then a study of the same file in the same store: they don't get in each other's way."""
    small = ("--trials", "1", "--epochs", "1", "--set", "confirm.seeds=0")
    assert command("strategies", "--demo", *small) == 0
    output = capsys.readouterr().out
    assert "demo: a narrow VGG-16 from the digits 0-4 to the digits 5-9" in output
    assert len(runs(Path("mlruns"), "strategies-demo")) == 8
    weights = ("--set", "backbone.name=vgg16_narrow", "--set", "backbone.weights=" + str(
        next(Path("mlruns/demo").glob("*.safetensors"))))  # fmt: skip
    assert command("strategies", *small, *weights, "--set", "data={source='digits'}") == 0
    assert len(runs(Path("mlruns"), "strategies")) == len(runs(Path("mlruns"), "strategies-demo")) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml")))
def test_every_study_has_a_demo(name: str, tmp_path: Path) -> None:
    """As the README says it; that of vgg_truncation takes less than three minutes on two cores."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ablation.study", name, "--demo"],
                          cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    if name == "vgg_truncation":
        assert time.monotonic() - started < 180
        best = [run.data.metrics["best_val_accuracy"] for run in runs(tmp_path / "mlruns", "vgg_truncation-demo")]
        assert len(best) == 20
        assert max(best) > 0.9


# ---------------------------------------------------------------------------------------- real images, real weights


@pytest.mark.real_data
def test_real_images_and_weights(command: Command, real_data: Path, real_images: Path) -> None:
    """Pretrained VGG-16 features of CIFAR-10 (JPEG copy) get better from block 1 to block 3."""
    weights = real_data / "weights" / "vgg16-imagenet-voc-blocks1-3.safetensors"
    assert command(
        "vgg_truncation", "--store", "s", "--trials", "1", "--epochs", "4",
        "--set", "data.source=imagefolder", "--set", f"data.root={real_images}", "--set", "data.val_fraction=0.25",
        "--set", f"backbone.weights={weights}",
        "--set", "factors={truncate_at=['block1', 'block3'], strategy=['feature_extraction']}",
        "--set", "search={lr={choices=[0.03]}}",
    ) == 0  # fmt: skip
    accuracy = {
        run.data.tags["truncate_at"]: run.data.metrics["best_val_accuracy"] for run in runs(Path("s"), "vgg_truncation")
    }
    # Chance is 0.1, and 300 images carry a standard error of 0.03.
    assert accuracy["block1"] > 0.25
    assert accuracy["block3"] > accuracy["block1"] + 0.05
