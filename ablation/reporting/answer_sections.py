"""The report's sections on the answer: arms, levels, differences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import ArmSummary, champion_run, confirmations_of_arms, trials_of_arms
from ablation.analysis.comparison import Difference, FactorAnalysis
from ablation.analysis.simultaneous import DRAWS, FEWEST_SEEDS
from ablation.analysis.wording import format_seeds, interval_points, margin_words, p_cell, points
from ablation.base.text import Table, format_params, plural
from ablation.reporting.charts import Picture
from ablation.reporting.content import (
    INTERVAL,
    SIMULTANEOUS,
    Answer,
    Beside,
    Block,
    Code,
    Items,
    Paragraph,
    Section,
    behind_column,
    figure_block,
    interval_text,
    metric_columns,
    optional_number,
    run_name,
    seeds_text,
    states_text,
    study_command,
)
from ablation.reporting.method_sections import (
    early_ends_sentence,
    independent_units,
    most_epochs,
    network_and_images,
    sampler_words,
)
from ablation.spec.objective import ACCURACY
from ablation.spec.parameters import Choices
from ablation.tracking.client import REFUSAL_TAG

MOST_LEFT_OUT = 3  # interactions that are named, if no more are left out


def missing_runs_text(analysis: StudyAnalysis) -> list[Block]:
    """Return the counts of trials and confirmation runs that have not ended, and the command that resumes the study."""
    result = analysis.result
    texts = []
    if result.missing_trials:
        texts.append(
            f"{result.missing_trials} of {len(result.arms) * result.spec.trials_per_arm} trials have not ended."
        )
    if result.missing_confirmations:
        at_most = "At most " if result.spec.confirm.looks else ""
        planned = result.planned_confirmations
        texts.append(f"{at_most}{result.missing_confirmations} of {planned} confirmation runs have not ended.")
    if not texts:
        return [Items(result.left_out_texts)] if result.left_out_texts else []
    status = "This report is preliminary and may change. The command that resumes the study:"
    return [Items([*texts, *result.left_out_texts]), Paragraph(status), Code(result.command)]


def answer_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the answer, the plot that shows it, the champion and its use, the evidence, and the method."""
    spec, result = analysis.result.spec, analysis.result
    figure, champion = figure_block("arms", pictures, analysis.result.spec.goal), champion_blocks(analysis)
    blocks: list[Block] = [Answer(analysis.verdict)]
    blocks += [Beside(figure, champion)] if figure and champion else [*figure, *champion]
    if analysis.evidence:
        blocks.append(Items(analysis.evidence))
    searched = ", ".join(f"{name} ({_range(value)})" for name, value in spec.search.entries().items())
    tuned = f"tuned over {searched}{sampler_words(result)}" if searched else "with nothing to tune"
    if spec.confirm.repeats > 1:
        tuned += (
            f" and divided among {spec.confirm.repeats} repeats of the tuning, each with its own split and tuning "
            "points, the same in every arm"
        )
    runs, trials = confirmations_of_arms(result), format_seeds(trials_of_arms(result), "trial")
    method = "Method so far" if result.missing_trials or result.missing_confirmations else "Method"
    planned = "yet" if spec.confirm.seeds else "([confirm] seeds = 0)"
    confirm = (
        f"the best configuration of each was then retrained with {format_seeds(runs, 'fresh seed')}, and each of these "
        "confirmation runs evaluated the test images once, at its end"
        if runs[1]
        else "no confirmation run of the configurations that are the best now can be used"
        if result.test_evaluations
        else f"nothing was retrained {planned}, so the test images have not been used"
    )
    chosen_by = f" Epochs, trials and arms were chosen and compared by {spec.goal.label}."
    chosen_by = "" if spec.goal == ACCURACY else chosen_by
    blocks.append(
        Paragraph(
            f"{method}: {network_and_images(spec)}, {result.train_images:,} training, {result.val_images:,} "
            f"validation and {result.test_images:,} test images of {len(result.classes)} classes. "
            f"{plural(len(result.arms), 'arm')}, with {trials} of {most_epochs(spec)} each, {tuned}; {confirm}."
            f"{chosen_by}{early_ends_sentence(spec)}"
        )
    )
    return blocks


