"""A study's figures for papers: LaTeX tables, a table of runs, JSON, the sources of the methods."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.arm_summaries import ArmSummary, confirmations_of_arms, trials_of_arms
from ablation.analysis.comparison import Difference
from ablation.analysis.looks import level_of, look_sentences
from ablation.analysis.tuning import searched_params
from ablation.analysis.wording import (
    format_seeds,
    interval_points,
    join,
    p_cell,
    percent,
    points,
    shown_question,
    unit_words,
)
from ablation.base.text import Table, defused, plural
from ablation.reporting.content import Folded, interval_text, study_command
from ablation.reporting.method_sections import (
    early_ends,
    early_ends_sentence,
    independent_units,
    most_epochs,
    network_and_images,
    sampler_words,
    use_of_results,
)
from ablation.spec.objective import ACCURACY

# Key -> entry: the sources of the methods that a report uses.
SOURCES = {
    "hothorn2008": """@article{hothorn2008,
  author = {Hothorn, Torsten and Bretz, Frank and Westfall, Peter},
  title = {Simultaneous Inference in General Parametric Models},
  journal = {Biometrical Journal},
  volume = {50},
  number = {3},
  pages = {346--363},
  year = {2008},
  doi = {10.1002/bimj.200810425}
}""",
    "satterthwaite1946": """@article{satterthwaite1946,
  author = {Satterthwaite, F. E.},
  title = {An Approximate Distribution of Estimates of Variance Components},
  journal = {Biometrics Bulletin},
  volume = {2},
  number = {6},
  pages = {110--114},
  year = {1946},
  doi = {10.2307/3002019}
}""",
    "godbole2023": """@misc{godbole2023,
  author = {Godbole, Varun and Dahl, George E. and Gilmer, Justin and Shallue, Christopher J. and Nado, Zachary},
  title = {Deep Learning Tuning Playbook},
  year = {2023},
  url = {https://github.com/google-research/tuning_playbook}
}""",
    "akiba2019": """@inproceedings{akiba2019,
  author = {Akiba, Takuya and Sano, Shotaro and Yanase, Toshihiko and Ohta, Takeru and Koyama, Masanori},
  title = {Optuna: A Next-generation Hyperparameter Optimization Framework},
  booktitle = {Proceedings of the 25th ACM SIGKDD International Conference on Knowledge Discovery and Data Mining},
  pages = {2623--2631},
  year = {2019},
  doi = {10.1145/3292500.3330701}
}""",
}


def export(analysis: StudyAnalysis, form: str) -> str:
    """Return the figures of a study in one of `FORMATS`."""
    return FORMATS[form](analysis)


def latex(analysis: StudyAnalysis) -> str:
    """Return a paragraph on the method, and tables of arms and differences for the package booktabs."""
    unit, goal = analysis.compared.estimator.unit, analysis.result.spec.goal
    better = "" if goal.higher_is_better else " (lower is better)"
    arms = [
        [
            arm.name,
            f"{arm.test.mean:.4f}" if arm.test else "--",
            "--" if arm.test is None or arm.test.standard_deviation is None else f"{arm.test.standard_deviation:.4f}",
            interval_text(arm.estimate),
            str(arm.test.seeds if arm.test else 0),
        ]
        for arm in analysis.arms
    ]
    tables = [
        _latex_table(
            "arms",
            f"Test {goal.label} of each arm{better}: mean, standard deviation and 95 % interval over $n$ {unit}s.",
            {"Arm": "l", f"Test {goal.label}": "r", "SD": "r", "95 % interval": "r", "$n$": "r"},
            arms,
        )
    ]
    in_unit = "percentage points" if goal.unit == "points" else unit_words(goal)
    columns = {"Factor": "l", "Difference": "l", goal.unit.capitalize(): "r", "Simultaneous interval": "r", "$p$": "r"}
    averages = [(factor.factor, difference) for factor in analysis.factors for difference in factor.family]
    at_levels = [(factor.factor, difference) for factor in analysis.factors for difference in factor.at_levels]
    for label, where, tests, differences in (
        ("differences", "", analysis.compared.tested_together, averages),
        ("effects", " at levels of another factor", len(at_levels), at_levels),
    ):
        if differences:
            caption = (
                f"Differences of test {goal.label}{where} in {in_unit}, with simultaneous 95 % intervals and corrected "
                f"p-values ({plural(tests, 'test')} together)."
            )
            rows = [_difference_cells(factor, difference) for factor, difference in differences]
            tables.append(_latex_table(label, caption, columns, rows))
    paragraph = escape_latex(methods(analysis))
    for name, key in CITED.items():
        paragraph = paragraph.replace(name, f"{name}~\\cite{{{key}}}")
    paragraph = paragraph.replace("|t|", "$|t|$")  # many fonts print a bar as a dash
    return "\n\n".join([f"% \\usepackage{{booktabs}}\n{paragraph}", *tables]) + "\n"


def _difference_cells(factor: str, difference: Difference) -> list[str]:
    estimate, goal = difference.estimate, difference.objective
    return [
        factor,
        f"{difference.first} minus {difference.second}" + (f" ({difference.at})" if difference.at else ""),
        points(estimate.value, goal),
        interval_points(estimate.low, estimate.high, goal),
        p_cell(estimate.p, none="--"),
    ]


# A name in the methods paragraph -> the source that LaTeX cites there.
CITED = {"Optuna": "akiba2019", "max-|t|": "hothorn2008", "Satterthwaite's": "satterthwaite1946"}


def methods(analysis: StudyAnalysis) -> str:
    """Return a paragraph on the method of a study, written from the runs that there are."""
    result = analysis.result
    spec, unit = result.spec, analysis.compared.estimator.unit
    factors = ", ".join(f"{name} ({len(levels)} levels)" for name, levels in spec.compared_levels().items())
    searched = ", ".join(spec.search.entries())
    versions = sorted({run.environment.get("torch", "") for arm in result.arms for run in arm.trials} - {""})
    trials, runs = trials_of_arms(result), confirmations_of_arms(result)
    budget = f"{format_seeds(trials, 'trial')} of {most_epochs(spec)}"
    same = "the same number of trials" if early_ends(spec) else "the same tuning budget"
    we = "So far, we" if result.missing_trials or result.missing_confirmations else "We"
    arms = f"{plural(len(result.arms), 'arm')}{f' ({factors})' if factors else ''}"
    sentences = [
        f"{we} compared {arms} of {network_and_images(spec)} ({result.train_images:,} training, "
        f"{result.val_images:,} validation and {result.test_images:,} test images of {len(result.classes)} classes).",
        (f"Every arm had {same}, {budget}, " if trials[0] == trials[1] else f"An arm had {budget}, ")
        + (f"in which Optuna searched {searched}{sampler_words(result)}." if searched else "with nothing to search.")
        + early_ends_sentence(spec),
        *(
            [
                f"Each arm's trials were divided among {spec.confirm.repeats} repeats of the tuning, each with its own "
                "split and tuning points, the same for all arms."
            ]
            if spec.confirm.repeats > 1
            else []
        ),
    ]
    if not result.test_evaluations:
        sentences.append("Nothing was retrained, and the test images were not used.")
    elif not runs[1]:
        sentences.append("No confirmation run of the configurations that are the best now can be used.")
    else:
        sentences.append(
            f"The configuration with the {spec.goal.best_word} validation {spec.goal.label} was retrained with fresh "
            f"seeds ({format_seeds(runs, 'run')} per arm{' and repeat' if spec.confirm.repeats > 1 else ''}), and each "
            f"of these runs evaluated the test images once, at its end; {use_of_results(result)}."
        )
        sentences.append(_errors(unit, independent_units(result)))
    if analysis.compared.contrasts:
        sentences.append(
            "Intervals and p-values of differences and interactions "
            f"({plural(analysis.compared.tested_together, 'test')}) were adjusted together by the single-step max-|t| "
            "method, by simulation."
        )
    if at_levels := sum(len(factor.at_levels) for factor in analysis.factors):
        sentences.append(
            "Where an interaction was shown, differences at each level of the other factor "
            f"({plural(at_levels, 'test')}) were adjusted together in the same way."
        )
    if spec.confirm.looks and result.look is not None:
        sentences.append(
            f"Looks were planned at {join([str(seeds) for seeds in spec.confirm.looks])} seeds, with 5 % spent over "
            f"them (O'Brien-Fleming spending function); this is the look at {spec.confirm.looks[result.look]} seeds, "
            f"tested at {percent(level_of(result))}."
        )
    elif look_sentences(result):
        sentences.append(f"It was the {look_sentences(result)[0][0].lower()}{look_sentences(result)[0][1:]}")
    if versions:
        sentences.append(f"Networks were trained with PyTorch {' and '.join(versions)}.")
    return " ".join(sentences)


def _errors(unit: str, images: str) -> str:
    """Return what standard errors contain, as a sentence of the paragraph on the method."""
    if unit == "seed":
        return (
            f"Standard errors contain the variation over seeds and over {images}, with Satterthwaite's degrees of "
            "freedom, given the configurations that tuning chose."
        )
    return f"Arms were compared paired by repeat; standard errors contain the variation over repeats and over {images}."


def paper_block(analysis: StudyAnalysis) -> Folded:
    """Return the folded paragraph on the method, and the command that prints tables."""
    command = study_command(analysis.result, "ablation.report")
    note = f"{command} --format latex prints it with tables; csv, json and bibtex print the rest."
    return Folded(Table("A paragraph on the method", ["method"], [[methods(analysis)]], [note]))


def runs_csv(analysis: StudyAnalysis) -> str:
    """Return a table of all runs, a row per run; cells that a spreadsheet would compute begin with an apostrophe."""
    result = analysis.result
    runs = [run for arm in result.arms for run in arm.trials]
    parameters = list(dict.fromkeys(name for run in runs for name in searched_params(result.spec, run)))
    factors = [] if result.spec.arms else list(result.spec.compared_levels())  # else the names of the arms again
    repeat_column = ["repeat"] if result.spec.confirm.repeats > 1 else []
    metrics = dict.fromkeys(
        ["val_accuracy", "test_accuracy", result.spec.goal.val_metric, result.spec.goal.test_metric]
    )
    columns = ["study", "arm", *factors, "kind", "number", "state", "seed", *metrics]
    columns += ["best_epoch", "trained_parameters", "training_seconds", "run_id", *repeat_column, *parameters]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([defused(column) for column in columns])
    for arm in result.arms:
        for run in arm.runs:
            kind = "confirmation" if run.is_confirmation else "trial"
            kind = f"superseded {kind}" if run in arm.superseded else kind
            values = searched_params(result.spec, run)
            levels = [arm.arm.compared_levels.get(factor) for factor in factors]
            cells = [run.spec.study, arm.arm.name, *levels, kind, run.number, run.state, run.spec.seed]
            cells += [*(getattr(run, name) for name in metrics), run.best_epoch, run.trained_parameters]
            repeat = [run.spec.repeat] if repeat_column else []
            cells += [run.training_seconds, run.run_id, *repeat, *(values.get(name) for name in parameters)]
            writer.writerow([defused(cell) for cell in cells])
    return file.getvalue()


def figures_json(analysis: StudyAnalysis) -> str:
    """Return all figures of the answer as JSON; metrics and differences are fractions, of a loss nats."""
    result, goal = analysis.result, analysis.result.spec.goal
    content = {
        "study": result.spec.name,
        "question": shown_question(result.spec.question),
        **({} if goal == ACCURACY else {"objective": goal.name}),
        "unit": analysis.compared.estimator.unit,
        "verdict": analysis.verdict,
        "evidence": analysis.evidence,
        "methods": methods(analysis),
        "test_images": result.test_images,
        "tested_together": analysis.compared.tested_together,
        "arms": [
            {
                "arm": arm.name,
                "levels": arm.result.arm.compared_levels,
                goal.name: None if arm.estimate is None else dataclasses.asdict(arm.estimate),
                "test": None if arm.test is None else dataclasses.asdict(arm.test),
                "validation": None if arm.val is None else dataclasses.asdict(arm.val),
                "chance_to_be_best": analysis.chances_of_best.get(arm.name),
                "chosen": _chosen(analysis, arm),
            }
            for arm in analysis.arms
        ],
        "factors": [
            {
                "factor": factor.factor,
                "levels": [dataclasses.asdict(level) for level in factor.levels],
                "differences": [_difference(difference) for difference in factor.family],
                "at_levels": {other: [_difference(d) for d in each] for other, each in factor.by_level.items()},
            }
            for factor in analysis.factors
        ],
        "interactions": [
            dataclasses.asdict(interaction) | {"shown": interaction.is_shown} for interaction in analysis.interactions
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _chosen(analysis: StudyAnalysis, arm: ArmSummary) -> Any:
    """Return the chosen configuration of an arm, or None; with repeats, a list with that of each."""
    chosen = [searched_params(analysis.result.spec, run) for run in arm.result.chosen]
    return chosen if analysis.is_repeated else next(iter(chosen), None)


def bibtex(analysis: StudyAnalysis) -> str:
    """Return the sources of the methods that the study's answer rests on."""
    keys = ["godbole2023", "akiba2019"]
    if analysis.compared.contrasts:
        keys.append("hothorn2008")
    if analysis.compared.estimator.unit == "seed" and analysis.result.test_evaluations:
        keys.append("satterthwaite1946")
    return "\n\n".join(SOURCES[key] for key in keys) + "\n"


FORMATS: Mapping[str, Callable[[StudyAnalysis], str]] = {
    "latex": latex,
    "csv": runs_csv,
    "json": figures_json,
    "bibtex": bibtex,
}

LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return re.sub(r"[\\&%$#_{}~^<>]", lambda match: LATEX_CHARACTERS[match.group()], text)


def _latex_table(label: str, caption: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for booktabs; caption and columns (heading -> alignment) are LaTeX already but for %."""
    lines = [" & ".join(escape_latex(cell) for cell in row) + r" \\" for row in rows]
    heading = " & ".join(columns) + r" \\"
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{caption}}}".replace("%", r"\%"),
            f"  \\label{{tab:{label}}}",
            f"  \\begin{{tabular}}{{{''.join(columns.values())}}}",
            r"    \toprule",
            f"    {heading}".replace("%", r"\%"),
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _difference(difference: Difference) -> dict[str, Any]:
    values = {name: value for name, value in dataclasses.asdict(difference).items() if name != "objective"}
    return values | {"shown": difference.is_shown}


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
