"""The report as a page, as text, and in the terminal."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablation.analysis import results as study_results
from ablation.analysis.answer import analyse
from ablation.analysis.pooling import analyse_study
from ablation.analysis.predictions import Predictions
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.statistics import Estimate
from ablation.analysis.wording import interval_points, points
from ablation.base.command_line import run_command
from ablation.base.errors import InputError
from ablation.base.text import escape_markdown, visible
from ablation.report import cli
from ablation.reporting import report
from ablation.reporting.charts import Picture, recoloured
from ablation.reporting.content import Figure, Items
from ablation.reporting.figures import draw_figures
from ablation.reporting.render import interval_plot
from ablation.reporting.report import Report, _importances, build_report, show_report, write_report
from ablation.reporting.run_sections import tuning_blocks
from ablation.spec.arms import arms
from ablation.storage.store import find_store
from ablation.tracking.client import PREDICTIONS_FILE
from ablation.tracking.reading import artifact_path
from tests.fake_results import (
    ENVIRONMENT,
    FOUR,
    TWO_BY_TWO,
    fake_arm,
    fake_predictions,
    fake_result,
    fake_samples,
    fake_spec,
    fake_study,
    store_study,
)
from tests.odd_names import NAMES, QUESTION, SHOWN_NAMES
from tests.other_user import as_nobody, folder_for_all, needs_root
from tests.studies import signal_handlers_kept

CUTS = {"truncate_at": ["block3", "block5"]}
ACCURACIES = {"block3": 0.9, "block5": 0.8}


@pytest.fixture(scope="module")
def study_report() -> Report:
    return build_report(analyse_study(fake_result(TWO_BY_TWO, FOUR, name="cuts")))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and have tests of their own; those of `study_report` are real."""
    drawn = {name: Picture(name, "<svg></svg>", "<svg></svg>") for name in ("arms", "curves")}
    drawn |= {name: Picture(name, png=b"png") for name in ("samples", "mistakes")}
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: drawn)


class Page(HTMLParser):
    """Reads a page: its elements with attributes, its visible text, and whether every element is closed in order."""

    VOID = ("meta", "br", "img", "hr", "link", "input")

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script", "svg"} & {*self.open}:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def headings_of(html: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", html.partition("<script")[0])


