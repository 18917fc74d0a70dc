"""The answer in two tiers, the verdict and its evidence, and all numbers of the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from ablation.analysis.arm_summaries import (
    ArmSummary,
    Mistake,
    champion_run,
    confident_mistakes,
    summarise_arm,
)
from ablation.analysis.best_arms import FromBest
from ablation.analysis.champion import MOST_EQUALS, Choice, choose_champion
from ablation.analysis.comparison import (
    Comparisons,
    Difference,
    FactorAnalysis,
    Interaction,
    compare,
    least_beaten,
)
from ablation.analysis.contrasts import places
from ablation.analysis.looks import estimator_of, look_sentences
from ablation.analysis.outliers import outlying_runs, without_runs
from ablation.analysis.registration import registration_sentences
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.tuning import searched_params
from ablation.analysis.verdict import factor_lines, reference
from ablation.analysis.wording import (
    chance_words,
    format_p,
    format_seeds,
    interval_points,
    join,
    points,
    unit_words,
    value_words,
)
from ablation.base.text import format_params, plural
from ablation.spec.objective import ACCURACY, Objective

CONDITION = "All of this holds with these configurations: another tuning might choose others."
ONE_SIDED = " by the one-sided comparison with the best alone (the two-sided tests of differences do not show it)"
EVERY_REPEAT = "the arms that every repeat has confirmed"
MOST_AT_LEVELS = 6  # differences at the levels of another factor that the evidence lists; the tables have all


@dataclass(frozen=True)
class StudyAnalysis:
    """All numbers of the report.

    Attributes:
        result: the study.
        arms: a summary of each.
        compared: differences and interactions.
        champion: the champion's arm, and why it was chosen.
        mistakes: the champion run's most confident ones: those whose images are kept with its predictions.
        chances_of_best: arm -> chance that its mean over test images is the best; empty below two testable arms.
        from_best: arm -> its distance from the best other arm, of the same arms.
        verdict: the answer in plain words, a line per factor.
        evidence: the numbers behind it, as sentences.
        repeats: of the tuning, those that are compared, each as a study of its own; without repeats, the study.
    """

    result: StudyResult
    arms: list[ArmSummary]
    compared: Comparisons
    champion: Choice | None
    mistakes: list[Mistake]
    chances_of_best: dict[str, float]
    from_best: dict[str, FromBest]
    verdict: list[str]
    evidence: list[str]
    repeats: list[StudyResult]

    @property
    def is_repeated(self) -> bool:
        """Whether the unit is a repeat of the tuning, not a seed."""
        return self.compared.estimator.unit != "seed"

    @property
    def winner(self) -> ArmResult | None:
        """The champion's arm."""
        return None if self.champion is None else self.champion.arm

    @property
    def answer(self) -> str:
        """The verdict in one line."""
        return " ".join(self.verdict)

    @property
    def factors(self) -> list[FactorAnalysis]:
        """The factors with their levels and differences."""
        return self.compared.factors

    @property
    def interactions(self) -> list[Interaction]:
        """The tested interactions."""
        return self.compared.interactions


def analyse(result: StudyResult) -> StudyAnalysis:
    """Return the analysis of a study as it stands, over seeds; `pooling.analyse_study` is that of any study."""
    compared = compare(result, result.scores, estimator_of(result))
    arms = [summarise_arm(arm, len(result.classes)) for arm in result.arms]
    condition = [CONDITION] if compared.contrasts else []
    return analysis_of(result, [result], arms, compared, [*condition, *_apart(result, arms, compared)])


