"""All that one report prints is recomputed, or is an input: no table and no number of the page is left over.

The page's tables and sentences are taken apart. Each cell is compared with a value from raw predictions and the runs'
own records, by NumPy, SciPy and scikit-learn; what is compared is crossed out; what remains must be a constant of the
method or an input of the study. `recomputation.py` has the estimator in other code.

Legend: S seeds, N test images, K classes, T trials.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from ablation.analysis.answer import analyse
from ablation.analysis.pooling import analyse_study
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import RunResult
from ablation.reporting import charts
from ablation.reporting.exports import figures_json, runs_csv
from ablation.reporting.report import Report, build_report
from tests.analysis.recomputation import (
    ACCURACIES,
    FACTORS,
    deviate,
    error,
    family,
    largest_of_simulated_studies,
    raw,
    residual_over_N,
)
from tests.fake_results import fake_result

Tables = dict[str, list[list[str]]]
SIMULATED = 100_000
# Numbers of sentences that belong to the method: levels, years, limits, and how texts are counted.
CONSTANTS = {"95", "100", "80", "5", "2008", "1996", "2020", "0.05", "99,999", "64", "0", "1", "4"}
INPUTS = {"Study", "Environment of the runs", "A paragraph on the method"}


SEEDS_STUDY: dict[str, Any] = {"seeds": 4, "images": 1500, "seed_deviation": 0.006}


@cache
def study_over_seeds() -> StudyResult:
    return fake_result(FACTORS, ACCURACIES, **SEEDS_STUDY)


@pytest.fixture
def study() -> StudyResult:
    return study_over_seeds()


def drawn_report(study: StudyResult) -> Report:
    """Return a study's report with the definitions and texts of its plots, but without their drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts.vlc, "vegalite_to_svg", lambda definition: "")
        return build_report(analyse_study(study))


def text_of(report: Report) -> str:
    return report.markdown.replace("\\", "").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def embedded(report: Report) -> dict[str, Any]:
    """Return the data that the page's scripts read."""
    data = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', report.html, re.DOTALL)
    assert data is not None
    content: dict[str, Any] = json.loads(data[1])
    return content


def definitions(report: Report) -> dict[str, Any]:
    """Return the plots' definitions by name, as the page has them."""
    specs: dict[str, Any] = embedded(report)["specs"]
    return specs


@cache
def report_over_seeds() -> Report:
    return drawn_report(study_over_seeds())


@pytest.fixture
def page() -> str:
    return text_of(report_over_seeds())


def tables_of(page: str) -> Tables:
    """Return title, or section where it has none -> the rows of each table, its heading first."""
    tables: Tables = {}
    section, title = "", ""
    for line in page.splitlines():
        if line.startswith("## "):
            section, title = line[3:], ""
        elif line.startswith("**") and line.endswith("**"):
            title = line.strip("*")
        elif line.startswith("| ") and set(line) - set("|- "):
            tables.setdefault(title or section, []).append([c.strip() for c in line.strip("|").split(" | ")])
        elif not line.startswith("|"):
            title = title if not line or line.startswith("**") else ""
    return tables


def pts(value: float) -> str:
    """Return points with one decimal, or two below one point."""
    text = f"{100 * value:.{1 if abs(100 * value) >= 1 else 2}f}"
    return "0.00" if text == "-0.00" else text


