"""The report's sections on what the statistics mean, and what more runs would find."""

import numpy as np

from ablation.analysis.answer import StudyAnalysis, correct_of
from ablation.analysis.comparison import findable_differences
from ablation.analysis.pooling import right_of
from ablation.analysis.power import REPEAT_SIZES, SIZES
from ablation.analysis.results import StudyResult
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.wording import points
from ablation.base.text import Table, plural
from ablation.reporting.content import INTERVAL, SIMULTANEOUS, Block, Items


def power_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return the table of what is excluded now, and of the smallest differences that more runs would find."""
    rows = []
    is_repeated = analysis.is_repeated
    correct = right_of(analysis.repeats) if is_repeated else correct_of(analysis.result)
    findable = findable_differences(analysis.compared, correct)
    for factor in analysis.factors:
        tested = [difference for difference in factor.family if difference.is_tested]
        if not tested:
            continue
        undecided = [difference for difference in tested if not difference.is_shown]
        excluded = points(max(difference.bound for difference in undecided)) if undecided else "-"
        rows.append(
            [factor.factor, f"{len(undecided)} of {len(tested)}", excluded, *map(_possible, findable[factor.factor])]
        )
    if not rows:
        return []
    columns = ["factor", "not shown", "excluded now: above (points)"]
    columns += [f"{name} (points)" for name in (REPEAT_SIZES if is_repeated else SIZES)]
    times = (
        f"the {len(analysis.repeats)} repeats R, if tunings vary as they did here, in all arms alike"
        if is_repeated
        else "the seeds S per arm (and test images), if runs vary as they did here"
    )
    notes = [
        "Excluded now: every difference that is not shown is smaller than this. The other columns: the smallest true "
        f"difference that would be shown with a probability of 80 %, with this many times {times}; for a factor's "
        "difference of median precision.",
    ]
    return [Table("", columns, rows, notes)]


def meaning_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return how often the test split was evaluated, and what each interval and p-value means."""
    result = analysis.result
    superseded = sum(run.test_accuracy is not None for arm in result.arms for run in arm.superseded)
    used = (
        f"The test split ({result.test_images:,} images) was evaluated {_times(result.test_evaluations)} in this "
        "study, once by each confirmation run at its end, and no choice used the results."
        if result.test_evaluations
        else "The test split has not been evaluated."
    )
    if superseded:
        used += (
            f" {superseded} of these evaluations belong to configurations that were their arm's best before the budget "
            "grew; they are superseded, and this report does not use them."
        )
    texts = [used]
    if result.spec.confirm.repeats > 1:
        return [Items(texts), *meaning_over_repeats(analysis)]
    if result.test_evaluations:
        texts += [
            f"{INTERVAL}, of a mean: its variance is that of the seeds plus that of the test images, each a sample; "
            "degrees of freedom are Satterthwaite's. It says where the mean would lie with many more seeds and images, "
            "in 95 of 100 studies.",
            f"{SIMULTANEOUS}, of a difference: the same variance, in which an image's difficulty for all arms cancels, "
            "because the images are the same; and a wider interval, so that in 95 of 100 studies all intervals "
            "hold at once (single-step max-|t| by simulation; Hothorn, Bretz and Westfall, 2008). It covers the "
            f"differences of all factors and the interactions, {plural(analysis.compared.tested_together, 'test')} "
            "together. Its p-value is below 0.05 where the interval excludes zero.",
            "Where an interaction is shown, the effects at each level are tested, all together, in the same way.",
            f"An arm with fewer than {FEWEST_SEEDS} seeds is not tested, and takes out only the differences that it is "
            "part of. Where the two sides differ on fewer than ten images, McNemar's exact test must agree.",
            independence(result),
            *(
                []
                if result.spec.arms
                else ["A marginal mean gives every confirmed arm that has the level the same weight."]
            ),
            "All intervals are conditional on the configurations that tuning chose. Another search might choose "
            "others; the intervals do not include that variation.",
        ]
    return [Items(texts)]


def independence(result: StudyResult) -> str:
    """Return what is taken as independent: test images, or groups of them."""
    if (groups_N := result.test_groups_N) is not None:
        count = plural(len(np.unique(groups_N)), "group")
        return (
            f"The {count} of test images (data.groups) are taken as independent, not the {result.test_images:,} "
            "images: those of a group may be easy or hard together."
        )
    return (
        "The test images are taken as independent: several images of one patient or one camera would make the "
        "intervals too narrow; data.groups names what belongs together."
    )


def meaning_over_repeats(analysis: StudyAnalysis) -> list[Block]:
    """Return what intervals and p-values over repeats of a study mean."""
    R, tests = len(analysis.repeats), plural(analysis.compared.tested_together, "test")
    few = [] if R >= FEWEST_SEEDS else [f"{plural(R, 'repeat')} are too few to test anything; three are needed."]
    texts = [
        *few,
        "The intervals say where differences would lie if the whole study were done again very often: with other "
        "splits, tuning points, seeds and test images.",
        "The variance of a difference is that of its values in the repeats over their number, plus that of the "
        "test images, which all repeats share. The first part has Student's t distribution with one degree of "
        "freedom less than repeats, the second a normal one; the interval combines both.",
        f"Intervals and p-values of differences allow for {tests} together, as in the report of a study without "
        "repeats. All pairs are compared where no control is declared: a leader of the tuning would be luck.",
        independence(analysis.result),
    ]
    return [Items(texts)]


def _possible(difference: float) -> str:
    """Return a difference in points, or that it is larger than accuracies can differ."""
    return points(difference) if difference <= 1 else "> 100"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
