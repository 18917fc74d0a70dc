"""A logged model for each confirmation run, so that the Models tab of the MLflow UI ranks them by their test metrics.

Nothing is pickled or copied: the checkpoint stays the run's, and the logged model points to it, which MLflow calls an
external model. The champion has a model of its own that can be served, see `registry`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import LoggedModel, LoggedModelStatus, Metric
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from ablation.spec.arms import Arm
from ablation.tracking.client import CHECKPOINT_FILE, all_pages, link_model
from ablation.tracking.experiment import Tracker
from ablation.tracking.run_names import run_title

MODEL_TYPE = "confirmation"


@dataclass(frozen=True)
class ConfirmedModel:
    """The model of a finished confirmation run.

    `number` is the run's in its arm, from 0, `repeat` see `run_title`; `metrics` are those that rank the model.
    """

    run_id: str
    arm: Arm
    number: int
    metrics: Mapping[str, float]
    repeat: int | None = None


def keep_confirmed_models(tracker: Tracker, models: Sequence[ConfirmedModel]) -> None:
    """Create the logged models that do not exist yet; one process of a study at a time may do this.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    stored_models = all_pages(
        tracker.client.search_logged_models, [tracker.experiment_id], f"model_type = '{MODEL_TYPE}'"
    )
    ready = {model.source_run_id: model for model in stored_models}
    for model in models:
        stored = ready.get(model.run_id)
        if stored is None or stored.status != LoggedModelStatus.READY:
            _log_model(tracker, model, stored)


def _log_model(tracker: Tracker, confirmed: ConfirmedModel, stored: LoggedModel | None) -> None:
    """Create a logged model, or complete one that a process left unfinished."""
    client = tracker.client
    run = client.get_run(confirmed.run_id)
    model = stored or client.create_logged_model(
        tracker.experiment_id,
        _model_name(confirmed),
        confirmed.run_id,
        tags={MLFLOW_MODEL_IS_EXTERNAL: "true", "arm": confirmed.arm.name, "checkpoint": CHECKPOINT_FILE},
        params={"arm": confirmed.arm.name, **{name: str(level) for name, level in confirmed.arm.levels.items()}},
        model_type=MODEL_TYPE,
    )
    dataset = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    # At the time of the run's own points: else MLflow would give the run each of them a second time.
    points = {name: client.get_metric_history(confirmed.run_id, name)[-1:] for name in confirmed.metrics}
    metrics = [
        Metric(
            name, point.value, point.timestamp, point.step, model_id=model.model_id,
            dataset_name=dataset.name if dataset else None, dataset_digest=dataset.digest if dataset else None,
        )
        for name, last in points.items() for point in last
    ]  # fmt: skip
    client.log_batch(confirmed.run_id, metrics=metrics)
    link_model(client, confirmed.run_id, model.model_id)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _model_name(confirmed: ConfirmedModel) -> str:
    """Return the model's name; MLflow allows neither slashes nor some other signs."""
    title = run_title(confirmed.arm, confirmed.number, is_confirmation=True, repeat=confirmed.repeat)
    return re.sub(r"\s*[/:.%\"']\s*", " - ", title)