def test_the_page_is_well_formed_and_in_order(study_report: Report) -> None:
    page = Page(study_report.html)
    headings = headings_of(study_report.html)
    assert headings == [
        "Answer", "Arms", "Effect of each factor", "Differences", "Interactions", "What more would find",
        "How each arm learned", "What each arm costs", "Tuning", "Data as the network sees it", "Classes",
        "Most confident mistakes", "Suspected label errors", "Runs", "What the intervals mean", "For a paper",
        "Environment",
    ]  # fmt: skip
    anchors = [str(a["href"]).removeprefix("#") for a in page.all("a")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(anchors) <= set(ids)
    assert len(anchors[: len(headings)]) == len(headings)
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    charts = [attributes for _, attributes in page.elements if "data-chart" in attributes]
    drawn = sorted(f"{chart['data-chart']}.svg" for chart in charts)
    assert drawn == sorted(name for name in study_report.figures if name.endswith(".svg"))
    assert all(chart["role"] == "img" and len(str(chart["aria-label"])) > 40 for chart in charts)
    assert all(line in page.text for line in study_report.analysis.verdict)


def test_the_page_needs_nothing_from_outside(study_report: Report) -> None:
    page = Page(study_report.html)
    assert page.all("link") == page.all("iframe") == []
    assert all("src" not in script for script in page.all("script"))
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:image/png;base64,"))
    assert "@import" not in study_report.html
    assert len(study_report.html) < 4e6


def test_the_page_includes_the_plots(study_report: Report) -> None:
    """In the order of the text, each with its text alternative; the colours alone are variables of the page."""
    shown = re.findall(r"!\[(.+?)\]\((.+?)\.svg\)", study_report.markdown)
    charts = [a for _, a in Page(study_report.html).elements if "data-chart" in a]
    assert [(escape_markdown(str(chart["aria-label"])), chart["data-chart"]) for chart in charts] == shown
    for _, name in shown:
        assert recoloured(study_report.figures[f"{name}.svg"].decode()) in study_report.html


def test_page_and_text_say_the_same(study_report: Report) -> None:
    text = " ".join(Page(study_report.html).text.split())
    for sentence in (
        *study_report.analysis.verdict,
        *study_report.analysis.evidence,
        *study_report.warnings,
        "The test split (400 images) was evaluated 12 times in this study, once by each confirmation run at its end",
        "All intervals are conditional on the configurations that tuning chose.",
        "python -m ablation.study cuts",
        "d" * 64,
        "w" * 64,
        "0123abc",
    ):
        assert sentence in text
        assert escape_markdown(sentence) in study_report.markdown
    assert re.findall(r"^## (.*)$", study_report.markdown, re.MULTILINE) == headings_of(study_report.html)


def test_the_text_shows_the_figures_beside_it(study_report: Report) -> None:
    shown = re.findall(r"!\[.+?\]\((.+?)\)", study_report.markdown)
    assert sorted(shown) == sorted(study_report.figures)


def cells(markdown: str, start: str) -> list[str]:
    """Return the cells of the first row of a table that starts with these cells."""
    (line, *_) = [line for line in markdown.splitlines() if line.startswith(start)]
    return [cell.strip().replace("\\-", "-") for cell in line.strip("|").split(" | ")]


def test_published_figures_stand_beside_ours() -> None:
    published = [{"arm": {"truncate_at": "block3"}, "accuracy": 0.9223, "source": "Somebody (2020)"}]
    study_report = build_report(analyse_study(fake_result(CUTS, ACCURACIES, published=published)))
    arm = study_report.analysis.result.arms[0]
    trained = [run.curves["train_accuracy"][(run.best_epoch or 0) - 1] for run in arm.confirmations]
    row = ["block3", "training accuracy", "0.9223", f"{np.mean(trained):.4f}", "-", "3"]
    assert cells(study_report.markdown, "| block3 | training accuracy |") == row
    assert "published.accuracy and published.loss are training metrics" in study_report.markdown
    assert "| block5 | training accuracy |" not in study_report.markdown
    assert "measured on other images" in study_report.markdown
    assert "block3: Somebody (2020)" in study_report.markdown
    assert study_report.short[1].rows == [row]


def test_published_validation_metrics_stand_beside_validation_and_test() -> None:
    published = [{"arm": {"truncate_at": "block3"}, "val_loss": 0.5, "val_accuracy": 0.9}]
    result = fake_result(CUTS, ACCURACIES, published=published)
    arm = result.arms[0]
    (table,) = [table for table in build_report(analyse_study(result)).short if table.title == "Published results"]
    assert [row[1:3] for row in table.rows] == [["val. loss", "0.5000"], ["val. accuracy", "0.9000"]]
    assert not any("training metrics" in note for note in table.notes)
    val = np.mean([run.val_accuracy for run in arm.confirmations])
    assert table.rows[1][3:] == [f"{val:.4f}", f"{arm.test_accuracies_S.mean():.4f}", "3"]
    assert table.rows[0][4] == f"{np.mean([run.test_loss for run in arm.confirmed]):.4f}"


# ------------------------------------------------------------------------------------------------ [[arms]], [[known]]

LISTED = [
    {"name": "frozen", "truncate_at": "block5"},
    {"truncate_at": "block3", "strategy": "fine_tune_all"},
    {"truncate_at": "block5", "strategy": "fine_tune_all"},
]
OF_LISTED = {"frozen": 0.8, "block3,fine_tune_all": 0.9, "block5,fine_tune_all": 0.85}


def test_listed_arms_are_compared_one_by_one() -> None:
    listed_report = build_report(analyse_study(fake_result({}, OF_LISTED, arms=LISTED)))
    text = listed_report.markdown
    assert "Marginal means" not in text
    assert "marginal mean" not in text
    assert [cells(text, f"| {name} | 0.")[5] for name in OF_LISTED] == ["3"] * 3  # seeds
    assert "- frozen: truncate_at block5." in text
    assert "all pairs of arms" in text
    assert "frozen and block3,fine_tune_all differ in several parameters at once: truncate_at, strategy." in text
    assert "frozen and block5,fine_tune_all differ in several" not in text
    assert [table.title for table in listed_report.short] == ["Arms", "Differences of mean test accuracy"]


def report_of_arms(arms: list[dict[str, Any]], **options: Any) -> Report:
    """Return the report of a study of arms whose names are letters."""
    named = [{"name": letter, **arm} for letter, arm in zip("abcdefghijklmnop", arms, strict=False)]
    return build_report(
        analyse_study(fake_result({}, {arm["name"]: 0.8 for arm in named}, arms=named, search={}, **options))
    )


def test_the_terminal_lists_no_differences_that_are_not_tested() -> None:
    arms = [{"lr": 0.01 * number, "head_width": number} for number in range(1, 6)]
    untested = report_of_arms(arms, seeds=2, images=50)
    assert [table.title for table in untested.short] == ["Arms"]
    assert cells(untested.markdown, "| a | b |")[3:] == ["-", "-", "-", "2"]  # the report has them
    assert len(report_of_arms(arms, images=50).short[1].rows) == 10


def test_pairs_that_differ_in_the_same_parameters_are_one_note() -> None:
    """Six pairs of four arms: three arms set two parameters, the last another one, too."""
    arms: list[dict[str, Any]] = [{"lr": 0.01 * number, "head_width": number} for number in range(1, 5)]
    arms[3]["label_smoothing"] = 0.1
    notes = report_of_arms(arms, images=50).short[1].notes
    assert [note for note in notes if "at once" in note] == [
        "a and b; a and c; b and c differ in several parameters at once: head_width, lr.",
        "a and d; b and d; c and d differ in several parameters at once: head_width, lr, label_smoothing.",
    ]
    arms = [{"lr": 0.01 * number, "head_width": number} for number in range(1, 6)]
    (note,) = (note for note in report_of_arms(arms, images=50).short[1].notes if "at once" in note)
    assert note == "10 pairs of arms differ in several parameters at once: head_width, lr."


def test_notes_on_pairs_do_not_grow_with_their_sets_of_parameters() -> None:
    """Ten pairs of five arms, each of which sets another parameter: ten sets of two."""
    single = [("head_width", 8), ("lr", 0.1), ("label_smoothing", 0.1), ("weight_decay", 0.1), ("ema", 0.5)]
    notes = report_of_arms([dict([pair]) for pair in single], images=50).short[1].notes
    assert sum("at once" in note for note in notes) == 8
    assert "In other sets of parameters: 2 more pairs of arms." in notes


def test_known_configurations_stand_beside_what_the_search_drew() -> None:
    known = [{"name": "published", "lr": 0.01}]
    result = fake_result(CUTS, ACCURACIES, known=known)
    text = build_report(analyse_study(result)).markdown
    for arm in result.arms:
        first, *drawn = arm.trials
        assert first.spec.known == "published"
        best = max(run.val_accuracy or 0.0 for run in drawn)
        row = [arm.arm.name, "published", f"{first.val_accuracy:.4f}", f"{best:.4f}"]
        row += [points(best - (first.val_accuracy or 0.0)), "yes" if arm.best is first else "no"]
        assert cells(text, f"| {arm.arm.name} | published |") == row
    assert "- published: lr 0.01." in text
    assert "block3 trial #0 (known: published)" in text
    assert "Known configurations" not in build_report(analyse_study(fake_result(CUTS, ACCURACIES))).markdown


def test_the_note_links_the_runs(study_report: Report) -> None:
    arm = study_report.analysis.result.arms[1]
    assert arm.best is not None
    title = escape_markdown("block3 / fine-tune all")
    (line,) = [line for line in study_report.note.splitlines() if line.startswith(f"- {title}: ")]
    query = "?workflowType=machine_learning"  # without it, the UI opens in its GenAI mode
    links = [f"[best trial](#/experiments/7/runs/{arm.best.run_id}{query})"]
    links += [f"[seed {r.number + 1}](#/experiments/7/runs/{r.run_id}{query})" for r in arm.confirmations]
    assert line.partition("; ")[2] == ", ".join(links)
    accuracies_S = arm.test_accuracies_S
    assert f"test accuracy {accuracies_S.mean():.4f} ± {accuracies_S.std(ddof=1):.4f} (n = {len(accuracies_S)})" in line
    assert escape_markdown(study_report.analysis.answer) in study_report.note


def test_a_note_that_would_be_too_long_for_mlflow_has_fewer_links() -> None:
    names = [f"block{n}" for n in range(1, 6)]
    result = fake_result({"truncate_at": names}, dict.fromkeys(names, 0.9), seeds=40, images=50)
    note = build_report(analyse_study(result)).note
    assert len(note) <= 8000
    assert "confirmation-0" not in note
    assert "block1-trial-" in note


def test_what_users_write_is_shown_as_it_is() -> None:
    question = 'Is <script>alert("x")</script> | *better* & [safe](http://x) than `this`?'
    result = fake_result(CUTS, ACCURACIES, question=question)
    result = dataclasses.replace(result, classes=["<b>cat</b>", "a|b", "c & d", "_e_"], command="x <i> --set a='b|c'")
    study_report = build_report(analyse_study(result))
    page = Page(study_report.html)
    assert page.all("b") == page.all("i") == []
    assert 'alert("x")' not in study_report.html
    for text in (question, *result.classes, result.command):
        assert text in page.text
    assert "<" not in study_report.markdown.partition("## Environment")[0]
    assert "# Is &lt;script\\>" in study_report.markdown
    assert "| &lt;b\\>cat&lt;/b\\> | a\\|b | c & d | \\_e\\_ |" in study_report.markdown
    assert "\\[safe\\](http://x)" in study_report.note


def test_odd_names_break_nothing_and_hidden_signs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """In the page, the text, the note in MLflow's UI, and the terminal."""
    published = [{"arm": {"truncate_at": "block3"}, "source": f"{QUESTION} {NAMES[0]}", "accuracy": 0.5}]
    result = fake_result(CUTS, ACCURACIES, classes=len(NAMES), question=QUESTION, published=published)
    run = dataclasses.replace(result.arms[0].trials[1], state="failed", reason=NAMES[0], val_accuracy=None)
    arm = dataclasses.replace(result.arms[0], trials=[result.arms[0].trials[0], run, *result.arms[0].trials[2:]])
    result = dataclasses.replace(
        result, arms=[arm, result.arms[1]], classes=NAMES, command=f"x {NAMES[0]}", data_reading=SHOWN_NAMES[0]
    )
    study_report = build_report(analyse_study(result))
    page = Page(study_report.html)
    assert page.all("b") == []
    assert [image["src"] for image in page.all("img") if not str(image["src"]).startswith("data:")] == []
    for text in (visible(QUESTION), *map(visible, NAMES), f"x {SHOWN_NAMES[0]}"):
        assert text in page.text
    show_report(study_report)
    shown = capsys.readouterr().out
    assert visible(QUESTION) in shown
    for text in (study_report.html, study_report.markdown, study_report.note, shown):
        assert visible(text) == text
    for text in (study_report.markdown.partition("## Environment")[0], study_report.note):
        assert "<" not in text
        assert re.findall(r"(?<!\\)!\[|(?<!\\)\]\((?!#/)", re.sub(r"!\[.*\]\(\w+\.\w+\)", "", text)) == []
        assert re.findall(r"(?<!\\)\$|(?<!\\)`", text.partition("## Runs")[0]) == []
    tables = re.findall(r"(?:^\|.*\n)+", study_report.markdown, re.MULTILINE)
    assert len(tables) > 5
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_the_same_result_gives_the_same_bytes() -> None:
    first, second = (build_report(analyse_study(fake_result(CUTS, ACCURACIES))) for _ in range(2))
    assert (first.html, first.markdown, first.figures, first.note) == (
        second.html, second.markdown, second.figures, second.note,
    )  # fmt: skip


def test_an_arm_in_which_everything_failed_is_reported() -> None:
    study_report = build_report(analyse_study(fake_result(CUTS, ACCURACIES, failed_arms=("block5",))))
    text = "block5: 3 of 3 trials failed (the loss was NaN); the comparison leaves out this arm."
    assert text in study_report.html
    assert text in study_report.markdown
    assert text in study_report.short[0].notes
    assert cells(study_report.markdown, "| block5 |")[1:4] == ["-", "-", "-"]
    assert study_report.analysis.answer.startswith("Only block3 is confirmed, so there is nothing to compare.")


def test_single_failures_are_reported_with_their_reasons() -> None:
    result = fake_result(CUTS, ACCURACIES)
    lost = dataclasses.replace(
        result.arms[0].confirmations[1], state="failed", reason="out of memory", val_accuracy=None, test_accuracy=None,
        predictions=None,
    )  # fmt: skip
    runs = [result.arms[0].confirmations[0], lost, result.arms[0].confirmations[2]]
    arm = dataclasses.replace(result.arms[0], confirmations=runs)
    study_report = build_report(analyse_study(dataclasses.replace(result, arms=[arm, result.arms[1]])))
    assert "block3: 1 of 3 confirmation runs failed (out of memory)." in study_report.markdown
    assert cells(study_report.markdown, "| block3 |")[5] == "2"
    assert "2 to 3 seeds" in study_report.analysis.evidence[0]


def test_a_class_without_test_images_has_no_accuracy() -> None:
    result = fake_result(CUTS, ACCURACIES)
    study_report = build_report(analyse_study(dataclasses.replace(result, classes=[*result.classes, "unseen"])))
    row = next(line for line in study_report.markdown.splitlines() if line.startswith("| block3 | 3 | "))
    assert row.replace("\\-", "-").endswith(" | - |")


def test_an_unfinished_study_says_first_what_is_missing() -> None:
    result = fake_result(CUTS, ACCURACIES, trials_per_arm=3)
    arm = dataclasses.replace(result.arms[1], trials=result.arms[1].trials[:2], confirmations=[])
    study_report = build_report(analyse_study(dataclasses.replace(result, arms=[result.arms[0], arm])))
    text = Page(study_report.html).text
    assert headings_of(study_report.html)[:2] == ["What is missing", "Answer"]
    assert "1 of 6 trials have not ended." in text
    assert "3 of 6 confirmation runs have not ended." in text


def test_a_searched_range_is_shown_as_far_as_its_steps_reach() -> None:
    search = {"batch_size": {"low": 8, "high": 100, "step": 8}}
    text = build_report(analyse_study(fake_result(CUTS, ACCURACIES, search=search))).markdown
    assert "batch_size (8 to 96, in steps of 8)" in text.replace("\\", "")


def test_without_confirmation_runs_tuning_is_shown() -> None:
    study_report = build_report(analyse_study(fake_result(CUTS, ACCURACIES, seeds=0)))
    assert "The test split has not been evaluated." in study_report.markdown
    assert cells(study_report.markdown, "| block3 |")[-2:] == ["0.9040", "3 finished"]
    assert "biased upwards" in study_report.markdown
    assert "## Differences" not in study_report.markdown
    assert "## What is missing" not in study_report.markdown
    arms = study_report.short[0]
    assert arms.columns == ["truncate_at", "best tuned val. accuracy", "trials"]
    assert arms.rows[0] == ["block3", "0.9040", "3 finished"]


def test_a_level_of_zero_is_shown_without_confirmation_runs() -> None:
    levels = {"truncate_at": ["block1", "block3"], "head_width": [0]}
    accuracies = {"block1,head_width=0": 0.7, "block3,head_width=0": 0.8}
    arms = build_report(analyse_study(fake_result(levels, accuracies, seeds=0, search={}))).short[0]
    assert [row[:2] for row in arms.rows] == [["block1", "0"], ["block3", "0"]]


def test_one_seed_has_no_interval() -> None:
    study_report = build_report(analyse_study(fake_result(CUTS, ACCURACIES, seeds=1)))
    accuracy = study_report.analysis.result.arms[0].test_accuracies_S[0]
    assert cells(study_report.markdown, "| block3 |")[1:4] == [f"{accuracy:.4f}", "-", "-"]
    assert cells(study_report.markdown, "| block3 | block5 |")[3:] == ["-", "-", "-", "1"]
    assert "no interval is invented" in study_report.markdown
    assert study_report.analysis.verdict == ["Too few seeds to compare; each arm needs three."]


def test_the_cost_of_frozen_features_is_said_to_be_left_out() -> None:
    said = "without the pass that computes features of frozen layers once for many runs."
    assert said in build_report(analyse_study(fake_result(CUTS, ACCURACIES))).markdown


def test_superseded_evaluations_are_counted_and_left_out() -> None:
    result = fake_result(CUTS, ACCURACIES)
    old = [dataclasses.replace(run, run_id=f"old{run.number}") for run in result.arms[0].confirmations]
    arm = dataclasses.replace(result.arms[0], superseded=old)
    again = build_report(analyse_study(dataclasses.replace(result, arms=[arm, result.arms[1]])))
    assert "was evaluated 9 times" in again.markdown
    assert "3 of these evaluations belong to configurations" in again.markdown
    assert again.analysis.answer == build_report(analyse_study(result)).analysis.answer
    assert "block3 confirmation run #0 (superseded)" in again.markdown


def test_different_environments_stand_side_by_side() -> None:
    result = fake_result(CUTS, ACCURACIES)
    other = {**ENVIRONMENT, "torch": "2.12.0"}
    runs = [dataclasses.replace(run, environment=other) for run in result.arms[1].confirmations]
    arm = dataclasses.replace(result.arms[1], confirmations=runs)
    study_report = build_report(analyse_study(dataclasses.replace(result, arms=[result.arms[0], arm])))
    assert "2 different environments" in study_report.markdown
    assert "| torch | 2.11.0 | 2.12.0 |" in study_report.markdown
    assert "| what | 9 runs | 3 runs |" in study_report.markdown
    assert "different environments" not in build_report(analyse_study(result)).markdown


def test_a_chosen_value_near_an_end_is_a_warning() -> None:
    """Row 13 of the audit: the best of eight trials had the largest rate tried in 63 of 100 arms."""
    result = fake_result(CUTS, ACCURACIES)
    arms_at_edge = []
    for arm in result.arms:
        assert arm.best is not None
        best = dataclasses.replace(arm.best, spec=arm.best.spec.model_copy(update={"lr": 0.09, "head_width": 256}))
        trials = [best if run is arm.best else run for run in arm.trials]
        arms_at_edge.append(dataclasses.replace(arm, trials=trials))
    study_report = build_report(analyse_study(dataclasses.replace(result, arms=arms_at_edge)))
    assert study_report.warnings == [
        "Warning: lr was chosen at or near its highest searched value, 0.1, in 2 of 2 arms (block3 0.09, block5 0.09): "
        "a wider range may do better."
    ]
    assert escape_markdown(study_report.warnings[0]) in study_report.markdown


@pytest.mark.parametrize(("trials", "by_luck"), [(3, "0.7"), (4, "0.5"), (8, "0.5")])
def test_the_late_rise_counts_arms_whose_best_trial_came_late(trials: int, by_luck: str) -> None:
    """One of two arms rises; of T trials in random order, the best is among the last T // 3 in T // 3 of T."""
    spec = fake_spec(CUTS, trials_per_arm=trials, confirm={"seeds": 0})
    early = [0.9, *[0.5] * (trials - 1)]
    results = [
        fake_arm(spec, arm, accuracies, [], [])
        for arm, accuracies in zip(arms(spec), (early, early[::-1]), strict=True)
    ]
    text = build_report(analyse_study(fake_study(spec, results, ["a", "b"]))).markdown
    assert f"It is above zero in 1 of 2 arms; trials in random order have the best there in {by_luck} of them." in text


@pytest.mark.parametrize("confirm", [{"seeds": 2}, {"seeds": 2, "repeats": 3}])
def test_the_slice_plot_stands_below_the_warnings(confirm: dict[str, int]) -> None:
    """Of every chosen value, the best of each repeat, at either end; the plot has a dot for each of these trials."""
    search = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "head_width": {"choices": [64, 128, 256, 512, 1024]}}
    result = fake_result(CUTS, ACCURACIES, confirm=confirm, search=search)
    ends = []
    for arm, (lr, width) in zip(result.arms, ((1.1e-4, 1024), (0.09, 256)), strict=True):
        chosen = [run.run_id for run in arm.chosen]
        ends.append(
            dataclasses.replace(
                arm,
                trials=[
                    dataclasses.replace(run, spec=run.spec.model_copy(update={"lr": lr, "head_width": width}))
                    if run.run_id in chosen
                    else run
                    for run in arm.trials
                ],
            )
        )
    analysis = analyse_study(dataclasses.replace(result, arms=ends))
    warnings, plots, *_ = tuning_blocks(analysis, draw_figures(analysis, ["search"]), {})
    repeats = confirm.get("repeats", 1)
    unit = f"{repeats} of {2 * repeats} tunings" if repeats > 1 else "1 of 2 arms"
    assert isinstance(warnings, Items)
    wide, lowest, highest = warnings.texts
    assert f"head_width was chosen at or near its highest searched value, 1024, in {unit} (block3 1024" in wide
    assert f"lr was chosen at or near its lowest searched value, 0.0001, in {unit} (block3 0.00011" in lowest
    assert f"lr was chosen at or near its highest searched value, 0.1, in {unit} (block5 0.09" in highest
    assert isinstance(plots, Figure)
    assert list(plots.alts) == ["search_head_width", "search_lr"]
    assert all(text.startswith("Validation accuracy of 6 trials against ") for text in plots.alts.values())


