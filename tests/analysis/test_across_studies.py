"""Studies of one question on several data sets: the mean over studies, its interval, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from ablation.analysis import across_studies
from ablation.analysis.across_studies import MeanDifference, arms_across, check_same_question, differences_across
from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.looks import past_looks
from ablation.analysis.pooling import analyse_study
from ablation.analysis.results import read_results
from ablation.analysis.statistics import Estimate
from ablation.base.command_line import run_command
from ablation.base.errors import InputError
from ablation.compare import cli
from ablation.reporting import comparison_of_studies
from ablation.storage.store import find_store
from tests.fake_results import fake_result, store_study
from tests.studies import signal_handlers_kept

CUTS = {"truncate_at": ["block3", "block4", "block5"]}
OF_DATA = {  # name -> accuracy of each arm
    "flowers": {"block3": 0.80, "block4": 0.74, "block5": 0.60},
    "pets": {"block3": 0.70, "block4": 0.71, "block5": 0.52},
    "cars": {"block3": 0.92, "block4": 0.86, "block5": 0.78},
    "birds": {"block3": 0.85, "block4": 0.82, "block5": 0.64},
}


def study(name: str, **changes: Any) -> Any:
    return fake_result(CUTS, OF_DATA[name], **{"name": name, "images": 800, **changes})


@pytest.fixture(scope="module")
def four() -> list[StudyAnalysis]:
    return [analyse_study(study(name)) for name in OF_DATA]


def random_effects(values_K: np.ndarray, variances_K: np.ndarray) -> tuple[float, float, float]:
    """Return mean, standard error by Hartung and Knapp, and tau by Paule and Mandel, from their definitions."""
    K = len(values_K)

    def q(tau2: float) -> float:
        weights_K = 1 / (variances_K + tau2)
        mean = (weights_K * values_K).sum() / weights_K.sum()
        return float((weights_K * (values_K - mean) ** 2).sum()) - (K - 1)

    tau2 = optimize.brentq(q, 0, 10) if q(0) > 0 else 0.0
    weights_K = 1 / (variances_K + tau2)
    mean = (weights_K * values_K).sum() / weights_K.sum()
    plain = 1 / weights_K.sum()
    knapp = (weights_K * (values_K - mean) ** 2).sum() / (K - 1) / weights_K.sum()
    return float(mean), float(max(plain, knapp) ** 0.5), float(tau2**0.5)


def test_the_mean_is_that_of_the_random_effects_model(four: list[StudyAnalysis]) -> None:
    found = differences_across(four)
    assert [(d.first, d.second) for d in found] == [("block3", "block4"), ("block3", "block5"), ("block4", "block5")]
    raw = []
    for difference in found:
        levels = {difference.first, difference.second}
        estimates = [
            next(d.estimate for d in analysis.factors[0].family if {d.first, d.second} == levels) for analysis in four
        ]
        values_K = np.array(list(difference.of_studies.values()))
        np.testing.assert_allclose(np.abs(values_K), [abs(estimate.value) for estimate in estimates])
        mean, error, tau = random_effects(values_K, np.array([(e.standard_error or 0) ** 2 for e in estimates]))
        assert difference.mean.value == pytest.approx(mean, rel=1e-4)
        assert difference.spread == pytest.approx(tau, rel=1e-3)
        half = stats.t.ppf(0.975, 3) * error
        assert (difference.mean.low, difference.mean.high) == pytest.approx((mean - half, mean + half), rel=1e-3)
        raw.append(2 * stats.t.sf(abs(mean) / error, 3))
    holm = [min(1.0, max(sorted(raw)[j] * (3 - j) for j in range(sorted(raw).index(p) + 1))) for p in raw]
    assert [difference.mean.p for difference in found] == pytest.approx(holm, rel=1e-3)


def test_a_study_that_leads_with_the_other_level_has_the_other_sign(four: list[StudyAnalysis]) -> None:
    (first, *_) = differences_across(four)
    assert {study: value > 0 for study, value in first.of_studies.items()} == {
        "flowers": True, "pets": False, "cars": True, "birds": True,
    }  # fmt: skip
    assert first.wins == 3
    assert not first.is_shown


def test_equal_studies_have_no_narrower_interval_than_each_allows() -> None:
    """Their scatter is zero by chance, so that the interval is that of the plain model, on two degrees of freedom."""
    same = Estimate(0.05, 0.01)
    mean, spread = across_studies._mean([same] * 3)
    assert (mean.value, spread) == (pytest.approx(0.05), 0)
    assert mean.high == pytest.approx(0.05 + stats.t.ppf(0.975, 2) * 0.01 / 3**0.5)


def test_intervals_cover_the_mean_of_such_studies() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        errors_K = random.uniform(0.005, 0.02, 5)
        values_K = 0.03 + random.normal(0, 0.02, 5) + random.normal(0, errors_K)
        mean, _ = across_studies._mean([Estimate(v, e) for v, e in zip(values_K, errors_K, strict=True)])
        assert mean.low is not None
        assert mean.high is not None
        covered += mean.low <= 0.03 <= mean.high
    assert 0.93 <= covered / 400 <= 0.985


def test_arms_over_studies(four: list[StudyAnalysis]) -> None:
    arms = arms_across(four)
    assert [arm.name for arm in arms] == ["block3", "block4", "block5"]
    assert [arm.best_in for arm in arms] == [["flowers", "cars", "birds"], ["pets"], []]
    of_flowers = next(arm for arm in four[0].arms if arm.name == "block3").test
    assert of_flowers is not None
    assert arms[0].values["flowers"] == of_flowers.mean


def test_other_questions_are_refused(four: list[StudyAnalysis]) -> None:
    accuracies = {"block3": 0.9, "block4": 0.8}
    other = analyse_study(fake_result({"truncate_at": ["block3", "block4"]}, accuracies, name="other"))
    with pytest.raises(InputError, match="flowers and other cannot be compared: only one .* truncate_at = block5"):
        check_same_question([four[0].result, other.result])


SMALL = {"images": 200, "seeds": 3, "trials_per_arm": 1, "epochs": 1}


@pytest.mark.parametrize("arguments", [["flowers"], ["flowers", "flowers"]])
def test_one_study_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with signal_handlers_kept():
        assert run_command(cli) == 2


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verdict that is shown is a look; those of studies that cannot be compared are not."""
    store = find_store(str(tmp_path / "s"))
    two = {"truncate_at": ["block3", "block5"]}
    for name, accuracies in OF_DATA.items():
        store_study(store, fake_result(two, accuracies, name=name, **SMALL))
    store_study(store, fake_result({"truncate_at": ["block3"]}, {"block3": 0.9}, name="other", **SMALL))

    def looks() -> list[int]:
        return [len(past_looks(read_results(store, name).tags)) for name in OF_DATA]

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare", *arguments, "--store", str(tmp_path / "s")])
        with signal_handlers_kept():
            return run_command(cli), capsys.readouterr().out

    assert run("flowers", "other")[0] == run("flowers", "nobody")[0] == 2
    assert looks() == [0] * 4
    status, text = run(*OF_DATA)
    assert status == 0
    assert "block3 is better than block5 over studies like these, by" in " ".join(text.split())
    assert "it is ahead in 4 of 4." in " ".join(text.split())
    status, text = run(*OF_DATA, "--format", "json")
    assert status == 0
    figures = json.loads(text)
    assert figures["arms"][0]["name"] == "block3"
    assert figures["differences"][0]["wins"] == 4
    assert looks() == [1] * 4  # of the same data twice


def test_a_tie_is_no_win_of_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    of_studies = {"flowers": -0.04, "pets": 0.0, "cars": -0.02}
    difference = MeanDifference("x", "a", "b", of_studies, Estimate(-0.02, 0.005, 2.0, -0.03, -0.01, 0.01), 0.0)
    monkeypatch.setattr(comparison_of_studies, "differences_across", lambda analyses: [difference])
    (sentence,) = comparison_of_studies.across_sentences([])
    assert sentence.startswith("b is better than a over studies like these, by 2.0 points")
    assert sentence.endswith("; it is ahead in 2 of 3.")
