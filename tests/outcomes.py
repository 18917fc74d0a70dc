"""All that a study left in both stores, to be compared to the bit with another run of it."""

from collections import Counter
from typing import Any

import optuna
from mlflow import MlflowClient

# What depends on the clock, on names that are drawn, or on the store.
VARYING = (
    "images_per_second",
    "training_seconds",
    "inference_seconds",
    "forecast_seconds",
    "ablation.key",
    "environment",
)


def outcome(tracking_uri: str, optuna_url: str, study: str = "small", kinds: str = "") -> dict[str, Any]:
    """Return the runs and trials of a study: states, parameters and every point of every metric.

    Where `kinds` names some, runs of other kinds are left out.

    Each run of MLflow is there once, is ended, and has no point twice; else an assertion fails.
    """
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found: dict[str, Any] = {}
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    runs = [run for run in runs if not kinds or run.data.tags["kind"] in kinds]
    keys = Counter(run.data.tags["ablation.key"] for run in runs)
    assert set(keys.values()) == {1}, f"doubles: {[key for key, count in keys.items() if count > 1]}"
    for run in runs:
        tags = run.data.tags
        name = f"{tags['kind']} {tags.get('arm')} {tags.get('trial')}"
        assert run.info.status not in ("RUNNING", "SCHEDULED"), name
        curves = {}
        for metric in sorted(set(run.data.metrics) - set(VARYING)):
            points = client.get_metric_history(run.info.run_id, metric)
            curves[metric] = sorted((point.step, point.value) for point in points)
            assert len(dict(curves[metric])) == len(curves[metric]), f"{name}: {metric} {curves[metric]}"
        assert name not in found
        found[name] = (run.info.status, run.data.params, curves)
    storage = optuna.storages.RDBStorage(optuna_url)
    for name in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            found[f"{name} {trial.number}"] = (trial.state.name, trial.params, trial.value, trial.intermediate_values)
    storage.engine.dispose()
    return found
