"""Studies that differ in `seed` alone, pooled: the repeat of the study is the unit.

Legend: A arms, R repeats, N test images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ablation.analysis.answer import StudyAnalysis, chance_sentences, evidence_of, margin_of, verdict_of
from ablation.analysis.arm_summaries import ArmSummary, confirmed_validation, summarise, summarise_arm, winning_arm
from ablation.analysis.comparison import OVER_REPEATS, Comparisons, Correct, compare
from ablation.analysis.repeats import chances_over_repeats, contrast_over_repeats, variance_components
from ablation.analysis.results import ArmResult, StudyResult, best_run
from ablation.analysis.wording import join, points
from ablation.base.errors import InputError
from ablation.base.text import plural


@dataclass(frozen=True)
class PooledAnalysis:
    """All numbers of the report of pooled studies.

    Attributes:
        repeats: the studies, one by one.
        analysis: of all of them together; an arm's runs are those of all repeats.
        components: where the uncertainty of the differences comes from, as a sentence; empty without a test.
    """

    repeats: list[StudyResult]
    analysis: StudyAnalysis
    components: str


def analyse_pooled(repeats: Sequence[StudyResult]) -> PooledAnalysis:
    """Return the analysis of studies that differ in their seed alone.

    Raises:
        InputError: they differ in anything else, or have the same seed.
    """
    check_repeats(repeats)
    pooled = _merged(repeats)
    right = right_of(repeats)
    compared = compare(pooled, right, OVER_REPEATS)
    summaries = [_summary(repeats, number, pooled.arms[number], right) for number in range(len(pooled.arms))]
    chances = chances_over_repeats(right)
    components = _components(repeats, compared, right)
    evidence = [
        *evidence_of(pooled, summaries, compared, margin_of(pooled)),
        *chance_sentences(chances),
        f"All of this holds over {plural(len(repeats), 'tuning')}, each with a split, tuning points and seeds of its "
        "own.",
        *([components] if components else []),
        *_left_out(repeats, right),
    ]
    analysis = StudyAnalysis(
        result=pooled,
        arms=summaries,
        compared=compared,
        winner=winning_arm(pooled),
        mistakes=[],
        chances_of_best=chances,
        outliers=[],
        verdict=verdict_of(pooled, summaries, compared),
        evidence=evidence,
    )
    return PooledAnalysis(list(repeats), analysis, components)


def check_repeats(repeats: Sequence[StudyResult]) -> None:
    """Refuse studies that are no repeats of each other, with a line that names the first difference."""
    for first, second in pairwise(repeats):
        names = f"{first.spec.name} and {second.spec.name}"
        differences = list(_differences(_content(first), _content(second)))
        if differences:
            key, value, other = differences[0]
            more = f", and in {len(differences) - 1} more" if len(differences) > 1 else ""
            raise InputError(
                f"{names} cannot be pooled: they differ in {key} ({value} and {other}){more}; repeats "
                "differ in seed alone"
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


def _content(result: StudyResult) -> dict[str, Any]:
    """Return what repeats must have in common."""
    content = result.spec.model_dump(mode="json", exclude={"name", "seed"})
    content |= {"classes": result.classes, "the weights' digest": result.weights_digest}
    content["the number of test images"] = result.test_images
    if result.spec.data.limit is None:  # with a limit, the digest is of the images that the seed draws
        content["the images' digest"] = result.data_digest
    return content


def _differences(first: Any, second: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the entries in which two contents differ: key, and both values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in dict.fromkeys([*first, *second]):
            yield from _differences(first.get(name), second.get(name), f"{key}.{name}" if key else name)
    elif first != second:
        yield key, first, second


def _labels(result: StudyResult) -> np.ndarray | None:
    return next((p.labels_N for arm in result.arms for run in arm.confirmed if (p := run.predictions)), None)


def right_of(repeats: Sequence[StudyResult]) -> dict[str, np.ndarray]:
    """Return the share of each repeat's confirmation runs that are right about each image, R x N, by arm.

    Only arms that every repeat has confirmed, because arms are compared paired by repeat.
    """
    arms = zip(*(result.arms for result in repeats), strict=True)
    return {
        of_repeats[0].arm.name: np.array([arm.correct_SN.mean(axis=0) for arm in of_repeats])
        for of_repeats in arms
        if all(arm.confirmed for arm in of_repeats)
    }


def _merged(repeats: Sequence[StudyResult]) -> StudyResult:
    """Return one study with the runs of all, whose budget is that of all.

    Leaders of the tuning are luck that counts here, so that all pairs are compared instead.
    """
    first, R = repeats[0], len(repeats)
    confirm = first.spec.confirm
    spec = first.spec.model_copy(
        update={
            "name": "+".join(result.spec.name for result in repeats),
            "trials_per_arm": R * first.spec.trials_per_arm,
            "confirm": confirm.model_copy(
                update={
                    "seeds": R * confirm.seeds,
                    "compare": "all" if confirm.compare == "leader" else confirm.compare,
                }
            ),
        }
    )
    arms = []
    for of_repeats in zip(*(result.arms for result in repeats), strict=True):
        trials = [run for arm in of_repeats for run in arm.trials]
        confirmations = [run for arm in of_repeats for run in arm.confirmations]
        superseded = [run for arm in of_repeats for run in arm.superseded]
        arms.append(
            replace(
                of_repeats[0],
                trials=trials,
                best=best_run(trials),
                confirmations=confirmations,
                superseded=superseded,
            )
        )
    return replace(first, spec=spec, arms=arms, forecast=[])


def _summary(repeats: Sequence[StudyResult], number: int, merged: ArmResult, right: Correct) -> ArmSummary:
    """Return the summary of an arm, whose means and deviations are over repeats."""
    name = merged.arm.name
    summary = replace(summarise_arm(merged, len(repeats[0].classes)), test=None, accuracy=None, val=None)
    of_repeats = [confirmed_validation(result.arms[number]) for result in repeats]
    val = summarise(np.array([values_S.mean() for values_S in of_repeats if values_S.size]))
    if name not in right:
        return replace(summary, val=val)
    accuracy = contrast_over_repeats({name: 1.0}, {name: right[name]})
    return replace(summary, val=val, test=summarise(right[name].mean(axis=1), "tuning"), accuracy=accuracy)


def _components(repeats: Sequence[StudyResult], compared: Comparisons, right: Mapping[str, np.ndarray]) -> str:
    """Return where the uncertainty of the differences comes from, as a sentence."""
    if not compared.contrasts or len(repeats) < 2:
        return ""
    variances = {arm: _seed_variance(repeats, arm) for arm in right}
    parts = variance_components(compared.contrasts, right, variances)
    named = [("tuning and split", parts.tuning), ("images", parts.images)]
    if parts.seeds is None:
        named[0] = ("tuning, split and seeds", parts.tuning)
    else:
        named.insert(0, ("seeds", parts.seeds))
    total = sum(variance for _, variance in named)
    cells = [f"{name} {points(variance**0.5)} ({100 * variance / total:.0f} %)" for name, variance in named]
    count = plural(len(compared.contrasts), "test")
    return f"Standard error of a difference, in points (share of its variance; mean of {count}): {join(cells)}."


def _seed_variance(repeats: Sequence[StudyResult], name: str) -> float:
    """Return the variance of a repeat's accuracy over its seeds, the mean over repeats; NaN with one seed."""
    variances = []
    for result in repeats:
        accuracies_S = next(arm.test_accuracies_S for arm in result.arms if arm.arm.name == name)
        S = len(accuracies_S)
        variances.append(float(accuracies_S.var(ddof=1)) / S if S > 1 else np.nan)
    return float(np.mean(variances))


def _left_out(repeats: Sequence[StudyResult], right: Correct) -> list[str]:
    missing = []
    for of_repeats in zip(*(result.arms for result in repeats), strict=True):
        name = of_repeats[0].arm.name
        if name not in right:
            lacking = [r.spec.name for r, arm in zip(repeats, of_repeats, strict=True) if not arm.confirmed]
            missing.append(f"{name} (in {join(lacking)})")
    return [f"Left out, because it is not confirmed in every repeat: {'; '.join(missing)}."] if missing else []
