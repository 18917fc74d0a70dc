"""A study's results in MLflow, as plain values: the report and the champion need nothing else.

Legend: S confirmation runs (seeds), N test images, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from ablation.analysis.cut_forecasts import CutForecast, forecast_from_json
from ablation.base.errors import InputError
from ablation.data.samples import Mistakes, Samples, load_samples
from ablation.spec.architectures import add_custom_architecture
from ablation.spec.arms import Arm, arms, published_for
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.store import Store
from ablation.tracking.client import FORECAST_FILE, PREDICTIONS_FILE, SAMPLES_FILE
from ablation.tracking.reading import RunRecord, StudyRecord, read_curves, read_study, run_file

CHANGES = ("distance_moved", "mean_relative_gradient_norm", "similarity_to_start")  # metrics of each block
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


class NothingFinished(InputError):
    """No trial of a study has finished, so there is nothing to read."""


@dataclass(frozen=True)
class Predictions:
    """A confirmation run's predictions for the test images, in the order of the data set.

    `probabilities_NK` is float16, `predicted_N` and `labels_N` are int64 numbers of classes. `mistakes` are some of the
    misclassified images; None in files of older versions.
    """

    probabilities_NK: np.ndarray
    predicted_N: np.ndarray
    labels_N: np.ndarray
    mistakes: Mistakes | None = None


@dataclass(frozen=True)
class RunResult:
    """A trial or a confirmation run. Metrics are None unless it finished; accuracies are fractions.

    Test metrics and predictions belong to confirmation runs alone. `curves` holds `CURVES` by name, a value per epoch;
    it is empty for the runs whose learning curves no report draws, see `ArmResult.drawn_runs`. `changes` holds
    `CHANGES` by name, a value for each block that changed; none in runs of older versions.
    """

    run_id: str
    number: int
    state: Literal["finished", "pruned", "failed", "unfinished"]
    reason: str
    spec: TrialSpec
    device: str
    environment: dict[str, str]
    curves: dict[str, np.ndarray]
    val_accuracy: float | None
    best_epoch: int | None
    trained_parameters: int | None
    training_seconds: float | None
    test_accuracy: float | None = None
    test_loss: float | None = None
    test_balanced_accuracy: float | None = None
    test_macro_f1: float | None = None
    predictions: Predictions | None = None
    changes: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmResult:
    """An arm's runs: the trials that tuned it, and the runs that confirm its best configuration.

    `superseded` confirmed a configuration that was the best while the budget was smaller. `best` is the finished trial
    with the highest validation accuracy, the first of equals; None where none finished. `published` are results of
    others, as in the study file.
    """

    arm: Arm
    trials: list[RunResult]
    best: RunResult | None
    confirmations: list[RunResult]
    superseded: list[RunResult]
    published: list[dict[str, Any]] = field(default_factory=list)

    @property
    def confirmed(self) -> list[RunResult]:
        """The confirmation runs that finished and still have their predictions."""
        return [run for run in self.confirmations if run.predictions is not None and run.test_accuracy is not None]

    @property
    def drawn_runs(self) -> list[RunResult]:
        """The runs whose learning curves the report draws: the finished confirmation runs, else the best trial."""
        finished = [run for run in self.confirmations if run.val_accuracy is not None]
        return finished or ([self.best] if self.best is not None else [])

    @property
    def test_accuracies_S(self) -> np.ndarray:
        """The test accuracies of the confirmed runs, float64."""
        return np.array([run.test_accuracy for run in self.confirmed], np.float64)

    @property
    def correct_SN(self) -> np.ndarray:
        """Whether each confirmed run is right about each test image, bool."""
        predictions = [run.predictions for run in self.confirmed if run.predictions is not None]
        return np.array([p.predicted_N == p.labels_N for p in predictions], bool)


@dataclass(frozen=True)
class StudyResult:
    """A study as it stands. `command` is the one that ran it last; image counts are of each split.

    `samples` are some of its training images; None where the store has none. `forecast` has a row for each cut; none
    where the study compares no cuts of a pretrained network, or nothing was foretold.
    """

    spec: StudySpec
    experiment_id: str
    summary_run_id: str
    command: str
    classes: list[str]
    data_digest: str
    weights_digest: str | None
    train_images: int
    val_images: int
    test_images: int
    arms: list[ArmResult]
    samples: Samples | None = None
    forecast: list[CutForecast] = field(default_factory=list)
    data_reading: str = ""  # how an image folder was understood

    @property
    def missing_trials(self) -> int:
        """How many trials have yet to end before every arm has its budget."""
        ended = [sum(trial.state != "unfinished" for trial in arm.trials) for arm in self.arms]
        return sum(max(0, self.spec.trials_per_arm - n) for n in ended)

    @property
    def missing_confirmations(self) -> int:
        """How many confirmation runs have yet to end; an arm in which no trial finished cannot have any."""
        ended = [sum(run.state != "unfinished" for run in a.confirmations) for a in self.arms if a.best is not None]
        return sum(max(0, self.spec.confirm.seeds - n) for n in ended)

    @property
    def test_evaluations(self) -> int:
        """How often the test split was evaluated, superseded runs included."""
        return sum(run.test_accuracy is not None for arm in self.arms for run in [*arm.confirmations, *arm.superseded])


def read_results(store: Store, study: str, *, with_details: bool = True) -> StudyResult:
    """Read a study from its MLflow store.

    Args:
        store: where the study is.
        study: its name.
        with_details: whether to read what the report alone needs, with a request or a download each: learning curves,
            predictions, samples and the forecast.

    Raises:
        NothingFinished: no trial of the study has finished, as far as MLflow knows.
        InputError: there is no such study, or this version cannot read it.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    record = read_study(store, study)
    about = record.about
    try:
        if about.get("own_backbone"):
            add_custom_architecture(about["spec"]["backbone"]["name"], **about["own_backbone"])
        spec = StudySpec.model_validate_json(json.dumps(about["spec"]))
    except (KeyError, ValueError):
        version = about.get("version", "another version")
        raise InputError(f"study {study!r} was made by ablation {version}, which this version cannot read") from None
    results = [
        _arm_result(spec, arm, [run for run in record.runs if run.tags["arm"] == arm.name]) for arm in arms(spec)
    ]
    if not any(result.best for result in results):
        raise NothingFinished(f"study {study!r} has no finished trial yet")
    return StudyResult(
        spec=spec,
        experiment_id=record.experiment_id,
        summary_run_id=record.summary.run_id,
        command=about["command"],
        classes=about["classes"],
        data_digest=about["data_digest"],
        data_reading=about.get("data_reading", ""),
        weights_digest=about["weights_digest"],
        train_images=about["train_images"],
        val_images=about["val_images"],
        test_images=about["test_images"],
        arms=_with_details(store, record, results) if with_details else results,
        samples=_samples(store, record.summary) if with_details else None,
        forecast=_forecast(store, record.summary) if with_details else [],
    )


