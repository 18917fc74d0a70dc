"""Logged models of confirmation runs, which MLflow ranks."""

from mlflow.entities import LoggedModelStatus

from ablation.storage.store import Store
from ablation.tracking.confirmed_models import ConfirmedModel, keep_confirmed_models
from tests.fake_results import fake_result, store_study
from tests.studies import new_tracker


def test_models_are_ranked_by_their_test_metrics(store: Store) -> None:
    """Made once each; one that a process left unfinished is completed."""
    accuracies = {"block1": 0.5, "block3": 0.6}
    result = fake_result({"truncate_at": list(accuracies)}, accuracies, seeds=2, seed_deviation=0.05)
    record = store_study(store, result)
    tracker = new_tracker(store, "fake")
    client = tracker.client
    runs = sorted((run for run in record.runs if run.tags["kind"] == "confirmation"), key=lambda run: run.params["arm"])
    arms = {arm.arm.name: arm.arm for arm in result.arms}
    models = [
        ConfirmedModel(
            run.run_id, arms[run.tags["arm"]], int(run.tags["trial"]), {"test_accuracy": run.metrics["test_accuracy"]}
        )
        for run in runs
    ]
    client.create_logged_model(tracker.experiment_id, "begun", runs[0].run_id, model_type="confirmation")
    for _ in range(2):
        keep_confirmed_models(tracker, models)
    order = [{"field_name": "metrics.test_accuracy", "ascending": False}]
    ranked = client.search_logged_models([tracker.experiment_id], order_by=order)
    best_first = sorted(models, key=lambda model: -model.metrics["test_accuracy"])
    assert [model.source_run_id for model in ranked] == [model.run_id for model in best_first]
    assert ranked[0].name == f"block3 - seed {best_first[0].number + 1}"
    assert ranked[0].params == {"arm": "block3", "truncate_at": "block3"}
    assert {model.status for model in ranked} == {LoggedModelStatus.READY}
    (metric,) = ranked[0].metrics
    value = best_first[0].metrics["test_accuracy"]
    assert (metric.value, metric.dataset_name, metric.dataset_digest) == (value, "cifar10", "d" * 8)
    assert len(client.get_metric_history(best_first[0].run_id, "test_accuracy")) == 1
    outputs = client.get_run(best_first[0].run_id).outputs
    assert [output.model_id for output in outputs.model_outputs] == [ranked[0].model_id]
