"""A study that has run, in both stores and in the report."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from safetensors import numpy as safetensors_numpy
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, f1_score

import ablation
from ablation.analysis.pooling import analyse_study
from ablation.analysis.predictions import load_predictions
from ablation.analysis.results import read_results
from ablation.base.errors import InputError
from ablation.base.text import escape_markdown
from ablation.data.images import to_device
from ablation.data.normalisation import Normalisation
from ablation.data.reading import load_images, load_split
from ablation.data.split import split_seed
from ablation.reporting.report import build_report
from ablation.spec.tables import Data
from ablation.spec.trial import TrialSpec
from ablation.storage.store import find_store
from ablation.tracking.reading import CHECKSUM_TAG
from ablation.tracking.run_names import SEED_TAG
from ablation.training.evaluation import evaluate
from ablation.training.sources import ImageSource, frozen_part
from tests.studies import (
    CONFIRM,
    Command,
    arm_study,
    client,
    copy_store,
    history,
    runs,
)


@pytest.fixture
def finished(finished_study: Path) -> Path:
    """The folder of a study that has run, as its own process, and that no test changes."""
    return finished_study


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


def test_every_run_of_an_arm_has_the_arms_colour(finished: Path) -> None:
    store = finished / "store"
    (experiment,) = client(store).search_experiments(filter_string="name = 'small'")
    found = client(store).search_runs([experiment.experiment_id], "tags.kind != 'summary'")
    assert len(found) == 8 + 8 + 4
    assert {(run.data.tags["arm"], run.data.tags["mlflow.runColor"]) for run in found} == {
        ("block1,feature_extraction", "#0072b2"),
        ("block1,fine_tune_all", "#99c7e0"),
        ("conv2_1,feature_extraction", "#d55e00"),
        ("conv2_1,fine_tune_all", "#eebf99"),
    }


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
    images, split = load_split(Data(source="digits", limit=200, val_fraction=0.25), split_seed(0))
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
    assert sorted(spec.seed for spec in specs) == [1, 1, 1, 1, 2, 2, 2, 2]  # as people count them
    assert len({run.data.tags[SEED_TAG] for run in confirmations}) == 8  # of training, also among arms
    assert {run.data.tags[SEED_TAG] for run in confirmations}.isdisjoint(run.data.tags[SEED_TAG] for run in trials)
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
        assert arm.scores_SN.shape == (2, 360)
        for run, correct_N in zip(arm.confirmations, arm.scores_SN, strict=True):
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
    images, split = load_split(Data(source="digits", limit=200, val_fraction=0.25), split_seed(0))
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
    assert result.images is not None
    parts = (images.train_labels_N[split.train_N], images.train_labels_N[split.val_N], images.test_labels_N)
    assert result.images.counts_DK.tolist() == [np.bincount(labels_N).tolist() for labels_N in parts]
    assert result.images.comparison is not None
    assert (result.images.comparison.pictures, result.images.comparison.across) == (200 + 360, 0)
    report = build_report(analyse_study(result))
    assert {"contact_sheet.png", "samples.png", "mistakes.png"} <= report.figures.keys()

    for path in store.rglob("predictions.safetensors"):
        tensors = {n: array for n, array in safetensors_numpy.load_file(path).items() if "mistake" not in n}
        safetensors_numpy.save_file(tensors, path)
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute("DELETE FROM tags WHERE key LIKE ?", (f"{CHECKSUM_TAG}%",))
    (samples,) = store.rglob("samples.safetensors")
    samples.unlink()
    (summary,) = store.rglob("data.safetensors")
    summary.unlink()
    old = build_report(analyse_study(read_results(find_store(str(store)), "small")))
    assert not {"contact_sheet.png", "samples.png", "mistakes.png"} & old.figures.keys()
    assert old.analysis.answer == report.analysis.answer


def test_results_as_a_table(finished: Path) -> None:
    """Every run is a row, with the figures that MLflow has of it."""
    table = ablation.load_results("small", store=str(finished / "store"))
    assert dict(table.dtypes.astype(str)) == {
        "run_id": "string", "arm": "string", "kind": "string", "number": "int64", "state": "string", "repeat": "int64",
        "reason": "string", "is_best": "bool", "is_superseded": "bool", "val_accuracy": "float64",
        "best_epoch": "Int64", "test_accuracy": "float64", "test_balanced_accuracy": "float64",
        "test_macro_f1": "float64", "test_loss": "float64", "trained_parameters": "Int64",
        "training_seconds": "float64", "seed": "int64", "truncate_at": "string", "strategy": "string",
        "freeze_depth": "string", "head_width": "int64", "head_pool": "string", "lr": "float64",
        "backbone_lr_scale": "float64", "head_warmup_epochs": "int64", "optimizer": "string",
        "weight_decay": "float64", "max_grad_norm": "float64", "label_smoothing": "float64", "class_weights": "string",
        "schedule": "string",
        "batch_size": "int64", "augmentation": "string", "learn": "string", "head_norm": "string",
        "head_dropout": "float64", "lr_decay": "float64", "l2_sp": "float64", "unfreeze_every": "Int64",
        "ema": "float64", "patience": "int64", "known": "string",
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
    report = build_report(analyse_study(read_results(find_store(str(store)), "small")))
    for line in [*report.analysis.verdict, *report.analysis.evidence, *report.warnings]:
        assert line in output
    folder = store / "artifacts" / "small" / summary.info.run_id / "artifacts" / "report"
    for place in (folder, store / "reports" / "small"):
        assert (place / "report.html").read_text() == report.html
        assert (place / "report.md").read_text() == report.markdown
    note = summary.data.tags["mlflow.note.content"]
    confirmations = runs(store, "small", kind="confirmation")
    experiment = client(store).get_experiment_by_name("small")
    assert report.analysis.answer in note
    for run in confirmations:
        page = f"#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
        assert f"({page})" in note
    assert output.endswith("UI      python -m ablation.ui small --store store\n")
    description = experiment.tags["mlflow.note.content"]
    assert description == f"**Which cut of a small network?** {escape_markdown(report.analysis.answer)}"


def test_a_copied_store_is_read_where_it_is(finished: Path, tmp_path: Path, command: Command, capsys: Any) -> None:
    original = copy_store(finished / "store", tmp_path / "original")
    store = tmp_path / "copy"
    shutil.copytree(original, store)
    (store / "mlflow.db").chmod(0o600)
    run = runs(store, "small")[0]
    (original / "artifacts").rename(original / "hidden")
    ablation.load_model(run.info.run_id, store=str(store))
    (original / "hidden").rename(original / "artifacts")
    toml = finished / "small.toml"
    assert command(toml, "--status", "--store", store) == 0
    output = capsys.readouterr().out
    assert "small: 16 of 16 runs ended (2 trials and 2 confirmation runs per arm)" in output
    assert sum(run.info.run_id in output for run in runs(store, "small")) == 4  # one per arm
    assert command(toml, "--trials", "3", "--store", store) == 2
    assert "is a copy, and MLflow keeps the address of its artifacts" in capsys.readouterr().err


def test_a_study_that_optuna_has_lost_is_not_denied(
    finished: Path, command: Command, tmp_path: Path, capsys: Any
) -> None:
    store = copy_store(finished / "store", tmp_path / "store")
    (store / "optuna.db").unlink()
    assert command(finished / "small.toml", "--status", "--store", str(store)) == 2
    said = "MLflow has 16 runs of a study 'small', of which Optuna's database has no trial: --repair tells it of them"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_what_only_reads_a_study_loads_no_library_that_it_does_not_need(finished: Path, tmp_path: Path) -> None:
    """Loading torch takes seconds and hundreds of megabytes."""
    store = str(copy_store(finished / "store", tmp_path / "store"))
    large = ["torch", "torchvision"]
    commands = [
        ("study", ["--list", "--store", store], [*large, "mlflow"]),  # first: the others need MLflow
        ("study", ["--status", "small", "--store", store], large),
        ("report", ["small", "--format", "json", "--store", store], large),
        ("report", ["small", "--store", store], large),
    ]
    code = (
        "import json, sys; from importlib import import_module; from ablation.base.command_line import run_command\n"
        "for name, arguments, needless in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:] = arguments\n"
        "    run_command(import_module(f'ablation.{name}').cli)\n"
        "    print('loaded', sorted(set(needless) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=tmp_path, capture_output=True, text=True
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("loaded ")] == ["loaded []"] * len(commands)
    assert done.stderr == ""


def test_the_store_lists_its_studies(finished: Path, command: Command, capsys: Any) -> None:
    assert command("--list", "--store", finished / "store") == 0
    assert "| small | 4 | 8 finished | 8 finished | Which cut of a small network? |" in capsys.readouterr().out
    assert command("--list", "--store", finished / "none") == 2
    assert "is no store, or an empty one" in capsys.readouterr().err


def test_running_again_adds_nothing_and_a_changed_study_is_refused(
    finished: Path, tmp_path: Path, command: Command, capsys: Any
) -> None:
    toml, store = finished / "small.toml", copy_store(finished / "store", tmp_path / "copy")

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


def test_a_study_of_a_newer_version_is_refused(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "copy"
    shutil.copytree(finished / "store", store)
    (about,) = store.rglob("about.json")
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "version": "9.0", "spec": {**content["spec"], "temperature": 1}}))
    with pytest.raises(InputError, match="study 'small' was made by ablation 9.0, which this version cannot read"):
        read_results(find_store(str(store)), "small")