def best_run(runs: Sequence[RunResult]) -> RunResult | None:
    """Return the finished run with the highest validation accuracy, the first of equals; None where none finished."""
    finished = [run for run in runs if run.val_accuracy is not None]
    return max(finished, key=lambda run: run.val_accuracy or 0.0, default=None)


def _arm_result(spec: StudySpec, arm: Arm, records: list[RunRecord]) -> ArmResult:
    trials, confirmations = (
        sorted((_run_result(run) for run in records if run.tags["kind"] == kind), key=lambda run: run.number)
        for kind in ("trial", "confirmation")
    )
    best = best_run(trials)
    current = [run for run in confirmations if best is not None and run.spec.confirms == best.number]
    superseded = [run for run in confirmations if run not in current]
    return ArmResult(arm, trials, best, current, superseded, published_for(spec, arm))


STATES: dict[str, Literal["finished", "pruned", "failed", "unfinished"]] = {
    "FINISHED": "finished",
    "KILLED": "pruned",
    "FAILED": "failed",
}


def _run_result(run: RunRecord) -> RunResult:
    state = STATES.get(run.status, "unfinished")

    def metric(name: str) -> float | None:
        return run.metrics.get(name) if state == "finished" else None

    best_epoch, trained_parameters = metric("best_epoch"), metric("trained_parameters")
    return RunResult(
        run_id=run.run_id,
        number=int(run.tags["trial"]),
        state=state,
        reason=run.tags.get("reason", ""),
        spec=TrialSpec.from_params(run.params),
        device=run.tags.get("device", ""),
        environment=json.loads(run.tags.get("environment", "{}")),
        curves={},
        val_accuracy=metric("best_val_accuracy"),
        best_epoch=None if best_epoch is None else int(best_epoch),
        trained_parameters=None if trained_parameters is None else int(trained_parameters),
        training_seconds=metric("training_seconds"),
        test_accuracy=metric("test_accuracy"),
        test_loss=metric("test_loss"),
        test_balanced_accuracy=metric("test_balanced_accuracy"),
        test_macro_f1=metric("test_macro_f1"),
        changes={name: _of_blocks(run, name) for name in CHANGES},
    )


def _of_blocks(run: RunRecord, metric: str) -> dict[str, float]:
    """Return the last value of a metric of each block, by the name of the block."""
    return {
        name.removeprefix(f"{metric}/"): value for name, value in run.metrics.items() if name.startswith(f"{metric}/")
    }


def _with_details(store: Store, record: StudyRecord, results: list[ArmResult]) -> list[ArmResult]:
    """Return arms with the learning curves that the report draws, and the predictions of their confirmation runs."""
    records = {run.run_id: run for run in record.runs}
    curves = read_curves(store, [run.run_id for result in results for run in result.drawn_runs], CURVES)

    def detailed(run: RunResult) -> RunResult:
        return replace(
            run,
            curves={name: np.array(values) for name, values in curves.get(run.run_id, {}).items()},
            predictions=None if run.test_accuracy is None else _predictions(store, records[run.run_id]),
        )

    def detailed_arm(result: ArmResult) -> ArmResult:
        trials = [detailed(run) for run in result.trials]
        confirmations = [detailed(run) for run in result.confirmations]
        return replace(result, trials=trials, best=best_run(trials), confirmations=confirmations)

    return [detailed_arm(result) for result in results]


def _predictions(store: Store, run: RunRecord) -> Predictions | None:
    """Return a run's predictions; None where somebody deleted them."""
    try:
        with run_file(store, run, PREDICTIONS_FILE) as path:
            return load_predictions(path)
    except InputError:
        return None


def _samples(store: Store, summary: RunRecord) -> Samples | None:
    try:
        with run_file(store, summary, SAMPLES_FILE) as path:
            return load_samples(path)
    except InputError:
        return None


def _forecast(store: Store, summary: RunRecord) -> list[CutForecast]:
    try:
        with run_file(store, summary, FORECAST_FILE) as path:
            return forecast_from_json(path.read_text(encoding="utf-8"))
    except (InputError, ValueError):
        return []


def load_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            mistakes = None
            if "mistakes" in file.keys():  # noqa: SIM118 - not a dict
                mistakes = Mistakes(file.get_tensor("mistakes"), file.get_tensor("mistake_images"))
            return Predictions(
                file.get_tensor("probabilities"),
                file.get_tensor("predicted").astype(np.int64),
                file.get_tensor("labels").astype(np.int64),
                mistakes,
            )
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error})") from None
