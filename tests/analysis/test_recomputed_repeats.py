"""All that the report of a study with repeats of its tuning prints is recomputed, or is an input.

As in `test_recomputed_report.py` and `test_recomputed_plots.py`: tables, sentences, plots and the page, from raw
predictions and the runs' own records, by NumPy, SciPy and scikit-learn.

Legend: R repeats, N test images.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablation.analysis.results import StudyResult
from ablation.reporting.report import Report
from tests.analysis.test_recomputed_plots import (
    Interval,
    accuracies_of,
    check_page,
    check_plots,
    labels,
    rows_of_runs,
)
from tests.analysis.test_recomputed_report import (
    INPUTS,
    SIMULATED,
    Tables,
    arms_of,
    check_classes,
    check_confusions,
    check_costs,
    check_matrix,
    check_metrics,
    check_mistakes,
    check_runs,
    check_sentences,
    confusion,
    definitions,
    drawn_report,
    phrases_of_plots,
    pts,
    sentences_of_all,
    tables_of,
    text_of,
)
from tests.fake_results import fake_result

CUTS = ["block3", "block4", "block5"]
PAIRS = list(combinations(CUTS, 2))


Repeated = tuple[StudyResult, Tables, str]


@pytest.fixture(scope="module")
def study() -> StudyResult:
    """Return a study with repeats of its tuning, as the demos have them."""
    accuracies = {"block3": 0.9, "block4": 0.893, "block5": 0.85}
    confirm = {"seeds": 2, "repeats": 3}
    return fake_result({"truncate_at": CUTS}, accuracies, seeds=2, images=1500, seed_deviation=0.006, confirm=confirm)


@pytest.fixture(scope="module")
def report(study: StudyResult) -> Report:
    return drawn_report(study)


@pytest.fixture(scope="module")
def repeated(study: StudyResult, report: Report) -> Repeated:
    """Return the study, its page's tables, and the page."""
    page = text_of(report)
    return study, tables_of(page), page


def shares(study: StudyResult) -> dict[str, np.ndarray]:
    """Return the share of each repeat's runs that are right about each image, R x N."""
    return {
        arm.arm.name: np.array(
            [
                np.mean(
                    [
                        p.predicted_N == p.labels_N
                        for run in arm.confirmations
                        if run.spec.repeat == repeat and (p := run.predictions) is not None
                    ],
                    axis=0,
                )
                for repeat in range(3)
            ]
        )
        for arm in study.arms
    }


def parts_over_repeats(y_RN: np.ndarray) -> tuple[float, float]:
    """Return the variance of a mean over repeats and images: what repeats and what images contribute."""
    R, N = y_RN.shape
    rest = y_RN - y_RN.mean(axis=0) - y_RN.mean(axis=1, keepdims=True) + y_RN.mean()
    square = (rest**2).sum() / ((R - 1) * (N - 1))
    images = np.var(y_RN.mean(axis=0), ddof=1) / N - square / (R * N)
    return float(np.var(y_RN.mean(axis=1), ddof=1) / R), float(max(images, N**-2))


def student(z: Any, df: int = 2) -> Any:
    """Return the t that has a normal deviate's probability, by Wallace's (1959) transformation."""
    return np.sqrt(df * np.expm1((z * (8 * df + 3) / (8 * df + 1)) ** 2 / df))


def reached(squared: Any, repeats: Any, images: Any, df: int = 2) -> Any:
    """Return the deviate z with t(z)² repeats + z² images = squared, by bisection."""
    low, high = np.zeros_like(squared), np.full_like(squared, 12.0)
    for _ in range(30):
        middle = (low + high) / 2
        is_less = student(middle, df) ** 2 * repeats + middle**2 * images < squared
        low, high = np.where(is_less, middle, low), np.where(is_less, high, middle)
    return low


def test_over_repeats_arms_are_recomputed(repeated: Repeated) -> None:
    study, tables, _ = repeated
    z = stats.norm.ppf(0.975)
    for (name, y_RN), cells, level in zip(
        shares(study).items(), tables["Arms"][1:], tables["Marginal means of truncate_at"][1:], strict=True
    ):
        repeats, images = parts_over_repeats(y_RN)
        half = np.sqrt(student(z) ** 2 * repeats + z**2 * images)
        interval = f"{y_RN.mean() - half:.4f} to {y_RN.mean() + half:.4f}"
        assert cells[:4] == [name, f"{y_RN.mean():.4f}", f"{y_RN.mean(axis=1).std(ddof=1):.4f}", interval]
        assert cells[5] == "3"
        assert level == [name, f"{y_RN.mean():.4f}", interval, "1", "3"]


