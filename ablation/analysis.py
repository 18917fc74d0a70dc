"""From a study's runs to what can be said of them: means, differences with intervals, and the answer in one sentence.

Whatever is chosen here (the winner, its run, the level that leads a factor) is chosen by validation accuracy alone;
test accuracies are only reported and compared. All accuracies are fractions, and so are differences of them.

Legend: S confirmation runs (seeds), N test images, K classes, T trials that have ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ablation import stats
from ablation.results import ArmResult, RunResult, StudyResult
from ablation.scores import balanced_accuracy_and_macro_f1
from ablation.stats import Estimate

ALPHA = 0.05


# ----------------------------------------------------------------------------------- what is chosen, by validation


def confirmed_validation(arm: ArmResult) -> np.ndarray:
    """Return the best validation accuracy of each finished confirmation run of an arm, float64 (S)."""
    return np.array([run.val_accuracy for run in arm.confirmations if run.val_accuracy is not None], np.float64)


def winner(result: StudyResult) -> ArmResult | None:
    """Return the arm with the highest mean validation accuracy over its finished confirmation runs.

    The first of equals; None where no confirmation run has finished. No test figure is read.
    """
    candidates = [arm for arm in result.arms if confirmed_validation(arm).size]
    return max(candidates, key=lambda arm: float(confirmed_validation(arm).mean()), default=None)


def champion_run(arm: ArmResult) -> RunResult:
    """Return the confirmation run with the highest validation accuracy, the first of equals; no test figure is read.

    Raises:
        ValueError: no confirmation run of the arm has finished.
    """
    finished = [run for run in arm.confirmations if run.val_accuracy is not None]
    return max(finished, key=lambda run: run.val_accuracy or 0.0)


# -------------------------------------------------------------------------------------------------- a single arm


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
    """What an arm's runs come to; what needs confirmation runs is None without them.

    Attributes:
        result: the arm's runs.
        val: validation accuracy over its confirmation runs.
        test: test accuracy over its confirmation runs.
        balanced: balanced test accuracy over its confirmation runs, the mean of the classes' recalls.
        macro_f1: macro F1 of the test images over its confirmation runs, the mean of the classes' F1 scores.
        class_accuracies_K: mean test accuracy of each class over seeds, NaN for a class without test images.
        confusion_KK: mean over seeds of the fraction of each true class (row) that is taken for each class (column).
        selection_bias: the tuned trial's validation accuracy minus the mean of its confirmation runs.
        best_so_far_T: the best validation accuracy of the trials so far, in their order; NaN before the first finished.
        late_rise: by how much that rose in the last third of the trials; None where fewer than three have ended.
        trained_parameters: of the chosen configuration.
        training_seconds: mean over the confirmation runs, else of the best trial.
        training_runs: how many runs that mean is over.
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
    """Return mean, spread and interval of accuracies over seeds; None where there are none."""
    if accuracies_S.size == 0:
        return None
    deviation = float(accuracies_S.std(ddof=1)) if accuracies_S.size > 1 else None
    return Summary(stats.seed_interval(accuracies_S), deviation, accuracies_S.size)