def champion_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return what the champion is, and the commands that use it; nothing before a confirmation run has finished.

    There are no commands before it is registered, nor where it could not be: the study's tags say why.
    """
    result, champion = analysis.result, analysis.champion
    if champion is None:
        return []
    winner = champion.arm
    run = champion_run(winner)
    is_complete = not (result.missing_trials or result.missing_confirmations)
    refusal = result.tags.get(REFUSAL_TAG)
    rank = "leads so far" if not is_complete else "is the best run" if refusal else "is the champion"
    name = f"{winner.arm.name}, confirmation run #{run.number}" if winner.arm.compared_levels else run_name(run)
    goal = result.spec.goal
    test = "" if run.test_value is None else f" Its own test {goal.label} is {run.test_value:.4f}."
    metrics = "accuracies" if goal.name == "accuracy" else "metrics"
    what = Paragraph(f"{name} {rank}: {champion.reason}. Test {metrics} played no part in this choice.{test}")
    if not is_complete:
        return [what]
    if refusal:
        return [what, Paragraph(f"Its model is not registered as the champion: {refusal}.")]
    in_store = f", store={json.dumps(result.store, ensure_ascii=False)}" if result.store else ""
    return [
        what,
        Paragraph("It classifies images in the terminal, and in Python:"),
        Code(f"{study_command(result, 'ablation.predict')} IMAGE..."),
        Code(f'ablation.load_champion("{result.spec.name}"{in_store})'),
    ]


def arm_links(analysis: StudyAnalysis, server: str) -> dict[tuple[int, int], str]:
    """Return the links of `arm_table` to each arm's runs in the MLflow UI at an address; none without one."""
    if not server:
        return {}
    # The UI opens in its GenAI mode without the workflow.
    page = f"{server}/#/experiments/{analysis.result.experiment_id}/runs?workflowType=machine_learning&searchFilter="
    return {(row, 0): page + quote(f"tags.arm = '{arm.name}'") for row, arm in enumerate(analysis.arms)}


def _range(value: Any) -> str:
    if isinstance(value, Choices):
        return ", ".join(str(choice) for choice in value.choices)
    steps = "" if value.step is None else f", in steps of {value.step:g}"
    return f"{value.low:g} to {value.largest:g}{steps}{', logarithmic' if value.log else ''}"


def arm_table(analysis: StudyAnalysis) -> Table:
    """Return the table of arms: their levels, the objective on test and validation images, and trials."""
    spec, goal = analysis.result.spec, analysis.result.spec.goal
    chances = analysis.chances_of_best
    with_tuned = not any(arm.test is not None for arm in analysis.arms)  # else the section on tuning has it
    columns = [
        *(list(spec.compared_levels()) or ["arm"]),
        *metric_columns(goal)[:-1],
        f"n ({analysis.compared.estimator.unit}s)",
        *([f"best tuned val. {goal.label}"] if with_tuned else []),
        *(["chance to be best", behind_column(goal)] if chances else []),
        "trials",
    ]
    rows = []
    for arm in analysis.arms:
        best = arm.result.best
        rows.append(
            [
                *([str(level) for level in arm.result.arm.compared_levels.values()] or [arm.name]),
                *metric_cells(arm),
                *([optional_number(best.val_value if best else None)] if with_tuned else []),
                *(best_cells(analysis, arm.name) if chances else []),
                states_text(arm.result.trials),
            ]
        )
    return Table("", columns, rows, _arm_notes(analysis, with_tuned=with_tuned))


def best_cells(analysis: StudyAnalysis, arm: str) -> list[str]:
    """Return an arm's chance to be the best, and its distance from the best other one."""
    ends = analysis.from_best.get(arm)
    if ends is None:
        return ["-", "-"]
    return [f"{analysis.chances_of_best[arm]:.3f}", interval_points(ends.low, ends.high, analysis.result.spec.goal)]


def metric_cells(arm: ArmSummary) -> list[str]:
    """Return an arm's cells for `metric_columns`."""
    test, val, counted = arm.test, arm.val, arm.test or arm.val
    return [
        optional_number(test.mean if test else None),
        optional_number(test.standard_deviation if test else None),
        interval_text(arm.estimate),
        optional_number(val.mean if val else None),
        str(counted.seeds if counted else 0),
    ]