def test_equivalence_is_said_of_every_difference() -> None:
    result = fake_result(CUTS, {"block3": 0.9, "block5": 0.9}, confirm={"seeds": 3, "equivalence": 2.5})
    study_report = build_report(analyse_study(result))
    assert cells(study_report.markdown, "| block3 | block5 |")[5:] == ["no", "equivalent", "3"]
    assert study_report.analysis.verdict == ["block5 and block3 are equally good, within 2.5 points."]


def test_importances_come_from_the_trials() -> None:
    spec = fake_spec({"truncate_at": ["block3"]}, trials_per_arm=12, confirm={"seeds": 0})
    (arm,) = arms(spec)
    accuracies: list[float | None] = [0.5] * 12
    trials = fake_arm(spec, arm, accuracies, [], []).trials
    trials = [dataclasses.replace(run, val_accuracy=0.9 if run.spec.lr > 3e-3 else 0.3) for run in trials]
    importances = _importances(fake_study(spec, [ArmResult(arm, trials, [], [])], ["a", "b"]))
    assert importances["block3"]["lr"] > 0.8
    assert sum(importances["block3"].values()) == pytest.approx(1)


# ----------------------------------------------------------------------------------------------------- images


def caption_under(markdown: str, figure: str) -> str:
    return markdown.split(f"]({figure}.png)\n\n")[1].split("\n")[0]


