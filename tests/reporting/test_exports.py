"""A study's figures for papers."""

import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablation.analysis.answer import StudyAnalysis, analyse
from ablation.analysis.pooling import analyse_pooled
from ablation.analysis.results import StudyResult
from ablation.analysis.runs import RunResult
from ablation.base.command_line import run_command
from ablation.base.text import Table
from ablation.report import cli
from ablation.reporting.answer_sections import answer_blocks, arm_table, level_tables
from ablation.reporting.content import Paragraph
from ablation.reporting.exports import escape_latex, export, methods
from ablation.storage.store import find_store
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result, store_study

CUTS = {"truncate_at": ["block3", "block5"]}
ACCURACIES = {"block3": 0.9, "block5": 0.8}


@pytest.fixture(scope="module")
def analysis() -> StudyAnalysis:
    return analyse(fake_result(CUTS, ACCURACIES))


def test_latex_has_every_arm_and_difference(analysis: StudyAnalysis) -> None:
    text = export(analysis, "latex")
    (difference,) = analysis.factors[0].family
    assert f"truncate\\_at & block3 minus block5 & {100 * difference.estimate.value:.1f} &" in text
    for arm in analysis.arms:
        assert arm.test is not None
        assert f"{arm.name} & {arm.test.mean:.4f} & {arm.test.standard_deviation:.4f} &" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = [len(re.split(r"(?<!\\)&", row)) for row in rows]
    assert columns == [5, 5, 5, 5, 5]
    assert re.findall(r"(?<!\\)%", text) == ["%"]  # the comment alone
    keys = set(re.findall(r"\\cite{(\w+)}", text))
    assert keys
    assert keys <= set(re.findall(r"@\w+{(\w+),", export(analysis, "bibtex")))


@pytest.mark.parametrize(("text", "escaped"), [("a_b & 5 %", r"a\_b \& 5 \%"), ("\\x{", r"\textbackslash{}x\{")])
def test_latex_prints_text_as_it_is(text: str, escaped: str) -> None:
    assert escape_latex(text) == escaped


def test_csv_has_a_row_per_run_and_no_formulas(analysis: StudyAnalysis) -> None:
    arm = analysis.result.arms[0]
    bad = replace(arm.trials[0], run_id="=1+1")
    result = replace(analysis.result, arms=[replace(arm, trials=[bad, *arm.trials[1:]]), *analysis.result.arms[1:]])
    rows = list(csv.DictReader(io.StringIO(export(replace(analysis, result=result), "csv"))))
    assert len(rows) == sum(len(a.trials) + len(a.confirmations) for a in result.arms)
    assert rows[0]["run_id"] == "'=1+1"
    confirmed = [row for row in rows if row["kind"] == "confirmation"]
    assert float(confirmed[0]["test_accuracy"]) == arm.confirmations[0].test_accuracy
    assert rows[0]["test_accuracy"] == ""
    assert float(rows[1]["lr"]) == arm.trials[1].spec.lr


def test_the_methods_paragraph_is_of_the_study(analysis: StudyAnalysis) -> None:
    text = methods(analysis)
    assert "2 arms (truncate_at (2 levels)) of vgg16 (weights: imagenet) on cifar10" in text
    assert "3 trials of 4 epochs" in text
    assert "given the configurations that tuning chose" in text
    pooled = analyse_pooled([fake_result(CUTS, ACCURACIES, name=f"s-{n}", seed=n) for n in range(3)])
    assert "over repeats and over test images." in methods(pooled)
    assert "satterthwaite" not in export(pooled, "bibtex")


def test_groups_own_images_and_own_weights_are_named_where_the_method_is() -> None:
    """400 test images in 20 groups: the paragraphs and the note under the arms say so, and what the images are."""
    data = {"source": "manifest", "manifest": "there/skin.csv", "groups": "patient"}
    result = fake_result(CUTS, ACCURACIES, data=data, backbone={"name": "vgg16", "weights": "here/own.pth"})

    def grouped(run: RunResult) -> RunResult:
        assert run.predictions is not None
        return replace(run, predictions=replace(run.predictions, groups_N=np.arange(400) % 20))

    arms = [replace(arm, confirmations=[grouped(run) for run in arm.confirmations]) for arm in result.arms]
    analysis = analyse(replace(result, arms=arms))
    (*_, paragraph) = answer_blocks(analysis, {})
    assert isinstance(paragraph, Paragraph)
    assert "vgg16 (weights: own.pth) on skin.csv (manifest)" in methods(analysis)
    assert "vgg16 (weights: own.pth) on skin.csv (manifest), " in paragraph.text
    assert "contain the variation over seeds and over 20 groups of test images, with" in methods(analysis)
    (note,) = [note for note in arm_table(analysis).notes if "covers" in note]
    assert note.endswith("covers the variation over seeds and over 20 groups of test images.")


