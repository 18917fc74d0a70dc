"""The report's sections on the runs: cost, tuning, learning curves, classes, mistakes, runs."""

import math
from collections.abc import Mapping

import numpy as np

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import ArmSummary, Mistake, Summary, champion_run, summarise
from ablation.analysis.results import StudyResult
from ablation.analysis.runs import RunResult, best_run
from ablation.analysis.tuning import edges, searched_params, tuned_minus_confirmed
from ablation.analysis.wording import points, unit_words
from ablation.base.text import Table, format_params, format_value, plural
from ablation.reporting.charts import Picture
from ablation.reporting.content import (
    Block,
    Details,
    Folded,
    Gallery,
    Items,
    RichTable,
    Tile,
    figure_block,
    optional_number,
    run_name,
    states_text,
)
from ablation.reporting.images import data_address
from ablation.spec.objective import Objective
from ablation.spec.study import StudySpec

MOST_CLASSES = 12  # that fit into a table as columns
MOST_CLASSES_OF_MATRIX = 20  # more would be illegible
MOST_CONFUSIONS = 3  # of an arm, in the table


def cost_table(analysis: StudyAnalysis) -> Table:
    """Return the table of trained parameters, training times, and what the classification of an image costs."""
    measures_inference = any(arm.inference_operations is not None for arm in analysis.arms)
    rows = [
        [
            arm.name,
            "-" if arm.trained_parameters is None else f"{arm.trained_parameters:,}",
            "-" if arm.training_seconds is None else _seconds(arm.training_seconds),
            *(_inference_cells(arm) if measures_inference else []),
            str(arm.training_runs),
            optional_number(arm.test.mean if arm.test else None),
        ]
        for arm in analysis.arms
    ]
    runs = [run for arm in analysis.result.arms for run in [*arm.trials, *arm.confirmations]]
    devices = sorted({run.environment.get("device") or run.device for run in runs} - {""})
    once = "without the pass that computes features of frozen layers once for many runs"
    notes = [f"Training time: mean over n runs, on {', '.join(devices) or 'an unknown device'}, {once}."]
    if len(devices) > 1:
        notes.append("Training times on different devices cannot be compared.")
    columns = ["arm", "trained parameters", "training time of a run (s)"]
    if measures_inference:
        columns += ["operations per image (millions)", "time to classify an image (ms)"]
        notes.append(
            "Operations per image: multiplications and additions in convolutions, matrix products and attention that "
            "classify it; the mean over confirmation runs. The time is measured at the end of each, in batches of up "
            "to 64 images, and depends on what else the machine does."
        )
    return Table("", [*columns, "n (runs)", f"test {analysis.result.spec.goal.label}"], rows, notes)


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _inference_cells(arm: ArmSummary) -> list[str]:
    operations, seconds = arm.inference_operations, arm.inference_seconds
    return [
        "-" if operations is None else f"{operations / 1e6:,.1f}",
        "-" if seconds is None else f"{1e3 * seconds:,.3g}",
    ]


def edge_texts(analysis: StudyAnalysis) -> list[str]:
    """Return a warning for each parameter whose chosen value is at an end of what was searched, or close to it."""
    texts = []
    found = edges(analysis.result)
    for parameter, is_upper in dict.fromkeys((edge.parameter, edge.is_upper) for edge in found):
        here = [edge for edge in found if (edge.parameter, edge.is_upper) == (parameter, is_upper)]
        unit = "tuning" if analysis.is_repeated else "arm"
        count = sum(len(arm.result.chosen) for arm in analysis.arms) if analysis.is_repeated else len(analysis.arms)
        arms = f"{len(here)} of {plural(count, unit)}"
        values = ", ".join(f"{edge.arm} {format_value(edge.value)}" for edge in here[:3])
        more = ", ..." if len(here) > 3 else ""
        texts.append(
            f"Warning: {parameter} was chosen at or near its {'highest' if is_upper else 'lowest'} searched value, "
            f"{format_value(here[0].limit)}, in {arms} ({values}{more}): a wider range may do better."
        )
    return texts