def test_what_is_said_of_the_samples() -> None:
    result = fake_result(CUTS, ACCURACIES, classes=20)
    text = caption_under(build_report(analyse_study(result)).markdown, "samples")
    assert text.startswith(
        "1 training image of each of 8 of the 20 classes, resized to 32 x 32 pixels (shown with 8 x 8)"
    )
    assert "crop_flip mirrors an image with probability 1/2 and shifts it by up to 4 pixels over black" in text
    assert "with the pretrained weights' mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225" in text
    plain = dataclasses.replace(result, samples=fake_samples(20, []), weights_digest=None)
    text = caption_under(build_report(analyse_study(plain)).markdown, "samples")
    assert "No trial augments them." in text
    assert "with ImageNet's mean" in text


def test_the_mistakes_are_the_leading_runs() -> None:
    """Another run's are shown once it leads, by validation; its test figures are of no account."""
    spec = fake_spec(CUTS, confirm={"seeds": 1})
    labels_N = np.array([0, 1, 2, 0, 1, 2])
    wrong = {"block3": np.array([0, 1, 2, 1, 1, 2]), "block5": np.array([0, 2, 2, 0, 0, 1])}  # image 3; images 1, 4, 5

    def report_of(validation: dict[str, float]) -> Report:
        arm_results = [
            fake_arm(spec, arm, [0.5], [validation[arm.name]], [fake_predictions(wrong[arm.name], labels_N, 3)])
            for arm in arms(spec)
        ]
        return build_report(analyse_study(fake_study(spec, arm_results, ["ant", "bee", "cow"])))

    first, second = report_of({"block3": 0.9, "block5": 0.8}), report_of({"block3": 0.7, "block5": 0.8})
    heads = "| test image | true class | predicted class | its probability | probability of the true class |\n"
    tables = [report.markdown.split(heads)[1].split("\n\n")[0].splitlines()[1:] for report in (first, second)]
    assert tables[0] == ["| 3 | ant | bee | 0.900 | 0.050 |"]
    assert [line.split(" | ")[:3] for line in tables[1]] == [
        ["| 1", "bee", "cow"], ["| 4", "bee", "ant"], ["| 5", "cow", "bee"]
    ]  # fmt: skip
    assert caption_under(first.markdown, "mistakes").startswith("block3 confirmation run #0 is wrong about 1 of 6 test")
    assert caption_under(second.markdown, "mistakes").startswith(
        "block5 confirmation run #0 is wrong about 3 of 6 test"
    )


