"""How well a forecast foretold the order of trained arms."""

from dataclasses import replace

import pytest

from ablation.analysis.cut_forecasts import CutForecast, forecast_from_json, forecast_to_json
from ablation.analysis.rankings import rankings
from ablation.analysis.results import StudyResult
from tests.fake_results import fake_result

CUTS = ["block1", "block2", "block3", "block4"]


def foretold(result: StudyResult, ridge: list[float], pools: tuple[int, ...] = (2,)) -> StudyResult:
    """Return a study with a forecast of its cuts: these accuracies of the ridge probe, the reverse of LogME."""
    places = [(cut, pool) for cut in CUTS for pool in pools]
    forecast = [
        CutForecast(cut, pool, 64, value, 0.5, 0.5, -value, 3000, 2000)  # type: ignore[arg-type]
        for (cut, pool), value in zip(places, ridge, strict=False)
    ]
    return replace(result, forecast=forecast)


def test_each_level_of_another_factor_has_its_own_ranking() -> None:
    strategies = ["feature_extraction", "from_scratch"]
    accuracies = {f"{cut},{strategy}": 0.0 for cut in CUTS for strategy in strategies}
    for cut, accuracy in zip(CUTS, (0.5, 0.7, 0.8, 0.6), strict=True):
        accuracies[f"{cut},feature_extraction"] = accuracy
    result = fake_result({"truncate_at": CUTS, "strategy": strategies}, accuracies, seed_deviation=0.0)
    (ranking,) = rankings(foretold(result, [0.3, 0.7, 0.6, 0.5]))  # random weights have no part in a forecast
    assert (ranking.arms, ranking.is_tested, ranking.best) == ("feature_extraction", True, "block3")
    assert ranking.values == pytest.approx(dict(zip(CUTS, (0.5, 0.7, 0.8, 0.6), strict=True)), abs=0.02)
    ridge = ranking.agreements["ridge_accuracy"]
    assert ridge.tau == pytest.approx(2 / 3)  # five of six pairs are in order
    assert ridge.first == "block2"
    assert ridge.behind == pytest.approx(0.1, abs=0.02)
    assert ranking.agreements["logme"].tau == pytest.approx(-2 / 3)
    assert ranking.agreements["neighbour_accuracy"].tau is None  # all equal


def test_three_cuts_are_too_few() -> None:
    result = fake_result({"truncate_at": CUTS[:3]}, dict.fromkeys(CUTS[:3], 0.5))
    (ranking,) = rankings(foretold(result, [0.1, 0.2, 0.3]))
    assert (ranking.arms, len(ranking.values)) == ("all arms", 3)
    assert all(agreement.tau is None for agreement in ranking.agreements.values())


def test_arms_that_are_not_confirmed_are_ranked_by_tuning() -> None:
    result = fake_result({"truncate_at": CUTS}, dict(zip(CUTS, (0.1, 0.2, 0.3, 0.4), strict=True)), seeds=0)
    (ranking,) = rankings(foretold(result, [1.0, 2.0, 3.0, 4.0]))
    assert not ranking.is_tested
    assert ranking.values["block4"] == pytest.approx(0.404)
    assert ranking.agreements["ridge_accuracy"].tau == 1


def test_an_arm_that_failed_or_has_no_forecast_is_left_out() -> None:
    result = fake_result({"truncate_at": CUTS}, dict.fromkeys(CUTS, 0.5), failed_arms=("block2",))
    (ranking,) = rankings(foretold(result, [0.1, 0.2, 0.3]))  # none of block4
    assert list(ranking.values) == ["block1", "block3"]


def test_pools_are_cuts_of_their_own() -> None:
    result = fake_result(
        {"truncate_at": CUTS[:2], "head_pool": [1, 2]},
        {f"{cut},head_pool={pool}": 0.5 for cut in CUTS[:2] for pool in (1, 2)},
    )
    (ranking,) = rankings(foretold(result, [0.1, 0.2, 0.3, 0.4], pools=(1, 2)))
    assert list(ranking.values)[:2] == ["block1, head_pool=1", "block1, head_pool=2"]


def test_a_study_without_a_forecast_has_no_rankings() -> None:
    assert rankings(fake_result({"truncate_at": CUTS}, dict.fromkeys(CUTS, 0.5))) == []


def test_a_forecast_is_read_as_it_was_written() -> None:
    forecast = [
        CutForecast("block1", 2, 64, 0.5, 0.25, 0.75, -0.1, 30, 20),
        CutForecast("block2", "flatten", 8, 1.0, 1.0, 1.0, 0.1, 30, 20),
    ]
    assert forecast_from_json(forecast_to_json(forecast)) == forecast
    assert forecast[0].standard_error(0.5) == pytest.approx((0.25 / 20) ** 0.5)
    for damaged in ("", "{}", "[]", '{"columns": ["truncate_at"], "data": [["block1"]]}', '{"columns": [], "data": 5}'):
        with pytest.raises(ValueError):
            forecast_from_json(damaged)
