"""The report of a study: python -m ablation.report NAME

It is made of what MLflow holds alone, on any machine. The same content becomes a page (report.html) and a text with
pictures beside it (report.md); a short form goes to the terminal.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ablation import __version__
from ablation.architecture import kept_blocks
from ablation.command_line import run_command
from ablation.spec import Choices, InputError, StudySpec, applies, check_name, expand
from ablation.store import Store, find_store, write_atomically
from ablation.tables import Table, format_params, format_value

if TYPE_CHECKING:
    from ablation.analysis import ArmSummary, Difference, FactorAnalysis, StudyAnalysis, Summary
    from ablation.figures import Picture
    from ablation.results import RunResult, StudyResult
    from ablation.stats import Estimate

SEEDS_INTERVAL = "95 % seeds interval"
BOTH_INTERVAL = "95 % seeds and images interval"
ACCURACY_COLUMNS = ["test accuracy", "standard deviation", SEEDS_INTERVAL, "val. accuracy", "n (seeds)"]
NOTE_LIMIT = 8000  # characters, of a tag in MLflow
MOST_CLASSES = 12  # that fit beside each other in a table


@dataclass(frozen=True)
class Report:
    """A study's report.

    Attributes:
        result: what it was made of.
        answer: the study's answer in a sentence.
        html: the self-contained page.
        markdown: the same as text, which shows the PNG files among `figures`.
        figures: file name -> content, each figure as .png and .svg.
        short: the tables that the terminal shows.
        note: markdown for the summary run's description, with links to the runs.
        folder: where it was written; None if it was not.
    """

    result: "StudyResult"
    answer: str
    html: str
    markdown: str
    figures: dict[str, bytes]
    short: list[Table]
    note: str
    folder: Path | None = None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="NAME")
@click.option("--store", "store_option", metavar="DIR", help="Where the results are.  [default: mlruns]")
@click.option("--output", metavar="DIR", help="Where the report goes.  [default: reports/NAME in the store]")
@click.version_option(__version__)
def cli(name: str, store_option: str | None, output: str | None) -> None:
    """Write the report of the study NAME from what MLflow holds, and print its short form."""
    check_name(name)
    store = find_store(store_option)
    show_report(write_report(store, name, None if output is None else expand(output)))


def write_report(store: Store, name: str, output: Path | None = None) -> Report:
    """Write a study's report.html, report.md and figures, and log them to its summary run in MLflow.

    Args:
        store: where its results are.
        name: the study's.
        output: a folder, made where it is not there; `reports/<name>` in the store by default.

    Raises:
        InputError: there is no such study, it has no finished trial, another version made it, or `output` is a file.
        StoreAway: the tracking server does not answer.
        StoreError: the folder or MLflow's store cannot be written.
    """
    from ablation.results import read_results
    from ablation.tracking import log_report

    folder = output or store.root / "reports" / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is not a folder")
    result = read_results(store, name)
    report = build_report(result)
    files = {"report.html": report.html.encode(), "report.md": report.markdown.encode(), **report.figures}
    for file, content in files.items():
        write_atomically(folder / file, content)
    log_report(store, result.summary_run_id, files, report.note)
    return dataclasses.replace(report, folder=folder)


def show_report(report: Report) -> None:
    """Print the question, the answer, the short tables, and where the whole report is."""
    from ablation.view import say, show_table

    say(f"\n{report.result.spec.question}\n\n{report.answer}")
    for table in report.short:
        say("")
        show_table(table)
    if report.folder is not None:
        say(f"\nThe whole report: {report.folder / 'report.html'}")


def build_report(result: "StudyResult") -> Report:
    """Return the report of a study; the same result gives the same report, to the byte."""
    from ablation.analysis import analyse
    from ablation.figures import draw_figures

    analysis = analyse(result)
    pictures = draw_figures(analysis, _importances(result))
    sections = _sections(analysis, pictures)
    figures = {f"{name}.png": picture.png for name, picture in pictures.items()}
    figures |= {f"{name}.svg": picture.svg.encode() for name, picture in pictures.items()}
    return Report(
        result=result,
        answer=analysis.answer,
        html=_html(result, sections, pictures),
        markdown=_markdown(result, sections),
        figures=figures,
        short=_short_tables(analysis),
        note=_note(analysis),
    )


def _importances(result: "StudyResult") -> dict[str, dict[str, float]]:
    from ablation.search import parameter_importances

    found = {}
    for arm in result.arms:
        trials = [(searched_params(result.spec, t), t.val_accuracy) for t in arm.trials if t.val_accuracy is not None]
        found[arm.arm.name] = parameter_importances(result.spec, arm.arm, trials)
    return found


def searched_params(spec: StudySpec, run: "RunResult") -> dict[str, Any]:
    """Return the values that the search chose for a run, without parameters that do not apply to it."""
    trial = run.spec
    blocks = kept_blocks(spec.backbone.name, trial.truncate_at)
    found = [name for name in spec.search.entries() if applies(name, trial.strategy, trial.freeze_depth, blocks)]
    return {name: getattr(trial, name) for name in found if getattr(trial, name) is not None}


# ------------------------------------------------------------------------------------------- what a report is made of


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The sentence that stands out."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: list[str]


@dataclass(frozen=True)
class Code:
    """Something to copy into a terminal."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture by its name; `alt` says what it shows to those who cannot see it."""

    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """A long table that a page shows on demand."""

    table: Table