def test_the_command_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_study(find_store(str(tmp_path)), fake_result(CUTS, ACCURACIES, images=100))
    monkeypatch.setattr(sys, "argv", ["report", "fake", "--store", str(tmp_path), "--format", "json"])
    assert run_command(cli) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "fake"
    assert not (tmp_path / "reports").exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output", str(tmp_path / "here")])
    assert run_command(cli) == 2
    assert "--format prints to standard output" in capsys.readouterr().err


def planned(result: StudyResult, seeds: int, trials: int = 3) -> StudyResult:
    """Return a study as another command would plan it, with the runs that it has."""
    confirm = result.spec.confirm.model_copy(update={"seeds": seeds})
    return replace(result, spec=result.spec.model_copy(update={"confirm": confirm, "trials_per_arm": trials}))


@pytest.mark.parametrize("seeds", [0, 2, 5])
def test_the_methods_are_those_of_the_runs_that_there_are(seeds: int) -> None:
    """Of three seeds, and of two in one arm, whatever the command plans: fewer, or more that have yet to run."""
    result = fake_result(CUTS, ACCURACIES)
    first, second = result.arms
    short = replace(first, trials=first.trials[1:])
    short = replace(short, confirmations=[
        replace(run, spec=run.spec.model_copy(update={"confirms": short.chosen[0].number}))
        for run in short.confirmations[:2]
    ])  # fmt: skip
    analysis = analyse(planned(replace(result, arms=[short, second]), seeds))
    text, (*_, paragraph) = methods(analysis), answer_blocks(analysis, {})
    assert isinstance(paragraph, Paragraph)
    assert "An arm had 2 to 3 trials of 4 epochs" in text
    assert "retrained with fresh seeds (2 to 3 runs per arm)" in text
    assert text.startswith("So far, we compared 2 arms")
    assert paragraph.text.startswith("Method so far: vgg16")
    assert "2 arms, with 2 to 3 trials of 4 epochs each" in paragraph.text
    assert "retrained with 2 to 3 fresh seeds" in paragraph.text
    whole = analyse(planned(result, seeds))
    assert methods(whole).startswith("So far, we" if seeds == 5 else "We compared")
    assert "Every arm had the same tuning budget, 3 trials of 4 epochs" in methods(whole)
    assert "(3 runs per arm)" in methods(whole)


LR = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}


@pytest.mark.parametrize(
    ("changes", "searched", "early"),
    [
        ({"search": LR}, "Every arm had the same tuning budget, 3 trials of 4 epochs, in which Optuna searched lr, "
         "with a quasi-random sampler. The configuration", ""),
        ({"search": LR | {"sampler": "tpe", "pruner": "median"}},
         "Every arm had the same number of trials, 3 trials of at most 4 epochs, in which Optuna searched lr, with a "
         "TPE sampler. The median pruner", "The median pruner could end poor trials early, so that"),
        ({"search": LR, "fixed": {"patience": 2}},
         "Every arm had the same number of trials, 3 trials of at most 4 epochs, in which Optuna searched lr",
         "Trainings without progress ended early (patience), so that arms with equally many trials may differ in"),
    ],
)  # fmt: skip
def test_the_methods_name_the_sampler_and_what_makes_budgets_unequal(
    changes: dict[str, Any], searched: str, early: str
) -> None:
    analysis = analyse(fake_result(CUTS, ACCURACIES, **changes))
    (*_, paragraph) = answer_blocks(analysis, {})
    assert isinstance(paragraph, Paragraph)
    assert searched in methods(analysis)
    assert early in methods(analysis)
    assert early in paragraph.text
    assert ("equally many" in paragraph.text) == bool(early)
    assert " sampler; the best configuration" in paragraph.text