def analysis_of(
    result: StudyResult,
    repeats: Sequence[StudyResult],
    arms: list[ArmSummary],
    compared: Comparisons,
    limits: Sequence[str],
) -> StudyAnalysis:
    """Return the analysis of a study, or of pooled ones.

    Args:
        result: the study.
        repeats: those of its tuning that are compared.
        arms: a summary of each.
        compared: its differences and interactions.
        limits: what limits the answer beside its looks and its registration, as sentences.
    """
    goal, estimator, champion = result.spec.goal, compared.estimator, choose_champion(result)
    chances, from_best = estimator.chances_of_best(compared.correct), estimator.from_best(compared.correct)
    is_partial = len(from_best) < sum(bool(arm.confirmed) for arm in result.arms)
    among = f"the arms with {FEWEST_SEEDS} seeds or more" if estimator.unit == "seed" else EVERY_REPEAT
    is_shown = is_shown_by_pairs(result, compared, from_best)
    return StudyAnalysis(
        result=result,
        arms=arms,
        compared=compared,
        champion=champion,
        mistakes=[] if champion is None else confident_mistakes(champion_run(champion.arm), result.classes),
        chances_of_best=chances,
        from_best=from_best,
        verdict=verdict_of(result, arms, compared),
        evidence=[
            *_evidence(result, arms, compared),
            *chance_sentences(chances, from_best, goal, among=among if is_partial else "", is_shown=is_shown),
            *limits,
            *look_sentences(result),
            *registration_sentences(result),
        ],
        repeats=list(repeats),
    )


def verdict_of(result: StudyResult, arms: list[ArmSummary], compared: Comparisons) -> list[str]:
    """Return the answer in plain words, a line per factor."""
    confirmed = [arm for arm in arms if arm.estimate is not None]
    if not confirmed:
        but = "but" if any(arm.confirmed for arm in result.arms) else "but without confirmation runs"
        return [f"{_best_tuned(result)}, {but} no answer is possible: {_obstacle(result)}."]
    start = "Preliminary: " if _missing(result) else ""
    if len(arms) == 1:
        return [start + _found(result, confirmed[0])]
    if len(confirmed) == 1:
        return [f"{start}Only {confirmed[0].name} is confirmed, so there is nothing to compare."]
    factors = [factor for factor in compared.factors if len(factor.levels) > 1]
    lines = factor_lines(factors, result.spec.margin)
    return [start + lines[0], *lines[1:]]


def _leading(arms: Sequence[ArmResult]) -> list[ArmResult]:
    """Return the arms in which tuning found the best value: one, or several that are equal."""
    tuned = [(arm, arm.best.goodness) for arm in arms if arm.best is not None]
    highest = max(goodness for _, goodness in tuned)
    return [arm for arm, goodness in tuned if goodness == highest]


def _obstacle(result: StudyResult) -> str:
    """Return why a study without any confirmed arm has no answer."""
    arms, confirm, leading = result.arms, result.spec.confirm, _leading(result.arms)
    superseded = sum(len(arm.superseded) for arm in arms)
    if any(arm.confirmed for arm in arms):
        return "no arm is confirmed in every repeat of the tuning"
    if any(arm.held_back for arm in arms):
        return f"the first planned look, at {confirm.looks[0]} seeds, is not complete"
    if any(run.test_accuracy is not None for arm in leading for run in arm.confirmations):
        return f"the predictions of {'its' if len(leading) == 1 else 'their'} confirmation runs are lost"
    if not confirm.seeds:
        return "[confirm] seeds is 0"
    if superseded:
        return f"none has finished of the configurations that are now the best ({superseded} of others have)"
    return "no confirmation run has finished yet"


def _best_tuned(result: StudyResult) -> str:
    """Return which arm tuning found the best, or which are equal, with its value."""
    leading = _leading(result.arms)
    counts = [sum(trial.val_accuracy is not None for trial in arm.trials) for arm in leading]
    trials, best = format_seeds((min(counts), max(counts)), "trial"), leading[0].best
    value = value_words("validation", (best.val_value if best else None) or 0.0, result.spec.goal)
    if len(leading) == 1:
        return f"The best tuned arm is {leading[0].arm.name} ({value}, the best of {trials})"
    few = len(leading) <= MOST_EQUALS
    names = join([arm.arm.name for arm in leading]) if few else f"{len(leading)} arms"
    return f"The best tuned arms, {names}, are equal ({value}, the best of {trials} each)"