Block = Paragraph | Answer | Items | Code | Figure | Folded | Table


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `key` is its anchor."""

    key: str
    title: str
    blocks: list[Block]


def _sections(analysis: "StudyAnalysis", pictures: Mapping[str, "Picture"]) -> list[Section]:
    """Return the report's content; parts that have nothing to show are left out."""
    sections = [
        Section("missing", "What is missing", _missing(analysis)),
        Section("answer", "Answer", _answer_blocks(analysis)),
        Section("arms", "Arms", [_arms_table(analysis), *_figure("arms", pictures)]),
        Section("effects", "Effect of each factor", [*_figure("effects", pictures), *_level_tables(analysis)]),
        Section("differences", "Differences", _differences(analysis)),
        Section("interaction", "Interaction of the two factors", _interaction(analysis, pictures)),
        Section(
            "learning",
            "How each arm learned",
            [*_figure("curves_accuracy", pictures), *_figure("curves_loss", pictures)],
        ),
        Section("costs", "What each arm costs", [*_figure("costs", pictures), _cost_table(analysis)]),
        Section("tuning", "Tuning", _tuning(analysis, pictures)),
        Section("data", "Data as the network sees it", _samples(analysis, pictures)),
        Section("classes", "Classes", _classes(analysis, pictures)),
        Section("mistakes", "Most confident mistakes", _mistakes(analysis, pictures)),
        Section("runs", "Runs", _runs(analysis)),
        Section("meaning", "What the intervals mean", _meaning(analysis)),
        Section("environment", "Environment", _environment(analysis)),
    ]
    return [section for section in sections if section.blocks]


