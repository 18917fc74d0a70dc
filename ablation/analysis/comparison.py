"""Arms, levels and their differences; the winner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from ablation.analysis import statistics
from ablation.analysis.results import ArmResult, RunResult, StudyResult
from ablation.analysis.statistics import ALPHA, Estimate
from ablation.spec.arms import differing_parameters
from ablation.training.evaluation import balanced_accuracy_and_macro_f1


def confirmed_validation(arm: ArmResult) -> np.ndarray:
    """Return the best validation accuracy of each finished confirmation run of an arm, float64 (S)."""
    return np.array([run.val_accuracy for run in arm.confirmations if run.val_accuracy is not None], np.float64)


def winning_arm(result: StudyResult) -> ArmResult | None:
    """Return the arm with the highest mean validation accuracy over its finished confirmation runs.

    The first of equals; None where no confirmation run has finished. No test metric is used.
    """
    candidates = [arm for arm in result.arms if confirmed_validation(arm).size]
    return max(candidates, key=lambda arm: float(confirmed_validation(arm).mean()), default=None)


def champion_run(arm: ArmResult) -> RunResult:
    """Return the confirmation run with the highest validation accuracy, the first of equals; no test metric is used.

    Raises:
        ValueError: no confirmation run of the arm has finished.
    """
    finished = [run for run in arm.confirmations if run.val_accuracy is not None]
    return max(finished, key=lambda run: run.val_accuracy or 0.0)


@dataclass(frozen=True)
class Summary:
    """Accuracy over the seeds of an arm: mean with its t interval over seeds, standard deviation, number of seeds.

    `standard_deviation` and the interval are None with one seed.
    """

    estimate: Estimate
    standard_deviation: float | None
    seeds: int

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return self.estimate.value


@dataclass(frozen=True)
class ArmSummary:
    """A summary of an arm's runs; values over confirmation runs are None without them.

    Attributes:
        result: the arm's runs.
        val: validation accuracy over its confirmation runs.
        test: test accuracy over its confirmation runs.
        balanced: balanced test accuracy over its confirmation runs, the mean of the classes' recalls.
        macro_f1: macro F1 of the test images over its confirmation runs, the mean of the classes' F1 scores.
        class_accuracies_K: mean test accuracy of each class over seeds, NaN for a class without test images.
        confusion_KK: mean over seeds of the fraction of each true class (row) that is predicted as each class (column).
        selection_bias: the tuned trial's validation accuracy minus the mean of its confirmation runs.
        best_so_far_T: the best validation accuracy of the trials so far, in their order; NaN before the first finished.
        late_rise: the rise of that in the last third of the trials; None where fewer than three have ended.
        trained_parameters: their number in the chosen configuration.
        training_seconds: mean over the confirmation runs, else of the best trial.
        training_runs: the number of runs in that mean.
        failed: trials and confirmation runs that failed.
    """

    result: ArmResult
    val: Summary | None
    test: Summary | None
    balanced: Summary | None
    macro_f1: Summary | None
    class_accuracies_K: np.ndarray | None
    confusion_KK: np.ndarray | None
    selection_bias: float | None
    best_so_far_T: np.ndarray
    late_rise: float | None
    trained_parameters: int | None
    training_seconds: float | None
    training_runs: int
    failed: list[RunResult]

    @property
    def name(self) -> str:
        """The arm's name."""
        return self.result.arm.name


def summarise(accuracies_S: np.ndarray) -> Summary | None:
    """Return mean, standard deviation and interval of accuracies over seeds; None where there are none."""
    if accuracies_S.size == 0:
        return None
    deviation = float(accuracies_S.std(ddof=1)) if accuracies_S.size > 1 else None
    return Summary(statistics.seed_interval(accuracies_S), deviation, accuracies_S.size)