def _arm_notes(analysis: StudyAnalysis, *, with_tuned: bool) -> list[str]:
    result, label = analysis.result, analysis.result.spec.goal.label
    notes = [f"{arm.label}: {format_params(arm.entries())}." for arm in result.spec.arms if arm.name and arm.entries()]
    unit, best_word = analysis.compared.estimator.unit, result.spec.goal.best_word
    if not result.spec.goal.higher_is_better:
        notes.append(f"The lower the {label}, the better.")
    if unit != "seed":
        notes.append(
            f"Means and standard deviations over n {unit}s, each the mean of its confirmation runs on the same "
            f"{result.test_images:,} test images. The interval of the test {label} covers the variation over {unit}s, "
            f"with their splits and seeds, and over {independent_units(result)}."
        )
    elif not with_tuned:
        notes.append(
            f"Means over n confirmation runs with fresh seeds: test {label} on {result.test_images:,} images, "
            f"validation {label} (best epoch) on {result.val_images:,}. The interval of the test {label} covers "
            f"the variation over seeds and over {independent_units(result)}."
        )
    if analysis.chances_of_best:
        notes.append(
            f"Chance to be best: the share of {DRAWS:,} simulated studies, with the variation found here, in which "
            f"the arm's mean test {label} is the {result.spec.goal.best_word}."
        )
    if any(arm.test is not None and arm.test.seeds == 1 and arm.test.unit == "seed" for arm in analysis.arms):
        notes.append("An arm with one seed has no interval: one seed proves nothing.")
    if with_tuned:
        notes.append(
            f"Best tuned val. {label}: the {best_word} of the finished trials on {result.val_images:,} images. It is "
            f"biased {'up' if result.spec.goal.higher_is_better else 'down'}wards, because it was chosen for being the "
            f"{best_word}."
        )
    return notes + _failures(analysis)


def _failures(analysis: StudyAnalysis) -> list[str]:
    """Return a line for each arm and kind of run with failures, with the reasons."""
    notes = []
    for arm in analysis.arms:
        for kind, runs in (("trial", arm.result.trials), ("confirmation run", arm.result.confirmations)):
            failed = [run for run in runs if run.state == "failed"]
            if not failed:
                continue
            reasons = "; ".join(sorted({run.reason or "no reason is known" for run in failed}))
            is_lost = kind == "trial" and len(failed) == len(runs)
            consequence = "; the comparison leaves out this arm" if is_lost else ""
            notes.append(f"{arm.name}: {len(failed)} of {plural(len(runs), kind)} failed ({reasons}){consequence}.")
    return notes


# A published metric, as Keras names it -> what it is, its curve in a run, and the same on the test images.
OURS = {
    "loss": ("training loss", "train_loss", None),
    "accuracy": ("training accuracy", "train_accuracy", None),
    "val_loss": ("val. loss", "val_loss", "test_loss"),
    "val_accuracy": ("val. accuracy", "val_accuracy", "test_accuracy"),
}
TRAINING_METRICS = (
    "published.accuracy and published.loss are training metrics, as Keras names them; those of validation or test "
    "images are published.val_accuracy and published.val_loss."
)


def published_tables(analysis: StudyAnalysis) -> list[Table]:
    """Return the table of published metrics beside the study's own; empty without published results."""
    rows, sources = [], []
    for arm in analysis.result.arms:
        for entry in arm.published:
            if entry["source"]:
                sources.append(f"{arm.arm.name}: {entry['source']}")
            for metric, (name, curve, test) in OURS.items():
                if entry[metric] is None:
                    continue
                runs = [run for run in arm.drawn_runs if run.best_epoch is not None and curve in run.curves]
                ours = [float(run.curves[curve][(run.best_epoch or 0) - 1]) for run in runs]
                tested = [getattr(run, test) for run in arm.confirmed] if test else []
                row = [arm.arm.name, name, f"{entry[metric]:.4f}", _mean(ours), _mean(tested), str(len(ours))]
                rows.append(row)
    if not rows:
        return []
    label = analysis.result.spec.goal.label
    notes = [
        "Ours: means over n runs (an arm's confirmation runs; its best trial while it has none), in the epoch with the "
        f"best validation {label}. Published metrics were measured on other images: compare their order, not their "
        "values.",
        *([TRAINING_METRICS] if any(row[1].startswith("training") for row in rows) else []),
        *dict.fromkeys(sources),
    ]
    return [Table("", ["arm", "metric", "published", "ours", "ours (test)", "n (runs)"], rows, notes)]


