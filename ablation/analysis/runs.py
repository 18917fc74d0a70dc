"""A trial or a confirmation run, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ablation.analysis.predictions import Predictions
from ablation.spec.objective import ACCURACY, Objective
from ablation.spec.trial import TrialSpec

State = Literal["finished", "pruned", "failed", "unfinished"]

CHANGES = ("distance_moved", "mean_relative_gradient_norm", "similarity_to_start")  # metrics of each block
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")  # beside that of the objective


@dataclass(frozen=True)
class RunResult:
    """A trial or a confirmation run. Metrics are None unless it finished; accuracies are fractions.

    Test metrics and predictions belong to confirmation runs alone. `curves` holds `CURVES` by name, a value per epoch;
    it is empty for the runs whose learning curves no report draws, see `ArmResult.drawn_runs`. `changes` holds
    `CHANGES` by name, a value for each block that changed; none in runs of older versions.
    """

    run_id: str
    number: int
    state: State
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
    val_loss: float | None = None  # of the best epoch; the three of them in runs of studies with that objective alone
    val_balanced_accuracy: float | None = None
    val_macro_f1: float | None = None
    inference_operations: float | None = None  # of classifying one image; of confirmation runs
    inference_seconds: float | None = None
    predictions: Predictions | None = None
    changes: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def is_confirmation(self) -> bool:
        """Whether it is a confirmation run, not a trial."""
        return self.spec.confirms is not None

    @property
    def repeat(self) -> int:
        """The repeat of the tuning that it belongs to, from 0; 0 in a study without repeats."""
        return self.spec.repeat or 0

    @property
    def label(self) -> str:
        """How people call it beside its arm, such as 'trial #3'."""
        return f"{'confirmation run' if self.is_confirmation else 'trial'} #{self.number}"

    @property
    def val_value(self) -> float | None:
        """The study's objective on the validation images at the best epoch."""
        value: float | None = getattr(self, self.spec.goal.val_metric)
        return value

    @property
    def test_value(self) -> float | None:
        """The study's objective on the test images."""
        value: float | None = getattr(self, self.spec.goal.test_metric)
        return value

    @property
    def goodness(self) -> float:
        """What ranks runs by validation, the largest first."""
        return self.spec.goal.goodness(self.val_value)


def goal_of(runs: Sequence[RunResult]) -> Objective:
    """Return the objective of runs of one study; accuracy where there are none."""
    return next((run.spec.goal for run in runs), ACCURACY)


def best_run(runs: Sequence[RunResult]) -> RunResult | None:
    """Return the finished run with the best validation value, the first of equals; None where none finished."""
    finished = [run for run in runs if run.val_value is not None]
    return max(finished, key=lambda run: run.goodness, default=None)
