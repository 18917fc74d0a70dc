"""Arms: their runs in numbers, the winner, the champion's mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablation.analysis.estimator import Estimator
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult, best_run, goal_of
from ablation.analysis.statistics import Estimate
from ablation.analysis.tuning import BestOf, best_of
from ablation.training.class_metrics import balanced_accuracy_and_macro_f1


def confirmed_validation(arm: ArmResult) -> np.ndarray:
    """Return the best validation value of each finished confirmation run of an arm, float64 (S)."""
    return np.array([run.val_value for run in arm.confirmations if run.val_value is not None], np.float64)


def trials_of_arms(result: StudyResult) -> tuple[int, int]:
    """Return how many trials have ended, deleted ones included, of the arm with the fewest and that with the most."""
    counts = [arm.ended_trials for arm in result.arms]
    return min(counts), max(counts)


def confirmations_of_arms(result: StudyResult) -> tuple[int, int]:
    """Return how many runs have confirmed a chosen configuration, the fewest and the most; of each arm and repeat.

    An arm all of whose trials failed has none.
    """
    counts: list[int] = []
    for arm in result.arms:
        repeats = [chosen.spec.repeat for chosen in arm.chosen]
        counts += [sum(run.spec.repeat == repeat for run in arm.confirmed) for repeat in repeats] or [0]
    return min(counts), max(counts)


def leading_arms(result: StudyResult) -> list[ArmResult]:
    """Return the arm with the best mean validation value over its finished confirmation runs, or those that are equal.

    None where no confirmation run has finished. No test metric is used.
    """
    candidates = [arm for arm in result.arms if confirmed_validation(arm).size]
    # Rounded, because equal means of unequal runs may differ in their last bit.
    values = [round(result.spec.goal.goodness(float(confirmed_validation(arm).mean())), 12) for arm in candidates]
    best = max(values, default=None)
    return [arm for arm, value in zip(candidates, values, strict=True) if value == best]


def winning_arm(result: StudyResult) -> ArmResult | None:
    """Return the first of `leading_arms`; None where there is none."""
    return next(iter(leading_arms(result)), None)


def inference_operations(arm: ArmResult) -> float | None:
    """Return the operations of classifying one image, the mean over confirmation runs; None where no run has them."""
    counts = [run.inference_operations for run in arm.confirmations if run.inference_operations is not None]
    return float(np.mean(counts)) if counts else None


def champion_run(arm: ArmResult) -> RunResult:
    """Return the confirmation run with the best validation value, the first of equals; no test metric is used.

    Raises:
        ValueError: no confirmation run of the arm has finished.
    """
    run = best_run(arm.confirmations)
    if run is None:
        raise ValueError(f"no confirmation run of {arm.arm.name} has finished")
    return run


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of an arm: mean, standard deviation (None with one seed), number of seeds.

    Of pooled studies the `unit` is a tuning, not a seed.
    """

    mean: float
    standard_deviation: float | None
    seeds: int
    unit: str = "seed"


@dataclass(frozen=True)
class ArmSummary:
    """A summary of an arm's runs; values over confirmation runs are None without them.

    Attributes:
        result: the arm's runs.
        val: the objective on the validation images over its confirmation runs.
        test: the objective on the test images over them.
        estimate: its mean with its interval over seeds and images.
        balanced: balanced test accuracy over its confirmation runs, the mean of the classes' recalls.
        macro_f1: macro F1 of the test images over its confirmation runs, the mean of the classes' F1 scores.
        confusion_KK: mean over seeds of the fraction of each true class (row) that is predicted as each class (column).
        best_so_far_T: the best validation value of the trials so far, in their order; NaN before the first finished.
        best_of: what fewer trials would have found.
        late_rise: how much `best_so_far_T` improves in the last third of the trials; None where fewer than three have
            ended.
        training_seconds: mean over the confirmation runs, else of the best trial.
        training_runs: the number of runs in that mean.
        inference_operations: of classifying one image, the mean over confirmation runs.
        inference_seconds: that takes on the runs' devices, the mean over them.
    """

    result: ArmResult
    val: Summary | None
    test: Summary | None
    estimate: Estimate | None
    balanced: Summary | None
    macro_f1: Summary | None
    confusion_KK: np.ndarray | None
    best_so_far_T: np.ndarray
    best_of: BestOf | None
    late_rise: float | None
    training_seconds: float | None
    training_runs: int
    inference_operations: float | None
    inference_seconds: float | None

    @property
    def runs(self) -> int:
        """The number of its confirmation runs that finished and still have their predictions."""
        return len(self.result.confirmed)

    @property
    def name(self) -> str:
        """The arm's name."""
        return self.result.arm.name

    @property
    def class_accuracies_K(self) -> np.ndarray | None:
        """Mean test accuracy of each class over seeds, NaN for a class without test images."""
        return None if self.confusion_KK is None else np.diagonal(self.confusion_KK)

    @property
    def trained_parameters(self) -> int | None:
        """Their number in the chosen configuration."""
        return self.result.best.trained_parameters if self.result.best else None


