"""`ablation.open_study`: a study in a notebook or a script, as its answer, pandas tables, plots and report."""

import html
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.analysis.answer import StudyAnalysis
from ablation.analysis.dataframe import runs_table
from ablation.analysis.wording import shown_question
from ablation.base.errors import InputError
from ablation.base.files import write_atomically
from ablation.reporting.charts import Picture
from ablation.reporting.figures import draw_figures
from ablation.reporting.report import analyse_looked_at, build_report, read_studies
from ablation.search import quiet_optuna
from ablation.spec.parameters import levels_name
from ablation.storage.store import find_store
from ablation.tracking import mlflow_settings
from ablation.tracking.client import is_server, ui_server


@dataclass(frozen=True)
class Page:
    """A page that Jupyter shows in a frame of its own."""

    html: str

    def save(self, path: str | Path) -> None:
        """Write the page to a file.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(Path(path), self.html.encode())

    def _repr_html_(self) -> str:
        frame = "width: 100%; height: 50rem; border: 1px solid #8888"
        return f'<iframe title="Report" srcdoc="{html.escape(self.html)}" style="{frame}"></iframe>'


@dataclass(frozen=True, repr=False, eq=False)  # NumPy's arrays in it have no single truth value
class OpenStudy:
    """A study as its store was when it was opened; Jupyter shows its question, answer, arms and their plot.

    Attributes:
        names: its name, or those of the studies that are pooled.
        analysis: all numbers of its report.
        server: the address of the MLflow server that has it; empty where there is none.
    """

    names: tuple[str, ...]
    analysis: StudyAnalysis
    server: str

    def __repr__(self) -> str:
        return f"{self.question}\n{self.answer}"

    @property
    def question(self) -> str:
        """What the study asks."""
        return shown_question(self.analysis.result.spec.question)

    @property
    def answer(self) -> str:
        """The answer in plain words."""
        return self.analysis.answer

    @property
    def evidence(self) -> list[str]:
        """The numbers behind the answer, as sentences."""
        return self.analysis.evidence

    @cached_property
    def report(self) -> Page:
        """The report's page."""
        with quiet_optuna():
            return Page(build_report(self.analysis, self.server).html)

    @cached_property
    def plots(self) -> dict[str, Picture]:
        """The plots and images that there are data for, by name; Jupyter shows each as it stands in print."""
        return draw_figures(self.analysis)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run, as `load_results` returns it: without runs that a planned look holds back."""
        return runs_table(self.analysis.result)

    @cached_property
    def arms(self) -> pd.DataFrame:
        """A row per arm, the best first: its levels, and its objective over n seeds (or repeats of the tuning).

        The columns after the levels: `test_accuracy` (mean; with another objective, such as `test_loss`),
        `standard_deviation`, `low` and `high` (95 % interval over seeds and images), `n`, `val_accuracy` (mean) or
        that of the objective, `best_trial` (its value on the validation images, biased because it was chosen for it),
        `chance_to_be_best`, `trained_parameters`, `training_seconds`.
        Accuracies are fractions; what is not known is missing. Arms without confirmation runs are sorted by
        `best_trial`.
        """
        goal = self.analysis.result.spec.goal
        rows = [
            {
                "arm": arm.name,
                **arm.result.arm.compared_levels,
                goal.test_metric: arm.test.mean if arm.test else None,
                "standard_deviation": arm.test.standard_deviation if arm.test else None,
                "low": arm.estimate.low if arm.estimate else None,
                "high": arm.estimate.high if arm.estimate else None,
                "n": arm.test.seeds if arm.test else 0,
                goal.val_metric: arm.val.mean if arm.val else None,
                "best_trial": arm.result.best.val_value if arm.result.best else None,
                "chance_to_be_best": self.analysis.chances_of_best.get(arm.name),
                "trained_parameters": arm.trained_parameters,
                "training_seconds": arm.training_seconds,
            }
            for arm in self.analysis.arms
        ]
        numbers = dict.fromkeys(
            [goal.test_metric, "standard_deviation", "low", "high", goal.val_metric, "best_trial", "chance_to_be_best",
             "training_seconds"], "float64",
        )  # fmt: skip
        table = pd.DataFrame(rows).astype({**numbers, "arm": "string", "n": "int64", "trained_parameters": "Int64"})
        order = [goal.test_metric, "best_trial"]
        return table.sort_values(order, ascending=not goal.higher_is_better, ignore_index=True)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """A row per compared pair of levels: `first` minus `second`, with its simultaneous 95 % interval.

        Differences are fractions, of losses nats.

        Levels are as in `arms`. The compared arms have the level `at_level` of another factor, `at_factor`; both are
        missing for an average over its levels. `p` is corrected for all tests of the study, and missing where there are
        too few seeds for a test.
        """
        level_of: dict[tuple[str | None, str | None], Any] = {
            (factor, levels_name({factor: level})): level
            for arm in self.analysis.arms
            for factor, level in arm.result.arm.compared_levels.items()
        }
        rows = [
            {
                "factor": factor.factor,
                "at_factor": other,
                "at_level": level_of.get((other, difference.at), difference.at),
                "first": level_of.get((factor.factor, difference.first), difference.first),
                "second": level_of.get((factor.factor, difference.second), difference.second),
                "difference": difference.estimate.value,
                "low": difference.estimate.low,
                "high": difference.estimate.high,
                "p": difference.estimate.p,
            }
            for factor in self.analysis.factors
            for other, differences in [(None, factor.family), *factor.by_level.items()]
            for difference in differences
        ]
        numbers = dict.fromkeys(["difference", "low", "high", "p"], "float64")
        columns = ["factor", "at_factor", "at_level", "first", "second", *numbers]
        return pd.DataFrame(rows, columns=columns).astype({**numbers, "factor": "string", "at_factor": "string"})

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per epoch (from 1) of each confirmation run, or of the best trial of an arm that has none.

        The columns: `arm`, `run_id`, `number`, `epoch`, `train_accuracy`, `train_loss`, `val_accuracy`, `val_loss`,
        and the validation metric of the study's objective.
        """
        tables = [
            # Of Series, because a run may lack points of a metric.
            pd.DataFrame({name: pd.Series(values_E, dtype="float64") for name, values_E in run.curves.items()}).assign(
                arm=arm.arm.name, run_id=run.run_id, number=run.number
            )
            for arm in self.analysis.result.arms
            for run in arm.drawn_runs
        ]
        table = pd.concat(tables, ignore_index=True)
        table["epoch"] = table.groupby("run_id").cumcount() + 1
        first = ["arm", "run_id", "number", "epoch"]
        return table[[*first, *table.columns.drop(first)]]

    def _repr_html_(self) -> str:
        goal = self.analysis.result.spec.goal
        is_confirmed = bool(self.arms.n.any())
        shown = ["arm", goal.test_metric, "low", "high", "n"] if is_confirmed else ["arm", "best_trial"]
        what = "Test {} with its 95 % interval" if is_confirmed else "Validation {} of the best trial"
        table: str = self.arms[shown].to_html(index=False, float_format="{:.4f}".format, na_rep="")
        plot = draw_figures(self.analysis, ["arms"]).get("arms")  # none before the first confirmation run
        return (
            f"<p>{html.escape(self.question)}</p>\n<p><strong>{html.escape(self.answer)}</strong></p>\n"
            f"<p>{what.format(goal.label)}:</p>\n{table}\n"
            f'<div style="background: #fff">{plot.svg if plot is not None else ""}</div>'
        )


@mlflow_settings()
def open_study(*names: str, store: str | os.PathLike[str] | None = None) -> OpenStudy:
    """Return a study as its store has it; several that differ in their seed alone are pooled, as in their report.

    Args:
        names: of the studies.
        store: their folder; as for `--store`, the environment's addresses or `mlruns` by default.

    Returns:
        The study: `answer` as text and `evidence` as a list of sentences; `arms`, `differences`, `curves` and `runs` as
        pandas tables; `plots` by name; `report` as a page.

    Raises:
        InputError: no study is named, or not by a string, there is none of that name, no trial of it has finished, or
            this version cannot read it.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    if not names:
        raise InputError("name the study to open, or the studies to pool")
    if not all(isinstance(name, str) for name in names):
        raise InputError("name each study by a string of its own: open_study('a', 'b')")
    where = find_store(store)
    analysis = analyse_looked_at(where, read_studies(where, names))
    return OpenStudy(names, analysis, ui_server(where) if is_server(where) else "")