def shared_square(right: dict[str, np.ndarray]) -> float:
    """Return the arm-by-repeat mean square, which all arms share."""
    means_AR = np.array([y_RN.mean(axis=1) for y_RN in right.values()])
    rest = means_AR - means_AR.mean(axis=0) - means_AR.mean(axis=1, keepdims=True) + means_AR.mean()
    A, R = means_AR.shape
    return float((rest**2).sum() / ((A - 1) * (R - 1)))


def image_covariance(right: dict[str, np.ndarray]) -> np.ndarray:
    """Return the covariance of the arms' means that is due to the images."""
    residuals = [y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean() for y in right.values()]
    products = np.array([[(a * b).sum() / (2 * 1499) / 1500 / 3 for b in residuals] for a in residuals])
    covariance: np.ndarray = np.cov([y.mean(axis=0) for y in right.values()]) / 1500 - products
    return covariance


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    of_matrix: np.ndarray = vectors * np.sqrt(values.clip(min=0))
    return of_matrix


def simulated_parts(right: dict[str, np.ndarray], repeats: int, studies: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return errors of all pairs in studies of so many repeats, what repeats contribute to their variance, and images.

    The first two are B x 3.
    """
    rng = np.random.default_rng(11)
    drawn = rng.standard_normal((studies, repeats, 3)) * np.sqrt(shared_square(right))  # study, repeat, arm
    # What images do to the arms is correlated as it was found.
    of_images = rng.standard_normal((studies, 3)) @ root(image_covariance(right)).T
    pairs = [(CUTS.index(first), CUTS.index(second)) for first, second in PAIRS]
    of_repeats = np.stack([drawn[:, :, a] - drawn[:, :, b] for a, b in pairs], axis=2)
    images = np.stack([of_images[:, a] - of_images[:, b] for a, b in pairs], axis=1)
    of_image = np.array([parts_over_repeats(right[first] - right[second])[1] for first, second in PAIRS])
    errors = of_repeats.mean(axis=1) + images * np.sqrt(of_image) / images.std(axis=0)
    return errors, of_repeats.var(axis=1, ddof=1) / repeats, of_image


def simulated(right: dict[str, np.ndarray], repeats: int = 3, studies: int = SIMULATED) -> np.ndarray:
    """Return the signed statistics of all pairs in studies without differences, B x 3."""
    errors, spread, of_image = simulated_parts(right, repeats, studies)
    signed: np.ndarray = np.copysign(reached(errors**2, spread, of_image, repeats - 1), errors)
    return signed


def test_over_repeats_differences_are_recomputed(repeated: Repeated) -> None:
    study, tables, _ = repeated
    right = shares(study)
    found = {pair: (right[pair[0]] - right[pair[1]]) for pair in PAIRS}
    parts = {pair: parts_over_repeats(y_RN) for pair, y_RN in found.items()}
    largest = np.abs(simulated(right)).max(axis=1)
    critical = np.quantile(largest, 0.95)
    (title,) = [title for title in tables if title.startswith("Levels of truncate_at")]
    for cells in tables[title][1:]:
        y_RN, (repeats, images) = found[cells[0], cells[1]], parts[cells[0], cells[1]]
        half = np.sqrt(student(critical) ** 2 * repeats + critical**2 * images)
        p = float((largest >= reached(np.array(y_RN.mean() ** 2), repeats, images)).mean())
        assert cells[2] == pts(float(y_RN.mean()))
        ends = [float(end) for end in cells[3].split(" to ")]
        allowed = 6 * half + 0.05  # two degrees of freedom make the simulated ends uncertain by some percent
        assert ends == pytest.approx([100 * (y_RN.mean() - half), 100 * (y_RN.mean() + half)], abs=allowed)
        assert float(cells[4]) == pytest.approx(p, abs=0.006)
        assert cells[5:] == ["yes" if p < 0.05 else "no", "3"]


def seeds_part(study: StudyResult) -> float:
    """Return the variance of differences that is due to seeds: they vary within a repeat; mean over differences."""
    of_seeds = {
        arm.arm.name: np.mean(
            [
                np.var(accuracies_of([run for run in arm.confirmations if run.spec.repeat == repeat]), ddof=1) / 2
                for repeat in range(3)
            ]
        )
        for arm in study.arms
    }
    return float(np.mean([of_seeds[a] + of_seeds[b] for a, b in PAIRS]) / 3)


def test_over_repeats_no_table_is_left_over(repeated: Repeated) -> None:
    study, all_tables, _ = repeated
    tables = dict(all_tables)
    for title in ("Marginal means of truncate_at", DIFFERENCES):
        del tables[title]  # see the tests above
    check_chances(study, tables.pop("Arms"))
    check_power(study, tables.pop("What more would find"), all_tables[DIFFERENCES])
    check_costs(study, tables.pop("What each arm costs"))
    check_tunings(study, tables.pop("Repeats of the tuning"), tables.pop("Tuning"))
    check_metrics(study, tables.pop("Metrics that weigh all classes equally"))
    check_classes(study, tables.pop("Test accuracy of each class"))
    check_matrix(study, tables.pop("Confusion matrix of block3 (mean of n = 6 seeds)"), "block3")
    check_confusions(study, tables.pop("Most frequent confusions of each arm"))
    check_mistakes(study, tables.pop("The same mistakes as a table"))
    check_runs(study, tables.pop("Best trials and confirmation runs (27)"))
    assert tables.keys() <= INPUTS


DIFFERENCES = "Levels of truncate_at: differences of marginal mean test accuracy"


def check_chances(study: StudyResult, rows: list[list[str]]) -> None:
    """The chance to be the best, and Hsu's intervals; validation accuracies and numbers of trials."""
    right = shares(study)
    value = {arm: float(y_RN.mean()) for arm, y_RN in right.items()}
    rng = np.random.default_rng(5)
    repeats_AA = np.cov([y_RN.mean(axis=1) for y_RN in right.values()]) / 3
    errors = rng.standard_normal((SIMULATED, 3)) @ root(repeats_AA).T
    errors *= np.sqrt(2 / rng.chisquare(2, SIMULATED))[:, None]  # t with two degrees of freedom
    errors += rng.standard_normal((SIMULATED, 3)) @ root(image_covariance(right)).T
    best = (np.array(list(value.values())) + errors).argmax(axis=1)
    statistics = simulated(right)
    upper = np.full((3, 3), np.inf)
    for k in range(3):
        signed = [s * statistics[:, n] for n, (a, b) in enumerate(PAIRS) for s, c in ((1, a), (-1, b)) if c == CUTS[k]]
        critical = np.quantile(np.max(signed, axis=0), 0.95)
        for j in set(range(3)) - {k}:
            repeats, images = parts_over_repeats(right[CUTS[k]] - right[CUTS[j]])
            half = np.sqrt(student(critical) ** 2 * repeats + critical**2 * images)
            upper[k, j] = value[CUTS[k]] - value[CUTS[j]] + half
    high = np.maximum(upper.min(axis=1), 0)
    for number, (cells, arm) in enumerate(zip(rows[1:], study.arms, strict=True)):
        rivals = [j for j in range(3) if j != number and high[j] > 0]
        low = min((-upper[j, number] for j in rivals), default=0.0)
        assert cells[0] == arm.arm.name
        assert cells[4] == f"{np.mean([run.val_accuracy for run in arm.confirmations]):.4f}"
        assert float(cells[6]) == pytest.approx((best == number).mean(), abs=0.01)
        printed = [float(end) for end in cells[7].split(" to ")]
        assert printed == pytest.approx([100 * low, 100 * high[number]], rel=0.04, abs=0.11)
        assert cells[8] == "3 finished"


def check_power(study: StudyResult, rows: list[list[str]], differences: list[list[str]]) -> None:
    """At the printed differences, 80 % of simulated studies with as many repeats show them."""
    right = shares(study)
    factor, not_shown, excluded, *sizes = rows[1]
    undecided = [cells[3].split(" to ") for cells in differences[1:] if cells[5] == "no"]
    assert (factor, not_shown) == ("truncate_at", f"{len(undecided)} of 3")
    assert float(excluded) == pytest.approx(max(abs(float(end)) for ends in undecided for end in ends), abs=0.051)
    typical = int(np.argsort([sum(parts_over_repeats(right[a] - right[b])) for a, b in PAIRS])[1])
    for repeats, size in zip((3, 6, 12), sizes, strict=True):
        critical = np.quantile(np.abs(simulated(right, repeats, 40_000)).max(axis=1), 0.95)
        errors, spread, of_image = simulated_parts(right, repeats, 40_000)
        margins = np.sqrt(student(critical, repeats - 1) ** 2 * spread + critical**2 * of_image)
        shown = (float(size) / 100 + errors >= margins)[:, typical].mean()
        assert shown == pytest.approx(0.8, abs=0.03), (repeats, size)


def check_tunings(study: StudyResult, of_repeats: list[list[str]], of_arms: list[list[str]]) -> None:
    """What each repeat chose, and what an arm's trials were worth together."""
    rows = iter(of_repeats[1:])
    for arm, cells in zip(study.arms, of_arms[1:], strict=True):
        for repeat in range(3):
            best = max(
                (run for run in arm.trials if run.spec.repeat == repeat), key=lambda run: run.val_accuracy or 0.0
            )
            runs = [run for run in arm.confirmations if run.spec.repeat == repeat]
            assert next(rows) == [
                arm.arm.name,
                str(repeat + 1),
                f"head_width {best.spec.head_width}, lr {best.spec.lr:.3g}",
                f"{best.val_accuracy:.4f}",
                f"{np.mean(accuracies_of(runs)):.4f}",
                "2",
            ]
        values = [run.val_accuracy or 0.0 for run in arm.trials]
        fewer = float(np.mean([max(pair) for pair in combinations(values, 2)]))
        confirmed = f"{np.mean([run.val_accuracy for run in arm.confirmations]):.4f}"
        assert cells == [arm.arm.name, confirmed, "3", pts(max(values) - fewer), "3 finished"]
    assert list(rows) == []


def sentences(study: StudyResult, tables: Tables) -> Iterable[str]:
    """Yield the phrases with numbers that the page's sentences may have."""
    yield from sentences_of_all(study, tables)
    for first, second, value, ends, p, *_ in tables[DIFFERENCES][1:]:
        yield f"{value} ({ends}, p = {p})"
        assert first != second
    yield "Mean test accuracy of 3 arms"
    yield "mean of 3 tests"
    yield "over 3 tunings"
    yield "in points, 3 tunings"
    yield "3 arms, with 3 trials of 4 epochs each"
    yield "divided among 3 repeats"
    yield "retrained with 2 fresh seeds"
    yield "on the same 1,500 test images"
    yield "allow for 3 tests"
    yield "many times the 3 repeats R"
    yield "(1,500 images) was evaluated 18 times"
    yield "All 18 confirmation runs of all arms call no test image of 1,500"
    yield "the mean over 9 tunings"
    gains = []
    for arm in study.arms:
        for trial in arm.trials:  # each repeat has one
            of_repeat = [run.val_accuracy or 0 for run in arm.confirmations if run.spec.repeat == trial.spec.repeat]
            gains.append((trial.val_accuracy or 0) - float(np.mean(of_repeat)))
    gain, gain_error = (pts(float(statistic(gains))) for statistic in (np.mean, stats.sem))
    yield f"Tuned minus confirmed: {gain} \u00b1 {gain_error} (standard error) points"
    rates = [(arm.arm.name, run.spec.lr) for arm in study.arms for run in arm.trials]
    for end, word, is_near in (
        ("0.0001", "lowest", lambda place: place <= 0.1),
        ("0.1", "highest", lambda place: place >= 0.9),
    ):
        near = [f"{arm} {lr:.3g}" for arm, lr in rates if is_near((np.log10(lr) + 4) / 3)]
        yield f"its {word} searched value, {end}, in {len(near)} of 9 tunings ({', '.join(near)})"
    right = shares(study)
    parts = np.mean([parts_over_repeats(right[a] - right[b]) for a, b in PAIRS], axis=0)
    seeds = seeds_part(study)
    for name, variance in (("seeds", seeds), ("tuning and split", parts[0] - seeds), ("images", parts[1])):
        yield f"{name} {pts(float(np.sqrt(variance)))} ({100 * variance / parts.sum():.0f} %)"


def test_over_repeats_no_number_of_a_sentence_is_left_over(repeated: Repeated) -> None:
    study, tables, page = repeated
    phrases = [*sentences(study, tables), *phrases_of_plots(study, tables)]
    check_sentences(study, page, phrases, 40)


def test_over_repeats_all_data_of_plots_are_recomputed(repeated: Repeated, report: Report) -> None:
    study, tables, _ = repeated
    right, intervals = shares(study), {}
    z = stats.norm.ppf(0.975)
    for arm, y_RN in right.items():
        repeats, images = parts_over_repeats(y_RN)
        half = np.sqrt(student(z) ** 2 * repeats + z**2 * images)
        interval: Interval = (float(y_RN.mean()), float(y_RN.mean() - half), float(y_RN.mean() + half))
        intervals[arm] = interval
    rows = rows_of_runs(study, intervals)
    rows["arms"] = [
        {**labels(arm), **dict(zip(("value", "low", "high"), intervals[arm.arm.name], strict=True))}
        | {"n": "3 tunings", "seeds": accuracies_of(arm.confirmations)}
        for arm in study.arms
    ]
    values = {(a, b): float(right[a].mean() - right[b].mean()) for a, b in PAIRS}
    check_plots(definitions(report), rows, tables, values)


def test_over_repeats_the_page_has_the_numbers_of_the_text_and_no_others(study: StudyResult, report: Report) -> None:
    check_page(report, [confusion(arms_of(study)["block3"])])