def confusion_matrix(predicted_N: np.ndarray, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """Return the fraction of each true class (row) predicted as each class (column), K x K; NaN without images."""
    counts_KK = np.zeros((classes, classes))
    np.add.at(counts_KK, (labels_N, predicted_N), 1)
    images_K1 = counts_KK.sum(axis=1, keepdims=True)
    fractions_KK: np.ndarray = np.divide(counts_KK, images_K1, out=np.full_like(counts_KK, np.nan), where=images_K1 > 0)
    return fractions_KK


def best_so_far(trials: Sequence[RunResult]) -> np.ndarray:
    """Return the best validation accuracy after each trial that has ended, float64 (T)."""
    values = [np.nan if run.val_accuracy is None else run.val_accuracy for run in trials if run.state != "unfinished"]
    best_so_far_T: np.ndarray = np.fmax.accumulate(np.array(values, np.float64))
    return best_so_far_T


def late_rise(best_so_far_T: np.ndarray) -> float | None:
    """Return the rise of the best in the last third of the trials; None with too few finished trials."""
    before = len(best_so_far_T) - len(best_so_far_T) // 3 - 1
    if len(best_so_far_T) < 3 or np.isnan(best_so_far_T[before]):
        return None
    return float(best_so_far_T[-1] - best_so_far_T[before])


def summarise_arm(arm: ArmResult, classes: int) -> ArmSummary:
    """Return the summary of an arm's runs, in a study of this number of classes."""
    val = summarise(confirmed_validation(arm))
    predictions = [run.predictions for run in arm.confirmed if run.predictions is not None]
    scores_S2 = np.array(
        [balanced_accuracy_and_macro_f1(p.labels_N, p.predicted_N, classes) for p in predictions], np.float64
    ).reshape(-1, 2)
    confusion_KK = None
    if predictions:
        confusion_KK = np.mean([confusion_matrix(p.predicted_N, p.labels_N, classes) for p in predictions], axis=0)
    confirmed = [run for run in arm.confirmations if run.val_accuracy is not None]
    timed = [run.training_seconds for run in confirmed or ([arm.best] if arm.best else []) if run.training_seconds]
    best_so_far_T = best_so_far(arm.trials)
    return ArmSummary(
        result=arm,
        val=val,
        test=summarise(arm.test_accuracies_S),
        balanced=summarise(scores_S2[:, 0]),
        macro_f1=summarise(scores_S2[:, 1]),
        class_accuracies_K=None if confusion_KK is None else np.diagonal(confusion_KK).copy(),
        confusion_KK=confusion_KK,
        selection_bias=None if val is None or arm.best is None else (arm.best.val_accuracy or 0.0) - val.mean,
        best_so_far_T=best_so_far_T,
        late_rise=late_rise(best_so_far_T),
        trained_parameters=arm.best.trained_parameters if arm.best else None,
        training_seconds=float(np.mean(timed)) if timed else None,
        training_runs=len(timed),
        failed=[run for run in [*arm.trials, *arm.confirmations] if run.state == "failed"],
    )


@dataclass(frozen=True)
class LevelMean:
    """The mean test accuracy of the arms that have a level, each with the same weight, over seeds and images.

    `estimate` is None where none of them is confirmed; `missing` are those that are not, `arms` the number of the rest.
    """

    label: str
    estimate: Estimate | None
    arms: int
    seeds: tuple[int, int]
    missing: list[str]


@dataclass(frozen=True)
class Difference:
    """Mean test accuracy of `first` minus that of `second`.

    Attributes:
        first: a level or an arm.
        second: another.
        estimate: the difference, over seeds and images; its `p` is not corrected.
        val: the same difference of mean validation accuracies.
        seeds: the smallest and the largest number of seeds of the compared arms.
        arms: how many arms of each side are compared.
        corrected_p: after Holm's correction over the factor's family; None where nothing is tested.
        seeds_needed: seeds per arm that would show a difference of this size, if tested and not shown; None where a
            thousand are not enough.
    """

    first: str
    second: str
    estimate: Estimate
    val: float
    seeds: tuple[int, int]
    arms: int
    corrected_p: float | None = None
    seeds_needed: int | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.corrected_p is not None and self.corrected_p < ALPHA

    @property
    def favours_first(self) -> bool:
        """Whether the first has the higher test accuracy."""
        return self.estimate.value > 0


@dataclass(frozen=True)
class FactorAnalysis:
    """A factor's levels and their differences; of a study with [[arms]], the arms are the levels of a factor `arm`.

    Attributes:
        factor: its name.
        control: the label of the level that the others are compared with; None where all pairs are compared.
        levels: in the study's order.
        family: the differences that are tested together; pairs that cannot be compared are left out.
        not_compared: the reason for each of these pairs.
        partial: the differences over fewer combinations than the study has, and their combinations.
        leader: the label of the level with the highest mean validation accuracy, over the combinations of the other
            factors that all confirmed levels have where there are any; None where no level is confirmed.
        confounded: the pairs of [[arms]] in the family that differ in several parameters, and these parameters.
    """

    factor: str
    control: str | None
    levels: list[LevelMean]
    family: list[Difference]
    not_compared: list[str]
    partial: list[str]
    leader: str | None
    confounded: dict[tuple[str, str], list[str]]


@dataclass(frozen=True)
class Interaction:
    """How much the difference between two levels of one factor depends on the level of the other.

    (`first` minus `first_base` at `second`) minus (the same at `second_base`), in test accuracy.
    """

    first: str
    first_base: str
    second: str
    second_base: str
    estimate: Estimate
    seeds: tuple[int, int]


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


def level_label(factor: str, level: Any) -> str:
    """Return a level's label: a number with its factor, as in the names of arms."""
    return level if isinstance(level, str) else f"{factor}={level}"


def _by_other_levels(result: StudyResult, factor: str, level: Any) -> dict[tuple[Any, ...], ArmResult]:
    """Return the confirmed arms with a level, by their levels of the other factors."""
    return {
        tuple(other for name, other in arm.arm.compared_levels.items() if name != factor): arm
        for arm in result.arms
        if arm.arm.compared_levels[factor] == level and arm.confirmed
    }


def analyse_factor(result: StudyResult, factor: str, correct: dict[str, np.ndarray]) -> FactorAnalysis:
    """Return the mean of each level of a factor, and the tested differences between levels.

    Args:
        result: the study.
        factor: its name, see `StudySpec.compared_levels`.
        correct: confirmed arm -> whether each run is right about each image, bool, S x N.
    """
    levels = result.spec.compared_levels()[factor]
    confirmed = {level_label(factor, level): _by_other_levels(result, factor, level) for level in levels}
    control = result.spec.confirm.control.get(factor)
    control_label = None if control is None else level_label(factor, control)
    label_pairs = (
        [(label, control_label) for label in confirmed if label != control_label]
        if control_label is not None
        else list(combinations(confirmed, 2))
    )
    combination_count = len(result.arms) // len(levels)
    family, contrasts, not_compared, partial = [], [], [], []
    for first, second in label_pairs:
        common = [others for others in confirmed[first] if others in confirmed[second]]
        if not common:
            not_compared.append(f"{first} and {second}: no combination of the other factors is confirmed for both")
            continue
        pairs = [(confirmed[first][others], confirmed[second][others]) for others in common]
        if len(common) < combination_count:
            where = "; ".join(f"{a.arm.name} against {b.arm.name}" for a, b in pairs)
            partial.append(f"{first} and {second}: over {len(common)} of {combination_count} combinations ({where})")
        family.append(level_difference(first, second, pairs, correct))
        contrasts.append(_weights(pairs))
    return FactorAnalysis(
        factor=factor,
        control=control_label,
        levels=[_level_mean(result, factor, level, correct) for level in levels],
        family=_tested(family, contrasts, correct),
        not_compared=not_compared,
        partial=partial,
        leader=_leader(confirmed),
        confounded=_confounded(result, family) if result.spec.arms else {},
    )


def _confounded(result: StudyResult, family: list[Difference]) -> dict[tuple[str, str], list[str]]:
    """Return the pairs of [[arms]] that differ in several parameters, and these parameters."""
    by_name = {arm.arm.name: arm.arm for arm in result.arms}
    parameters = {
        (pair.first, pair.second): differing_parameters(result.spec, by_name[pair.first], by_name[pair.second])
        for pair in family
    }
    return {pair: names for pair, names in parameters.items() if len(names) > 1}


def _level_mean(result: StudyResult, factor: str, level: Any, correct: dict[str, np.ndarray]) -> LevelMean:
    arms = [arm for arm in result.arms if arm.arm.compared_levels[factor] == level]
    names = [arm.arm.name for arm in arms if arm.confirmed]
    estimate = statistics.contrast({name: 1 / len(names) for name in names}, correct) if names else None
    missing = [arm.arm.name for arm in arms if not arm.confirmed]
    return LevelMean(level_label(factor, level), estimate, len(names), _seeds(correct, names), missing)


def _leader(arms: dict[str, dict[tuple[Any, ...], ArmResult]]) -> str | None:
    """Return the level with the highest mean validation accuracy, the first of equals.

    `arms` are the confirmed arms by their level's label, and then by their levels of the other factors.
    """
    confirmed = {label: by_others for label, by_others in arms.items() if by_others}
    shared = [others for others in next(iter(confirmed.values()), {}) if all(others in b for b in confirmed.values())]

    def val(label: str) -> float:
        values = [
            confirmed_validation(a).mean() for others, a in confirmed[label].items() if others in shared or not shared
        ]
        return float(np.mean(values))

    return max(confirmed, key=val, default=None)


def _weights(pairs: Sequence[tuple[ArmResult, ArmResult]]) -> dict[str, float]:
    weights = {first.arm.name: 1 / len(pairs) for first, _ in pairs}
    return weights | {second.arm.name: -1 / len(pairs) for _, second in pairs}


def _seeds(correct: dict[str, np.ndarray], names: Sequence[str]) -> tuple[int, int]:
    counts = [len(correct[name]) for name in names] or [0]
    return min(counts), max(counts)


def level_difference(
    first: str, second: str, pairs: Sequence[tuple[ArmResult, ArmResult]], correct: dict[str, np.ndarray]
) -> Difference:
    """Return the difference between two levels, or two arms, untested.

    Args:
        first: the label of the side that is counted as positive.
        second: that of the other side.
        pairs: a confirmed arm of each side that differ in nothing else; all pairs have the same weight.
        correct: as in `analyse_factor`.
    """
    weights = _weights(pairs)
    val = float(np.mean([confirmed_validation(a).mean() - confirmed_validation(b).mean() for a, b in pairs]))
    estimate = statistics.contrast(weights, correct)
    return Difference(first, second, estimate, val, _seeds(correct, list(weights)), len(pairs))


def _tested(
    family: list[Difference], contrasts: list[dict[str, float]], correct: dict[str, np.ndarray]
) -> list[Difference]:
    """Return the differences with Holm's corrected p-values, and the seeds needed to show those that are not shown."""
    p_values = [difference.estimate.p for difference in family if difference.estimate.p is not None]
    corrected = iter(statistics.holm(p_values))
    tested = []
    for difference, weights in zip(family, contrasts, strict=True):
        if difference.estimate.p is None:
            tested.append(difference)
            continue
        p = next(corrected)
        needed = None if p < ALPHA else statistics.seeds_needed(weights, correct, family=len(p_values))
        tested.append(replace(difference, corrected_p=p, seeds_needed=needed))
    return tested


def analyse_interactions(result: StudyResult, correct: dict[str, np.ndarray]) -> tuple[list[Interaction], list[str]]:
    """Return the interactions of a study with exactly two factors, against each factor's control or first level.

    Returns:
        The interactions, and a line for each combination that cannot be computed, with the arms that are not confirmed.
    """
    factors = result.spec.factors.entries()
    if len(factors) != 2:
        return [], []
    (first_factor, first_levels), (second_factor, second_levels) = factors.items()
    first_base = result.spec.confirm.control.get(first_factor, first_levels[0])
    second_base = result.spec.confirm.control.get(second_factor, second_levels[0])
    names = {tuple(arm.arm.levels.values()): arm.arm.name for arm in result.arms}
    interactions, missing = [], []
    for a, b in _without_base(first_levels, first_base, second_levels, second_base):
        weights = {
            names[a, b]: 1.0,
            names[first_base, b]: -1.0,
            names[a, second_base]: -1.0,
            names[first_base, second_base]: 1.0,
        }
        first, second = level_label(first_factor, a), level_label(second_factor, b)
        unconfirmed = [name for name in weights if name not in correct]
        if unconfirmed:
            is_not = "is not" if len(unconfirmed) == 1 else "are not"
            missing.append(f"{first} with {second}: {', '.join(unconfirmed)} {is_not} confirmed")
            continue
        interactions.append(
            Interaction(
                first,
                level_label(first_factor, first_base),
                second,
                level_label(second_factor, second_base),
                statistics.contrast(weights, correct),
                _seeds(correct, list(weights)),
            )
        )
    return interactions, missing


def _without_base(
    first_levels: list[Any], first_base: Any, second_levels: list[Any], second_base: Any
) -> Iterator[tuple[Any, Any]]:
    for a in first_levels:
        for b in second_levels:
            if a != first_base and b != second_base:
                yield a, b