def _mean(values: Sequence[float]) -> str:
    return optional_number(sum(values) / len(values) if values else None)


def level_tables(analysis: StudyAnalysis) -> list[Block]:
    """Return a table of marginal means for each factor with a confirmed arm; none for [[arms]], which are no grid."""
    tables: list[Block] = []
    label = analysis.result.spec.goal.label
    for factor in [] if analysis.result.spec.arms else analysis.factors:
        if not any(level.estimate for level in factor.levels):
            continue
        rows = [
            [
                level.label,
                optional_number(level.estimate.value if level.estimate else None),
                interval_text(level.estimate),
                str(level.arms),
                seeds_text(level.seeds) if level.arms else "-",
            ]
            for level in factor.levels
        ]
        notes = [
            f"The mean of {level.label} leaves out arms that are not confirmed ({', '.join(level.missing)}); compare "
            "means over different arms with care."
            for level in factor.levels
            if level.missing and level.arms
        ]
        columns = [factor.factor, f"marginal mean test {label}", INTERVAL, "arms", _count_column(analysis)]
        tables.append(Table(f"Marginal means of {factor.factor}", columns, rows, notes))
    return tables


MOST_PAIRS = 3  # of arms, named in a note on what they differ in
MOST_SETS = 8  # of parameters in which arms differ, with a note of their own


def difference_table(analysis: StudyAnalysis, factor: FactorAnalysis) -> Table:
    """Return the table of the tested differences between a factor's levels."""
    margin, goal = analysis.result.spec.margin, analysis.result.spec.goal
    is_listed = factor.factor == "arm"
    levels = "arm" if is_listed else "level"
    if factor.control is not None:
        pairs = f"every {levels} against the declared control {factor.control}"
    elif factor.pivot is not None:
        pairs = f"every {levels} against {factor.pivot}, which led the tuning"
    else:
        pairs = f"all pairs of {levels}s"
    notes = []
    if any(difference.is_tested for difference in factor.family):
        count = plural(analysis.compared.tested_together, "test")
        notes.append(
            f"Compared: {pairs}. Intervals and p-values allow for {count} in this report together. Shown: the interval "
            "excludes zero."
        )
    untested = [difference for difference in factor.family if not difference.is_tested]
    if not all(difference.lacks_seeds for difference in untested):
        notes.append("A single test image, or a single group of them, proves nothing: no interval is invented.")
    elif untested:
        notes.append(
            f"An arm with fewer than {FEWEST_SEEDS} {analysis.compared.estimator.unit}s proves nothing: no interval is "
            "invented, and its differences are not tested."
        )
    if margin is not None:
        notes.append(
            f"Equivalent: the whole interval lies within {margin_words(margin, goal)}, the margin of the "
            "study (two one-sided tests, each at 2.5 %); not equivalent: outside of it."
        )
    notes += _confounded_notes(factor.confounded)
    notes += [f"Not every combination of the other factors is confirmed for {text}." for text in factor.partial]
    notes += [f"Not compared: {text}." for text in factor.not_compared]
    title = f"Levels of {factor.factor}: differences of marginal mean test {goal.label}"
    return Table(
        f"Differences of mean test {goal.label}" if is_listed else title,
        _difference_columns(analysis, margin),
        [_difference_row(difference, margin) for difference in factor.family],
        notes,
    )


