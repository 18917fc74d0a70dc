"""The answer in a sentence, and all numbers of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ablation.analysis.comparison import (
    ArmSummary,
    Difference,
    FactorAnalysis,
    Interaction,
    Mistake,
    analyse_factor,
    analyse_interactions,
    champion_run,
    confident_mistakes,
    level_difference,
    summarise_arm,
    winning_arm,
)
from ablation.analysis.results import ArmResult, StudyResult
from ablation.base.text import plural


@dataclass(frozen=True)
class StudyAnalysis:
    """All numbers of the report.

    `interactions` belong to studies with exactly two factors; `interaction_missing` has a line for each that lacks a
    confirmed arm. `arm_pairs` are the differences of all pairs of confirmed arms of a study with several factors.
    `mistakes` are the champion run's most confident ones: those whose images are kept with its predictions.
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
    """Return the analysis of a study as it stands."""
    confirmed = {arm.arm.name: arm for arm in result.arms if arm.confirmed}
    correct = {name: arm.correct_SN for name, arm in confirmed.items()}
    factors = [analyse_factor(result, factor, correct) for factor in result.spec.compared_levels()]
    interactions, interaction_missing = analyse_interactions(result, correct)
    pairs = []
    if len(factors) > 1:
        pairs = [level_difference(a, b, [(confirmed[a], confirmed[b])], correct) for a, b in combinations(confirmed, 2)]
    summaries = [summarise_arm(arm, len(result.classes)) for arm in result.arms]
    best_arm = winning_arm(result)
    return StudyAnalysis(
        result=result,
        arms=summaries,
        factors=factors,
        interactions=interactions,
        interaction_missing=interaction_missing,
        arm_pairs=pairs,
        winner=best_arm,
        mistakes=confident_mistakes(champion_run(best_arm), result.classes) if best_arm is not None else [],
        answer=_answer(result, summaries, factors),
    )


def points(difference: float) -> str:
    """Return a difference of accuracies in percentage points, with a second decimal below one point."""
    value = 100 * difference
    text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
    return text if float(text) else text.removeprefix("-")