CAPTIONS = {
    "arms": (
        "Test accuracy of each arm",
        "Test accuracy of each arm. Points: means over n seeds; strokes: single seeds; lines: 95 % seeds interval.",
    ),
    "effects": (
        "Marginal mean of each level, and the differences of levels, with intervals",
        "Left: the mean test accuracy of the arms that have a level. Right: differences of these means. Lines are the "
        "95 % seeds and images interval; a filled circle is a difference that was shown.",
    ),
    "interaction": (
        "Test accuracy at each level of the first factor, a line for each level of the second",
        "Parallel lines would mean that the factors do not interact.",
    ),
    "curves_accuracy": (
        "Training and validation accuracy of each arm against epochs",
        "Accuracy by epoch: mean over the confirmation runs, with the range from the lowest to the highest; the best "
        "trial where an arm has none. Training accuracy is an average over the epoch, while the network changed.",
    ),
    "curves_loss": (
        "Training and validation loss of each arm against epochs",
        "Loss (mean cross-entropy in nats) by epoch, drawn in the same way.",
    ),
    "costs": (
        "Test accuracy against the number of trained parameters and against training time",
        "Test accuracy against the parameters that are trained, and against the mean time that one run trained.",
    ),
    "tuning": (
        "Validation accuracy of every trial and the best so far, for each arm",
        "Every finished trial in its order, and the best so far. Where the line still rises near its end, more trials "
        "might find better configurations.",
    ),
    "importances": (
        "Share of each searched parameter in the variation of validation accuracy, for each arm",
        "How much of the variation of an arm's validation accuracies goes with each parameter (functional ANOVA over a "
        "random forest). With few trials this is a hint and no more.",
    ),
    "confusion": (
        "Confusion matrix of the winning arm",
        "The winning arm: which part of a true class (row) is taken for which class (column), mean over n seeds.",
    ),
    "confusion_arms": (
        "Confusion matrices of all arms",
        "The same for every arm; darker is more.",
    ),
}


def _figure(name: str, pictures: Mapping[str, "Picture"]) -> list[Block]:
    if name not in pictures:
        return []
    alt, caption = CAPTIONS[name]
    return [Figure(name, alt, caption)]


# ------------------------------------------------------------------------------------------------- its sections


def _missing(analysis: "StudyAnalysis") -> list[Block]:
    result = analysis.result
    texts = []
    if result.missing_trials:
        texts.append(
            f"{result.missing_trials} of {len(result.arms) * result.spec.trials_per_arm} trials have not ended."
        )
    if result.missing_confirmations:
        wanted = sum(arm.best is not None for arm in result.arms) * result.spec.confirm.seeds
        texts.append(f"{result.missing_confirmations} of {wanted} confirmation runs have not ended.")
    if not texts:
        return []
    how = "What follows is how far the study is, and may change. To go on:"
    return [Items(texts), Paragraph(how), Code(result.command)]


def _answer_blocks(analysis: "StudyAnalysis") -> list[Block]:
    from ablation.analysis import champion_run, confirmed_validation

    spec, result = analysis.result.spec, analysis.result
    blocks: list[Block] = [Answer(analysis.answer)]
    if analysis.winner is not None and analysis.winner.arm.levels:
        val_S = confirmed_validation(analysis.winner)
        place = "leads so far" if result.missing_trials or result.missing_confirmations else "is the champion"
        blocks.append(
            Paragraph(
                f"The arm with the highest mean validation accuracy is {analysis.winner.arm.name} ({val_S.mean():.4f}, "
                f"n = {len(val_S)} seeds); its confirmation run #{champion_run(analysis.winner).number} "
                f"{place}. Test accuracies played no part in this choice."
            )
        )
    weights = spec.backbone.weights
    if spec.backbone.has_weights_file:
        weights = Path(str(weights)).name
    searched = ", ".join(f"{name} ({_range(value)})" for name, value in spec.search.entries().items())
    tuned = f"tuned over {searched}" if searched else "with nothing to tune"
    confirm = (
        f"the best configuration of each was then retrained with {spec.confirm.seeds} fresh seeds, and each of these "
        "confirmation runs evaluated the test images once, at its end"
        if spec.confirm.seeds
        else "the best configuration of each was retrained with fresh seeds while [confirm] seeds was larger"
        if result.test_evaluations
        else "nothing was retrained ([confirm] seeds = 0), so the test images have not been used"
    )
    most_trials = max([spec.trials_per_arm, *(len(arm.trials) for arm in result.arms)])  # the budget was larger once
    blocks.append(
        Paragraph(
            f"How it was found: {spec.backbone.name} (weights: {weights or 'none'}) on {spec.data.source}, "
            f"{result.train_images:,} training, {result.val_images:,} validation and {result.test_images:,} test "
            f"images of {len(result.classes)} classes. {_plural(len(result.arms), 'arm')}, with up to "
            f"{_plural(most_trials, 'trial')} of {_plural(spec.epochs, 'epoch')} each, {tuned}; {confirm}."
        )
    )
    return blocks