def _found(result: StudyResult, arm: ArmSummary) -> str:
    """Return the answer of a study with one arm: the configuration that was found, and its accuracy."""
    assert arm.estimate is not None
    assert arm.result.best is not None
    is_one_tuning = arm.test is not None and arm.test.unit == "seed"
    searched = format_params(searched_params(result.spec, arm.result.best)) if is_one_tuning else ""
    name = arm.name if arm.result.arm.compared_levels else "The only arm"
    subject = f"The search found {searched}:" if searched else f"{name} has"
    return f"{subject} {value_words('test', arm.estimate.value, result.spec.goal)}{_in_brackets(arm)}."


def _in_brackets(arm: ArmSummary) -> str:
    assert arm.estimate is not None
    assert arm.test is not None
    seeds = format_seeds((arm.test.seeds, arm.test.seeds), arm.test.unit)
    if arm.estimate.low is None:
        return f", of {'one ' + arm.test.unit if arm.test.seeds == 1 else seeds}, which proves nothing"
    return f" ({arm.estimate.low:.4f} to {arm.estimate.high:.4f}, {seeds})"


def _missing(result: StudyResult) -> list[str]:
    missing = [(result.missing_trials, "trial"), (result.missing_confirmations, "confirmation run")]
    texts = [plural(count, what) for count, what in missing if count]
    return [f"Still missing: {' and '.join(texts)}."] if texts else []


def _evidence(result: StudyResult, arms: list[ArmSummary], compared: Comparisons) -> list[str]:
    """Return what is missing, the measured differences with intervals and p-values, and what limits them."""
    confirmed, margin = [arm for arm in arms if arm.estimate is not None], result.spec.margin
    sentences = _missing(result) + result.left_out_texts
    if len(confirmed) == 1 and len(arms) > 1:
        only = confirmed[0]
        assert only.estimate is not None
        value = value_words("test", only.estimate.value, result.spec.goal)
        sentences.append(f"{only.name} has {value}{_in_brackets(only)}.")
    elif confirmed:
        for factor in compared.factors:
            if factor.family:
                others = [other.factor for other in compared.factors if other is not factor and len(other.levels) > 1]
                sentences.append(_of_factor(factor, others, margin))
                for other, each in factor.by_level.items():
                    if len(each) <= MOST_AT_LEVELS:
                        sentences.append(_at_levels(factor, other, each, margin))
        sentences += _of_interactions(compared)
        sentences += _caution(compared.factors)
    failed = [arm.name for arm in arms if arm.result.best is None and arm.estimate is None]
    if failed and confirmed:
        sentences.append(f"Left out, because no trial of it finished: {'; '.join(failed)}.")
    for arm in arms:
        lost = [run for run in arm.result.confirmations if run.state == "failed"]
        if lost:
            numbers = join([f"#{run.number}" for run in lost])
            reasons = "; ".join(sorted({run.reason or "no reason is known" for run in lost}))
            rest = "it is not confirmed in every repeat" if arm.result.confirmed else "it is not confirmed"
            rest = "its figures are those of the others" if arm.estimate is not None else rest
            runs = plural(len(lost), "confirmation run")
            sentences.append(f"{arm.name}: {runs} failed ({numbers}: {reasons}); {rest}.")
    return sentences


def _of_factor(factor: FactorAnalysis, others: Sequence[str], margin: float | None) -> str:
    pivot = reference(factor)
    with_pivot = [d for d in factor.family if pivot in (d.first, d.second)]
    if not with_pivot:
        return f"{factor.factor}: no level shares a combination of the other factors with {pivot}."
    averaged = f", averaged over {join(others)}" if others else ""
    text = f"{factor.factor}{averaged}: {_from(pivot, with_pivot, margin)}, {_unit_and_seeds(with_pivot)}"
    if factor.by_level:
        text += f"; these averages hide an interaction with {join(list(factor.by_level))}"
    return f"{text}."