def tuning_blocks(
    analysis: StudyAnalysis, pictures: Mapping[str, Picture], importances: Mapping[str, Mapping[str, float]]
) -> list[Block]:
    """Return the chosen configuration of each arm, and whether budget and ranges were wide enough."""
    rows, goal, is_repeated = [], analysis.result.spec.goal, analysis.is_repeated
    for arm in analysis.arms:
        best = arm.result.best
        tuned = [_configuration(analysis.result.spec, best), optional_number(best.val_value if best else None)]
        gain = None if arm.best_of is None else arm.best_of.last_gain
        rows.append(
            [
                arm.name,
                *([] if is_repeated else tuned),
                optional_number(arm.val.mean if arm.val else None),
                str(arm.val.seeds if arm.val else 0),
                *([] if is_repeated else ["-" if arm.late_rise is None else points(arm.late_rise, goal)]),
                "-" if gain is None else points(gain, goal),
                states_text(arm.result.trials),
            ]
        )
    rises = [(arm.late_rise, len(arm.best_so_far_T)) for arm in analysis.arms if arm.late_rise is not None]
    notes = _luck_notes(analysis)
    change = "rise" if goal.higher_is_better else "fall"
    if rises:
        by_luck = sum(T // 3 / T for _, T in rises)
        notes.append(
            f"Late {change}: the {change} of the best validation {goal.label} in the last third of the "
            "trials. It is above zero in "
            f"{sum(rise > 0 for rise, _ in rises)} of {plural(len(rises), 'arm')}; trials in random order have the "
            f"best there in {by_luck:.1f} of them. A large {change} means that the budget was too small for the search "
            "to converge."
        )
    columns = [
        "arm",
        *([] if is_repeated else ["chosen configuration", f"tuned val. {goal.label}"]),  # else in a table of their own
        f"confirmed val. {goal.label}",
        f"n ({analysis.compared.estimator.unit}s)",
        *([] if is_repeated else [f"late {change} ({goal.unit})"]),
        f"last trial's gain ({goal.unit})",
        "trials",
    ]
    warnings = edge_texts(analysis)
    blocks: list[Block] = [
        *([Items(warnings)] if warnings else []),
        *figure_block("search", pictures, goal),
        *([repeat_table(analysis)] if is_repeated else []),
        Table("", columns, rows, notes),
        *figure_block("tuning", pictures, goal),
    ]
    return [*blocks, *_known_tables(analysis.result), *_importance_maps(importances, goal)]


def _importance_maps(importances: Mapping[str, Mapping[str, float]], goal: Objective) -> list[RichTable]:
    """Return the share of each parameter in the variation of an arm's trials; nothing without any."""
    known = {arm: shares for arm, shares in importances.items() if shares}
    if not known:
        return []
    parameters = list(dict.fromkeys(name for shares in known.values() for name in shares))
    rows = [
        [arm, *(f"{shares[name]:.2f}" if name in shares else "-" for name in parameters)]
        for arm, shares in known.items()
    ]
    metrics = "accuracies" if goal.name == "accuracy" else goal.label
    note = (
        f"Share of the variation of an arm's validation {metrics} that each parameter explains (functional ANOVA over "
        "a random forest). Arms with few trials are left out; with less than a few dozen, this is only a hint."
    )
    shades = [[shares.get(name, 0.0) for name in parameters] for shares in known.values()]
    return [RichTable(Table("Importance of each parameter", ["arm", *parameters], rows, [note]), shades)]


def learning_blocks(pictures: Mapping[str, Picture], goal: Objective) -> list[Block]:
    """Return the learning curves: an overlay of all arms, and on demand those of every run."""
    panels = figure_block("panels", pictures, goal)
    return [*figure_block("curves", pictures, goal), *([Details("Every run of every arm", panels)] if panels else [])]


def repeat_table(analysis: StudyAnalysis) -> Table:
    """Return the configuration that each repeat of a study chose for each arm, and its results."""
    repeats = analysis.repeats
    own = f"{analysis.result.spec.name} repeat "  # the name of a study's own repeat is its number
    rows = [
        [
            arm.arm.name,
            result.spec.name.removeprefix(own),
            _configuration(result.spec, arm.best),
            optional_number(arm.best.val_value if arm.best else None),
            optional_number(float(arm.test_values_S.mean()) if arm.confirmed else None),
            str(len(arm.confirmed)),
        ]
        for of_repeats in zip(*(result.arms for result in repeats), strict=True)
        for result, arm in zip(repeats, of_repeats, strict=True)
    ]
    label = analysis.result.spec.goal.label
    columns = ["arm", "repeat", "chosen configuration", f"tuned val. {label}", f"test {label}", "n (seeds)"]
    return Table("Repeats of the tuning", columns, rows, [f"Test {label}: mean over n confirmation runs."])


def _configuration(spec: StudySpec, run: RunResult | None) -> str:
    return "-" if run is None else format_params(searched_params(spec, run)) or "nothing searched"


def _luck_notes(analysis: StudyAnalysis) -> list[str]:
    gain, goal = tuned_minus_confirmed(analysis.result.arms), analysis.result.spec.goal
    unit = "tuning" if analysis.is_repeated else "arm"
    moved = "raised" if goal.higher_is_better else "lowered"
    notes = [
        f"Last trial's gain: how much the last trial is expected to have {moved} the best of all, with the trials in "
        "random order (Tang et al., 2020)."
    ]
    if gain is not None:
        error = "" if gain.standard_error is None else f" \u00b1 {points(gain.standard_error, goal)} (standard error)"
        notes.insert(
            0,
            f"Tuned minus confirmed: {points(gain.mean, goal)}{error} {unit_words(goal)}, the mean over "
            f"{plural(gain.tunings, unit)} of the tuned trial's validation {goal.label} minus the mean of its "
            "confirmation runs. It estimates how much the best of many trials gained by luck.",
        )
    return notes


def _known_tables(result: StudyResult) -> list[Table]:
    """Return the table of known configurations beside the best that the search drew; empty without any."""
    rows, goal = [], result.spec.goal
    for arm in result.arms:
        drawn = best_run([trial for trial in arm.trials if trial.spec.known is None])
        best_drawn = drawn.val_value if drawn is not None else None
        for run in (trial for trial in arm.trials if trial.spec.known is not None):
            is_measured = best_drawn is not None and run.val_value is not None
            rows.append(
                [
                    arm.arm.name,
                    str(run.spec.known),
                    optional_number(run.val_value) if run.val_value is not None else run.state,
                    optional_number(best_drawn),
                    points(goal.sign * ((best_drawn or 0.0) - (run.val_value or 0.0)), goal) if is_measured else "-",
                    "yes" if run in arm.chosen else "no",
                ]
            )
    if not rows:
        return []
    values = [f"{known.label}: {format_params(known.entries())}." for known in result.spec.known if known.name]
    compared = ["the best trial that the search drew", "the known configuration"][:: goal.sign]
    note = (
        f"Gain: the validation {goal.label} of {compared[0]}, minus that of {compared[1]}. "
        "The best of many trials gains by luck, too, which a single known configuration cannot."
    )
    columns = ["arm", "known configuration", f"val. {goal.label}", "best drawn", f"gain ({goal.unit})"]
    columns.append("best of the arm")
    return [Table("Known configurations and the search", columns, rows, [note, *values])]


def class_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the metrics that weigh classes equally, the accuracy of each class, and the confusion matrices."""
    arms = [(arm, arm.class_accuracies_K) for arm in analysis.arms if arm.class_accuracies_K is not None]
    if not arms:
        return []
    classes = analysis.result.classes
    metric_rows = [
        [
            arm.name,
            *(
                _mean_and_deviation(score)
                for score in (summarise(arm.result.test_accuracies_S), arm.balanced, arm.macro_f1)
            ),
            str(arm.runs),
        ]
        for arm, _ in arms
    ]
    metrics = Table(
        "Metrics that weigh all classes equally",
        ["arm", "test accuracy", "balanced accuracy", "macro F1", "n (seeds)"],
        metric_rows,
        [
            "Means \u00b1 standard deviations over n seeds. Balanced accuracy is the mean of the classes' recalls, "
            "macro F1 that of their F1 scores. With classes of equal size, balanced accuracy equals accuracy."
        ],
    )
    title, notes = (
        "Test accuracy of each class",
        ["The fraction of a class's test images that is classified correctly, mean over n seeds."],
    )
    table: Block
    if len(classes) <= MOST_CLASSES:
        rows = [[arm.name, str(arm.runs), *(_fraction(value) for value in accuracies_K)] for arm, accuracies_K in arms]
        table = Table(title, ["arm", "n (seeds)", *classes], rows, notes)
    else:
        heads = [f"{arm.name} (n = {arm.runs})" for arm, _ in arms]
        rows = [[name, *(_fraction(accuracies_K[k]) for _, accuracies_K in arms)] for k, name in enumerate(classes)]
        table = Folded(Table(title, ["class", *heads], rows, notes))
    return [metrics, table, *_confusion_maps(analysis), _confusions_table(analysis)]


def _confusion_maps(analysis: StudyAnalysis) -> list[RichTable]:
    """Return the winner's confusion matrix; nothing with more classes than a page has room for."""
    arm = next((arm for arm in analysis.arms if arm.result is analysis.winner), None)
    classes = analysis.result.classes
    if arm is None or arm.confusion_KK is None or len(classes) > MOST_CLASSES_OF_MATRIX:
        return []
    rows = [
        [name, *("-" if math.isnan(share) else f"{share:.2f}" for share in arm.confusion_KK[k])]
        for k, name in enumerate(classes)
    ]
    links: dict[tuple[int, int], str] = {}
    for mistake in analysis.mistakes:
        place = classes.index(mistake.true), 1 + classes.index(mistake.predicted)
        links.setdefault(place, f"#{mistake_key(mistake)}")
    title = f"Confusion matrix of {arm.name} (mean of n = {plural(arm.runs, 'seed')})"
    note = "The fraction of each true class (row) that is classified as each class (column); each row sums to 1."
    if links:
        note += " Linked cells lead to the champion's mistakes that this page shows."
    shades_KK = np.nan_to_num(arm.confusion_KK)
    return [RichTable(Table(title, ["true class", *classes], rows, [note]), shades_KK.tolist(), links)]


def _confusions_table(analysis: StudyAnalysis) -> Table:
    """Return the most frequent confusions of each arm."""
    classes = analysis.result.classes
    rows = []
    for arm in analysis.arms:
        if arm.confusion_KK is None:
            continue
        wrong_KK = np.nan_to_num(arm.confusion_KK)
        np.fill_diagonal(wrong_KK, 0)
        order = np.argsort(-wrong_KK, axis=None, kind="stable")[:MOST_CONFUSIONS]
        pairs = [np.unravel_index(place, wrong_KK.shape) for place in order]
        texts = [f"{classes[i]} \u2192 {classes[j]} {wrong_KK[i, j]:.2f}" for i, j in pairs if wrong_KK[i, j] > 0]
        rows.append([arm.name, str(arm.runs), "; ".join(texts) or "none"])
    note = "True class \u2192 predicted class, with the fraction of the true class; mean over n seeds."
    return Table("Most frequent confusions of each arm", ["arm", "n (seeds)", "confusions"], rows, [note])


def mistake_key(mistake: Mistake) -> str:
    """Return the anchor of a mistake's image."""
    return f"mistake-{mistake.number}"


def _mean_and_deviation(score: Summary | None) -> str:
    if score is None or score.standard_deviation is None:
        return optional_number(score.mean if score else None)
    return f"{score.mean:.4f} \u00b1 {score.standard_deviation:.4f}"


AUGMENTATIONS = {
    "flip": "flip mirrors an image with probability 1/2",
    "crop_flip": "crop_flip mirrors an image with probability 1/2 and shifts it by up to 4 pixels over black, before "
    "it is resized",
    "strong": "strong also erases a part of every tenth image and mixes each image with another: whole (mixup) or a "
    "rectangle of it (CutMix)",
}


def sample_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the figure of training images, with their preprocessing and augmentation in its caption."""
    samples, result = analysis.result.samples, analysis.result
    if samples is None or "samples" not in pictures:
        return []
    classes, per_class = samples.images_RIVSSC.shape[:2]
    size, shown = samples.normalisation.image_size, samples.images_RIVSSC.shape[-2]
    total = len(result.classes)
    of_classes = "each class" if classes == total else f"each of {classes} of the {total} classes"
    caption = f"{plural(per_class, 'training image')} of {of_classes}, resized to {size} x {size} pixels"
    caption += f" (shown with {shown} x {shown})." if shown != size else " unless they have that size."
    if samples.augmentations:
        caption += (
            " Beside each image are a few random augmentations of it; a training draws new ones in every epoch. "
            f"{'; '.join(AUGMENTATIONS[kind] for kind in samples.augmentations)}."
        )
    else:
        caption += " No trial augments them."
    statistics = (samples.normalisation.mean, samples.normalisation.std)
    mean, std = (", ".join(f"{value:g}" for value in of_channels) for of_channels in statistics)
    source = "the pretrained weights'" if result.weights_digest else "ImageNet's"
    caption += (
        f" Then the channels (red, green, blue; 0 to 1) are standardised with {source} mean {mean} and standard "
        f"deviation {std}."
    )
    rows = [
        (
            result.classes[k],
            [
                Tile(data_address(image_SSC), f"{result.classes[k]}, view {number}")
                for number, image_SSC in enumerate(images_VSSC, start=1)
            ],
        )
        for k, images_IVSSC in zip(samples.classes_R, samples.images_RIVSSC, strict=True)
        for images_VSSC in [images_IVSSC.reshape(-1, *images_IVSSC.shape[2:])]
    ]
    return [Gallery("samples", pictures["samples"].alt, rows, caption)]


def mistake_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    """Return the champion's most confident mistakes on the test images, as a figure and as a table."""
    if analysis.winner is None or not analysis.mistakes or "mistakes" not in pictures:
        return []
    run = champion_run(analysis.winner)
    wrong = 0 if run.predictions is None else int((run.predictions.predicted_N != run.predictions.labels_N).sum())
    shown = len(analysis.mistakes)
    which = f"the {shown} mistakes with the highest confidence" if shown < wrong else "all mistakes by confidence"
    caption = (
        f"{run_name(run)} is wrong about {wrong:,} of {analysis.result.test_images:,} test images. The figure shows "
        f"{which}, each with the true class, the predicted class and its probability. Images are shown as they go into "
        "the network and numbered from 0 in the order of the test split. They are not used for any choice."
    )
    columns = ["test image", "true class", "predicted class", "its probability", "probability of the true class"]
    rows = [
        [str(m.number), m.true, m.predicted, f"{m.probability:.3f}", f"{m.true_probability:.3f}"]
        for m in analysis.mistakes
    ]
    tiles = [
        Tile(
            data_address(m.image_SSC),
            f"Test image {m.number}: a {m.true} taken for a {m.predicted}",
            [m.true, f"\u2192 {m.predicted}", f"{m.probability:.3f}, image {m.number}"],
            mistake_key(m),
            (m.true, m.predicted),
        )
        for m in analysis.mistakes
    ]
    return [
        Gallery("mistakes", pictures["mistakes"].alt, [("", tiles)], caption),
        Folded(Table("The same mistakes as a table", columns, rows)),
    ]


def _fraction(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"  # a class without test images


def run_blocks(analysis: StudyAnalysis) -> list[Block]:
    """Return tables of all runs: best trials and confirmation runs first, then all others."""
    goal = analysis.result.spec.goal
    columns = [
        "run",
        "state",
        f"val. {goal.label}",
        f"test {goal.label}",
        "best epoch",
        "seed",
        "MLflow run",
        "searched parameters",
    ]
    result = analysis.result
    first: list[list[str]] = []
    rest: list[list[str]] = []
    for arm in result.arms:
        for run in arm.runs:
            row = [
                run_name(run)
                + (f" (known: {run.spec.known})" if run.spec.known else "")
                + (" (superseded)" if run in arm.superseded else " (best)" if run in arm.chosen else ""),
                run.state + (f": {run.reason}" if run.reason else ""),
                optional_number(run.val_value),
                optional_number(run.test_value),
                "-" if run.best_epoch is None else str(run.best_epoch),
                str(run.spec.seed),
                run.run_id,
                format_params(searched_params(result.spec, run)) or "-",
            ]
            (first if run in arm.chosen or run in arm.confirmations else rest).append(row)
    blocks: list[Block] = [Folded(Table(f"Best trials and confirmation runs ({len(first)})", columns, first))]
    if rest:
        blocks.append(Folded(Table(f"All other runs ({len(rest)})", columns, rest)))
    return blocks