def _range(value: Any) -> str:
    if isinstance(value, Choices):
        return ", ".join(str(choice) for choice in value.choices)
    return f"{value.low:g} to {value.high:g}{', logarithmic' if value.log else ''}"


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _arms_table(analysis: "StudyAnalysis") -> Table:
    result = analysis.result
    factors = list(result.spec.factors.entries())
    with_tuned = not any(arm.test is not None for arm in analysis.arms)  # else it is among what is said of tuning
    with_published = any(arm.published for arm in result.arms)
    columns = [
        *(factors or ["arm"]),
        *ACCURACY_COLUMNS,
        *(["best tuned val. accuracy"] if with_tuned else []),
        "trials",
    ]
    columns += ["published (other images)"] if with_published else []
    rows = []
    for arm in analysis.arms:
        best = arm.result.best
        rows.append(
            [
                *([str(level) for level in arm.result.arm.levels.values()] or [arm.name]),
                *_accuracy_cells(arm),
                *([_optional(best.val_accuracy if best else None)] if with_tuned else []),
                _states(arm.result.trials),
                *([_published(arm.result.published)] if with_published else []),
            ]
        )
    return Table("", columns, rows, _arm_notes(analysis, with_tuned=with_tuned, with_published=with_published))


def _accuracy_cells(arm: "ArmSummary") -> list[str]:
    """Return test accuracy, its standard deviation and interval, validation accuracy, and the number of seeds."""
    if arm.test is None:
        return ["-", "-", "-", _optional(arm.val.mean if arm.val else None), str(arm.val.seeds if arm.val else 0)]
    return [
        f"{arm.test.mean:.4f}",
        _optional(arm.test.standard_deviation),
        _interval(arm.test.estimate),
        _optional(arm.val.mean if arm.val else None),
        str(arm.test.seeds),
    ]


def _arm_notes(analysis: "StudyAnalysis", *, with_tuned: bool, with_published: bool) -> list[str]:
    result = analysis.result
    notes = []
    if not with_tuned:
        notes.append(
            f"Means over n confirmation runs with fresh seeds: test accuracy on {result.test_images:,} images, "
            f"validation accuracy (best epoch) on {result.val_images:,}. The interval is over seeds, for these images."
        )
    if any(arm.test is not None and arm.test.seeds == 1 for arm in analysis.arms):
        notes.append("An arm with one seed has no interval: one seed proves nothing.")
    if with_tuned:
        notes.append(
            f"Best tuned val. accuracy: the best of the finished trials on {result.val_images:,} images, which is "
            "biased upwards because it was chosen for being the best."
        )
    notes += _failures(analysis)
    if with_published:
        notes.append("Published figures were measured on other images: compare their order, not their digits.")
        sources = {str(entry["source"]) for arm in result.arms for entry in arm.published if entry.get("source")}
        notes += [f"Published: {source}" for source in sorted(sources)]
    return notes


def _failures(analysis: "StudyAnalysis") -> list[str]:
    """Return a line for each arm and kind of run of which some failed, with the reasons."""
    notes = []
    for arm in analysis.arms:
        for kind, runs in (("trial", arm.result.trials), ("confirmation run", arm.result.confirmations)):
            failed = [run for run in runs if run.state == "failed"]
            if not failed:
                continue
            reasons = "; ".join(sorted({run.reason or "no reason is known" for run in failed}))
            is_lost = kind == "trial" and len(failed) == len(runs)
            consequence = "; the comparison goes on without it" if is_lost else ""
            notes.append(f"{arm.name}: {len(failed)} of {_plural(len(runs), kind)} failed ({reasons}){consequence}.")
    return notes


