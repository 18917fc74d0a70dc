"""A run per arm: made once, kept current, and never a trial."""

import time

import pytest

from ablation.analysis.dataframe import load_results
from ablation.spec.arms import Arm
from ablation.storage.store import Store
from ablation.tracking.arm_runs import ArmRun, keep_arm_runs
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import read_study
from ablation.tracking.summary_run import SummaryRun
from tests.fake_results import fake_result, store_study
from tests.studies import new_tracker

LEVELS = {"truncate_at": "block1", "strategy": "fine_tune_all"}
ARM = ArmRun(Arm("block1,fine_tune_all", LEVELS), {"test_accuracy": 0.5, "rank": 1.0}, "Rank 1 of 1.", "#0072b2")


def test_they_are_no_trials(store: Store) -> None:
    result = fake_result({"truncate_at": ["block1", "block3"]}, {"block1": 0.5, "block3": 0.6}, images=50)
    before, table = store_study(store, result), load_results("fake", store=str(store.root))
    tracker = new_tracker(store, "fake")
    client = tracker.client
    arms = [
        ArmRun(Arm(name, {"truncate_at": name}), {"test_accuracy": 0.5}, "x", "#0072b2")
        for name in ("block1", "block3")
    ]
    keep_arm_runs(SummaryRun(tracker, "summary"), arms, ["block1", "block3"])
    runs = client.search_runs([tracker.experiment_id], "tags.kind = 'arm'")
    assert {run.info.run_name for run in runs} == {"block1", "block3"}
    assert "study" not in runs[0].data.params  # a run with it would be taken for a trial
    assert read_study(store, "fake").runs == before.runs
    assert load_results("fake", store=str(store.root)).equals(table)
    tracker.reconcile(lambda: {"block1/trials/0": "FINISHED"})
    assert {client.get_run(run.info.run_id).info.status for run in runs} == {"FINISHED"}


def test_a_colour_that_a_person_chose_stays(tracker: Tracker) -> None:
    keep_arm_runs(SummaryRun(tracker, "summary"), [ARM], [ARM.arm.name])
    (run,) = tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'arm'")
    assert run.data.tags["mlflow.runColor"] == "#0072b2"
    tracker.client.set_tag(run.info.run_id, "mlflow.runColor", "#ff0000")
    keep_arm_runs(SummaryRun(tracker, "summary"), [ARM], [ARM.arm.name])
    assert tracker.client.get_run(run.info.run_id).data.tags["mlflow.runColor"] == "#ff0000"


def test_they_are_kept_current(tracker: Tracker) -> None:
    SummaryRun(tracker, "summary").begin({}, {})
    for accuracy in (0.5, 0.5, 0.75):
        arm = ArmRun(ARM.arm, {**ARM.metrics, "test_accuracy": accuracy}, f"now {accuracy}", ARM.colour)
        keep_arm_runs(SummaryRun(tracker, "summary"), [arm], [ARM.arm.name])
    (run,) = tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'arm'")
    assert run.info.run_name == "block1 / fine-tune all"
    assert run.data.params == {"arm": "block1,fine_tune_all", **LEVELS}
    assert run.data.metrics == {"test_accuracy": 0.75, "rank": 1.0}
    assert run.data.tags["mlflow.note.content"] == "now 0.75"
    assert [point.value for point in tracker.client.get_metric_history(run.info.run_id, "test_accuracy")] == [0.5, 0.75]
    (summary,) = tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'summary'")
    assert summary.data.metrics == {"test_accuracy/block1 - fine_tune_all": 0.75}


def test_one_that_is_kept_current_does_not_get_longer(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(second: int) -> tuple[str, int]:
        monkeypatch.setattr(time, "time_ns", lambda: second * 10**9)
        keep_arm_runs(SummaryRun(tracker, "summary"), [ARM], [ARM.arm.name])
        (run,) = tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'arm'")
        return run.info.status, run.info.end_time

    now = int(time.time()) + 60
    assert [kept(now), kept(now + 86_400)] == [("FINISHED", 1000 * now)] * 2
    tracker.client.update_run(tracker.run_id("summary/block1,fine_tune_all"), status="RUNNING")  # its process died
    assert kept(now + 90_000) == ("FINISHED", 1000 * now)


def test_arms_of_similar_names_have_metrics_of_their_own(tracker: Tracker) -> None:
    SummaryRun(tracker, "summary").begin({}, {})
    accuracies = {"mixup+ema": 0.5, "mixup": 0.6, "mixup,ema": 0.7}
    arms = [ArmRun(Arm(name, {}), {"test_accuracy": accuracy}, "x", "#0072b2") for name, accuracy in accuracies.items()]
    for finished in (arms[2:], arms):  # the first arm gets its first trial later
        keep_arm_runs(SummaryRun(tracker, "summary"), finished, list(accuracies))
    (summary,) = tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'summary'")
    expected = {"mixup - ema 1": 0.5, "mixup": 0.6, "mixup - ema 3": 0.7}
    assert summary.data.metrics == {f"test_accuracy/{name}": accuracy for name, accuracy in expected.items()}


def test_a_double_is_deleted(tracker: Tracker) -> None:
    """A server may carry out the creation of a run after it was given up."""
    keep_arm_runs(SummaryRun(tracker, "summary"), [ARM], [ARM.arm.name])
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    tracker.client.create_run(tracker.experiment_id, tags={**run.data.tags, "late": "yes"})
    keep_arm_runs(SummaryRun(tracker, "summary"), [ARM], [ARM.arm.name])
    assert [left.info.run_id for left in tracker.client.search_runs([tracker.experiment_id])] == [run.info.run_id]