def format_p(p: float) -> str:
    """Return a p-value as 'p < 0.001' or 'p = 0.012'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_seeds(seeds: tuple[int, int]) -> str:
    """Return a number of seeds, or the smallest and the largest where arms differ."""
    least, most = seeds
    return plural(least, "seed") if least == most else f"{least} to {most} seeds"


def interval_points(low: float | None, high: float | None) -> str:
    """Return the ends of an interval in percentage points, both with the same decimals."""
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
        reason = "no confirmation run has finished yet" if result.spec.confirm.seeds else "[confirm] seeds is 0"
        return (
            f"The best tuned arm is {best.name} (validation accuracy {_tuned_accuracy(best):.4f}, the best of "
            f"{plural(trials, 'trial')}), but without confirmation runs no answer is possible: "
            f"{reason}."
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
    omission = f" Left out, because no trial of it finished: {'; '.join(failed)}." if failed else ""
    is_name = text.startswith(tuple(level.label for factor in factors for level in factor.levels))
    return (text if is_name or len(factors) > 1 else text[0].upper() + text[1:]) + _caution(factors) + omission


def _caution(factors: list[FactorAnalysis]) -> str:
    """Return the sentence on [[arms]] that differ in several parameters at once; empty without such arms."""
    pairs = [names for factor in factors for names in factor.confounded.values()]
    if not pairs:
        return ""
    if any(names != pairs[0] for names in pairs) or len(pairs) < sum(len(factor.family) for factor in factors):
        return " Some arms differ in several parameters at once: their difference is not that of a single parameter."
    return f" The arms differ in {_join(pairs[0])} at once: a difference cannot be put down to one of them alone."


def _preliminary(result: StudyResult) -> str:
    missing = [(result.missing_trials, "trials"), (result.missing_confirmations, "confirmation runs")]
    texts = [f"{count} {what if count > 1 else what[:-1]}" for count, what in missing if count]
    return f"Preliminary, {' and '.join(texts)} still missing: " if texts else ""


def _tuned_accuracy(arm: ArmSummary) -> float:
    return (arm.result.best.val_accuracy or 0.0) if arm.result.best else 0.0


def _named(arm: ArmSummary) -> str:
    return arm.name if arm.result.arm.compared_levels else "The only arm"


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
    """Return the answer for one factor from its tested differences, without a full stop."""
    if factor.leader is None or not factor.family:
        return "nothing can be compared"
    pivot = factor.control or factor.leader
    if not any(pivot in (difference.first, difference.second) for difference in factor.family):
        return f"nothing can be compared with {pivot} yet{_elsewhere(factor)}"
    if any(difference.estimate.p is None for difference in factor.family):
        return _untested_clause(factor)
    name = f"the control {pivot}" if factor.control else pivot
    with_pivot = [difference for difference in factor.family if pivot in (difference.first, difference.second)]
    parts: list[str] = []
    smallest_gaps: list[Difference] = []  # where one verb has several objects
    for verb, sign in (("beats", 1), ("loses to", -1)):
        shown = [d for d in with_pivot if d.is_shown and sign * _gain(d, pivot) > 0]
        if len(shown) == 1:
            parts.append(f"{verb} {_other(shown[0], pivot)} by {_evidence(shown[0])}")
        elif shown:
            parts.append(f"{verb} {_join([_other(difference, pivot) for difference in shown])}")
            smallest_gaps.append(_smallest(shown))
    loses = any(part.startswith("loses") for part in parts)
    unclear = [difference for difference in with_pivot if not difference.is_shown]
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
    although = f", though {pivot} leads on validation" if loses and not factor.control else ""
    return f"{name} {_join(parts)}{although}{_gaps(smallest_gaps, pivot)}"


def _gaps(smallest_gaps: list[Difference], pivot: str) -> str:
    """Return the end of a clause that names several levels at once: how close the closest of them is."""
    if not smallest_gaps:
        return ""
    others = _join([_other(difference, pivot) for difference in smallest_gaps])
    evidence = _join([_evidence(difference) for difference in smallest_gaps])
    noun, verb = ("gap", "is") if len(smallest_gaps) == 1 else ("gaps", "are")
    return f"; the smallest {noun}, to {others}, {verb} {evidence}"


def _elsewhere(factor: FactorAnalysis) -> str:
    """Return the smallest difference that was shown between levels other than the leader, which beats none."""
    shown = [difference for difference in factor.family if difference.is_shown]
    if not shown:
        return ""
    smallest = _smallest(shown)
    high, low = _ordered(smallest)
    return f", but {high} beats {low} by {_evidence(smallest)}"


def _smallest(differences: Sequence[Difference]) -> Difference:
    return min(differences, key=lambda difference: abs(difference.estimate.value))


def _untested_clause(factor: FactorAnalysis) -> str:
    """Return the answer for one factor where an arm has a single seed: differences without intervals."""
    pivot = factor.control or factor.leader or ""
    with_pivot = [difference for difference in factor.family if pivot in (difference.first, difference.second)]
    gains = [
        f"{points(abs(_gain(difference, pivot)))} points {'above' if _gain(difference, pivot) > 0 else 'below'} "
        f"{_other(difference, pivot)}"
        for difference in with_pivot
    ]
    return f"{pivot} is {_join(gains)} on the test images, but one seed proves nothing"


def _gain(difference: Difference, pivot: str) -> float:
    """Return the test accuracy of `pivot` minus that of the other side."""
    return difference.estimate.value if difference.first == pivot else -difference.estimate.value


def _other(difference: Difference, pivot: str) -> str:
    return difference.second if difference.first == pivot else difference.first


def _ordered(difference: Difference) -> tuple[str, str]:
    """Return the side with the higher test accuracy, then the other."""
    names = (difference.first, difference.second)
    return names if difference.favours_first else names[::-1]


def _evidence(difference: Difference) -> str:
    """Return a shown difference, as a positive number, with its interval, p-value and seeds."""
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
