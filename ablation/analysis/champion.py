"""The champion's arm, chosen by validation alone: the best one, or the cheapest that is not worse by a margin.

No choice uses a test metric, so that the champion's test accuracy comes from images that did not choose it.

Legend: A arms, R repeats, S seeds, N validation images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablation.analysis.arm_summaries import confirmed_validation, inference_operations, leading_arms, winning_arm
from ablation.analysis.best_arms import FromBest, compared_with_best
from ablation.analysis.compared_repeats import repeats_of
from ablation.analysis.estimator import Estimator
from ablation.analysis.repeats import RepeatMoments
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import goal_of
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.wording import join, margin_words, points
from ablation.base.text import plural
from ablation.spec.objective import ACCURACY, Objective

MOST_EQUALS = 3  # arms that are named as equally good
MANY = 10**9  # stands for the images in the moments of repeats, whose variance contains that of their own images


@dataclass(frozen=True)
class Choice:
    """The champion's arm, and why: a clause that follows its name and a colon."""

    arm: ArmResult
    reason: str


def choose_champion(result: StudyResult) -> Choice | None:
    """Return the arm of the champion by the study's rule (`confirm.champion`); None before a confirmation run finishes.

    With `cheapest`: of the arms that are shown not to be worse than the best by `confirm.equivalence`, the one that
    classifies an image with the fewest operations; of equals, the one that trains fewer parameters, then the better
    one. Where none is shown, it is the best.
    """
    best = winning_arm(result)
    if best is None:
        return None
    goal, margin = result.spec.goal, result.spec.margin
    if result.spec.confirm.champion == "best" or margin is None or len(result.arms) == 1:
        return Choice(best, _best_reason(result, best))
    less = f"less than {margin_words(margin, goal)} worse"
    ends, obstacle = distances_from_best(result)
    if not obstacle and best.arm.name not in ends:
        obstacle = f"the best arm has no {FEWEST_SEEDS} runs with validation predictions"
    not_worse = {arm: end.low for arm, end in ends.items() if end.low > -margin}
    if obstacle:
        return Choice(best, f"{_best_reason(result, best)}; no cheaper arm could be chosen, because {obstacle}")
    chosen = min((arm for arm in result.arms if arm is best or arm.arm.name in not_worse), key=_cost)
    if chosen is best:
        return Choice(best, f"{_best_reason(result, best)}, and no cheaper arm is shown to be {less}")
    share = _cost(chosen)[0] / _cost(best)[0]
    bound = points(-not_worse[chosen.arm.name], goal)
    return Choice(
        chosen,
        f"its arm is the cheapest that is shown to be {less} than the best, {best.arm.name}: on validation it is at "
        f"most {bound} {goal.unit} behind (95 %), and classifying an image takes {100 * share:.0f} % of the operations",
    )


def _cost(arm: ArmResult) -> tuple[float, float, float]:
    """Return what the cheapest of confirmed arms has the least of, the first of these before the others."""
    trained = arm.best.trained_parameters if arm.best is not None else None
    goodness = goal_of(arm.confirmations).goodness(float(confirmed_validation(arm).mean()))
    return inference_operations(arm) or 0.0, float(trained or 0), -goodness


def _best_reason(result: StudyResult, arm: ArmResult) -> str:
    val_S, goal = confirmed_validation(arm), goal_of(arm.confirmations)
    if not arm.arm.compared_levels:
        return f"the best validation {goal.label} of its confirmation runs"
    n = plural(len(val_S), "seed")
    value = f"the {goal.best_word} mean validation {goal.label} ({val_S.mean():.4f}, n = {n})"
    equals = [each.arm.name for each in leading_arms(result) if each is not arm]
    if not equals:
        return f"its arm has {value}"
    names = equals if len(equals) <= MOST_EQUALS else [f"{len(equals)} others"]
    return f"{join(['its arm', *names])} share {value}; it comes first in the study"


def distances_from_best(result: StudyResult) -> tuple[dict[str, FromBest], str]:
    """Return how far each arm is from the best other one on the validation images, or why that cannot be said.

    Over seeds and images by the predictions for the validation images, which arms share; over repeats by the mean
    accuracies of each, whose validation images are others.
    """
    arms = [arm for arm in result.arms if confirmed_validation(arm).size]
    if len(arms) < 2:
        return {}, "only one arm is confirmed"
    if result.spec.confirm.repeats > 1:
        return _over_repeats(result, len(arms))
    predictions = {arm.arm.name: [run.predictions for run in arm.confirmed if run.predictions] for arm in arms}
    validation = {arm: [p.validation for p in each if p.validation is not None] for arm, each in predictions.items()}
    if any(len(validation[arm]) < len(predictions[arm]) for arm in predictions):
        return {}, "confirmation runs of an older version have no validation predictions"
    goal = result.spec.goal
    scores = {arm: np.array([p.scores_N(goal) for p in each]) for arm, each in validation.items() if each}
    groups_N = next((p.groups_N for each in validation.values() for p in each), None)
    ends = Estimator(groups_N=groups_N, objective=goal).from_best(scores)
    if ends:
        return ends, ""
    is_single = sum(len(y_SN) >= FEWEST_SEEDS for y_SN in scores.values()) > 1
    few = f"two arms with {FEWEST_SEEDS} seeds are needed"
    return {}, "validation has a single image or group" if is_single else few


def _over_repeats(result: StudyResult, arms: int) -> tuple[dict[str, FromBest], str]:
    """Return the same over the repeats in which so many arms, all that have any, have confirmation runs."""
    means = [
        {arm.arm.name: float(values_S.mean()) for arm in repeat.arms if (values_S := confirmed_validation(arm)).size}
        for repeat in repeats_of(result)
    ]
    complete = [of_arms for of_arms in means if len(of_arms) == arms]
    if len(complete) < FEWEST_SEEDS:
        return {}, f"{FEWEST_SEEDS} repeats in which all arms are confirmed are needed"
    return compared_with_best(moments_of_repeats(complete, result.spec.goal)), ""


def moments_of_repeats(repeats: Sequence[Mapping[str, float]], objective: Objective = ACCURACY) -> RepeatMoments:
    """Return the moments of arms over repeats that each have images of their own.

    Args:
        repeats: arm -> its value of the objective, the same arms in each.
        objective: the metric.
    """
    arms = tuple(repeats[0])
    values_AR = np.array([[values[arm] for values in repeats] for arm in arms])
    covariance_AA: np.ndarray = np.cov(values_AR)
    return RepeatMoments(
        arms=arms,
        means_A=values_AR.mean(axis=1),
        sums_AU=None,
        images=MANY,
        units=MANY,
        repeats=len(repeats),
        repeats_AA=covariance_AA,
        images_AA=np.zeros_like(covariance_AA),
        objective=objective,
    )
