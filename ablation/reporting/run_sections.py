"""The report's sections on the runs: cost, tuning, classes, images, how to do it again."""

import json
import math
from collections.abc import Mapping

from ablation.analysis.answer import StudyAnalysis, points
from ablation.analysis.comparison import Summary, champion_run
from ablation.analysis.results import RunResult, StudyResult
from ablation.base.text import Table, format_params, format_value, plural
from ablation.reporting.content import (
    BOTH_INTERVAL,
    SEEDS_INTERVAL,
    Block,
    Code,
    Figure,
    Folded,
    Items,
    Paragraph,
    figure_block,
    optional_number,
    run_name,
    searched_params,
    states_text,
)
from ablation.reporting.figures import Picture

MOST_CLASSES = 12  # that fit beside each other in a table


def cost_table(analysis: StudyAnalysis) -> Table:
    rows = [
        [
            arm.name,
            "-" if arm.trained_parameters is None else f"{arm.trained_parameters:,}",
            "-" if arm.training_seconds is None else f"{arm.training_seconds:,.1f}",
            str(arm.training_runs),
            optional_number(arm.test.mean if arm.test else None),
        ]
        for arm in analysis.arms
    ]
    devices = sorted({_device(run) for arm in analysis.result.arms for run in [*arm.trials, *arm.confirmations]} - {""})
    notes = [f"Training time: mean over n runs, on {', '.join(devices) or 'an unknown device'}."]
    if len(devices) > 1:
        notes.append("Runs on different devices cannot be compared in time.")
    columns = ["arm", "trained parameters", "training time of a run (s)", "n (runs)", "test accuracy"]
    return Table("", columns, rows, notes)


def _device(run: RunResult) -> str:
    return run.environment.get("device") or run.device


def tuning_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    rows = []
    for arm in analysis.arms:
        best = arm.result.best
        rows.append(
            [
                arm.name,
                "-"
                if best is None
                else format_params(searched_params(analysis.result.spec, best)) or "nothing searched",
                "-" if best is None else f"{best.val_accuracy:.4f}",
                optional_number(arm.val.mean if arm.val else None),
                "-" if arm.selection_bias is None else points(arm.selection_bias),
                str(arm.val.seeds if arm.val else 0),
                "-" if arm.late_rise is None else points(arm.late_rise),
                states_text(arm.result.trials),
            ]
        )
    rising = sum(bool(arm.late_rise) for arm in analysis.arms)
    known = sum(arm.late_rise is not None for arm in analysis.arms)
    notes = [
        "Selection bias: the tuned trial's validation accuracy minus the mean of its confirmation runs (n seeds). It "
        "is what the best of many trials gains by luck."
    ]
    if known:
        notes.append(
            f"Late rise: by how much the best rose in the last third of the trials. It rose in {rising} of "
            f"{plural(known, 'arm')}; were the trials drawn at random, the best would fall in the last third in about "
            "one arm of three. A large rise says that the budget was too small to have converged."
        )
    columns = ["arm", "chosen configuration", "tuned val. accuracy", "confirmed val. accuracy"]
    columns += ["selection bias (points)", "n (seeds)", "late rise (points)", "trials"]
    return [*figure_block("tuning", pictures), Table("", columns, rows, notes), *figure_block("importances", pictures)]


def class_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    found = [(arm, arm.class_accuracies_K) for arm in analysis.arms if arm.class_accuracies_K is not None]
    if not found:
        return []
    classes = analysis.result.classes
    scores = [
        [
            arm.name,
            *(_mean_and_deviation(score) for score in (arm.test, arm.balanced, arm.macro_f1)),
            str(arm.test.seeds if arm.test else 0),
        ]
        for arm, _ in found
    ]
    counted_alike = Table(
        "Scores in which each class counts the same",
        ["arm", "test accuracy", "balanced accuracy", "macro F1", "n (seeds)"],
        scores,
        [
            "Means \u00b1 standard deviations over n seeds. Balanced accuracy is the mean of the classes' recalls, "
            "macro F1 that of their F1 scores; where classes are of equal size, balanced accuracy is accuracy."
        ],
    )
    title, notes = "Test accuracy of each class", ["The part of a class that is recognised, mean over n seeds."]
    table: Block
    if len(classes) <= MOST_CLASSES:
        rows = [
            [arm.name, str(arm.test.seeds if arm.test else 0), *(_fraction(value) for value in accuracies_K)]
            for arm, accuracies_K in found
        ]
        table = Table(title, ["arm", "n (seeds)", *classes], rows, notes)
    else:
        heads = [f"{arm.name} (n = {arm.test.seeds if arm.test else 0})" for arm, _ in found]
        rows = [[name, *(_fraction(accuracies_K[k]) for _, accuracies_K in found)] for k, name in enumerate(classes)]
        table = Folded(Table(title, ["class", *heads], rows, notes))
    return [counted_alike, table, *figure_block("confusion", pictures), *figure_block("confusion_arms", pictures)]