def confusion_matrix(predicted_N: np.ndarray, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """Return the fraction of each true class (row) that is taken for each class (column), K x K; NaN without images."""
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
    """Return by how much the best rose in the last third of the trials; None if too few trials tell."""
    before = len(best_so_far_T) - len(best_so_far_T) // 3 - 1
    if len(best_so_far_T) < 3 or np.isnan(best_so_far_T[before]):
        return None
    return float(best_so_far_T[-1] - best_so_far_T[before])


def summarise_arm(arm: ArmResult, classes: int) -> ArmSummary:
    """Return what an arm's runs come to."""
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


# ------------------------------------------------------------------------------------------- levels and differences


@dataclass(frozen=True)
class LevelMean:
    """The mean test accuracy of the arms that have a level, each with the same weight, over seeds and images.

    `estimate` is None where none of them is confirmed; `missing` are the arms that are not.
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
        seeds: the smallest and the largest number of seeds of the arms that are compared.
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
    """A factor's levels and their differences.

    Attributes:
        factor: its name.
        control: the label of the level that the others are compared with; None where all pairs are.
        levels: in the study's order.
        family: the differences that are tested together; those that cannot be compared are left out.
        not_compared: why, for each of those.
        partial: differences over fewer combinations than there are, and over which.
        leader: the label of the level with the highest mean validation accuracy, over the combinations of the other
            factors that all confirmed levels have where there are any; None where no level is confirmed.
    """

    factor: str
    control: str | None
    levels: list[LevelMean]
    family: list[Difference]
    not_compared: list[str]
    partial: list[str]
    leader: str | None


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
    """A test image that a run takes for another class.

    Attributes:
        number: of the image, from 0 in the order of the test split.
        image_SSC: as it goes into the network, uint8.
        true: its class.
        predicted: what it is taken for.
        probability: of that.
        true_probability: of its own class.
    """

    number: int
    image_SSC: np.ndarray
    true: str
    predicted: str
    probability: float
    true_probability: float


@dataclass(frozen=True)
class StudyAnalysis:
    """All that the report says in figures.

    `interactions` belong to studies with exactly two factors; `interaction_missing` are combinations that lack an arm.
    `arm_pairs` are all pairs of confirmed arms of a study with several factors. `mistakes` are the champion run's most
    confident ones, as many as its predictions hold images of.
    """

    result: StudyResult
    arms: list[ArmSummary]
    factors: list[FactorAnalysis]
    interactions: list[Interaction]
    interaction_missing: list[str]
    arm_pairs: list[Difference]
    winner: ArmResult | None
    mistakes: list[Mistake]
    answer: str


def analyse(result: StudyResult) -> StudyAnalysis:
    """Return what can be said of a study as it stands."""
    confirmed = {arm.arm.name: arm for arm in result.arms if arm.confirmed}
    correct = {name: arm.correct_SN for name, arm in confirmed.items()}
    factors = [_factor(result, factor, correct) for factor in result.spec.factors.entries()]
    interactions, interaction_missing = _interactions(result, correct)
    pairs = []
    if len(factors) > 1:
        pairs = [_difference(a, b, [(confirmed[a], confirmed[b])], correct) for a, b in combinations(confirmed, 2)]
    summaries = [summarise_arm(arm, len(result.classes)) for arm in result.arms]
    won = winner(result)
    return StudyAnalysis(
        result=result,
        arms=summaries,
        factors=factors,
        interactions=interactions,
        interaction_missing=interaction_missing,
        arm_pairs=pairs,
        winner=won,
        mistakes=_mistakes(champion_run(won), result.classes) if won is not None else [],
        answer=_answer(result, summaries, factors),
    )


def _mistakes(run: RunResult, classes: list[str]) -> list[Mistake]:
    found = run.predictions
    if found is None or found.mistakes is None:
        return []
    return [
        Mistake(
            int(number),
            image_SSC,
            classes[found.labels_N[number]],
            classes[found.predicted_N[number]],
            float(found.probabilities_NK[number, found.predicted_N[number]]),
            float(found.probabilities_NK[number, found.labels_N[number]]),
        )
        for number, image_SSC in zip(found.mistakes.numbers_M, found.mistakes.images_MSSC, strict=True)
    ]


def level_label(factor: str, level: Any) -> str:
    """Return what a level is called: a number with its factor, as in the names of arms."""
    return level if isinstance(level, str) else f"{factor}={level}"


def _by_other_levels(result: StudyResult, factor: str, level: Any) -> dict[tuple[Any, ...], ArmResult]:
    """Return the confirmed arms with a level, by their levels of the other factors."""
    return {
        tuple(other for name, other in arm.arm.levels.items() if name != factor): arm
        for arm in result.arms
        if arm.arm.levels[factor] == level and arm.confirmed
    }


def _factor(result: StudyResult, factor: str, correct: dict[str, np.ndarray]) -> FactorAnalysis:
    levels = result.spec.factors.get(factor)
    found = {level_label(factor, level): _by_other_levels(result, factor, level) for level in levels}
    means = []
    for level in levels:
        label = level_label(factor, level)
        names = [arm.arm.name for arm in found[label].values()]
        wanted = [arm.arm.name for arm in result.arms if arm.arm.levels[factor] == level]
        estimate = stats.contrast({name: 1 / len(names) for name in names}, correct) if names else None
        missing = [name for name in wanted if name not in names]
        means.append(LevelMean(label, estimate, len(names), _seeds(correct, names), missing))

    control = result.spec.confirm.control.get(factor)
    control_label = None if control is None else level_label(factor, control)
    labels = list(found)
    wanted_pairs = (
        [(label, control_label) for label in labels if label != control_label]
        if control_label is not None
        else list(combinations(labels, 2))
    )
    family, contrasts, not_compared, partial = [], [], [], []
    for first, second in wanted_pairs:
        common = [others for others in found[first] if others in found[second]]
        if not common:
            not_compared.append(f"{first} and {second}: no combination of the other factors is confirmed for both")
            continue
        pairs = [(found[first][others], found[second][others]) for others in common]
        combinations_wanted = len(result.arms) // len(levels)
        if len(common) < combinations_wanted:
            where = "; ".join(f"{a.arm.name} against {b.arm.name}" for a, b in pairs)
            partial.append(f"{first} and {second}: over {len(common)} of {combinations_wanted} combinations ({where})")
        family.append(_difference(first, second, pairs, correct))
        contrasts.append(_weights(pairs))
    return FactorAnalysis(
        factor=factor,
        control=control_label,
        levels=means,
        family=_tested(family, contrasts, correct),
        not_compared=not_compared,
        partial=partial,
        leader=_leader(found),
    )


def _leader(found: dict[str, dict[tuple[Any, ...], ArmResult]]) -> str | None:
    """Return the level with the highest mean validation accuracy, the first of equals."""
    confirmed = {label: by_others for label, by_others in found.items() if by_others}
    shared = [others for others in next(iter(confirmed.values()), {}) if all(others in b for b in confirmed.values())]

    def val(label: str) -> float:
        arms = [arm for others, arm in confirmed[label].items() if others in shared or not shared]
        return float(np.mean([confirmed_validation(arm).mean() for arm in arms]))

    return max(confirmed, key=val, default=None)


def _weights(pairs: Sequence[tuple[ArmResult, ArmResult]]) -> dict[str, float]:
    weights = {first.arm.name: 1 / len(pairs) for first, _ in pairs}
    return weights | {second.arm.name: -1 / len(pairs) for _, second in pairs}


def _seeds(correct: dict[str, np.ndarray], names: Sequence[str]) -> tuple[int, int]:
    counts = [len(correct[name]) for name in names] or [0]
    return min(counts), max(counts)


def _difference(
    first: str, second: str, pairs: Sequence[tuple[ArmResult, ArmResult]], correct: dict[str, np.ndarray]
) -> Difference:
    weights = _weights(pairs)
    val = float(np.mean([confirmed_validation(a).mean() - confirmed_validation(b).mean() for a, b in pairs]))
    estimate = stats.contrast(weights, correct)
    return Difference(first, second, estimate, val, _seeds(correct, list(weights)), len(pairs))


def _tested(
    family: list[Difference], contrasts: list[dict[str, float]], correct: dict[str, np.ndarray]
) -> list[Difference]:
    """Return the differences with p-values corrected over those that have one, and the seeds that the others need."""
    p_values = [difference.estimate.p for difference in family if difference.estimate.p is not None]
    corrected = iter(stats.holm(p_values))
    tested = []
    for difference, weights in zip(family, contrasts, strict=True):
        if difference.estimate.p is None:
            tested.append(difference)
            continue
        p = next(corrected)
        needed = None if p < ALPHA else stats.seeds_needed(weights, correct, family=len(p_values))
        tested.append(
            Difference(
                difference.first, difference.second, difference.estimate, difference.val, difference.seeds,
                difference.arms, p, needed,
            )
        )  # fmt: skip
    return tested


def _interactions(result: StudyResult, correct: dict[str, np.ndarray]) -> tuple[list[Interaction], list[str]]:
    """Return the differences of differences against each factor's control or first level, and what lacks an arm."""
    factors = result.spec.factors.entries()
    if len(factors) != 2:
        return [], []
    (first_factor, first_levels), (second_factor, second_levels) = factors.items()
    first_base = result.spec.confirm.control.get(first_factor, first_levels[0])
    second_base = result.spec.confirm.control.get(second_factor, second_levels[0])
    names = {tuple(arm.arm.levels.values()): arm.arm.name for arm in result.arms}
    found, missing = [], []
    for a, b in _without_base(first_levels, first_base, second_levels, second_base):
        weights = {
            names[a, b]: 1.0,
            names[first_base, b]: -1.0,
            names[a, second_base]: -1.0,
            names[first_base, second_base]: 1.0,
        }
        first, second = level_label(first_factor, a), level_label(second_factor, b)
        lacking = [name for name in weights if name not in correct]
        if lacking:
            missing.append(f"{first} with {second}: {', '.join(lacking)} is not confirmed")
            continue
        found.append(
            Interaction(
                first,
                level_label(first_factor, first_base),
                second,
                level_label(second_factor, second_base),
                stats.contrast(weights, correct),
                _seeds(correct, list(weights)),
            )
        )
    return found, missing


def _without_base(
    first_levels: list[Any], first_base: Any, second_levels: list[Any], second_base: Any
) -> Iterator[tuple[Any, Any]]:
    for a in first_levels:
        for b in second_levels:
            if a != first_base and b != second_base:
                yield a, b


# --------------------------------------------------------------------------------------------- the answer, in words


def points(difference: float) -> str:
    """Return a difference of accuracies in percentage points, with a second decimal below one point."""
    value = 100 * difference
    text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
    return text if float(text) else text.removeprefix("-")


def format_p(p: float) -> str:
    """Return a p-value as 'p < 0.001' or 'p = 0.012'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_seeds(seeds: tuple[int, int]) -> str:
    """Return a number of seeds, or two where arms differ."""
    least, most = seeds
    return (f"{least} seed" if least == 1 else f"{least} seeds") if least == most else f"{least} to {most} seeds"


def interval_points(low: float | None, high: float | None) -> str:
    """Return the ends of an interval in points, both with the same decimals."""
    if low is None or high is None:
        return "-"
    decimals = 1 if max(abs(low), abs(high)) >= 0.02 else 2
    ends = [f"{100 * end:.{decimals}f}" for end in (low, high)]
    return " to ".join(end if float(end) else end.removeprefix("-") for end in ends)


def _answer(result: StudyResult, arms: list[ArmSummary], factors: list[FactorAnalysis]) -> str:
    confirmed = [arm for arm in arms if arm.test is not None]
    if not confirmed:
        best = max((arm for arm in arms if arm.result.best), key=_tuned_accuracy, default=None)
        if best is None:
            return "No trial has finished yet."
        trials = sum(trial.val_accuracy is not None for trial in best.result.trials)
        why = "no confirmation run has finished yet" if result.spec.confirm.seeds else "[confirm] seeds is 0"
        return (
            f"The best tuned arm is {best.name} (validation accuracy {_tuned_accuracy(best):.4f}, the best of "
            f"{trials} {'trial' if trials == 1 else 'trials'}), but without confirmation runs no answer is possible: "
            f"{why}."
        )
    if not factors:
        return _preliminary(result) + _one_arm(confirmed[0])
    if len(confirmed) == 1:
        only = confirmed[0]
        return _preliminary(result) + f"Only {only.name} is confirmed, so there is nothing to compare. {_one_arm(only)}"
    factors = [factor for factor in factors if len(factor.levels) > 1] or factors
    clauses = [_clause(factor) for factor in factors]
    if len(factors) > 1:
        clauses = [f"{factor.factor}: {clause}" for factor, clause in zip(factors, clauses, strict=True)]
    text = _preliminary(result) + "; ".join(clauses) + "."
    failed = [arm.name for arm in arms if arm.result.best is None]
    without = f" Left out, because no trial of it finished: {'; '.join(failed)}." if failed else ""
    is_name = text.startswith(tuple(level.label for factor in factors for level in factor.levels))
    return (text if is_name or len(factors) > 1 else text[0].upper() + text[1:]) + without


def _preliminary(result: StudyResult) -> str:
    missing = [(result.missing_trials, "trials"), (result.missing_confirmations, "confirmation runs")]
    texts = [f"{count} {what if count > 1 else what[:-1]}" for count, what in missing if count]
    return f"Preliminary, {' and '.join(texts)} still missing: " if texts else ""


def _tuned_accuracy(arm: ArmSummary) -> float:
    return (arm.result.best.val_accuracy or 0.0) if arm.result.best else 0.0


def _named(arm: ArmSummary) -> str:
    return arm.name if arm.result.arm.levels else "The only arm"


def _one_arm(arm: ArmSummary) -> str:
    assert arm.test is not None
    estimate, seeds = arm.test.estimate, format_seeds((arm.test.seeds, arm.test.seeds))
    if estimate.low is None:
        return f"{_named(arm)} reaches a test accuracy of {estimate.value:.4f} with one seed, which proves nothing."
    return (
        f"{_named(arm)} reaches a mean test accuracy of {estimate.value:.4f} "
        f"(95 % CI over seeds {estimate.low:.4f} to {estimate.high:.4f}, {seeds})."
    )


def _clause(factor: FactorAnalysis) -> str:
    """Return what the tested family of a factor says, without a full stop."""
    if factor.leader is None or not factor.family:
        return "nothing can be compared"
    pivot = factor.control or factor.leader
    if not any(pivot in (difference.first, difference.second) for difference in factor.family):
        return f"nothing can be compared with {pivot} yet{_elsewhere(factor)}"
    if any(difference.estimate.p is None for difference in factor.family):
        return _untested_clause(factor)
    name = f"the control {pivot}" if factor.control else pivot
    seen = [difference for difference in factor.family if pivot in (difference.first, difference.second)]
    parts: list[str] = []
    for verb, sign in (("beats", 1), ("loses to", -1)):
        shown = [difference for difference in seen if difference.is_shown and sign * _gain(difference, pivot) > 0]
        if shown:
            nearest = min(shown, key=lambda difference: abs(difference.estimate.value))
            closest = f", {_other(nearest, pivot)} the most narrowly," if len(shown) > 1 else ""
            others = _join([_other(difference, pivot) for difference in shown])
            parts.append(f"{verb} {others}{closest} by {_evidence(nearest)}")
    loses = any(part.startswith("loses") for part in parts)
    unclear = [difference for difference in seen if not difference.is_shown]
    if unclear:
        which = _join([_other(difference, pivot) for difference in unclear])
        clearest = min(unclear, key=lambda difference: difference.estimate.p or 0.0)
        of = f"the clearest is {_other(clearest, pivot)}: " if len(unclear) > 1 else ""
        measured = f"{of}{points(_gain(clearest, pivot))} points, {_details(clearest, pivot)}"
        if parts:
            parts.append(f"could not be told apart from {which} ({measured})")
        else:
            any_of = "any of " if len(unclear) > 1 else ""
            return f"no difference could be shown between {name} and {any_of}{which} ({measured}){_elsewhere(factor)}"
    text = _join(parts)
    return f"{name} {text}" + (f", though {pivot} leads on validation" if loses and not factor.control else "")


def _elsewhere(factor: FactorAnalysis) -> str:
    """Return the smallest difference that was shown between other levels than the leader, which beats none."""
    shown = [difference for difference in factor.family if difference.is_shown]
    if not shown:
        return ""
    nearest = min(shown, key=lambda difference: abs(difference.estimate.value))
    high, low = _ordered(nearest)
    return f", but {high} beats {low} by {_evidence(nearest)}"


def _untested_clause(factor: FactorAnalysis) -> str:
    """Return what a single seed shows: differences without intervals."""
    pivot = factor.control or factor.leader or ""
    seen = [difference for difference in factor.family if pivot in (difference.first, difference.second)]
    gains = [
        f"{points(abs(_gain(difference, pivot)))} points {'above' if _gain(difference, pivot) > 0 else 'below'} "
        f"{_other(difference, pivot)}"
        for difference in seen
    ]
    return f"{pivot} is {_join(gains)} on the test images, but one seed proves nothing"


def _gain(difference: Difference, pivot: str) -> float:
    """Return by how much `pivot` is better than the other side."""
    return difference.estimate.value if difference.first == pivot else -difference.estimate.value


def _other(difference: Difference, pivot: str) -> str:
    return difference.second if difference.first == pivot else difference.first


def _ordered(difference: Difference) -> tuple[str, str]:
    """Return the side with the higher test accuracy, then the other."""
    names = (difference.first, difference.second)
    return names if difference.favours_first else names[::-1]


def _evidence(difference: Difference) -> str:
    """Return a shown difference, as a positive number, with what it rests on."""
    return f"{points(abs(difference.estimate.value))} points ({_details(difference, _ordered(difference)[0])})"


def _details(difference: Difference, pivot: str) -> str:
    estimate = difference.estimate
    assert estimate.low is not None
    assert estimate.high is not None
    low, high = (estimate.low, estimate.high) if difference.first == pivot else (-estimate.high, -estimate.low)
    p = f", Holm {format_p(difference.corrected_p)}" if difference.corrected_p is not None else ""
    return f"95 % CI {interval_points(low, high)}{p}, {format_seeds(difference.seeds)}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
