"""The report's sections on what the statistics mean, and what more runs would find."""

from pathlib import Path

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.comparison import findable_differences
from ablation.analysis.looks import look_sentences
from ablation.analysis.power import REPEAT_SIZES, SIZES
from ablation.analysis.results import StudyResult
from ablation.analysis.scores import FEWEST_OF_CLASS
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.wording import percent, points
from ablation.base.text import Table, plural
from ablation.reporting.content import INTERVAL, SIMULTANEOUS, Block, Items, behind_column
from ablation.search.space import sampler_kind
from ablation.spec.objective import Objective
from ablation.spec.study import StudySpec


def power_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return the table of what is excluded now, and of the smallest differences that more runs would find."""
    rows, goal = [], analysis.result.spec.goal
    is_repeated = analysis.is_repeated
    findable = findable_differences(analysis.compared)
    for factor in analysis.factors:
        tested = [difference for difference in factor.family if difference.is_tested]
        if not tested:
            continue
        undecided = [difference for difference in tested if not difference.is_shown]
        excluded = points(max(difference.bound for difference in undecided), goal) if undecided else "-"
        sizes = findable[factor.factor]
        possible = [points(smallest, goal) if smallest <= goal.largest else "> 100" for smallest in sizes]
        rows.append([factor.factor, f"{len(undecided)} of {len(tested)}", excluded, *possible])
    if not rows:
        return []
    columns = ["factor", "not shown", f"excluded now: above ({goal.unit})"]
    columns += [f"{name} ({goal.unit})" for name in (REPEAT_SIZES if is_repeated else SIZES)]
    times = (
        f"the {len(analysis.repeats)} repeats R, if tunings vary as they did here, in all arms alike"
        if is_repeated
        else "the seeds S per arm (and test images), if runs vary as they did here"
    )
    notes = [
        "Excluded now: every difference that is not shown is smaller than this. The other columns: the smallest true "
        f"difference that would be shown with a probability of 80 %, with this many times {times}; for a factor's "
        f"difference of median precision, tested at {percent(analysis.compared.estimator.level)}.",
    ]
    return [Table("", columns, rows, notes)]


def meaning_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return how often the test split was evaluated, and what each interval and p-value means."""
    result = analysis.result
    superseded = sum(run.test_accuracy is not None for arm in result.arms for run in arm.superseded)
    times = "once" if result.test_evaluations == 1 else f"{result.test_evaluations:,} times"
    used = (
        f"The test split ({result.test_images:,} images) was evaluated {times} in this "
        f"study, once by each confirmation run at its end, and {use_of_results(result)}."
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
            "together. Its p-value is below 0.05 where the interval excludes zero."
            + (" It allows for several looks: see Looks at this study." if look_sentences(result) else ""),
            *from_best_texts(analysis),
            "Where an interaction is shown, the effects at each level are tested, all together, in the same way.",
            f"An arm with fewer than {FEWEST_SEEDS} seeds is not tested, and takes out only the differences that it is "
            f"part of. {_few_images(result.spec.goal)}",
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


def from_best_texts(analysis: StudyAnalysis) -> list[str]:
    """Return what the arms' distances from the best other one mean; none without them."""
    if not analysis.from_best:
        return []
    goal = analysis.result.spec.goal
    behind, distance = behind_column(goal), f"its mean test {goal.label} minus the highest"
    if not goal.higher_is_better:
        distance = f"how much lower its mean test {goal.label} is than the lowest"
    return [
        f"{behind[0].upper()}{behind[1:]}, of an arm: the interval of {distance} of the "
        "other arms'. In 95 of 100 studies all of these hold at once (constrained multiple comparisons with the best; "
        "Hsu, 1996; by the same simulation). An arm whose interval ends at 0 is not the best, and one whose interval "
        "begins at 0 is; the others may be."
    ]


def _few_images(goal: Objective) -> str:
    """Return how differences are tested that few images decide."""
    if goal.counts_images:
        return "Where the two sides differ on fewer than ten images, McNemar's exact test must agree."
    text = (
        f"The part of the variance of {goal.label} that the images cause is that of each image's influence on it; "
        "where few images carry it, their number takes the place of all images in the degrees of freedom."
    )
    if goal.name == "loss":
        return text
    return (
        f"{text} Fewer than {FEWEST_OF_CLASS} images or groups of a class say little of how much it varies: they are "
        "taken to vary around the mean of all classes."
    )


def use_of_results(result: StudyResult) -> str:
    """Return what the results on the test images decided: nothing, or how many seeds an arm got."""
    if result.spec.confirm.looks:
        return "planned looks at the results decided which arms got further seeds; no other choice used them"
    return "no choice used the results"


SAMPLERS = {"qmc": "quasi-random", "random": "random", "tpe": "TPE"}


def sampler_words(result: StudyResult) -> str:
    """Return by which sampler points were drawn; pooled studies have the same."""
    return f", with a {SAMPLERS[sampler_kind((result.studies or [result])[0].spec)]} sampler"


def early_ends(spec: StudySpec) -> list[str]:
    """Return what may end a training before its last epoch, as clauses; none without a pruner or `patience`."""
    pruner, is_patient = spec.search.pruner, spec.may_exceed_zero("patience")
    ends = [f"the {pruner} pruner could end poor trials early"] if pruner != "none" else []
    return ends + (["trainings without progress ended early (patience)"] if is_patient else [])


def early_ends_sentence(spec: StudySpec) -> str:
    """Return the same as a sentence behind another, with what follows for the arms; nothing without any."""
    ends = early_ends(spec)
    if not ends:
        return ""
    text = " and ".join(ends)
    return f" {text[0].upper()}{text[1:]}, so that arms with equally many trials may differ in epochs."


def most_epochs(spec: StudySpec) -> str:
    """Return the epochs of a training, such as '5 epochs', or 'at most 5 epochs' where one may end early."""
    return f"{'at most ' if early_ends(spec) else ''}{plural(spec.epochs, 'epoch')}"


def network_and_images(spec: StudySpec) -> str:
    """Return the network with its weights, and the images, such as 'vgg16 (weights: DEFAULT) on cifar10'."""
    weights = Path(str(spec.backbone.weights)).name if spec.backbone.weights else "none"
    own = Path(spec.data.manifest or spec.data.root or "").name if spec.data.is_own else ""
    images = f"{own} ({spec.data.source})" if own else spec.data.source
    return f"{spec.backbone.name} (weights: {weights}) on {images}"


def independent_units(result: StudyResult) -> str:
    """Return over what the images' part of a standard error is the variation: test images, or groups of them."""
    if result.test_groups_N is None:
        return "test images"
    return f"{plural(result.independent_images, 'group')} of test images"


def independence(result: StudyResult) -> str:
    """Return what is taken as independent: test images, or groups of them."""
    if result.test_groups_N is not None:
        groups = result.independent_images
        if groups == 1:
            return "All test images are of one group (data.groups): they may be easy or hard together."
        return (
            f"The {groups} groups of test images (data.groups) are taken as independent, not the "
            f"{result.test_images:,} images: those of a group may be easy or hard together."
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
        *from_best_texts(analysis),
        independence(analysis.result),
    ]
    return [Items(texts)]
