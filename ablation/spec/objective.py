"""The objective of a study: the metric by which it chooses, and which its report compares."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ObjectiveName = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]


@dataclass(frozen=True)
class Objective:
    """A metric that decides.

    Attributes:
        name: as in a study file, and in MLflow behind `val_` and `test_`.
        label: in texts.
        higher_is_better: False for a loss.
        unit: of differences in texts: percentage points of a fraction, or nats.
        per_unit: how many units make a difference of 1.
        largest: the largest possible value; the smallest is 0.
        counts_images: whether it is the share of images with a property, so that tests of shares are exact.
    """

    name: ObjectiveName
    label: str
    higher_is_better: bool = True
    unit: str = "points"
    per_unit: float = 100.0
    largest: float = 1.0
    counts_images: bool = False

    @property
    def val_metric(self) -> str:
        """The validation metric of an epoch, and Optuna's name of a trial's value."""
        return f"val_{self.name}"

    @property
    def best_metric(self) -> str:
        """The validation metric of a run's best epoch."""
        return f"best_val_{self.name}"

    @property
    def test_metric(self) -> str:
        """The metric of a confirmation run on the test images."""
        return f"test_{self.name}"

    @property
    def best_word(self) -> str:
        """The best of several values in a text: 'highest' or 'lowest'."""
        return "highest" if self.higher_is_better else "lowest"

    @property
    def sign(self) -> int:
        """What makes the largest value the best when multiplied by it: 1 or -1."""
        return 1 if self.higher_is_better else -1

    @property
    def worst(self) -> float:
        """A value that every other one is at least as good as."""
        return 0.0 if self.higher_is_better else self.largest

    def goodness(self, value: float | None) -> float:
        """Return what ranks values, the largest first; what has no value is the last."""
        return self.sign * (self.worst if value is None else value)

    def best(self, values: Iterable[float]) -> float:
        """Return the best of values."""
        return max(values, key=self.goodness)


ACCURACY = Objective("accuracy", "accuracy", counts_images=True)
OBJECTIVES: dict[ObjectiveName, Objective] = {
    objective.name: objective
    for objective in (
        ACCURACY,
        Objective("balanced_accuracy", "balanced accuracy"),
        Objective("macro_f1", "macro F1"),
        Objective("loss", "loss", higher_is_better=False, unit="nats", per_unit=1.0, largest=float("inf")),
    )
}