def _mean_and_deviation(score: Summary | None) -> str:
    if score is None or score.standard_deviation is None:
        return optional_number(score.mean if score else None)
    return f"{score.mean:.4f} \u00b1 {score.standard_deviation:.4f}"


AUGMENTATIONS = {
    "flip": "flip mirrors an image with probability 1/2",
    "crop_flip": "crop_flip mirrors an image with probability 1/2 and shifts it by up to 4 pixels over black, before "
    "it is resized",
}


def sample_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    samples, result = analysis.result.samples, analysis.result
    if samples is None or "samples" not in pictures:
        return []
    classes, per_class = samples.images_RIVSSC.shape[:2]
    size, shown = samples.normalisation.image_size, samples.images_RIVSSC.shape[-2]
    known = len(result.classes)
    of_classes = "each class" if classes == known else f"each of {classes} of the {known} classes"
    caption = f"{plural(per_class, 'training image')} of {of_classes}, resized to {size} x {size} pixels"
    caption += f" (shown with {shown} x {shown})." if shown != size else " unless they have that size."
    if samples.augmentations:
        caption += (
            " Beside each image is what augmentation makes of it, drawn a few times; a training draws anew in every "
            f"epoch. {'; '.join(AUGMENTATIONS[kind] for kind in samples.augmentations)}."
        )
    else:
        caption += " No trial augments them."
    statistics = (samples.normalisation.mean, samples.normalisation.std)
    mean, std = (", ".join(f"{value:g}" for value in of_channels) for of_channels in statistics)
    source = "the pretrained weights'" if result.weights_digest else "ImageNet's"
    caption += (
        f" After that, the channels (red, green, blue; 0 to 1) are standardised with {source} mean {mean} and standard "
        f"deviation {std}."
    )
    return [Figure("samples", "Training images of several classes as they go into the network", caption)]


def mistake_blocks(analysis: StudyAnalysis, pictures: Mapping[str, Picture]) -> list[Block]:
    if analysis.winner is None or not analysis.mistakes or "mistakes" not in pictures:
        return []
    run = champion_run(analysis.winner)
    wrong = 0 if run.predictions is None else int((run.predictions.predicted_N != run.predictions.labels_N).sum())
    shown = len(analysis.mistakes)
    which = f"Here are the {shown} that it is surest of" if shown < wrong else "Here they are, the surest first"
    caption = (
        f"{run_name(run)} is wrong about {wrong:,} of {analysis.result.test_images:,} test images. {which}: the true "
        "class, what the image is taken for, and the probability that the model gives this. Images are shown as they "
        "go into the network and numbered from 0 in the order of the test split. Nothing is chosen by them."
    )
    columns = ["test image", "true class", "taken for", "its probability", "probability of the true class"]
    rows = [
        [str(m.number), m.true, m.predicted, f"{m.probability:.3f}", f"{m.true_probability:.3f}"]
        for m in analysis.mistakes
    ]
    return [
        Figure("mistakes", "Test images that the champion takes for another class, with both classes", caption),
        Folded(Table("The same mistakes as a table", columns, rows)),
    ]


