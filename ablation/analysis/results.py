"""What MLflow holds of a study, as plain values: the report and the champion need nothing else.

Legend: S confirmation runs (seeds), N test images, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from ablation.base.errors import InputError
from ablation.data.samples import Mistakes, Samples, load_samples
from ablation.spec.architectures import add_custom_architecture
from ablation.spec.arms import Arm, arms, published_for
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.store import Store
from ablation.tracking.client import PREDICTIONS_FILE, SAMPLES_FILE
from ablation.tracking.reading import RunRecord, read_study, run_file

CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


class NothingFinished(InputError):
    """No trial of a study has finished, so there is nothing to read."""


@dataclass(frozen=True)
class Predictions:
    """What a confirmation run's model says of the test images, in the order of the data set.

    `probabilities_NK` is float16, `predicted_N` and `labels_N` are int64 numbers of classes. `mistakes` are some of the
    images; None where an older version made the predictions.
    """

    probabilities_NK: np.ndarray
    predicted_N: np.ndarray
    labels_N: np.ndarray
    mistakes: Mistakes | None = None


@dataclass(frozen=True)
class RunResult:
    """A trial or a confirmation run. Figures are None unless it finished; accuracies are fractions.

    `curves` holds `CURVES` by name, a value per epoch. Test figures and predictions belong to confirmation runs alone.
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


@dataclass(frozen=True)
class ArmResult:
    """An arm's runs: those that tuned it, and those that confirm the configuration that is its best now.

    `superseded` confirmed a configuration that was the best while the budget was smaller. `best` is the finished trial
    with the highest validation accuracy, the first of equals; None where none finished. `published` are figures of
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
        """The confirmation runs that finished and whose predictions are there."""
        return [run for run in self.confirmations if run.predictions is not None and run.test_accuracy is not None]

    @property
    def val_accuracies_S(self) -> np.ndarray:
        """The finished confirmation runs' best validation accuracies, float64."""
        return np.array([run.val_accuracy for run in self.confirmed], np.float64)

    @property
    def test_accuracies_S(self) -> np.ndarray:
        """The finished confirmation runs' test accuracies, float64."""
        return np.array([run.test_accuracy for run in self.confirmed], np.float64)

    @property
    def correct_SN(self) -> np.ndarray:
        """Whether each finished confirmation run is right about each test image, bool."""
        predictions = [run.predictions for run in self.confirmed if run.predictions is not None]
        return np.array([p.predicted_N == p.labels_N for p in predictions], bool)


@dataclass(frozen=True)
class StudyResult:
    """A study as it stands. `command` is the one that ran it last; image counts are of each split.

    `samples` are some of its training images; None where an older version began it.
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
        """How often the test split was evaluated, runs that were superseded since included."""
        return sum(run.test_accuracy is not None for arm in self.arms for run in [*arm.confirmations, *arm.superseded])


def read_results(store: Store, study: str) -> StudyResult:
    """Read a study from its MLflow store.

    Raises:
        NothingFinished: no trial of it has finished, as far as MLflow knows.
        InputError: there is no such study, or another version has made it.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    recorded = read_study(store, study, CURVES)
    about = recorded.about
    try:
        if about.get("own_backbone"):
            add_custom_architecture(about["spec"]["backbone"]["name"], **about["own_backbone"])
        spec = StudySpec.model_validate_json(json.dumps(about["spec"]))
    except (KeyError, ValueError):
        made_by = about.get("version", "another version")
        raise InputError(f"study {study!r} was made by ablation {made_by}, which this version cannot read") from None
    found = [
        _arm_result(store, spec, arm, [run for run in recorded.runs if run.tags["arm"] == arm.name])
        for arm in arms(spec)
    ]
    if not any(arm.best for arm in found):
        raise NothingFinished(f"study {study!r} has no finished trial yet")
    return StudyResult(
        spec=spec,
        experiment_id=recorded.experiment_id,
        summary_run_id=recorded.summary.run_id,
        command=about["command"],
        classes=about["classes"],
        data_digest=about["data_digest"],
        weights_digest=about["weights_digest"],
        train_images=about["train_images"],
        val_images=about["val_images"],
        test_images=about["test_images"],
        arms=found,
        samples=_samples(store, recorded.summary),
    )


def best_run(runs: Sequence[RunResult]) -> RunResult | None:
    """Return the finished run with the highest validation accuracy, the first of equals; None where none finished."""
    finished = [run for run in runs if run.val_accuracy is not None]
    return max(finished, key=lambda run: run.val_accuracy or 0.0, default=None)


def _arm_result(store: Store, spec: StudySpec, arm: Arm, records: list[RunRecord]) -> ArmResult:
    trials = sorted(
        (_run_result(store, run) for run in records if run.tags["kind"] == "trial"), key=lambda run: run.number
    )
    confirmations = sorted(
        (_run_result(store, run) for run in records if run.tags["kind"] == "confirmation"), key=lambda run: run.number
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


def _run_result(store: Store, run: RunRecord) -> RunResult:
    state = STATES.get(run.status, "unfinished")
    is_finished = state == "finished"

    def figure(name: str) -> float | None:
        return run.metrics.get(name) if is_finished else None

    best_epoch, trained = figure("best_epoch"), figure("trained_parameters")
    has_predictions = is_finished and "test_accuracy" in run.metrics
    return RunResult(
        run_id=run.run_id,
        number=int(run.tags["trial"]),
        state=state,
        reason=run.tags.get("reason", ""),
        spec=TrialSpec.from_params(run.params),
        device=run.tags.get("device", ""),
        environment=json.loads(run.tags.get("environment", "{}")),
        curves={name: np.array(values) for name, values in run.curves.items()},
        val_accuracy=figure("best_val_accuracy"),
        best_epoch=None if best_epoch is None else int(best_epoch),
        trained_parameters=None if trained is None else int(trained),
        training_seconds=figure("training_seconds"),
        test_accuracy=figure("test_accuracy"),
        test_loss=figure("test_loss"),
        test_balanced_accuracy=figure("test_balanced_accuracy"),
        test_macro_f1=figure("test_macro_f1"),
        predictions=_predictions(store, run) if has_predictions else None,
    )


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
