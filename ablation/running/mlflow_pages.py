"""What the MLflow UI shows of a study beside its trials: saved views, a run per arm, and models to rank."""

import math

from ablation.analysis.arm_summaries import ArmSummary, summarise
from ablation.analysis.pooling import summarise_arms
from ablation.analysis.results import StudyResult
from ablation.spec.colours import arm_colours
from ablation.spec.objective import Objective
from ablation.spec.study import StudySpec
from ablation.tracking.arm_runs import ArmRun, keep_arm_runs
from ablation.tracking.confirmed_models import ConfirmedModel, keep_confirmed_models
from ablation.tracking.experiment import Tracker
from ablation.tracking.saved_views import keep_views, study_views
from ablation.tracking.summary_run import SummaryRun

TEST_METRICS = ("test_accuracy", "test_balanced_accuracy", "test_macro_f1", "test_loss")


def write_views(tracker: Tracker, spec: StudySpec, *, has_confirmations: bool) -> None:
    """Write the views of a study that runs: of its trials, then of its confirmation runs, once one has finished.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    keep_views(tracker, study_views(spec, has_confirmations=has_confirmations, has_arm_runs=False))


def conclude_pages(summary: SummaryRun, result: StudyResult) -> None:
    """Write the runs of the arms, the models of the confirmation runs, and the views that show them.

    Args:
        summary: the study's summary run.
        result: the study's results, with the test predictions.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    runs = arm_runs(result)
    names = [arm.arm.name for arm in result.arms]
    keep_arm_runs(summary, runs, names, result.spec.goal)
    keep_confirmed_models(summary.tracker, confirmed_models(result))
    has_confirmations = any(result.spec.goal.test_metric in run.metrics for run in runs)
    keep_views(summary.tracker, study_views(result.spec, has_confirmations=has_confirmations, has_arm_runs=True))


def arm_runs(result: StudyResult) -> list[ArmRun]:
    """Return a run for each arm in which a trial finished.

    Its `rank` counts from 1, by the mean validation metric, as the champion is chosen: no test metric is used.
    """
    goal = result.spec.goal
    summaries = [summary for summary in summarise_arms(result) if summary.result.best is not None]

    def rank(summary: ArmSummary) -> tuple[bool, float]:
        """Return what ranks an arm: confirmed arms first, then the validation metric."""
        return summary.val is not None, goal.goodness(_validation(summary))

    ranked = [summary.name for summary in sorted(summaries, key=rank, reverse=True)]
    colours = arm_colours([arm.arm for arm in result.arms])
    return [
        _arm_run(summary, ranked.index(summary.name) + 1, len(ranked), goal, colours[summary.name])
        for summary in summaries
    ]


def _validation(summary: ArmSummary) -> float | None:
    """Return the validation metric of an arm: the mean of its confirmation runs, else of its best trial."""
    if summary.val is not None:
        return summary.val.mean
    return summary.result.best.val_value if summary.result.best is not None else None


def _arm_run(summary: ArmSummary, rank: int, arms: int, goal: Objective, colour: str) -> ArmRun:
    test, val, estimate = summary.test, summary.val, summary.estimate
    accuracy = summarise(summary.result.test_accuracies_S)
    values = {
        "rank": rank,
        "seeds": summary.runs,
        "test_accuracy": accuracy.mean if accuracy else None,
        "test_sd": test.standard_deviation if test else None,
        "test_low": estimate.low if estimate else None,
        "test_high": estimate.high if estimate else None,
        "test_balanced_accuracy": summary.balanced.mean if summary.balanced else None,
        "test_macro_f1": summary.macro_f1.mean if summary.macro_f1 else None,
        goal.test_metric: test.mean if test else None,
        goal.best_metric: _validation(summary),
        "val_sd": val.standard_deviation if val else None,
        "training_seconds": summary.training_seconds,
        "trained_parameters": summary.trained_parameters,
    }
    metrics = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    return ArmRun(summary.result.arm, metrics, _note(summary, rank, arms, goal.label), colour)


def _note(summary: ArmSummary, rank: int, arms: int, label: str) -> str:
    place = f"Rank {rank} of {arms} by validation {label}"
    if summary.test is None:
        return f"{place}; no confirmation run has finished."
    spread = f" ± {summary.test.standard_deviation:.4f}" if summary.test.standard_deviation is not None else ""
    return f"{place}; test {label} {summary.test.mean:.4f}{spread} (n = {summary.test.seeds})."


def confirmed_models(result: StudyResult) -> list[ConfirmedModel]:
    """Return the models of the confirmation runs that finished, superseded ones left out."""
    models = []
    for arm in result.arms:
        for run in arm.confirmations:
            values = {name: getattr(run, name) for name in TEST_METRICS}
            metrics = {name: value for name, value in values.items() if value is not None}
            if metrics:
                models.append(ConfirmedModel(run.run_id, arm.arm, run.number, metrics, run.spec.repeat))
    return models