def _run_name(run: "RunResult") -> str:
    return f"{run.spec.arm} {'trial' if run.spec.confirms is None else 'confirmation run'} #{run.number}"


def _n(seeds: tuple[int, int]) -> str:
    return str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]} to {seeds[1]}"


def _states(runs: Sequence["RunResult"]) -> str:
    counts = {
        state: sum(run.state == state for run in runs) for state in ("finished", "pruned", "failed", "unfinished")
    }
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def _published(entries: Sequence[dict[str, Any]]) -> str:
    texts = []
    for entry in entries:
        figures = {k: v for k, v in entry.items() if k not in ("arm", "source") and v is not None}
        texts.append(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    return "; ".join(texts) or "-"


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(estimate: "Estimate | None") -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.4f} to {estimate.high:.4f}"


def _level_tables(analysis: "StudyAnalysis") -> list[Block]:
    tables: list[Block] = []
    for factor in analysis.factors:
        if not any(level.estimate for level in factor.levels):
            continue
        rows = [
            [
                level.label,
                _optional(level.estimate.value if level.estimate else None),
                _interval(level.estimate),
                str(level.arms),
                _n(level.seeds) if level.arms else "-",
            ]
            for level in factor.levels
        ]
        notes = [
            f"{level.label} is without {', '.join(level.missing)}, which is not confirmed; compare means of other arms "
            "with care."
            for level in factor.levels
            if level.missing
        ]
        columns = [factor.factor, "marginal mean test accuracy", BOTH_INTERVAL, "arms", "n (seeds per arm)"]
        tables.append(Table(f"Marginal means of {factor.factor}", columns, rows, notes))
    return tables


def _difference_table(factor: "FactorAnalysis") -> Table:
    rows = [_difference_row(difference, tested=True) for difference in factor.family]
    columns = ["difference of", "minus", "points", f"{BOTH_INTERVAL} (points)", "Holm p", "shown", "n (seeds per arm)"]
    columns.append("seeds needed")
    if factor.control is not None:
        family = f"every level against the declared control {factor.control}"
    else:
        family = "all pairs of levels"
    notes = [f"The p-values are corrected by Holm's method over {_plural(len(factor.family), 'test')}: {family}."]
    if any(difference.estimate.p is None for difference in factor.family):
        notes = [
            "One seed proves nothing: where an arm has a single seed, no interval is invented and nothing is tested."
        ]
    elif any(not difference.is_shown for difference in factor.family):
        notes.append(
            "Seeds needed: about how many seeds per arm would find a difference of the measured size with a chance of "
            "80 %, on the same test images. '> 1,000' means that these test images are too few, or that there is none."
        )
    notes += [f"Not every combination of the other factors is confirmed for {text}." for text in factor.partial]
    notes += [f"Not compared: {text}." for text in factor.not_compared]
    return Table(f"Levels of {factor.factor}, difference of marginal means of test accuracy", columns, rows, notes)


def _difference_row(difference: "Difference", *, tested: bool) -> list[str]:
    from ablation.analysis import interval_points, points

    estimate = difference.estimate
    row = [
        difference.first,
        difference.second,
        points(estimate.value),
        interval_points(estimate.low, estimate.high),
    ]
    if not tested:
        return [*row, _n(difference.seeds)]
    if difference.corrected_p is None:
        return [*row, "-", "-", _n(difference.seeds), "-"]
    p = "< 0.001" if difference.corrected_p < 0.001 else f"{difference.corrected_p:.3f}"
    if difference.is_shown:
        needed = "-"
    else:
        needed = "> 1,000" if difference.seeds_needed is None else f"{difference.seeds_needed:,}"
    return [*row, p, "yes" if difference.is_shown else "no", _n(difference.seeds), needed]


