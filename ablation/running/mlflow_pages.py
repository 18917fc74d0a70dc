"""What the MLflow UI shows of a study beside its trials: saved views, a run per arm, and models to rank."""

import math

from ablation.analysis.arm_summaries import ArmSummary
from ablation.analysis.pooling import summarise_arms
from ablation.analysis.results import StudyResult
from ablation.spec.study import StudySpec
from ablation.tracking.arm_runs import ArmRun, keep_arm_runs
from ablation.tracking.confirmed_models import ConfirmedModel, keep_confirmed_models
from ablation.tracking.experiment import Tracker
from ablation.tracking.saved_views import keep_views, study_views

TEST_METRICS = ("test_accuracy", "test_balanced_accuracy", "test_macro_f1", "test_loss")


def begin_pages(tracker: Tracker, spec: StudySpec) -> None:
    """Write the views for a study that begins, or is resumed.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    keep_views(tracker, study_views(spec, has_arm_runs=False))


def conclude_pages(tracker: Tracker, summary_key: str, result: StudyResult) -> None:
    """Write the runs of the arms, the models of the confirmation runs, and the views that show them.

    Args:
        tracker: the study's experiment.
        summary_key: the key of its summary run.
        result: the study's results, with the test predictions.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    runs = arm_runs(result)
    keep_arm_runs(tracker, summary_key, result.spec.name, runs)
    keep_confirmed_models(tracker, confirmed_models(result))
    keep_views(tracker, study_views(result.spec, has_arm_runs=any("test_accuracy" in run.metrics for run in runs)))


def arm_runs(result: StudyResult) -> list[ArmRun]:
    """Return a run for each arm in which a trial finished.

    Its `rank` counts from 1, by mean validation accuracy, as the champion is chosen: no test metric is used.
    """
    summaries = [summary for summary in summarise_arms(result) if summary.result.best is not None]
    ranked = [summary.name for summary in sorted(summaries, key=_validation, reverse=True)]
    return [_arm_run(summary, ranked.index(summary.name) + 1, len(ranked)) for summary in summaries]


def _validation(summary: ArmSummary) -> tuple[bool, float]:
    """Return what ranks an arm: confirmed arms first, then the validation accuracy."""
    if summary.val is not None:
        return True, summary.val.mean
    best = summary.result.best
    return False, (best.val_accuracy or 0.0) if best is not None else 0.0


def _arm_run(summary: ArmSummary, rank: int, arms: int) -> ArmRun:
    test, val, accuracy = summary.test, summary.val, summary.accuracy
    values = {
        "rank": rank,
        "seeds": summary.runs,
        "test_accuracy": test.mean if test else None,
        "test_sd": test.standard_deviation if test else None,
        "test_low": accuracy.low if accuracy else None,
        "test_high": accuracy.high if accuracy else None,
        "test_balanced_accuracy": summary.balanced.mean if summary.balanced else None,
        "test_macro_f1": summary.macro_f1.mean if summary.macro_f1 else None,
        "best_val_accuracy": _validation(summary)[1],
        "val_sd": val.standard_deviation if val else None,
        "training_seconds": summary.training_seconds,
        "trained_parameters": summary.trained_parameters,
    }
    metrics = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    levels = {name: str(level) for name, level in summary.result.arm.levels.items()}
    return ArmRun(summary.name, levels, metrics, _note(summary, rank, arms))


def _note(summary: ArmSummary, rank: int, arms: int) -> str:
    place = f"Rank {rank} of {arms} by validation accuracy"
    if summary.test is None:
        return f"{place}; no confirmation run has finished."
    spread = f" ± {summary.test.standard_deviation:.4f}" if summary.test.standard_deviation is not None else ""
    return f"{place}; test accuracy {summary.test.mean:.4f}{spread} (n = {summary.test.seeds})."


def confirmed_models(result: StudyResult) -> list[ConfirmedModel]:
    """Return the models of the confirmation runs that finished, superseded ones left out."""
    models = []
    for arm in result.arms:
        for run in arm.confirmations:
            values = {name: getattr(run, name) for name in TEST_METRICS}
            metrics = {name: value for name, value in values.items() if value is not None}
            if metrics:
                params = {"arm": arm.arm.name, **{name: str(level) for name, level in arm.arm.levels.items()}}
                models.append(ConfirmedModel(run.run_id, arm.arm.name, run.number, params, metrics, run.spec.repeat))
    return models