def _at_levels(factor: FactorAnalysis, other: str, differences: Sequence[Difference], margin: float | None) -> str:
    clauses = []
    for at in dict.fromkeys(str(d.at) for d in differences):
        here = [d for d in differences if d.at == at]
        pivot = factor.pivot or least_beaten(here)
        with_pivot = [d for d in here if pivot in (d.first, d.second)]
        if with_pivot:
            clauses.append(f"with {at}, {_from(pivot, with_pivot, margin)}")
    return f"{factor.factor} at each level of {other}: {'; '.join(clauses)}; all {_unit_and_seeds(differences)}."


def _from(pivot: str, differences: Sequence[Difference], margin: float | None) -> str:
    """Return the differences from one level in the objective's unit, each with interval and p."""
    cells, goal = [], differences[0].objective
    for difference in differences:
        is_first = difference.first == pivot
        estimate = difference.estimate
        value = estimate.value if is_first else -estimate.value
        cell = f"{difference.second if is_first else difference.first} {points(value, goal)}"
        if estimate.low is not None and estimate.high is not None and estimate.p is not None:
            low, high = (estimate.low, estimate.high) if is_first else (-estimate.high, -estimate.low)
            verdict = f", {difference.equivalence(margin)}" if margin is not None else ""
            cell += f" ({interval_points(low, high, goal)}, {format_p(estimate.p)}{verdict})"
        else:
            cell += " (not tested)"
        cells.append(cell)
    return f"{pivot} minus {join(cells)}"


def _unit_and_seeds(differences: Sequence[Difference]) -> str:
    """Return the unit of differences and the number of their seeds, and what is not tested for want of them."""
    seeds = (min(d.seeds[0] for d in differences), max(d.seeds[1] for d in differences))
    unit, few = differences[0].unit, ""
    untested = [difference for difference in differences if not difference.is_tested]
    if not all(difference.lacks_seeds for difference in untested):
        few = "; a single test image, or a single group of them, proves nothing"
    elif untested:
        few = f"; arms with fewer than {FEWEST_SEEDS} {unit}s are not tested, because so few prove nothing"
    return f"in {unit_words(differences[0].objective)}, {format_seeds(seeds, unit)}{few}"


def _of_interactions(compared: Comparisons) -> list[str]:
    if not compared.interactions:
        return []
    largest = max(compared.interactions, key=lambda i: abs(i.estimate.value))
    estimate, goal = largest.estimate, compared.estimator.objective
    assert estimate.p is not None
    shown = sum(interaction.is_shown for interaction in compared.interactions)
    what = f"{shown} of {plural(len(compared.interactions), 'interaction')} shown"
    return [
        f"{what}; the largest: {largest.first} minus {largest.first_base} changes by {points(estimate.value, goal)} "
        f"{goal.unit} ({interval_points(estimate.low, estimate.high, goal)}, {format_p(estimate.p)}) with "
        f"{largest.second} rather than {largest.second_base}."
    ]


def _caution(factors: list[FactorAnalysis]) -> list[str]:
    """Return the sentence on [[arms]] that differ in several parameters at once; none without such arms."""
    pairs = [names for factor in factors for names in factor.confounded.values()]
    if not pairs:
        return []
    if any(names != pairs[0] for names in pairs) or len(pairs) < sum(len(factor.family) for factor in factors):
        return ["Some arms differ in several parameters at once: their difference is not that of a single parameter."]
    return [f"The arms differ in {join(pairs[0])} at once: a difference cannot be put down to one of them alone."]