def _differences(analysis: "StudyAnalysis") -> list[Block]:
    if sum(arm.test is not None for arm in analysis.arms) < 2:
        return []
    blocks: list[Block] = [_difference_table(f) for f in analysis.factors if f.family or f.not_compared]
    if analysis.arm_pairs:
        columns = ["difference of", "minus", "points", f"{BOTH_INTERVAL} (points)", "n (seeds per arm)"]
        rows = [_difference_row(difference, tested=False) for difference in analysis.arm_pairs]
        note = "Not tested and not corrected: of so many intervals some miss the truth by chance."
        blocks.append(Folded(Table(f"All {_plural(len(rows), 'pair')} of single arms", columns, rows, [note])))
    return blocks


def _interaction(analysis: "StudyAnalysis", pictures: Mapping[str, "Picture"]) -> list[Block]:
    from ablation.analysis import interval_points, points

    blocks = _figure("interaction", pictures)
    if not analysis.interactions and not analysis.interaction_missing:
        return []
    rows = [
        [
            f"{i.first} \u2212 {i.first_base}",
            f"{i.second} rather than {i.second_base}",
            points(i.estimate.value),
            interval_points(i.estimate.low, i.estimate.high),
            _n(i.seeds),
        ]
        for i in analysis.interactions
    ]
    columns = ["the difference", "changes with", "by (points)", f"{BOTH_INTERVAL} (points)", "n (seeds per arm)"]
    notes = ["Differences of differences of test accuracy, shown with intervals and not tested."]
    notes += [f"Left out: {text}." for text in analysis.interaction_missing]
    return [*blocks, Table("Interaction", columns, rows, notes)]


def _cost_table(analysis: "StudyAnalysis") -> Table:
    rows = [
        [
            arm.name,
            "-" if arm.trained_parameters is None else f"{arm.trained_parameters:,}",
            "-" if arm.training_seconds is None else f"{arm.training_seconds:,.1f}",
            str(arm.training_runs),
            _optional(arm.test.mean if arm.test else None),
        ]
        for arm in analysis.arms
    ]
    devices = sorted({_device(run) for arm in analysis.result.arms for run in [*arm.trials, *arm.confirmations]} - {""})
    notes = [f"Training time: mean over n runs, on {', '.join(devices) or 'an unknown device'}."]
    if len(devices) > 1:
        notes.append("Runs on different devices cannot be compared in time.")
    columns = ["arm", "trained parameters", "training time of a run (s)", "n (runs)", "test accuracy"]
    return Table("", columns, rows, notes)


def _device(run: "RunResult") -> str:
    return run.environment.get("device") or run.device


def _tuning(analysis: "StudyAnalysis", pictures: Mapping[str, "Picture"]) -> list[Block]:
    from ablation.analysis import points

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
                _optional(arm.val.mean if arm.val else None),
                "-" if arm.selection_bias is None else points(arm.selection_bias),
                str(arm.val.seeds if arm.val else 0),
                "-" if arm.late_rise is None else points(arm.late_rise),
                _states(arm.result.trials),
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
            f"{_plural(known, 'arm')}; were the trials drawn at random, the best would fall in the last third in about "
            "one arm of three. A large rise says that the budget was too small to have converged."
        )
    columns = ["arm", "chosen configuration", "tuned val. accuracy", "confirmed val. accuracy"]
    columns += ["selection bias (points)", "n (seeds)", "late rise (points)", "trials"]
    return [*_figure("tuning", pictures), Table("", columns, rows, notes), *_figure("importances", pictures)]


def _classes(analysis: "StudyAnalysis", pictures: Mapping[str, "Picture"]) -> list[Block]:
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
    return [counted_alike, table, *_figure("confusion", pictures), *_figure("confusion_arms", pictures)]