def _confounded_notes(confounded: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """Return a sentence for each set of parameters in which pairs of arms differ, for the first `MOST_SETS` of them."""
    pairs_of: dict[tuple[str, ...], list[str]] = {}
    for (first, second), parameters in confounded.items():
        pairs_of.setdefault(tuple(parameters), []).append(f"{first} and {second}")
    notes = [
        f"{'; '.join(pairs) if len(pairs) <= MOST_PAIRS else f'{len(pairs):,} pairs of arms'} differ in several "
        f"parameters at once: {', '.join(parameters)}."
        for parameters, pairs in pairs_of.items()
    ]
    rest = sum(map(len, list(pairs_of.values())[MOST_SETS:]))
    more = [f"In other sets of parameters: {plural(rest, 'more pair')} of arms."] if rest else []
    return [*notes[:MOST_SETS], *more]


def _count_column(analysis: StudyAnalysis) -> str:
    return f"n ({analysis.compared.estimator.unit}s per arm)"


def _difference_columns(analysis: StudyAnalysis, margin: float | None) -> list[str]:
    unit = analysis.result.spec.goal.unit
    columns = ["difference of", "minus", unit, f"{SIMULTANEOUS} ({unit})", "p", "shown"]
    return [*columns, *([] if margin is None else ["equivalence"]), _count_column(analysis)]


def _difference_row(difference: Difference, margin: float | None) -> list[str]:
    estimate = difference.estimate
    shown = "yes" if difference.is_shown else "no" if difference.is_tested else "-"
    return [
        difference.first,
        difference.second,
        points(estimate.value, difference.objective),
        interval_points(estimate.low, estimate.high, difference.objective),
        p_cell(estimate.p),
        shown,
        *([] if margin is None else [difference.equivalence(margin)]),
        seeds_text(difference.seeds),
    ]


def difference_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return the tested differences between levels, and those at each level of a factor; empty below two arms."""
    if sum(arm.test is not None for arm in analysis.arms) < 2:
        return []
    blocks: list[Block] = []
    margin = analysis.result.spec.margin
    for factor in analysis.factors:
        if factor.family or factor.not_compared:
            blocks.append(difference_table(analysis, factor))
        for other, differences in factor.by_level.items():
            rows = [[str(d.at), *_difference_row(d, margin)] for d in differences]
            note = (
                f"An interaction between {factor.factor} and {other} is shown: averages hide it, and these effects "
                "replace them. Intervals and p-values allow for all effects at levels together."
            )
            title = f"Levels of {factor.factor} at each level of {other}"
            blocks.append(Table(title, [other, *_difference_columns(analysis, margin)], rows, [note]))
    return blocks


def comparison_sections(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Section]:
    """Return the sections on levels, their differences and their interactions; some may be empty."""
    means, differences = (figure_block(kind, pictures, analysis.result.spec.goal) for kind in ("means", "differences"))
    return [
        Section("effects", "Effect of each factor", [*means, *level_tables(analysis)]),
        Section("differences", "Differences", [*differences, *difference_blocks(analysis)]),
        Section("interaction", "Interactions", interaction_blocks(analysis, pictures)),
    ]


def interaction_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the figure and the table of how differences between levels change with another factor.

    Without a tested interaction there is no table, and before anything is confirmed nothing at all.
    """
    goal, left_out = analysis.result.spec.goal, _left_out(analysis.compared.interaction_missing)
    if not analysis.interactions:
        is_confirmed = any(arm.test is not None for arm in analysis.arms)
        return [*figure_block("interaction", pictures, goal), Items(left_out)] if left_out and is_confirmed else []
    rows = [
        [
            f"{i.first} \u2212 {i.first_base}",
            f"{i.second} rather than {i.second_base}",
            points(i.estimate.value, goal),
            interval_points(i.estimate.low, i.estimate.high, goal),
            p_cell(i.estimate.p),
            "yes" if i.is_shown else "no",
            seeds_text(i.seeds),
        ]
        for i in analysis.interactions
    ]
    columns = ["the difference", "changes with", f"by ({goal.unit})", f"{SIMULTANEOUS} ({goal.unit})", "p", "shown"]
    notes = [f"Differences of differences of test {goal.label}, tested together with the differences between levels."]
    table = Table("Interactions", [*columns, _count_column(analysis)], rows, [*notes, *left_out])
    return [*figure_block("interaction", pictures, goal), table]


def _left_out(missing: Sequence[str]) -> list[str]:
    """Return which interactions are not tested, as sentences: one for each, or the first and the number of the rest."""
    if len(missing) <= MOST_LEFT_OUT:
        return [f"Left out: {text}." for text in missing]
    return [f"Left out: {missing[0]}; likewise {len(missing) - 1} other interactions."]