def _fraction(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"  # a class without test images


def run_blocks(analysis: StudyAnalysis) -> list[Block]:
    columns = [
        "run",
        "state",
        "val. accuracy",
        "test accuracy",
        "best epoch",
        "seed",
        "MLflow run",
        "searched parameters",
    ]
    result = analysis.result
    first: list[list[str]] = []
    rest: list[list[str]] = []
    for arm in result.arms:
        for run in [*arm.trials, *arm.confirmations, *arm.superseded]:
            row = [
                run_name(run) + (" (superseded)" if run in arm.superseded else " (best)" if run is arm.best else ""),
                run.state + (f": {run.reason}" if run.reason else ""),
                optional_number(run.val_accuracy),
                optional_number(run.test_accuracy),
                "-" if run.best_epoch is None else str(run.best_epoch),
                str(run.spec.seed),
                run.run_id,
                format_params(searched_params(result.spec, run)) or "-",
            ]
            (first if run is arm.best or run in arm.confirmations else rest).append(row)
    blocks: list[Block] = [Folded(Table(f"Best trials and confirmation runs ({len(first)})", columns, first))]
    if rest:
        blocks.append(Folded(Table(f"All other runs ({len(rest)})", columns, rest)))
    return blocks


def meaning_blocks(analysis: StudyAnalysis) -> list[Block]:
    result = analysis.result
    superseded = sum(run.test_accuracy is not None for arm in result.arms for run in arm.superseded)
    used = (
        f"The test split ({result.test_images:,} images) was evaluated {_times(result.test_evaluations)} in this "
        "study, once by each confirmation run at its end, and nothing was chosen by what came out."
        if result.test_evaluations
        else "The test split has not been evaluated."
    )
    if superseded:
        used += (
            f" {superseded} of these evaluations belong to configurations that were their arm's best before the budget "
            "grew; they are superseded and left out of every figure here."
        )
    texts = [used]
    if result.test_evaluations:
        texts += [
            f"{SEEDS_INTERVAL}: a t interval over the seeds of an arm. It says where the mean over many more seeds "
            "would lie on these very test images.",
            f"{BOTH_INTERVAL}: its variance is that of the seeds plus that of the test images, which are the same for "
            "all arms and so paired; degrees of freedom are Satterthwaite's. It says where the difference would lie "
            "with many more seeds and images.",
            "Each interval stands alone: it covers the truth in 95 of 100 studies. The p-values beside it come from "
            "the same statistic and are corrected by Holm's method for the number of differences tested for a factor, "
            "so an interval may leave out zero where the corrected p-value is above 0.05; the corrected one decides.",
            "A marginal mean gives every confirmed arm that has the level the same weight.",
            "All intervals are conditional on the configurations that tuning chose. Another search might have chosen "
            "others; how much that would change is not part of them.",
        ]
    return [Items(texts)]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def environment_blocks(analysis: StudyAnalysis) -> list[Block]:
    result = analysis.result
    spec = result.spec
    variants: dict[str, int] = {}
    for arm in result.arms:
        for run in [*arm.trials, *arm.confirmations, *arm.superseded]:
            described = json.dumps({**run.environment, "trained on": run.device}, sort_keys=True)
            variants[described] = variants.get(described, 0) + 1
    parsed = [json.loads(text) for text in variants]
    keys = sorted({key for variant in parsed for key in variant})
    counts = [plural(count, "run") for count in variants.values()]
    columns = ["", *counts]
    rows = [[key, *(variant.get(key, "-") for variant in parsed)] for key in keys]
    notes = [] if len(parsed) == 1 else [f"The runs were made in {len(parsed)} different environments, a column each."]
    about = [
        ["study", spec.name],
        ["study's seed", str(spec.seed)],
        ["confirmation seeds", _all_seeds_text(result)],
        ["precision", spec.precision],
        ["data", f"{spec.data.source}, digest {result.data_digest}"],
        ["pretrained weights", f"digest {result.weights_digest}" if result.weights_digest else "none"],
        ["images", f"{result.train_images:,} training, {result.val_images:,} validation, {result.test_images:,} test"],
        *([name, format_value(value)] for name, value in spec.fixed.entries().items()),
    ]
    return [
        Table("What was studied", ["", "value"], about),
        Table("What the runs ran on", columns, rows, notes),
        Paragraph("The command that reproduces it:"),
        Code(result.command),
    ]


def _all_seeds_text(result: StudyResult) -> str:
    seeds = sorted({run.spec.seed for arm in result.arms for run in arm.confirmations})
    return f"{len(seeds)} different, listed with the runs" if len(seeds) > 10 else ", ".join(map(str, seeds)) or "none"