@pytest.mark.parametrize(
    ("trials", "sampler"),
    [
        (7, "a quasi-random sampler"),  # 21 together
        (21, "a TPE sampler"),  # whether it was planned with fewer at first, nobody knows
    ],
)
def test_pooled_studies_name_the_sampler_that_each_of_them_had(trials: int, sampler: str) -> None:
    studies = [
        fake_result(CUTS, ACCURACIES, images=50, name=f"s-{n}", seed=n, trials_per_arm=trials, search=LR)
        for n in range(3)
    ]
    assert f"Optuna searched lr, with {sampler}. " in methods(analyse_pooled(studies))


def test_the_methods_tell_of_no_confirmation_that_is_superseded() -> None:
    result = fake_result(CUTS, ACCURACIES)
    arms = [replace(arm, confirmations=[], superseded=arm.confirmations) for arm in result.arms]
    analysis = analyse(replace(result, arms=arms))
    (*_, paragraph) = answer_blocks(analysis, {})
    assert "No confirmation run of the configurations that are the best now can be used." in methods(analysis)
    assert isinstance(paragraph, Paragraph)
    assert "no confirmation run of the configurations that are the best now can be used." in paragraph.text


def test_the_methods_count_deleted_trials_and_arms_without_a_run() -> None:
    result = fake_result(CUTS, ACCURACIES)
    first, second = result.arms
    deleted = replace(first, trials=first.trials[1:], deleted=first.trials[:1])
    failed = replace(second, trials=[replace(run, state="failed") for run in second.trials], confirmations=[])
    text = methods(analyse(replace(result, arms=[deleted, failed])))
    assert "Every arm had the same tuning budget, 3 trials" in text
    assert "(0 to 3 runs per arm)" in text


def test_a_level_without_a_mean_leaves_out_nothing() -> None:
    """Of three arms that have block3 or block5, one is confirmed; none of block4 is."""
    cuts = {**TWO_BY_TWO, "truncate_at": ["block3", "block4", "block5"]}
    accuracies = FOUR | {"block4,feature_extraction": 0.5, "block4,fine_tune_all": 0.5}
    lost = ("block4,feature_extraction", "block4,fine_tune_all", "block5,fine_tune_all")
    cuts_table, strategies = level_tables(analyse(fake_result(cuts, accuracies, failed_arms=lost)))
    assert isinstance(cuts_table, Table)
    assert [note.split(" leaves")[0] for note in cuts_table.notes] == ["The mean of block5"]
    assert isinstance(strategies, Table)
    assert len(strategies.notes) == 2


def test_effects_at_levels_are_a_family_of_their_own() -> None:
    analysis = analyse(fake_result(TWO_BY_TWO, FOUR))
    text = export(analysis, "latex")
    families = re.findall(r"caption\{Differences of test accuracy(.*) in percentage.*\((\d+) tests? together\)", text)
    assert families == [("", "3"), (" at levels of another factor", "4")]  # an interaction is tested with averages
    average, effects = text.split(r"\label{tab:differences}")[1].split(r"\label{tab:effects}")
    assert (average.count(" minus "), effects.count(" minus ")) == (2, 4)
    assert "(block5)" in effects
    assert "differences at each level of the other factor (4 tests) were adjusted together in the same way" in text
    assert "at each level" not in methods(analyse(fake_result(CUTS, ACCURACIES)))


@pytest.mark.parametrize("is_begun", [False, True])
def test_the_methods_paragraph_tells_of_no_runs_that_there_are_not(is_begun: bool) -> None:
    result = fake_result(CUTS, ACCURACIES, seeds=0, confirm={"seeds": 3 if is_begun else 0})
    analysis = analyse(result)
    text = methods(analysis)
    assert "Nothing was retrained, and the test images were not used." in text
    assert "with fresh seeds" not in text
    assert "Standard errors" not in text
    assert "satterthwaite" not in export(analysis, "bibtex")


def test_csv_of_listed_arms_names_no_column_twice() -> None:
    listed = [{"name": "small", "optimizer": "sgd"}, {"name": "big", "optimizer": "adamw"}]
    text = export(analyse(fake_result({}, {"small": 0.8, "big": 0.9}, arms=listed)), "csv")
    heading, first, *_ = csv.reader(io.StringIO(text))
    assert len(set(heading)) == len(heading) == len(first)
    assert first[heading.index("arm")] == "small"
    assert "arm" in heading