def test_a_store_without_images_has_a_report_without_them() -> None:
    result = dataclasses.replace(fake_result(CUTS, ACCURACIES), samples=None)

    def without(predictions: Predictions | None) -> Predictions | None:
        return None if predictions is None else dataclasses.replace(predictions, mistakes=None)

    arms_without = [
        dataclasses.replace(
            arm, confirmations=[dataclasses.replace(r, predictions=without(r.predictions)) for r in arm.confirmations]
        )
        for arm in result.arms
    ]
    study_report = build_report(analyse_study(dataclasses.replace(result, arms=arms_without)))
    assert "## Classes" in study_report.markdown
    assert "## Data as the network sees it" not in study_report.markdown
    assert "## Most confident mistakes" not in study_report.markdown


# --------------------------------------------------------------------------------------- files and command line


def put_in_store(monkeypatch: pytest.MonkeyPatch, result: StudyResult) -> dict[str, Any]:
    """Let a study be found without a store; return what is logged."""
    logged: dict[str, Any] = {}
    monkeypatch.setattr(report, "read_results", lambda store, name: result)
    monkeypatch.setattr(report, "record_look", lambda store, result: result)
    monkeypatch.setattr(
        report, "log_report", lambda store, run_id, files, note: logged.update(run=run_id, files=files, note=note)
    )
    return logged


