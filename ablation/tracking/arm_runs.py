"""A run per arm: its means over seeds as metrics and its levels as parameters, so that MLflow compares arms."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import Metric, Param, Run

from ablation.spec.arms import Arm
from ablation.spec.objective import ACCURACY, Objective
from ablation.tracking.client import COLOUR_TAG, NOTE_TAG
from ablation.tracking.experiment import Tracker
from ablation.tracking.run_names import arm_title
from ablation.tracking.summary_run import SummaryRun

ARM_KIND = "arm"  # the tag `kind` of such a run, which is no trial


@dataclass(frozen=True)
class ArmRun:
    """What an arm's run in MLflow shows.

    Attributes:
        arm: the arm, whose levels become parameters.
        metrics: name -> value; fractions, seconds and counts.
        note: the run's description, one line of markdown.
        colour: of the run in the UI, such as '#0072b2'.
    """

    arm: Arm
    metrics: dict[str, float]
    note: str
    colour: str


def keep_arm_runs(
    summary: SummaryRun, arms: Sequence[ArmRun], names: Sequence[str], objective: Objective = ACCURACY
) -> None:
    """Create or update the runs of a study's arms; one process of a study at a time may do this.

    Their parameters hold no `study`, and their keys lie below the summary run's: they are not taken for trials.

    Args:
        summary: the study's summary run, which gets the objective of each arm (test images) as a metric.
        arms: those in which a trial has finished.
        names: of all the study's arms, in their order.
        objective: of the study.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    tracker = summary.tracker
    with tracker.calls():
        for arm in arms:
            name = arm.arm.name
            tags = {"study": tracker.study, "arm": name, "kind": ARM_KIND, COLOUR_TAG: arm.colour, NOTE_TAG: arm.note}
            key = f"{summary.key}/{name}"
            run_id, is_new = tracker.find_or_create(key, arm_title(arm.arm), tags)
            if not is_new:
                tracker.client.set_tag(run_id, NOTE_TAG, arm.note)
            params = [Param("arm", name), *(Param(factor, str(level)) for factor, level in arm.arm.levels.items())]
            run = tracker.delete_doubles(key)
            _log_changes(tracker, run, arm.metrics, params)
            if run.info.end_time is None:
                tracker.end_run(run.info, "FINISHED")
            else:  # its end stays the first one: else the UI would show days, in which nothing was trained
                tracker.client.update_run(run_id, status="FINISHED")
        summary_id = summary.find()
        if summary_id is not None:
            test = objective.test_metric
            metric_names = _arms_in_metrics(names)
            means = {f"{test}/{metric_names[arm.arm.name]}": arm.metrics[test] for arm in arms if test in arm.metrics}
            _log_changes(tracker, tracker.client.get_run(summary_id), means, [])


def _log_changes(tracker: Tracker, run: Run, metrics: Mapping[str, float], params: list[Param]) -> None:
    """Log parameters, and the metrics whose values have changed: a study that is run again adds no points."""
    now = time.time_ns() // 1_000_000
    new = [Metric(name, value, now, 0) for name, value in metrics.items() if run.data.metrics.get(name) != value]
    tracker.client.log_batch(run.info.run_id, metrics=new, params=params)


def _arms_in_metrics(arms: Sequence[str]) -> dict[str, str]:
    """Return the arms' names in those of metrics, where MLflow allows fewer characters; numbered where two coincide."""
    names = [re.sub(r"[^A-Za-z0-9_. -]+", " - ", arm) for arm in arms]
    numbered = [f"{name} {n}" if names.count(name) > 1 else name for n, name in enumerate(names, 1)]
    return dict(zip(arms, numbered, strict=True))