def summarise(values_S: np.ndarray, unit: str = "seed") -> Summary | None:
    """Return mean and standard deviation of a metric over seeds; None where there are none."""
    if values_S.size == 0:
        return None
    deviation = float(values_S.std(ddof=1)) if values_S.size > 1 else None
    return Summary(float(values_S.mean()), deviation, values_S.size, unit)


def confusion_matrix(predicted_N: np.ndarray, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """Return the fraction of each true class (row) predicted as each class (column), K x K; NaN without images."""
    counts_KK = np.zeros((classes, classes))
    np.add.at(counts_KK, (labels_N, predicted_N), 1)
    images_K1 = counts_KK.sum(axis=1, keepdims=True)
    fractions_KK: np.ndarray = np.divide(counts_KK, images_K1, out=np.full_like(counts_KK, np.nan), where=images_K1 > 0)
    return fractions_KK


def best_so_far(trials: Sequence[RunResult]) -> np.ndarray:
    """Return the best validation value after each trial that has ended, float64 (T)."""
    ended, sign = [run for run in trials if run.state != "unfinished"], goal_of(trials).sign
    values_T = np.array([np.nan if run.val_value is None else run.val_value for run in ended], np.float64)
    best_so_far_T: np.ndarray = sign * np.fmax.accumulate(sign * values_T)
    return best_so_far_T


def late_rise(best_so_far_T: np.ndarray) -> float | None:
    """Return how much the best improved in the last third of the trials; None with too few finished trials."""
    before = len(best_so_far_T) - len(best_so_far_T) // 3 - 1
    if len(best_so_far_T) < 3 or np.isnan(best_so_far_T[before]):
        return None
    return abs(float(best_so_far_T[-1] - best_so_far_T[before]))


def summarise_arm(arm: ArmResult, classes: int) -> ArmSummary:
    """Return the summary of an arm's runs, in a study of this number of classes."""
    predictions = [run.predictions for run in arm.confirmed if run.predictions is not None]
    scores_S2 = np.array(
        [balanced_accuracy_and_macro_f1(p.labels_N, p.predicted_N, classes) for p in predictions], np.float64
    ).reshape(-1, 2)
    confusion_KK = None
    if predictions:
        confusion_KK = np.mean([confusion_matrix(p.predicted_N, p.labels_N, classes) for p in predictions], axis=0)
    timed = [run.training_seconds for run in arm.drawn_runs if run.training_seconds]
    inferred = [run.inference_seconds for run in arm.confirmations if run.inference_seconds is not None]
    best_so_far_T = best_so_far(arm.trials)
    estimator = Estimator(groups_N=arm.test_groups_N, objective=goal_of(arm.confirmed))
    return ArmSummary(
        result=arm,
        val=summarise(confirmed_validation(arm)),
        test=summarise(arm.test_values_S),
        estimate=estimator.contrast({arm.arm.name: 1.0}, {arm.arm.name: arm.scores_SN}) if arm.confirmed else None,
        balanced=summarise(scores_S2[:, 0]),
        macro_f1=summarise(scores_S2[:, 1]),
        confusion_KK=confusion_KK,
        best_so_far_T=best_so_far_T,
        best_of=best_of(arm.trials),
        late_rise=late_rise(best_so_far_T),
        training_seconds=float(np.mean(timed)) if timed else None,
        training_runs=len(timed),
        inference_operations=inference_operations(arm),
        inference_seconds=float(np.mean(inferred)) if inferred else None,
    )


@dataclass(frozen=True)
class Mistake:
    """A misclassified test image of a run.

    Attributes:
        number: of the image, from 0 in the order of the test split.
        image_SSC: the network's input before normalisation, uint8.
        true: its class.
        predicted: the class that the run predicts.
        probability: the predicted class's.
        true_probability: the true class's.
    """

    number: int
    image_SSC: np.ndarray
    true: str
    predicted: str
    probability: float
    true_probability: float


def confident_mistakes(run: RunResult, classes: list[str]) -> list[Mistake]:
    """Return the mistakes whose images are kept with a run's predictions, in their order; none without predictions."""
    predictions = run.predictions
    if predictions is None or predictions.mistakes is None:
        return []
    mistakes = []
    for number, image_SSC in zip(predictions.mistakes.numbers_M, predictions.mistakes.images_MSSC, strict=True):
        true, predicted = predictions.labels_N[number], predictions.predicted_N[number]
        probabilities_K = predictions.probabilities_NK[number]
        mistakes.append(
            Mistake(
                number=int(number),
                image_SSC=image_SSC,
                true=classes[true],
                predicted=classes[predicted],
                probability=float(probabilities_K[predicted]),
                true_probability=float(probabilities_K[true]),
            )
        )
    return mistakes