def chance_sentences(
    chances: dict[str, float],
    from_best: dict[str, FromBest],
    goal: Objective = ACCURACY,
    *,
    among: str = "",
    is_shown: bool = True,
) -> list[str]:
    """Return the sentences on the arms that are likely to be the best, and on those that may be; none without any.

    Args:
        chances: arm -> chance to be the best.
        from_best: arm -> its distance from the best other one, of the same arms.
        goal: the objective.
        among: which of the confirmed arms these are, such as 'the arms with 3 seeds or more'; '' for all of them.
        is_shown: whether the differences, of which the verdict speaks, agree: see `is_shown_by_pairs`.
    """
    if not chances:
        return []
    ranked = sorted(chances, key=lambda arm: -chances[arm])
    cells = [f"{arm} {chance_words(chances[arm])}" for arm in ranked if chances[arm] >= 0.05][:3]
    likely = join(cells) if cells else "below 5 % each"
    rivals = _rivals(from_best, goal, "" if is_shown else ONE_SIDED)
    if among:
        return [f"Of {among}, chance to be the best: {likely}. Of these, at 95 %, {rivals}"]
    return [f"Chance to be the best arm: {likely}. At 95 %, {rivals}"]


def is_shown_by_pairs(result: StudyResult, compared: Comparisons, from_best: dict[str, FromBest]) -> bool:
    """Return whether every arm that cannot be the best is shown to be worse than the leader in a difference, too.

    One is enough of the factors in which an arm differs from the leader. An arm without a difference from the leader
    is left out, because the verdict says nothing of the two.
    """
    if not from_best:
        return True
    place_of = places(result.spec)
    leader = place_of[max(from_best, key=lambda arm: from_best[arm].low)]
    of_pair: dict[tuple[str, str], list[Difference]] = {}  # factor and other level -> differences from the leader's
    for factor in compared.factors:
        level = leader[factor.factor]
        for difference in factor.at_levels or factor.family:
            if level in (difference.first, difference.second) and difference.at in (None, *leader.values()):
                other = difference.second if difference.first == level else difference.first
                of_pair.setdefault((factor.factor, other), []).append(difference)
    for arm, ends in from_best.items():
        between = [(d, other) for other in place_of[arm].items() for d in of_pair.get(other, [])]
        if not ends.may_be_best and between and not any(d.is_shown and d.loser == other[1] for d, other in between):
            return False
    return True


def _rivals(from_best: dict[str, FromBest], goal: Objective, how: str) -> str:
    """Return which arms may be the best, by which comparison, and how far they may be behind: a sentence's end."""
    rivals = [arm for arm, ends in from_best.items() if ends.may_be_best]
    if len(rivals) == 1:
        return f"{rivals[0]} is the best{how}."
    behind = f"{points(max(-from_best[arm].low for arm in rivals), goal)} {goal.unit}"
    which = f"the best is {' or '.join(rivals)}"
    if len(rivals) > 3:
        which = f"{len(rivals)} of {len(from_best)} arms may be the best"
    return f"{which}{how}; each is at most {behind} behind the best."


def _apart(result: StudyResult, arms: list[ArmSummary], compared: Comparisons) -> list[str]:
    """Return the outlying runs by name, and the verdict without them."""
    outliers = outlying_runs(result)
    if not outliers:
        return []
    rest = without_runs(result, outliers)
    summaries = [summarise_arm(arm, len(rest.classes)) for arm in rest.arms]
    again = verdict_of(result, summaries, compare(rest, rest.scores, compared.estimator))
    goal = result.spec.goal
    names = join(
        [
            f"{o.arm} confirmation run #{o.run.number} (test {goal.label} {o.run.test_value:.4f}, its arm's median "
            f"{o.median:.4f})"
            for o in outliers
        ]
    )
    runs, them = ("Outlying run", "it") if len(outliers) == 1 else ("Outlying runs", "them")
    is_same = again == verdict_of(result, arms, compared)
    consequence = "the verdict is the same." if is_same else f"the verdict would be: {' '.join(again)}"
    return [f"{runs}: {names}. Without {them}, {consequence}"]
