"""The report's section on the forecast: its table, and how well it foretold the order of the arms."""

from dataclasses import replace

import pytest

from ablation.analysis.cut_forecasts import CutForecast
from ablation.analysis.pooling import analyse_study
from ablation.base.text import Table
from ablation.reporting.forecast_section import forecast_blocks
from ablation.reporting.report import build_report
from tests.fake_results import fake_result

pytestmark = pytest.mark.usefixtures("plots_are_not_drawn")
CUTS = ["block1", "block2", "block3", "block4"]


def tables(cuts: int, seeds: int = 2) -> tuple[Table, Table]:
    """Return the section's tables, of arms with accuracies of 0.1, 0.2, ..., foretold in this order but by LogME."""
    factors = {"truncate_at": CUTS[:cuts]}
    accuracies = {cut: (number + 1) / 10 for number, cut in enumerate(CUTS[:cuts])}
    forecast = [CutForecast(cut, 2, 1024, value, value, value, -value, 3000, 400) for cut, value in accuracies.items()]
    result = fake_result(factors, accuracies, seeds=seeds, seed_deviation=0.0)
    _, table, agreement = forecast_blocks(replace(result, forecast=forecast))
    assert isinstance(table, Table)
    assert isinstance(agreement, Table)
    return table, agreement


def test_the_tables_say_what_was_foretold_and_what_came() -> None:
    table, agreement = tables(4)
    # sqrt(0.1 * 0.9 / 400) = 0.015
    assert table.rows[0] == ["block1", "1,024", "0.1000 \u00b1 0.0150", "0.1000", "0.1000 \u00b1 0.0150", "-0.1000"]
    ridge, *_, logme = agreement.rows
    assert ridge == ["all arms", "4", "ridge probe", "1.00", "block4", "block4", "0.00"]
    assert logme[:6] == ["all arms", "4", "LogME", "-1.00", "block4", "block1"]
    assert float(logme[6]) == pytest.approx(30, abs=1)
    assert "mean test accuracy" in agreement.notes[-1]


def test_a_few_cuts_have_no_tau_and_arms_without_seeds_no_test() -> None:
    _, agreement = tables(3, seeds=0)
    assert {row[3] for row in agreement.rows} == {"too few"}
    assert "best tuned validation accuracy" in agreement.notes[-1]


def test_a_report_has_the_section_only_with_a_forecast() -> None:
    result = fake_result({"truncate_at": CUTS[:2]}, dict.fromkeys(CUTS[:2], 0.5), images=40, seeds=2)
    assert "Forecast before training" not in build_report(analyse_study(result)).markdown
    forecast = [CutForecast(cut, 2, 1024, 0.5, 0.5, 0.5, 0.5, 3000, 400) for cut in CUTS[:2]]
    assert "## Forecast before training" in build_report(analyse_study(replace(result, forecast=forecast))).markdown