def simulated_means(right: dict[str, np.ndarray], studies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of the arms' means, and estimates of their seeds' variances, of studies, B x A."""
    rng = np.random.default_rng(7)
    S = np.array([len(y_SN) for y_SN in right.values()])
    N = next(iter(right.values())).shape[1]
    rest = np.array([residual_over_N(y_SN) for y_SN in right.values()])
    v = np.maximum([np.var(y_SN.mean(axis=1), ddof=1) for y_SN in right.values()], np.maximum(rest, N**-2))
    K = np.cov([y_SN.mean(axis=0) for y_SN in right.values()]) / N - np.diag(rest / S)
    values, vectors = np.linalg.eigh(K)
    K = (vectors * np.maximum(values, 0)) @ vectors.T
    normal = stats.multivariate_normal(np.zeros(len(S)), np.diag(v / S) + K, allow_singular=True)
    drawn = np.maximum(v * rng.chisquare(S - 1, (studies, len(S))) / (S - 1), np.maximum(rest, N**-2))
    return np.atleast_2d(normal.rvs(studies, random_state=rng)), drawn


def arms_of(study: StudyResult) -> dict[str, ArmResult]:
    return {arm.arm.name: arm for arm in study.arms}


def check_arms(study: StudyResult, rows: list[list[str]]) -> None:
    """Means, deviations, intervals, chances to be best, and Hsu's intervals."""
    right = raw(study)
    names = list(right)
    value = {arm: float(y_SN.mean()) for arm, y_SN in right.items()}
    errors, drawn = simulated_means(right, SIMULATED)
    N = 1500
    S = 4
    # The chance: errors with t's tails, as drawn variances give them.
    rest = np.array([residual_over_N(right[arm]) for arm in names])
    v = np.maximum([np.var(right[arm].mean(axis=1), ddof=1) for arm in names], rest)
    best = (np.array(list(value.values())) + errors * np.sqrt(v / drawn)).argmax(axis=1)
    # Hsu: one-sided bounds with each arm in turn as the control.
    K = np.cov([right[arm].mean(axis=0) for arm in names]) / N - np.diag(rest / S)
    upper = np.full((len(names), len(names)), np.inf)
    for k, control in enumerate(names):
        others = [j for j in range(len(names)) if j != k]
        statistics = []
        for j in others:
            images = max(K[k, k] + K[j, j] - 2 * K[k, j], 0)
            variance = (drawn[:, k] + drawn[:, j]) / S + images
            df = variance**2 / (((drawn[:, [k, j]] / S) ** 2 / (S - 1)).sum(axis=1) + images**2 / (N - 1))
            difference = errors[:, k] - errors[:, j]
            statistics.append(np.sign(difference) * deviate(difference**2 / variance, df))
        critical = np.quantile(np.max(statistics, axis=0), 0.95)
        for j in others:
            gap, standard_error, df = error({control: 1.0, names[j]: -1.0}, right)
            margin = np.sqrt(df * np.expm1((critical * (8 * df + 3) / (8 * df + 1)) ** 2 / df))
            upper[k, j] = gap + margin * standard_error
    high = np.maximum(upper.min(axis=1), 0)
    low = []
    for i in range(len(names)):
        rivals = [j for j in range(len(names)) if j != i and high[j] > 0]
        low.append(min((-upper[j, i] for j in rivals), default=0.0))
    assert rows[0][2:] == [
        "test accuracy", "standard deviation", "95 % interval", "val. accuracy", "n (seeds)", "chance to be best",
        "from the best other (points)", "trials",
    ]  # fmt: skip
    for number, (cells, arm) in enumerate(zip(rows[1:], study.arms, strict=True)):
        name = arm.arm.name
        _, standard_error, df = error({name: 1.0}, right)
        ends = stats.t(df, value[name], standard_error).interval(0.95)
        assert cells[:2] == name.split(",")
        assert cells[2:7] == [
            f"{value[name]:.4f}",
            f"{right[name].mean(axis=1).std(ddof=1):.4f}",
            f"{ends[0]:.4f} to {ends[1]:.4f}",
            f"{np.mean([run.val_accuracy for run in arm.confirmations]):.4f}",
            "4",
        ]
        assert float(cells[7]) == pytest.approx((best == number).mean(), abs=0.01)
        printed = [float(end) for end in cells[8].split(" to ")]
        assert printed == pytest.approx([100 * low[number], 100 * high[number]], rel=0.03, abs=0.11)
        assert cells[9] == "3 finished"


def check_levels(study: StudyResult, rows: list[list[str]]) -> None:
    right = raw(study)
    for level, *cells in rows[1:]:
        arms = [arm for arm in right if level in arm.split(",")]
        mean, standard_error, df = error({arm: 1 / len(arms) for arm in arms}, right)
        ends = stats.t(df, mean, standard_error).interval(0.95)
        assert cells == [f"{mean:.4f}", f"{ends[0]:.4f} to {ends[1]:.4f}", str(len(arms)), "4"]


def check_tested(study: StudyResult, rows: list[list[str]], simulation: tuple[np.ndarray, list[Any]]) -> None:
    """Differences of levels, and interactions, with simultaneous intervals and corrected p-values."""
    largest, found = simulation
    critical = np.quantile(largest, 0.95)
    by_cells = dict(zip(family(), found, strict=True))
    for first, second, *cells in rows[1:]:
        value, standard_error, df = by_cells[first, second]
        margin = np.sqrt(df * np.expm1((critical * (8 * df + 3) / (8 * df + 1)) ** 2 / df)) * standard_error
        p = float((largest >= deviate((value / standard_error) ** 2, df)).mean())
        assert cells[0] == pts(value)
        low, high = (float(end) / 100 for end in cells[1].split(" to "))
        assert (low, high) == pytest.approx((value - margin, value + margin), abs=0.02 * margin + 6e-4)
        monte_carlo = 4 * np.sqrt(p * (1 - p) / SIMULATED)
        assert p < 0.0015 if cells[2] == "< 0.001" else float(cells[2]) == pytest.approx(p, abs=0.001 + monte_carlo)
        assert cells[3:] == ["yes" if p < 0.05 else "no", "4"]


def check_power(study: StudyResult, rows: list[list[str]], simulation: tuple[np.ndarray, list[Any]]) -> None:
    """At the printed difference, about 80 % of simulated studies show it; the others are bounds that stand above."""
    largest, found = simulation
    critical = np.quantile(largest, 0.95)
    by_cells = dict(zip(family(), found, strict=True))
    for factor, not_shown, excluded, now, *more in rows[1:]:
        mine = [pair for pair in by_cells if all(label in FACTORS[factor] for label in pair)]
        bounds, precisions = [], []
        for pair in mine:
            value, standard_error, df = by_cells[pair]
            precisions.append((standard_error, df))
            if (largest >= deviate((value / standard_error) ** 2, df)).mean() >= 0.05:
                margin = np.sqrt(df * np.expm1((critical * (8 * df + 3) / (8 * df + 1)) ** 2 / df)) * standard_error
                bounds.append(abs(value) + margin)
        assert not_shown == f"{len(bounds)} of {len(mine)}"
        assert excluded == "-" if not bounds else float(excluded) == pytest.approx(100 * max(bounds), abs=0.06)
        standard_error, df = sorted(precisions)[len(precisions) // 2]
        margin = np.sqrt(df * np.expm1((critical * (8 * df + 3) / (8 * df + 1)) ** 2 / df))
        normal = 100 * standard_error * (margin + stats.norm.ppf(0.8))
        assert float(now) == pytest.approx(normal, rel=0.15)  # which takes variances as known; few seeds do not
        sizes = [float(now), *map(float, more)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[1] > sizes[0] / 2  # images do not become more


def check_costs(study: StudyResult, rows: list[list[str]]) -> None:
    for (name, *cells), arm in zip(rows[1:], study.arms, strict=True):
        runs = arm.confirmations
        assert name == arm.arm.name
        assert arm.best is not None

        def mean(attribute: str, of_runs: list[RunResult] = runs) -> float:
            return float(np.mean([getattr(run, attribute) for run in of_runs]))

        assert cells == [
            f"{arm.best.trained_parameters:,}",
            f"{mean('training_seconds'):.1f}",
            f"{mean('inference_operations') / 1e6:.1f}",
            f"{1e3 * mean('inference_seconds'):.3g}",
            str(len(runs)),
            f"{raw(study)[name].mean():.4f}",
        ]


def check_tuning(study: StudyResult, rows: list[list[str]]) -> None:
    for (name, chosen, *cells), arm in zip(rows[1:], study.arms, strict=True):
        values = [run.val_accuracy or 0.0 for run in arm.trials]
        best = max(arm.trials, key=lambda run: run.val_accuracy or 0.0)
        fewer = float(np.mean([max(pair) for pair in combinations(values, 2)]))
        assert name == arm.arm.name
        assert chosen == f"head_width {best.spec.head_width}, lr {best.spec.lr:.3g}"
        assert cells == [
            f"{max(values):.4f}",
            f"{np.mean([run.val_accuracy for run in arm.confirmations]):.4f}",
            "4",
            pts(max(values) - max(values[:2])),
            pts(max(values) - fewer),
            "3 finished",
        ]


def predictions_of(arm: ArmResult) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(p.labels_N, p.predicted_N) for run in arm.confirmations if (p := run.predictions) is not None]


def check_metrics(study: StudyResult, rows: list[list[str]]) -> None:
    for (name, *cells), arm in zip(rows[1:], study.arms, strict=True):
        pairs = predictions_of(arm)
        scores: list[Callable[[np.ndarray, np.ndarray], float]] = [
            lambda true, given: float(np.mean(true == given)),
            balanced_accuracy_score,
            lambda true, given: f1_score(true, given, average="macro"),
        ]
        values = [np.array([score(*pair) for pair in pairs]) for score in scores]
        assert name == arm.arm.name
        assert cells == [*(f"{x.mean():.4f} \u00b1 {x.std(ddof=1):.4f}" for x in values), str(len(pairs))]


def confusion(arm: ArmResult) -> np.ndarray:
    """Return the share of each true class's images that are taken for each class, mean over seeds, K x K."""
    shares = np.array([confusion_matrix(*pair, normalize="true") for pair in predictions_of(arm)])
    mean_KK: np.ndarray = shares.mean(axis=0)
    return mean_KK


def check_classes(study: StudyResult, rows: list[list[str]]) -> None:
    assert rows[0][1:] == ["n (seeds)", *study.classes]
    for (name, *cells), arm in zip(rows[1:], study.arms, strict=True):
        assert name == arm.arm.name
        assert cells == [str(len(arm.confirmations)), *(f"{share:.4f}" for share in np.diag(confusion(arm)))]


def check_matrix(study: StudyResult, rows: list[list[str]], arm: str) -> None:
    matrix = confusion(arms_of(study)[arm])
    for (name, *cells), label, shares in zip(rows[1:], study.classes, matrix, strict=True):
        assert name == label
        assert cells == [f"{share:.2f}" for share in shares]


def check_confusions(study: StudyResult, rows: list[list[str]]) -> None:
    for (name, n, texts), arm in zip(rows[1:], study.arms, strict=True):
        wrong = confusion(arm) * (1 - np.eye(4))
        places = sorted(np.ndindex(4, 4), key=lambda place: -wrong[place])[:3]
        assert (name, n) == (arm.arm.name, str(len(arm.confirmations)))
        assert texts == "; ".join(f"{study.classes[i]} \u2192 {study.classes[j]} {wrong[i, j]:.2f}" for i, j in places)


def check_runs(study: StudyResult, rows: list[list[str]]) -> None:
    """The runs' own records; test accuracies from predictions."""
    runs = {run.run_id: (run, arm) for arm in study.arms for run in [*arm.trials, *arm.confirmations]}
    for name, state, val, test, epoch, seed, run_id, configuration in rows[1:]:
        run, arm = runs[run_id]
        kind = "trial" if run.spec.confirms is None else "confirmation run"
        of_repeat = [trial for trial in arm.trials if trial.spec.repeat == run.spec.repeat]
        best = max(of_repeat, key=lambda trial: trial.val_accuracy or 0.0)
        assert name == f"{arm.arm.name} {kind} #{run.number}" + (" (best)" if run is best else "")
        is_right = None if run.predictions is None else run.predictions.predicted_N == run.predictions.labels_N
        assert test == ("-" if is_right is None else f"{is_right.mean():.4f}")
        assert (state, val, epoch, seed) == ("finished", f"{run.val_accuracy:.4f}", "4", str(run.spec.seed))
        assert configuration == f"head_width {run.spec.head_width}, lr {run.spec.lr:.3g}"


def champion_of(study: StudyResult) -> tuple[ArmResult, RunResult]:
    """Return the arm with the highest mean validation accuracy, and its best confirmation run by the same."""
    winner = max(study.arms, key=lambda arm: np.mean([run.val_accuracy or 0 for run in arm.confirmations]))
    return winner, max(winner.confirmations, key=lambda run: run.val_accuracy or 0)


def check_mistakes(study: StudyResult, rows: list[list[str]]) -> None:
    """The champion's twelve wrong answers with the highest probabilities, the first of equals first."""
    predictions = champion_of(study)[1].predictions
    assert predictions is not None
    (wrong,) = np.nonzero(predictions.predicted_N != predictions.labels_N)
    given = predictions.probabilities_NK[wrong, predictions.predicted_N[wrong]].astype(float)
    expected = wrong[np.argsort(-given, kind="stable")][:12]
    assert len(rows) == 1 + len(expected)
    for image, (number, true, predicted, probability, of_true) in zip(expected, rows[1:], strict=True):
        shares, label = predictions.probabilities_NK[image].astype(float), int(predictions.labels_N[image])
        assert (int(number), true) == (image, study.classes[label])
        assert predicted == study.classes[int(predictions.predicted_N[image])]
        assert [probability, of_true] == [f"{shares.max():.3f}", f"{shares[label]:.3f}"]


def test_no_table_is_left_over(study: StudyResult, page: str) -> None:
    tables = tables_of(page)
    simulation = largest_of_simulated_studies(list(family().values()), raw(study), SIMULATED)
    check_arms(study, tables.pop("Arms"))
    for factor in FACTORS:
        check_levels(study, tables.pop(f"Marginal means of {factor}"))
        title = f"Levels of {factor}: differences of marginal mean test accuracy"
        check_tested(study, tables.pop(title), simulation)
    check_tested(study, tables.pop("Interactions"), simulation)
    check_power(study, tables.pop("What more would find"), simulation)
    check_costs(study, tables.pop("What each arm costs"))
    check_tuning(study, tables.pop("Tuning"))
    check_metrics(study, tables.pop("Metrics that weigh all classes equally"))
    check_classes(study, tables.pop("Test accuracy of each class"))
    matrix = tables.pop("Confusion matrix of block3,fine_tune_all (mean of n = 4 seeds)")
    check_matrix(study, matrix, "block3,fine_tune_all")
    check_confusions(study, tables.pop("Most frequent confusions of each arm"))
    check_mistakes(study, tables.pop("The same mistakes as a table"))
    counts = {title: len(rows) - 1 for title, rows in tables.items()}
    check_runs(study, tables.pop("Best trials and confirmation runs (30)"))
    check_runs(study, tables.pop("All other runs (12)"))
    assert (counts["Best trials and confirmation runs (30)"], counts["All other runs (12)"]) == (30, 12)
    assert tables.keys() <= INPUTS


def sentences(study: StudyResult, tables: Tables) -> Iterable[str]:
    """Yield the phrases with numbers that the page's sentences may have, from its tables and the study's inputs."""
    right = raw(study)
    yield from sentences_of_all(study, tables)
    yield "Mean test accuracy of 6 arms"
    shown = [cells[-2] for title, rows in tables.items() if title == "Interactions" for cells in rows[1:]]
    yield f"{shown.count('yes')} of {len(shown)} interactions shown"
    yield "6 arms, with 3 trials of 4 epochs each"
    yield "retrained with 4 fresh seeds"
    yield "fewer than 3 seeds is not tested"
    yield "test accuracy on 1,500 images, validation accuracy (best epoch) on 5,000"
    yield "allow for 7 tests in this report together"
    yield "interactions, 7 tests together"
    yield f"(1,500 images) was evaluated {sum(map(len, right.values()))} times"
    yield "All 24 confirmation runs of all arms call no test image of 1,500"
    gains = [
        max(run.val_accuracy or 0 for run in arm.trials)
        - float(np.mean([run.val_accuracy or 0 for run in arm.confirmations]))
        for arm in study.arms
    ]
    gain, gain_error = (pts(float(statistic(gains))) for statistic in (np.mean, stats.sem))
    yield f"Tuned minus confirmed: {gain} \u00b1 {gain_error} (standard error) points"
    yield "the mean over 6 arms"
    rising = sum(float(cells[5]) > 0 for cells in tables["Tuning"][1:])
    yield f"above zero in {rising} of 6 arms; trials in random order have the best there in {6 / 3:.1f} of them"


def sentences_of_all(study: StudyResult, tables: Tables) -> Iterable[str]:
    """Yield those that a study has with repeats of its tuning, too."""
    yield "10th to 90th percentile"
    for title, rows in tables.items():
        if title.startswith("Levels of") or title == "Interactions":
            for first, second, value, ends, p, *_ in rows[1:]:
                low, high = ends.split(" to ")
                p_text = f"p {p}" if p.startswith("<") else f"p = {p}"
                yield f"{value} ({ends}, {p_text})"
                yield f"{pts(-float(value) / 100)} ({_negative(high)} to {_negative(low)}, {p_text})"
                yield f"changes by {value} points ({ends}, {p_text})"
                yield f"by {value.removeprefix('-')} points"
                most = pts(max(abs(float(low)), abs(float(high))) / 100)
                yield f"({value.removeprefix('-')} behind, at most {most})"
                assert first != second
    winner, champion = champion_of(study)
    assert champion.predictions is not None
    own = float((champion.predictions.predicted_N == champion.predictions.labels_N).mean())
    accuracies = [run.val_accuracy for run in winner.confirmations]
    yield f"{winner.arm.name}, confirmation run #{champion.number} is the champion"
    yield f"the highest mean validation accuracy ({np.mean(accuracies):.4f}, n = {len(accuracies)} seeds)"
    yield f"Its own test accuracy is {own:.4f}."
    ranked = sorted(tables["Arms"][1:], key=lambda cells: -float(cells[-3]))
    likely = [f"{','.join(cells[:-8])} {100 * float(cells[-3]):.0f} %" for cells in ranked if float(cells[-3]) >= 0.05]
    yield f"Chance to be the best arm: {' and '.join(likely)}."
    rivals = [cells for cells in tables["Arms"][1:] if not cells[-2].endswith(" 0.0")]
    behind = max(-float(cells[-2].split(" to ")[0]) for cells in rivals)
    yield f"each is at most {behind:.1f} points behind the best"
    yield "45,000 training, 5,000 validation and 1,500 test images of 4 classes"
    yield "head_width (128, 256, 512), lr (0.0001 to 0.1, logarithmic)"
    wrong = int((champion.predictions.predicted_N != champion.predictions.labels_N).sum())
    run = f"{winner.arm.name} confirmation run #{champion.number}"
    yield f"{run} is wrong about {wrong} of 1,500 test images. The figure shows the 12 mistakes"
    yield f"12 misclassified test images; the most confident: {_mistake(tables)}"
    yield from INPUT_SENTENCES


def _mistake(tables: Tables) -> str:
    _, true, predicted, probability, _ = tables["The same mistakes as a table"][1]
    return f"a {true} taken for a {predicted} with probability {probability}"


# Of training images: what the study sets, and what standardises them.
INPUT_SENTENCES = (
    "1 training image of each class, resized to 32 x 32 pixels (shown with 8 x 8)",
    "with probability 1/2 and shifts it by up to 4 pixels",
    "mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225",
    "of more than 1,500, the best",
)


def phrases_of_plots(study: StudyResult, tables: Tables) -> Iterable[str]:
    """Yield what the plots' text alternatives say."""
    for title, rows in tables.items():
        if title == "Arms":
            for cells in rows[1:]:
                name, (value, _, ends, *_) = ",".join(cells[:-8]), cells[-8:]
                yield f"{name} {value} ({ends})"
                yield f"{name} {value}"
        elif title.startswith("Marginal means"):
            yield from (f"{level} {value} ({ends})" for level, value, ends, *_ in rows[1:])
        elif title == "What each arm costs":
            for name, parameters, seconds, _, milliseconds, _, accuracy in rows[1:]:
                yield from (f"{name} {accuracy} at {cost}" for cost in (parameters, seconds, milliseconds))
        elif ": differences of marginal mean" in title:
            for first, second, value, ends, _, shown, *_ in rows[1:]:
                yield f"{first} \u2212 {second} {value} ({ends}, {'shown' if shown == 'yes' else 'not shown'})"
    trials = [(arm.arm.name, run) for arm in study.arms for run in arm.trials]
    best_arm, best = max(trials, key=lambda trial: trial[1].val_accuracy or 0)
    for name, value in (("head_width", f"{best.spec.head_width}"), ("lr", f"{best.spec.lr:.6g}")):
        found = f"The best is {best.val_accuracy:.4f} at {name} {value}, in {best_arm}"
        yield f"accuracy of {len(trials)} trials against {name}. {found}"
    for arm in study.arms:
        name = arm.arm.name
        curve = np.mean([run.curves["val_accuracy"] for run in arm.confirmations], axis=0)
        loss = np.mean([run.curves["val_loss"] for run in arm.confirmations], axis=0)
        yield f"{name} {curve[0]:.3f} to {curve[-1]:.3f}"
        yield f"{name} {curve[-1]:.3f}"
        yield f"{name} {loss[-1]:.3f}"
        yield f"{name} {max(run.val_accuracy or 0 for run in arm.trials):.4f} after {len(arm.trials)} trials"


def _negative(end: str) -> str:
    return end.removeprefix("-") if end.startswith("-") else f"-{end}" if float(end) else end


def check_sentences(study: StudyResult, page: str, phrases: Iterable[str], fewest: int) -> None:
    """Cross the phrases out of all lines but tables and commands; what remains must be a constant of the method."""
    tables = tables_of(page)
    inputs = (study.spec.backbone.name, study.spec.data.source)
    arms = [arm.arm.name for arm in study.arms]
    names = sorted((*arms, *study.classes, *study.spec.factors.truncate_at, *inputs), key=len, reverse=True)
    used, left = set(), []
    ordered = sorted(phrases, key=len, reverse=True)
    for line in page.splitlines():
        if line.startswith(("| ", "    ")) or line.strip("*") in tables:
            continue
        rest = line
        for phrase in ordered:
            if phrase in rest:
                used.add(phrase)
                rest = rest.replace(phrase, "")
        for name in names:
            rest = rest.replace(name, "")
        left += [(number, line) for number in re.findall(r"\d[\d.,]*\d|\d", rest) if number not in CONSTANTS]
    assert not left, "\n".join(f"{number}: {line}" for number, line in left)
    assert len(used) >= fewest, "the phrases are those of the page"


def test_no_number_of_a_sentence_is_left_over(study: StudyResult, page: str) -> None:
    tables = tables_of(page)
    phrases = [*sentences(study, tables), *phrases_of_plots(study, tables)]
    check_sentences(study, page, phrases, 60)


def test_the_json_has_the_numbers_of_the_page(study: StudyResult, page: str) -> None:
    right, tables = raw(study), tables_of(page)
    content = json.loads(figures_json(analyse(study)))
    assert (content["test_images"], content["tested_together"]) == (1500, 7)
    for arm, cells in zip(content["arms"], tables["Arms"][1:], strict=True):
        value, standard_error, df = error({arm["arm"]: 1.0}, right)
        ends = stats.t(df, value, standard_error).interval(0.95)
        found = arm["accuracy"]
        assert [
            found[key] for key in ("value", "standard_error", "degrees_of_freedom", "low", "high")
        ] == pytest.approx([value, standard_error, df, *ends])
        assert arm["test"]["mean"] == pytest.approx(value)
        assert arm["test"]["standard_deviation"] == pytest.approx(right[arm["arm"]].mean(axis=1).std(ddof=1))
        assert f"{arm['validation']['mean']:.4f}" == cells[5]
        assert f"{arm['chance_to_be_best']:.3f}" == cells[7]
    for factor in content["factors"]:
        rows = tables[f"Levels of {factor['factor']}: differences of marginal mean test accuracy"][1:]
        for difference, cells in zip(factor["differences"], rows, strict=True):
            estimate = difference["estimate"]
            value, standard_error, df = error(family()[difference["first"], difference["second"]], right)
            assert [estimate[key] for key in ("value", "standard_error", "degrees_of_freedom")] == pytest.approx(
                [value, standard_error, df]
            )
            assert [pts(estimate["value"]), "yes" if difference["shown"] else "no"] == [cells[2], cells[5]]
            assert [100 * estimate[end] for end in ("low", "high")] == pytest.approx(
                [float(end) for end in cells[3].split(" to ")], abs=0.051
            )
            assert estimate["p"] < 0.001 if cells[4] == "< 0.001" else f"{estimate['p']:.3f}" == cells[4]
        for level, cells in zip(factor["levels"], tables[f"Marginal means of {factor['factor']}"][1:], strict=True):
            estimate = level["estimate"]
            assert [f"{estimate['value']:.4f}", f"{estimate['low']:.4f} to {estimate['high']:.4f}"] == cells[1:3]
    for interaction, cells in zip(content["interactions"], tables["Interactions"][1:], strict=True):
        assert pts(interaction["estimate"]["value"]) == cells[2]
        assert f"{interaction['estimate']['p']:.3f}" == cells[4]
    assert all(sentence.replace("\\", "") in page for sentence in content["evidence"])


def test_the_csv_has_the_runs_as_they_are(study: StudyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(runs_csv(analyse(study)))))
    runs = [run for arm in study.arms for run in [*arm.trials, *arm.confirmations]]
    assert len(rows) == len(runs) == 42
    for row, run in zip(rows, runs, strict=True):
        is_right = None if run.predictions is None else run.predictions.predicted_N == run.predictions.labels_N
        assert row["test_accuracy"] == ("" if is_right is None else str(float(is_right.mean())))
        assert float(row["val_accuracy"]) == run.val_accuracy
        assert (row["seed"], row["number"], row["run_id"]) == (str(run.spec.seed), str(run.number), run.run_id)
        assert (float(row["lr"]), int(row["head_width"])) == (run.spec.lr, run.spec.head_width)
        assert float(row["training_seconds"]) == run.training_seconds
        assert int(row["trained_parameters"]) == run.trained_parameters
