"""The repeat of a study is the unit: its own repeats, or studies that differ in `seed` alone, pooled.

Legend: A arms, R repeats, N test images.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ablation.analysis.answer import StudyAnalysis, analyse, analysis_of
from ablation.analysis.arm_summaries import ArmSummary, confirmed_validation, summarise, summarise_arm
from ablation.analysis.compared_repeats import compared_repeats, repeats_of
from ablation.analysis.comparison import Comparisons, compare
from ablation.analysis.estimator import Correct
from ablation.analysis.looks import estimator_of
from ablation.analysis.repeats import RepeatMoments, variance_components
from ablation.analysis.results import RUN_LISTS, StudyResult
from ablation.analysis.wording import join, points
from ablation.base.errors import InputError
from ablation.base.text import plural
from ablation.search.identity import differences

LONGEST_SHOWN = 60  # characters of a list or a table that an error message shows


def analyse_study(result: StudyResult) -> StudyAnalysis:
    """Return the analysis of a study as it stands: over its seeds, or over the repeats of its tuning."""
    if result.spec.confirm.repeats == 1:
        return analyse(result)
    compared, left_out = compared_repeats(result)
    return _analyse_repeats(result, compared, left_out)


def summarise_arms(result: StudyResult) -> list[ArmSummary]:
    """Return the summary of each arm: over its seeds, or over the repeats of its tuning."""
    if result.spec.confirm.repeats == 1:
        return [summarise_arm(arm, len(result.classes)) for arm in result.arms]
    repeats, _ = compared_repeats(result)
    return _summaries(result, repeats, right_of(repeats))


def analyse_pooled(studies: Sequence[StudyResult]) -> StudyAnalysis:
    """Return the analysis of studies that differ in their seed alone, as of one study with all their repeats.

    Args:
        studies: see `check_repeats`.
    """
    repeats = [repeat for study in studies for repeat in repeats_of(study)]
    return _analyse_repeats(_merged(studies, repeats), repeats, [])


def _analyse_repeats(result: StudyResult, repeats: Sequence[StudyResult], left_out: list[str]) -> StudyAnalysis:
    """Return the analysis of a study, or of pooled ones as one, over the repeats of its tuning, but for those named."""
    right = right_of(repeats)
    compared = compare(result, right, estimator_of(result))
    limits = [
        *([over_tunings(repeats)] if right else []),
        *_components(repeats, compared),
        *left_out,
        *_left_out(repeats, right),
    ]
    return analysis_of(result, repeats, _summaries(result, repeats, right), compared, limits)


def over_tunings(repeats: Sequence[StudyResult]) -> str:
    """Return what the answer holds over, as a sentence."""
    trials = sorted({repeat.spec.trials_per_arm for repeat in repeats})
    compared = "a single trial" if trials == [1] else f"the best of {' or '.join(map(str, trials))} trials"
    return (
        f"All of this holds over {plural(len(repeats), 'tuning')}, each with a split, tuning points and seeds of its "
        f"own; what is compared is {compared}."
    )


def check_repeats(repeats: Sequence[StudyResult]) -> None:
    """Refuse studies that are no repeats of each other.

    Raises:
        InputError: they differ in more than their seed, or have the same; it names the first difference.
    """
    for first, second in pairwise(repeats):
        names = f"{first.spec.name} and {second.spec.name}"
        found = differences(_content(first), _content(second))
        if found:
            key, value, other = found[0]
            more = f", and in {len(found) - 1} more" if len(found) > 1 else ""
            raise InputError(
                f"{names} cannot be pooled: they differ in {key} ({_short(value)} and {_short(other)}){more}; "
                "repeats differ in seed alone"
            )
        here_N, there_N = _labels(first), _labels(second)
        if here_N is not None and there_N is not None and not np.array_equal(here_N, there_N):
            raise InputError(f"{names} cannot be pooled: their test images differ")
    by_seed: dict[int, str] = {}
    for result in repeats:
        seed, name = result.spec.seed, result.spec.name
        if seed in by_seed:
            raise InputError(
                f"{by_seed[seed]} and {name} cannot be pooled: both have seed = {seed}, so that they are the same "
                "study; a repeat needs --set seed=NUMBER"
            )
        by_seed[seed] = name


def _short(value: Any) -> str:
    """Return a value as text; of many entries, such as the arms, only their number."""
    text = "none" if value is None else str(value)
    is_long = isinstance(value, list | dict) and len(text) > LONGEST_SHOWN
    return plural(len(value), "entry", "entries") if is_long else text


def _content(result: StudyResult) -> dict[str, Any]:
    """Return what repeats must have in common."""
    content = result.spec.model_dump(mode="json", exclude={"name", "seed"})
    content |= {"classes": result.classes, "the weights' digest": result.weights_digest}
    content["the number of test images"] = result.test_images
    if result.spec.data.limit is None:  # with a limit, the digest is of the images that the seed draws
        content["the images' digest"] = result.data_digest
    return content


def _labels(result: StudyResult) -> np.ndarray | None:
    return next((p.labels_N for arm in result.arms for run in arm.confirmed if (p := run.predictions)), None)


def right_of(repeats: Sequence[StudyResult]) -> dict[str, np.ndarray]:
    """Return the share of each repeat's confirmation runs that are right about each image, R x N, by arm.

    Of another objective than accuracy, what each image contributes to it, the mean over these runs.

    Only arms that every repeat has confirmed, because arms are compared paired by repeat.
    """
    arms = zip(*(result.arms for result in repeats), strict=True)
    return {
        of_repeats[0].arm.name: np.array([arm.scores_SN.mean(axis=0) for arm in of_repeats])
        for of_repeats in arms
        if all(arm.confirmed for arm in of_repeats)
    }


def _merged(studies: Sequence[StudyResult], repeats: Sequence[StudyResult]) -> StudyResult:
    """Return one study with the runs of all studies and with all their repeats, whose budget is that of all.

    Leaders of the tuning are luck that counts here, so that all pairs are compared instead.
    """
    first = studies[0]
    confirm = first.spec.confirm
    compare_how = "all" if confirm.compare == "leader" else confirm.compare
    spec = first.spec.model_copy(
        update={
            "name": "+".join(result.spec.name for result in studies),
            "trials_per_arm": len(studies) * first.spec.trials_per_arm,
            "confirm": confirm.model_copy(update={"repeats": len(repeats), "compare": compare_how}),
            "preregister": False,  # each of them may be, but not all as one
        }
    )

    arms = []
    for of_repeats in zip(*(result.arms for result in repeats), strict=True):
        runs: dict[str, Any] = {
            name: [
                replace(run, spec=run.spec.model_copy(update={"repeat": repeat}))
                for repeat, arm in enumerate(of_repeats)
                for run in getattr(arm, name)
            ]
            for name in RUN_LISTS
        }
        arms.append(replace(of_repeats[0], **runs))
    return replace(first, spec=spec, arms=arms, forecast=[], tags={}, look=None, registration=None, studies=[*studies])


def _summaries(result: StudyResult, repeats: Sequence[StudyResult], right: Correct) -> list[ArmSummary]:
    """Return summaries of arms whose means and deviations are over repeats."""
    estimator, summaries = estimator_of(result), []
    for number, arm in enumerate(result.arms):
        name = arm.arm.name
        of_repeats = [confirmed_validation(repeat.arms[number]) for repeat in repeats]
        values = [values_S.mean() for values_S in of_repeats if values_S.size]
        summaries.append(
            replace(
                summarise_arm(arm, len(result.classes)),
                test=summarise(right[name].mean(axis=1), "tuning") if name in right else None,
                estimate=estimator.contrast({name: 1.0}, right) if name in right else None,
                val=summarise(np.array(values), "tuning"),
                late_rise=None,  # trials of repeats take turns
            )
        )
    return summaries


def _components(repeats: Sequence[StudyResult], compared: Comparisons) -> list[str]:
    """Return where the uncertainty of the differences comes from, as a sentence; none without a test."""
    if not compared.contrasts:
        return []
    goal, moments = compared.estimator.objective, compared.estimator.moments(compared.correct)
    assert isinstance(moments, RepeatMoments)
    variances = {arm: _seed_variance(repeats, arm) for arm in moments.arms}
    parts = variance_components(compared.contrasts, moments, variances)
    named = [("tuning and split", parts.tuning), ("images", parts.images)]
    if parts.seeds is None:
        named[0] = ("tuning, split and seeds", parts.tuning)
    else:
        named.insert(0, ("seeds", parts.seeds))
    total = sum(variance for _, variance in named)
    cells = [f"{name} {points(variance**0.5, goal)} ({100 * variance / total:.0f} %)" for name, variance in named]
    count = plural(len(compared.contrasts), "test")
    return [f"Standard error of a difference, in {goal.unit} (share of its variance; mean of {count}): {join(cells)}."]


def _seed_variance(repeats: Sequence[StudyResult], name: str) -> float:
    """Return the variance of a repeat's objective over its seeds, the mean over repeats; NaN with one seed."""
    variances = []
    for result in repeats:
        values_S = next(arm.test_values_S for arm in result.arms if arm.arm.name == name)
        S = len(values_S)
        variances.append(float(values_S.var(ddof=1)) / S if S > 1 else np.nan)
    return float(np.mean(variances))


def _left_out(repeats: Sequence[StudyResult], right: Correct) -> list[str]:
    """Return the arms that some repeats have not confirmed, as a sentence; none where no arm is confirmed anywhere."""
    if not any(arm.confirmed for result in repeats for arm in result.arms):
        return []
    missing = []
    for of_repeats in zip(*(result.arms for result in repeats), strict=True):
        name = of_repeats[0].arm.name
        if name not in right:
            lacking = [r.spec.name for r, arm in zip(repeats, of_repeats, strict=True) if not arm.confirmed]
            missing.append(f"{name} (in {join(lacking)})")
    why = "because it is not confirmed in every repeat"
    return [f"Left out of intervals and tests, {why}: {'; '.join(missing)}."] if missing else []
