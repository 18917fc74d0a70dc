"""Study results made up without any training, for tests of the analysis; `store_study` puts them into a store.

Legend: S confirmation runs (seeds), N test images, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from ablation.analysis.predictions import Predictions
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.runs import CURVES, RunResult
from ablation.data.normalisation import Normalisation
from ablation.data.samples import DRAWS, Mistakes, Samples, confident_mistakes, samples_file
from ablation.spec.arms import Arm, arms, published_for
from ablation.spec.metrics import EpochMetrics
from ablation.spec.parameters import Augmentation, Hyperparameters
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.store import Store
from ablation.tracking.client import CHECKPOINT_FILE, PREDICTIONS_FILE, SAMPLES_FILE, RunStatus
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import StudyRecord, read_study
from ablation.tracking.summary_run import SummaryRun
from ablation.tracking.trial_run import TrialRun
from tests.studies import new_tracker

ENVIRONMENT = {"ablation": "0.1.0", "python": "3.11.2", "torch": "2.11.0", "device": "A CPU", "commit": "0123abc"}
TWO_BY_TWO = {"truncate_at": ["block3", "block5"], "strategy": ["feature_extraction", "fine_tune_all"]}
FOUR = {  # the mean accuracy of each of their arms, which interact
    "block3,feature_extraction": 0.90,
    "block3,fine_tune_all": 0.94,
    "block5,feature_extraction": 0.70,
    "block5,fine_tune_all": 0.86,
}


def fake_spec(factors: Mapping[str, list[Any]], **changes: Any) -> StudySpec:
    """Return a study of vgg16 with these factors and three trials per arm that search `lr` and `head_width`."""
    content = {
        "name": "fake",
        "question": "Which one is better?",
        "trials_per_arm": 3,
        "epochs": 4,
        "factors": dict(factors),
        "search": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "head_width": {"choices": [128, 256, 512]}},
    }
    return StudySpec.model_validate({**content, **changes})


def fake_run(
    spec: StudySpec,
    arm: Arm,
    number: int,
    val_accuracy: float | None,
    *,
    confirms: int | None = None,
    predictions: Predictions | None = None,
    state: Literal["finished", "pruned", "failed", "unfinished"] = "finished",
    reason: str = "",
    environment: dict[str, str] = ENVIRONMENT,
) -> RunResult:
    """Return a trial or, with `confirms` and its predictions, a confirmation run; its metrics follow from these.

    `val_accuracy` is also its validation value of another objective.
    The learning curves rise to `val_accuracy` in the last epoch.
    """
    random = np.random.default_rng([number, sum(map(ord, arm.name)), 0 if confirms is None else 1])
    values = {name: spec.default(name) for name in Hyperparameters.model_fields if name not in arm.levels}
    values |= arm.levels
    if spec.search.get("lr") is not None:
        values["lr"] = float(10 ** random.uniform(-4, -1))
    if spec.search.get("head_width") is not None:
        values["head_width"] = int(random.choice(spec.search.get("head_width").choices))
    tuned = number if confirms is None else confirms
    trial = TrialSpec(
        study=spec.name, arm=arm.name, trial=number, confirms=confirms,
        repeat=spec.repeat_of(tuned) if spec.confirm.repeats > 1 else None,
        known=spec.known_name(tuned), seed=1000 + number, epochs=spec.epochs, objective=spec.objective,
        precision="float32", deterministic=False, threads=2, backbone=spec.backbone.name, weights="imagenet",
        weights_digest="w" * 64, missing_layers="error", data_source="cifar10", data_digest="d" * 64, data_seed=5,
        data_limit=None, val_fraction=spec.data.val_fraction, image_size=32, num_classes=10, **values,
    )  # fmt: skip
    is_finished = state == "finished"
    epochs_E = np.arange(1, spec.epochs + 1)
    rise_E = 1 - np.exp(-3 * epochs_E / spec.epochs)
    rise_E = rise_E / rise_E[-1]
    val_E = rise_E * (val_accuracy or 0.0)
    curves = dict(zip(CURVES, (2.3 - 2 * rise_E, np.minimum(1, 1.08 * val_E), 2.3 - 1.7 * rise_E, val_E), strict=True))
    accuracy = None if predictions is None else float(np.mean(predictions.predicted_N == predictions.labels_N))
    own: dict[str, Any] = {}
    if spec.objective != "accuracy":
        curves[spec.goal.val_metric] = val_E
        own[spec.goal.val_metric] = val_accuracy if is_finished else None
    if predictions is not None:
        own[spec.goal.test_metric] = float(predictions.scores_N(spec.goal).mean())
    own = {"test_accuracy": accuracy, "test_loss": None if predictions is None else 0.5} | own
    return RunResult(
        run_id=f"{arm.name.replace(',', '-')}-{'trial' if confirms is None else 'confirmation'}-{number}",
        number=number,
        state=state,
        reason=reason,
        spec=trial,
        device="cpu",
        environment=environment,
        curves=curves,
        val_accuracy=val_accuracy if is_finished else None,
        best_epoch=spec.epochs if is_finished else None,
        trained_parameters=trial.head_width * len(arm.name) ** 2 if is_finished else None,
        training_seconds=float(len(arm.name) + number) if is_finished else None,
        inference_operations=None if predictions is None else 1e6 * len(arm.name),
        inference_seconds=None if predictions is None else 1e-4 * (len(arm.name) + number),
        predictions=predictions,
        **own,
    )


def fake_predictions(predicted_N: np.ndarray, labels_N: np.ndarray, classes: int) -> Predictions:
    """Return predictions with a probability of 0.9, and images (8 x 8 pixels) of mistakes, each of one grey."""
    probabilities_NK = np.full((len(labels_N), classes), 0.1 / max(1, classes - 1), np.float16)
    probabilities_NK[np.arange(len(labels_N)), predicted_N] = 0.9
    numbers_M = confident_mistakes(probabilities_NK, predicted_N, labels_N)
    greys_MSSC = np.broadcast_to((numbers_M % 256).astype(np.uint8)[:, None, None, None], (len(numbers_M), 8, 8, 3))
    mistakes = Mistakes(numbers_M, greys_MSSC)
    losses_N = -np.log(probabilities_NK[np.arange(len(labels_N)), labels_N].astype(np.float64))
    classes_N = (predicted_N.astype(np.int64), labels_N.astype(np.int64))
    return Predictions(probabilities_NK, *classes_N, mistakes, losses_N=losses_N)


def draw_predictions(
    accuracy: float, labels_N: np.ndarray, classes: int, *, seed: int, hardness_N: np.ndarray | None = None
) -> Predictions:
    """Return predictions of about this accuracy; errors fall on the images that are hard, in all runs alike."""
    random = np.random.default_rng(seed)
    if hardness_N is None:
        hardness_N = np.random.default_rng(0).uniform(size=len(labels_N))
    noisy_N = 0.85 * hardness_N + 0.15 * random.uniform(size=len(labels_N))
    is_right_N = noisy_N <= np.quantile(noisy_N, accuracy)
    shift_N = np.where(random.uniform(size=len(labels_N)) < 0.6, 1, random.integers(1, classes, len(labels_N)))
    return fake_predictions(np.where(is_right_N, labels_N, (labels_N + shift_N) % classes), labels_N, classes)


def fake_arm(
    spec: StudySpec,
    arm: Arm,
    trial_accuracies: Sequence[float | None],
    val_accuracies_S: list[float],
    predictions_S: list[Predictions],
) -> ArmResult:
    """Return an arm; a trial without accuracy failed, and the confirmation runs have the given results."""
    trials = [
        fake_run(spec, arm, n, v, state="failed" if v is None else "finished", reason="" if v else "the loss was NaN")
        for n, v in enumerate(trial_accuracies)
    ]
    result = ArmResult(arm, trials, [], [], published_for(spec, arm))
    chosen = [run.number for run in result.chosen] or [0]
    confirmations = [
        fake_run(spec, arm, n, v, confirms=chosen[n % len(chosen)], predictions=p)
        for n, (v, p) in enumerate(zip(val_accuracies_S, predictions_S, strict=True))
    ]
    return replace(result, confirmations=confirmations)


def fake_samples(classes: int, augmentations: list[Augmentation]) -> Samples:
    """Return samples of up to eight classes, an image (8 x 8 pixels) of each."""
    shape = (min(classes, 8), 1, 1 + DRAWS * len(augmentations), 8, 8, 3)
    images_RIVSSC = np.random.default_rng(classes).integers(0, 256, shape, np.uint8)
    normalisation = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32)
    return Samples(images_RIVSSC, np.arange(shape[0]), augmentations, normalisation)


def fake_study(spec: StudySpec, results: list[ArmResult], classes: list[str]) -> StudyResult:
    """Return the study with these arms."""
    predictions = [run.predictions for arm in results for run in arm.confirmations if run.predictions is not None]
    return StudyResult(
        spec=spec,
        experiment_id="7",
        summary_run_id="summary0",
        command=f"python -m ablation.study {spec.name}",
        classes=classes,
        data_digest="d" * 64,
        weights_digest="w" * 64,
        train_images=45000,
        val_images=5000,
        test_images=len(predictions[0].labels_N) if predictions else 10000,
        arms=results,
        samples=fake_samples(len(classes), ["crop_flip"]),
    )


def fake_result(
    factors: Mapping[str, list[Any]],
    accuracies: Mapping[str, float],
    *,
    seeds: int = 3,
    images: int = 400,
    classes: int = 4,
    seed_deviation: float = 0.002,
    failed_arms: tuple[str, ...] = (),
    **changes: Any,
) -> StudyResult:
    """Return a study in which each arm (by name) has about the given accuracy, validation and test alike.

    Args:
        factors: factor -> levels.
        accuracies: arm's name -> accuracy that its confirmation runs scatter around.
        seeds: confirmation runs per arm, and per repeat of its tuning.
        images: of the test split.
        classes: how many.
        seed_deviation: standard deviation between the seeds.
        failed_arms: arms in which every trial failed.
        changes: of the study's content, see `fake_spec`.
    """
    spec = fake_spec(factors, **{"confirm": {"seeds": seeds}, **changes})
    labels_N = np.arange(images) % classes
    results = []
    for index, arm in enumerate(arms(spec)):
        if arm.name in failed_arms:
            results.append(fake_arm(spec, arm, [None] * spec.trials_per_arm, [], []))
            continue
        random = np.random.default_rng([9, index])
        accuracy = accuracies[arm.name]
        drawn_S = np.clip(random.normal(accuracy, seed_deviation, seeds * spec.confirm.repeats), 0, 1)
        tuned = [float(accuracy * (1 - 0.3 * random.uniform() ** 3)) for _ in range(spec.trials_per_arm - 1)]
        tuned.append(min(1.0, accuracy + 0.004))
        random.shuffle(tuned)
        predictions_S = [
            draw_predictions(float(a), labels_N, classes, seed=100 * index + s) for s, a in enumerate(drawn_S)
        ]
        results.append(fake_arm(spec, arm, tuned, [float(a) - 0.003 for a in drawn_S], predictions_S))
    return fake_study(spec, results, [f"class {k}" for k in range(classes)])


def with_validation(result: StudyResult, accuracies: Mapping[str, float]) -> StudyResult:
    """Return a study in which all confirmation runs of an arm have this validation accuracy."""
    arms = [
        replace(arm, confirmations=[replace(run, val_accuracy=accuracies[arm.arm.name]) for run in arm.confirmations])
        for arm in result.arms
    ]
    return replace(result, arms=arms)


def begin_fake_summary(store: Store, result: StudyResult) -> Tracker:
    """Begin the summary run of a study, and return its tracker."""
    spec = result.spec
    tracker = new_tracker(store, spec.name)
    about = {
        "spec": spec.model_dump(mode="json"),
        "arm_keys": [f"{arm.arm.name}/{kind}" for arm in result.arms for kind in ("trials", "confirmations")],
        **{name: getattr(result, name) for name in ("command", "classes", "data_digest", "weights_digest")},
        **{name: getattr(result, name) for name in ("train_images", "val_images", "test_images")},
    }
    assert result.samples is not None
    SummaryRun(tracker, "summary").begin(about, {SAMPLES_FILE: samples_file(result.samples)})
    return tracker


def store_study(store: Store, result: StudyResult) -> StudyRecord:
    """Put a study into a store, as its trials would, and return its record there."""
    store.prepare()
    tracker = begin_fake_summary(store, result)
    folder = store.root / "work"
    folder.mkdir(exist_ok=True)
    for arm in result.arms:
        for kind, runs in (("trials", arm.trials), ("confirmations", arm.confirmations)):
            for run in runs:
                target = TrialRun(tracker, f"{arm.arm.name}/{kind}/{run.number}", folder, "")
                _store_run(target, result.spec, arm.arm, run, folder)
    return read_study(store, result.spec.name)


RUN_STATUS: dict[str, RunStatus] = {"finished": "FINISHED", "failed": "FAILED"}


def _store_run(target: TrialRun, study: StudySpec, arm: Arm, run: RunResult, folder: Path) -> None:
    target.start(run.spec, study, arm, run.device, {}, run.environment)
    target.log_epochs(
        EpochMetrics(
            epoch=epoch, lr=0.1, images_per_second=1.0, timestamp=epoch, val_balanced_accuracy=0.5, val_macro_f1=0.5,
            **{name: float(run.curves[name][epoch - 1]) for name in CURVES},  # type: ignore[arg-type]
        )
        for epoch in range(1, run.spec.epochs + 1)
    )  # fmt: skip
    if run.state == "finished":
        checkpoint = folder / Path(CHECKPOINT_FILE).name
        checkpoint.touch()
        names = ("best_epoch", "trained_parameters", "training_seconds")
        values = {"best_val_accuracy": run.val_accuracy, run.spec.goal.best_metric: run.val_value} | {
            name: getattr(run, name) for name in names
        }
        target.log_result(values, 1, checkpoint)
    if run.predictions is not None:
        assert run.test_accuracy is not None
        assert run.test_value is not None
        predictions = folder / Path(PREDICTIONS_FILE).name
        arrays = {"probabilities": run.predictions.probabilities_NK, "predicted": run.predictions.predicted_N}
        if run.spec.objective == "loss" and run.predictions.losses_N is not None:
            arrays["losses"] = run.predictions.losses_N
        save_file({**arrays, "labels": run.predictions.labels_N}, predictions)
        costs = {name: getattr(run, name) for name in ("inference_operations", "inference_seconds")}
        metrics = {"test_accuracy": run.test_accuracy, run.spec.goal.test_metric: run.test_value, **costs}
        target.log_test(metrics, 1, predictions)
    target.end(RUN_STATUS[run.state], run.reason)