def test_files_are_written_and_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged = put_in_store(monkeypatch, fake_result(CUTS, ACCURACIES))
    study_report = write_report(find_store(str(tmp_path)), ["fake"])
    folder = tmp_path / "reports" / "fake"
    assert study_report.folder == folder
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == logged["files"]
    assert written["report.html"].decode() == study_report.html
    assert {"report.html", "report.md", "arms.svg", "mistakes.png"} <= set(written)
    assert (logged["run"], logged["note"]) == ("summary0", study_report.note)
    assert write_report(find_store(str(tmp_path)), ["fake"], tmp_path / "other").folder == tmp_path / "other"


def test_the_terminal_shows_the_short_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_store(monkeypatch, fake_result(CUTS, ACCURACIES))
    monkeypatch.setattr(sys, "argv", ["report", "fake", "--store", str(tmp_path)])
    assert run_command(cli) == 0
    shown = capsys.readouterr().out
    assert shown.strip().startswith("Which one is better?")
    last = shown.splitlines()[-3:]
    assert last[0] == "Answer  block3 is clearly better than block5, by 9.9 points."
    assert last[1] == f"Report  {tmp_path / 'reports' / 'fake' / 'report.html'}"
    assert last[2] == f"UI      python -m ablation.ui fake --store {tmp_path}"
    (difference,) = analyse(fake_result(CUTS, ACCURACIES)).factors[0].family
    interval = interval_points(difference.estimate.low, difference.estimate.high)
    assert f"\n- truncate_at: block3 minus block5 9.9 ({interval}, p < 0.001), in points, 3 seeds.\n" in shown
    warnings = build_report(analyse_study(fake_result(CUTS, ACCURACIES))).warnings
    assert warnings
    assert all(f"\n{warning}\n" in shown for warning in warnings)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, ""),
        (["../x"], 2, "error: the study's name '../x' must be"),
        ([], 2, "error: Missing argument 'NAME...'."),
        (["a", "../b"], 2, "error: the study's name '../b' must be"),
        (["vgg", "--nonsense"], 2, "error: No such option"),
    ],
)
def test_quick_answers_import_nothing_large(arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    code = (
        "import sys; from ablation import report; sys.argv = ['report', *sys.argv[1:]];"
        "status = report.run_command(report.cli);"
        "large = {'torch', 'mlflow', 'optuna', 'altair', 'vl_convert', 'scipy', 'jinja2'};"
        "print(sorted(large & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"[] {status}"
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == (1 if status == 2 else 0)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no store"):
        write_report(find_store(str(tmp_path)), ["fake"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no groups")
def test_the_group_whose_folder_a_store_is_can_replace_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_study(find_store(str(tmp_path)), fake_result(CUTS, ACCURACIES, images=100))
    tmp_path.chmod(0o2775)
    monkeypatch.setattr(sys, "argv", ["report", "fake", "--store", str(tmp_path)])
    before = os.umask(0o077)
    try:
        with signal_handlers_kept():
            assert run_command(cli) == 0
    finally:
        os.umask(before)
    written = [tmp_path / "reports", *(tmp_path / "reports").rglob("*"), *tmp_path.rglob("report/*")]
    assert len([path for path in written if path.name == "report.html"]) == 2  # the other one is MLflow's
    assert {path.stat().st_mode & 0o777 for path in written} == {0o660, 0o770}


@needs_root
def test_who_may_only_read_a_store_gets_the_report_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this user may not read is named; the store stays as it is. Without --output, one line says what to do."""
    result = fake_result(CUTS, ACCURACIES, images=100)
    hidden = result.arms[0].confirmations[0]
    with folder_for_all() as folder:
        store = find_store(str(folder / "store"))
        record = store_study(store, result)
        (run,) = [run for run in record.runs if run.is_confirmation and run.params["arm"] == hidden.spec.arm
                  and run.params["trial"] == str(hidden.number)]  # fmt: skip
        (folder / "theirs").mkdir()
        (folder / "theirs").chmod(0o777)

        def write(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["report", "fake", "--store", str(store.root), *arguments])
            streams = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
            with streams[0] as output, streams[1] as errors, signal_handlers_kept():
                return run_command(cli), output.getvalue(), errors.getvalue()

        assert write("--output", str(folder / "mine"))[0] == 0  # imports everything
        artifact_path(store, run, PREDICTIONS_FILE).chmod(0o600)
        before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
        status, _, errors = as_nobody(write)
        assert (status, errors) == (
            2, f"error: --output: name a folder for the report, because {store.root} cannot be written\n",
        )  # fmt: skip
        status, output, errors = as_nobody(lambda: write("--output", str(folder / "theirs")))
        assert (status, errors) == (0, "")
        line = (
            f"Left out: confirmation run #{hidden.number} of {hidden.spec.arm}: run {run.run_id}: its "
            f"{PREDICTIONS_FILE} cannot be read (Permission denied)."
        )
        assert line in output
        assert "report.html  (not logged to MLflow, because the store cannot be written)" in output
        assert line in (folder / "theirs" / "report.md").read_text(encoding="utf-8").replace("\\", "")
        assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output: .* is not a folder"):
        write_report(find_store(str(tmp_path)), ["fake"], tmp_path / "file")


def test_intervals_are_drawn_on_the_axis_that_they_share() -> None:
    estimates = [Estimate(0.5, low=0.0, high=1.0), Estimate(0.25, low=0.2, high=0.3), Estimate(1.0), None]
    axis, plots = interval_plot(estimates)
    assert axis == "plot, 0.000 to 1.000"
    assert plots == [
        "──────────●──────────",
        "····─●─··············",
        "····················●",
        "·····················",
    ]


def test_the_terminals_table_stresses_the_champions_arm() -> None:
    arms = build_report(analyse_study(fake_result(CUTS, ACCURACIES))).short[0]
    assert arms.bold_row == 0
    assert arms.columns[:2] == ["truncate_at", "test accuracy"]
    assert re.fullmatch(r"0\.\d\d\d ±0\.0\d\d", arms.rows[0][1])


def test_the_work_of_a_report_grows_with_the_trials_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of an arm's trials is looked for a few times, however many trials there are."""
    searches: list[int] = []
    best_run = study_results.best_run
    monkeypatch.setattr(study_results, "best_run", lambda runs: (searches.append(len(runs)), best_run(runs))[1])
    counts = []
    for trials in (5, 40):
        searches.clear()
        build_report(
            analyse_study(
                fake_result(
                    {"truncate_at": ["block1", "block3"]}, {"block1": 0.6, "block3": 0.9}, trials_per_arm=trials
                )
            )
        )
        counts.append(len(searches))
    assert counts[0] == counts[1]