def _mean_and_deviation(score: "Summary | None") -> str:
    if score is None or score.standard_deviation is None:
        return _optional(score.mean if score else None)
    return f"{score.mean:.4f} \u00b1 {score.standard_deviation:.4f}"


AUGMENTATIONS = {
    "flip": "flip mirrors an image with probability 1/2",
    "crop_flip": "crop_flip mirrors an image with probability 1/2 and shifts it by up to 4 pixels over black, before "
    "it is resized",
}


def _samples(analysis: "StudyAnalysis", pictures: Mapping[str, "Picture"]) -> list[Block]:
    samples, result = analysis.result.samples, analysis.result
    if samples is None or "samples" not in pictures:
        return []
    classes, per_class = samples.images_RIVSSC.shape[:2]
    size, shown = samples.normalisation.image_size, samples.images_RIVSSC.shape[-2]
    known = len(result.classes)
    of_classes = "each class" if classes == known else f"each of {classes} of the {known} classes"
    caption = f"{_plural(per_class, 'training image')} of {of_classes}, resized to {size} x {size} pixels"
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


def _mistakes(analysis: "StudyAnalysis", pictures: Mapping[str, "Picture"]) -> list[Block]:
    from ablation.analysis import champion_run

    if analysis.winner is None or not analysis.mistakes or "mistakes" not in pictures:
        return []
    run = champion_run(analysis.winner)
    wrong = 0 if run.predictions is None else int((run.predictions.predicted_N != run.predictions.labels_N).sum())
    shown = len(analysis.mistakes)
    which = f"Here are the {shown} that it is surest of" if shown < wrong else "Here they are, the surest first"
    caption = (
        f"{_run_name(run)} is wrong about {wrong:,} of {analysis.result.test_images:,} test images. {which}: the true "
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


def _runs(analysis: "StudyAnalysis") -> list[Block]:
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
                _run_name(run) + (" (superseded)" if run in arm.superseded else " (best)" if run is arm.best else ""),
                run.state + (f": {run.reason}" if run.reason else ""),
                _optional(run.val_accuracy),
                _optional(run.test_accuracy),
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


def _meaning(analysis: "StudyAnalysis") -> list[Block]:
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


def _environment(analysis: "StudyAnalysis") -> list[Block]:
    result = analysis.result
    spec = result.spec
    variants: dict[str, int] = {}
    for arm in result.arms:
        for run in [*arm.trials, *arm.confirmations, *arm.superseded]:
            described = json.dumps({**run.environment, "trained on": run.device}, sort_keys=True)
            variants[described] = variants.get(described, 0) + 1
    parsed = [json.loads(text) for text in variants]
    keys = sorted({key for variant in parsed for key in variant})
    counts = [_plural(count, "run") for count in variants.values()]
    columns = ["", *counts]
    rows = [[key, *(variant.get(key, "-") for variant in parsed)] for key in keys]
    notes = [] if len(parsed) == 1 else [f"The runs were made in {len(parsed)} different environments, a column each."]
    about = [
        ["study", spec.name],
        ["study's seed", str(spec.seed)],
        ["confirmation seeds", _seeds_text(result)],
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


def _seeds_text(result: "StudyResult") -> str:
    seeds = sorted({run.spec.seed for arm in result.arms for run in arm.confirmations})
    return f"{len(seeds)} different, listed with the runs" if len(seeds) > 10 else ", ".join(map(str, seeds)) or "none"


# ---------------------------------------------------------------------------------------------- its short forms


def _short_tables(analysis: "StudyAnalysis") -> list[Table]:
    """Return the arms and the tested differences."""
    arms = dataclasses.replace(_arms_table(analysis), title="Arms")
    return [arms, *(_difference_table(factor) for factor in analysis.factors if factor.family)]


def _note(analysis: "StudyAnalysis") -> str:
    """Return the summary run's description: the answer, and the arms with links to their runs, as many as fit."""
    result = analysis.result

    def link(run: "RunResult") -> str:
        return f"[#{run.number}](#/experiments/{result.experiment_id}/runs/{run.run_id})"

    columns = ["arm", *ACCURACY_COLUMNS]
    title = f"{escape_markdown(result.spec.question)}\n\n**{escape_markdown(analysis.answer)}**"
    arms = [[escape_markdown(arm.name), *_accuracy_cells(arm)] for arm in analysis.arms]
    best = [link(arm.result.best) if arm.result.best else "-" for arm in analysis.arms]
    confirmations = [" ".join(link(run) for run in arm.result.confirmations) or "-" for arm in analysis.arms]
    whole = "The whole report is among the artifacts: report/report.html."
    names = "The runs' ids are in the report, too many for here."
    forms = [
        Table(
            title,
            [*columns, "best trial", "confirmation runs"],
            [[*row, *links] for row, *links in zip(arms, best, confirmations, strict=True)],
            [whole],
        ),
        Table(
            title, [*columns, "best trial"], [[*row, one] for row, one in zip(arms, best, strict=True)], [whole, names]
        ),
        Table(title, columns, arms, [whole, names]),
    ]
    texts = [form.markdown() for form in forms] + [f"{title}\n\n{whole}"]
    return next((text for text in texts if len(text) <= NOTE_LIMIT), whole)


# --------------------------------------------------------------------------------------------------- rendering


def _html(result: "StudyResult", sections: list[Section], pictures: Mapping[str, "Picture"]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("ablation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["numeric_columns"] = _numeric_columns
    template = environment.get_template("report.html.j2")
    svgs = {name: Markup(picture.svg) for name, picture in pictures.items()}  # drawn by us: texts in it are outlines
    kinds = [(section, [(type(block).__name__, block) for block in section.blocks]) for section in sections]
    return template.render(result=result, sections=kinds, svgs=svgs, version=__version__)


def _numeric_columns(table: Table) -> set[int]:
    """Return which columns hold numbers alone, or nothing."""
    return {
        index
        for index in range(len(table.columns))
        if any(row[index] != "-" for row in table.rows)
        and all(row[index] == "-" or row[index].lstrip("<>- ")[:1].isdigit() for row in table.rows)
    }


def _markdown(result: "StudyResult", sections: list[Section]) -> str:
    parts = [f"# {escape_markdown(result.spec.question)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_markdown(block) for block in section.blocks]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _block_markdown(block: Block) -> str:
    if isinstance(block, Folded):
        return _block_markdown(block.table)
    if isinstance(block, Table):
        title = f"**{escape_markdown(block.title)}**" if block.title else ""
        columns = [escape_markdown(column) for column in block.columns]
        rows = [[escape_markdown(cell) for cell in row] for row in block.rows]
        return Table(title, columns, rows, [escape_markdown(note) for note in block.notes]).markdown()
    if isinstance(block, Items):
        return "\n".join(f"- {escape_markdown(text)}" for text in block.texts)
    if isinstance(block, Code):
        return "\n".join(f"    {line}" for line in block.text.splitlines())
    if isinstance(block, Figure):
        return f"![{escape_markdown(block.alt)}]({block.name}.png)\n\n{escape_markdown(block.caption)}"
    text = escape_markdown(block.text)
    return f"**{text}**" if isinstance(block, Answer) else text


def escape_markdown(text: str) -> str:
    """Return a text as markdown that shows it as it is, in one line; `|` is left to `Table.markdown`."""
    text = " ".join(text.split())
    for character in "\\`*[]<>~":
        text = text.replace(character, f"\\{character}")
    # Inside a word an underscore means nothing: names such as fine_tune_all stay readable.
    return "".join(
        f"\\{c}" if c == "_" and not (text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()) else c
        for i, c in enumerate(text)
    )


if __name__ == "__main__":
    sys.exit(run_command(cli))
