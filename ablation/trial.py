"""One trial, top to bottom; and its model, rebuilt from its run."""

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.nn.functional import cross_entropy

from ablation import custom, tracking
from ablation.checkpoint import (
    CorruptCheckpoint,
    load_resume_checkpoint,
    resume_checkpoints,
    save_resume_checkpoint,
    tensors_digest,
)
from ablation.data import Images, ImageSet, Normalisation, Split, normalisation_for, split_seed, to_device
from ablation.environment import describe_environment
from ablation.features import FeatureCache, frozen_part
from ablation.gallery import as_fed, confident_mistakes
from ablation.models import TransferModel, build_model, calibrate, initialise
from ablation.scores import balanced_accuracy_and_macro_f1
from ablation.search import (
    Claim,
    ClaimLost,
    TrialEnd,
    best_trial,
    drop,
    end_trial,
    has_ended,
    hold,
    is_better,
    report,
    should_prune,
    store_spec,
    stored_spec,
    suggest,
)
from ablation.seeding import exact_float32, make_deterministic, named_seed, select_precision
from ablation.spec import InputError, StudySpec, TrialSpec, first_line
from ablation.store import StoreAway, StoreError, find_store, write_atomically
from ablation.strategies import STRATEGIES, apply_strategy
from ablation.tracking import Tracker, TrialRun
from ablation.train import (
    Diverged,
    EpochMetrics,
    Training,
    calibration_sample,
    check_compiler,
    load_tensors,
    make_optimizer,
    predict,
    train,
)
from ablation.weights import Weights, read_weights

CHECKPOINT_SECONDS = 15  # at most this much work, or one epoch, is done again after a crash
AWAY_SECONDS = 5  # between two attempts to reach a database that is away
logger = logging.getLogger(__name__)

RUN_STATUS: dict[TrialEnd, tracking.RunStatus] = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class Workbench:
    """What all trials of a study share in one process: images and features on the device, weights, where results go.

    Of the test images (uint8 NHWC) only confirmation runs make use, once each.
    """

    study: StudySpec
    device: torch.device
    train_images: Images
    val_images: Images
    test_images_NHWC: np.ndarray
    test_labels_N: np.ndarray
    classes: list[str]
    data_digest: str
    weights: Weights | None
    features: FeatureCache
    tracker: Tracker
    files: dict[str, str]
    environment: dict[str, str]
    threads: int | None  # of new trials on the CPU; a trial that goes on keeps its own
    system_metrics: bool  # whether to log what the machine does while a trial trains

    @property
    def normalisation(self) -> Normalisation:
        """What the weights were trained with, ImageNet's where there are none, at the study's image size."""
        return normalisation_for(self.weights, self.study.data.image_size)


def set_up(
    study: StudySpec,
    images: ImageSet,
    split: Split,
    weights: Weights | None,
    device: torch.device,
    features: FeatureCache,
    tracker: Tracker,
    files: dict[str, str],
    system_metrics: bool,
) -> Workbench:
    """Put the training and validation images onto the device; the test images stay where they are.

    Args:
        study: what is studied.
        images: its images.
        split: which are for training and which for validation.
        weights: its pretrained weights, if any.
        device: where to train.
        features: what frozen layers computed before.
        tracker: where results go.
        files: name -> content of the files that every run keeps.
        system_metrics: whether to log what the machine does while a trial trains.

    Raises:
        InputError: the images do not fit into the device's memory, or `torch.compile` does not work here.
    """
    if study.deterministic:
        make_deterministic()
    if study.compile != "none":
        check_compiler(study.compile, device)
    pixels, labels = images.train_images_NHWC, images.train_labels_N
    try:
        train_images, val_images = (
            to_device(pixels, labels, chosen, device) for chosen in (split.train_N, split.val_N)
        )
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        size = (len(split.train_N) + len(split.val_N)) * pixels[0].nbytes / 1e9
        raise InputError(f"data: {size:.1f} GB of images do not fit into {device}; set data.limit") from None
    return Workbench(
        study=study,
        device=device,
        train_images=train_images,
        val_images=val_images,
        test_images_NHWC=images.test_images_NHWC,
        test_labels_N=images.test_labels_N,
        classes=images.classes,
        data_digest=images.digest,
        weights=weights,
        features=features,
        tracker=tracker,
        files=files,
        environment=describe_environment(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        system_metrics=system_metrics,
    )


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; `lost` means that another process goes on with it.

    `is_delivered` says whether MLflow has all of it; what it has not waits in the trial's folder.
    """

    state: TrialEnd | Literal["lost"]
    value: float | None
    reason: str = ""
    is_delivered: bool = True


def run_trial(
    workbench: Workbench, claim: Claim, spec: TrialSpec, on_epoch: Callable[[TrialSpec, EpochMetrics], None]
) -> Outcome:
    """Train one trial, from where it was left, and record all of it.

    Divergence and lack of device memory end the trial as failed. Any other exception leaves it to be continued: its run
    is marked SCHEDULED and its lock is freed.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    run = workbench.tracker.trial_run(claim.key, claim.folder, claim.owner)
    try:
        source = workbench.study.data.root or workbench.study.data.source
        run.start(spec, source, workbench.device.type, workbench.files, workbench.environment)
        if claim.superseded:
            assert claim.best is not None
            outcome = Outcome("pruned", None, f"superseded: the arm's best trial is #{claim.best.number} now")
        else:
            with run.system_metrics() if workbench.system_metrics else nullcontext():
                outcome = _train_and_record(workbench, claim, spec, run, on_epoch)
        while True:
            try:
                _end(workbench, claim, run, outcome)
                break
            except StoreAway as away:
                logger.warning("%s; waiting to tell it how trial %s #%d ended", away, spec.arm, spec.trial)
                _wait_until_held(claim)
        is_delivered = run.complete()
        if is_delivered:  # else the folder is needed, see `search.sweep`
            with suppress(StoreAway):
                drop(claim)
        return replace(outcome, is_delivered=is_delivered)
    except ClaimLost as lost:
        return Outcome("lost", None, str(lost))
    except BaseException:
        # Whatever cannot be written now is found out when the trial goes on.
        with suppress(StoreAway, StoreError, ClaimLost):
            if hold(claim) and not has_ended(claim):
                run.pause()
        raise
    finally:
        claim.release()


def _end(workbench: Workbench, claim: Claim, run: TrialRun, outcome: Outcome) -> None:
    """Close the run, then tell Optuna: a crash in between leaves a trial that goes on and ends again, not an open run.

    Raises:
        StoreAway: Optuna's database does not answer; call it again.
        ClaimLost: see `hold`.
    """
    assert outcome.state != "lost"
    if not hold(claim):
        raise StoreAway("Optuna's database does not answer")
    only_best = workbench.study.tracking.checkpoints == "best_per_arm"
    # Exclusively, else two trials of an arm that end at once could both be its best.
    with claim.locks.exclusive() if only_best else nullcontext():
        if only_best and outcome.value is not None:
            _keep_best(claim, run, outcome.value)
        run.end(RUN_STATUS[outcome.state], outcome.reason)
        end_trial(claim, outcome.state, outcome.value, outcome.reason, run.run_id)


def _keep_best(claim: Claim, run: TrialRun, value: float) -> None:
    """Delete the checkpoint of the arm's best trial so far or of this one, whichever is not the best now."""
    leader = best_trial(claim.study, claim.trial.user_attrs.get("confirms"))
    if leader is not None and not has_ended(claim):
        is_best = is_better(value, claim.trial.number, leader)
        run.delete_checkpoint_of(leader.number if is_best else claim.trial.number)


def _wait_until_held(claim: Claim) -> None:
    while not hold(claim):
        time.sleep(AWAY_SECONDS)


def trial_spec(workbench: Workbench, claim: Claim) -> TrialSpec:
    """Return what the trial is: the study's settings and what Optuna chose, as they were when it began.

    A trial that goes on elsewhere, with its weights in another place or on another device, stays what it was. A
    confirmation run is the trial that it confirms, with a seed of its own.
    """
    stored = stored_spec(claim)
    if stored is not None:
        return TrialSpec.from_params(stored)
    spec = _new_spec(workbench, claim) if claim.best is None else _confirming_spec(workbench, claim)
    store_spec(claim, spec.to_params())
    return spec


def _confirming_spec(workbench: Workbench, claim: Claim) -> TrialSpec:
    assert claim.best is not None
    number = claim.trial.number
    changes = {
        "trial": number,
        "confirms": claim.best.number,
        # Of the arm, too: arms are compared as if their seeds were drawn independently.
        "seed": named_seed(workbench.study.seed, "confirmation", claim.arm.name, number),
        "threads": workbench.threads,
    }
    return TrialSpec.from_params(claim.best.user_attrs["spec"]).model_copy(update=changes)


def _new_spec(workbench: Workbench, claim: Claim) -> TrialSpec:
    study = workbench.study
    return TrialSpec(
        study=study.name,
        arm=claim.arm.name,
        trial=claim.trial.number,
        seed=named_seed(study.seed, "trial", claim.trial.number),
        epochs=study.epochs,
        precision=select_precision(study.precision, workbench.device),
        compile=study.compile,
        deterministic=study.deterministic,
        threads=workbench.threads,
        backbone=study.backbone.name,
        backbone_module=study.backbone.module,
        weights=study.backbone.weights,
        weights_digest=workbench.weights.digest if workbench.weights else None,
        missing_layers=study.backbone.missing_layers,
        data_source=study.data.source,
        data_digest=workbench.data_digest,
        data_seed=split_seed(study.seed),
        data_limit=study.data.limit,
        val_fraction=study.data.val_fraction,
        image_size=study.data.image_size,
        num_classes=len(workbench.classes),
        **suggest(claim.trial, study, claim.arm),
    )


def _train_and_record(
    workbench: Workbench,
    claim: Claim,
    spec: TrialSpec,
    run: TrialRun,
    on_epoch: Callable[[TrialSpec, EpochMetrics], None],
) -> Outcome:
    training: Training | None = None
    prunes = workbench.study.search.pruner != "none" and spec.confirms is None
    try:
        training = make_training(spec, workbench)
        _restore(training, claim, run, workbench)
        saved_at = time.monotonic()
        _log(claim, run, training)  # a crash between saving and logging must not lose an epoch
        if training.history and prunes and _is_pruned(claim, spec, training):
            return _pruned(spec, training)
        try:
            for metrics in _epochs(training, spec, workbench):
                on_epoch(spec, metrics)
                pruned = prunes and _is_pruned(claim, spec, training)
                if pruned or metrics.epoch == spec.epochs or time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                    # Epochs are logged only once they are safe, so that none is ever logged twice with other figures.
                    _save(workbench, claim, run, training)
                    _log(claim, run, training)
                    saved_at = time.monotonic()
                if pruned:
                    return _pruned(spec, training)
        except Diverged as error:
            # Nothing is saved: continued from the last checkpoint, the trial diverges again.
            _log_for_sure(claim, run, training)
            return Outcome("failed", None, str(error))
        _log_for_sure(claim, run, training)
        _record_best(workbench, claim, spec, run, training)
        if spec.confirms is not None:
            _record_test(workbench, claim, run, training)
        return Outcome("finished", training.best.val_accuracy)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = f"out of memory on {workbench.device}: {first_line(error)}"
    # Only here is the exception gone, whose traceback held the frames and with them the tensors.
    training = None
    shared = workbench.features.release_device()
    _free_memory(workbench.device)
    _wait_until_held(claim)
    if shared:  # without features in its way the trial may fit; it goes on from its last checkpoint
        return _train_and_record(workbench, claim, spec, run, on_epoch)
    return Outcome("failed", None, reason)


def _save(workbench: Workbench, claim: Claim, run: TrialRun, training: Training) -> None:
    """Write a resume checkpoint, and put it where other machines find it if any may take the trial over."""
    path = save_resume_checkpoint(claim.folder, len(training.history), training.state_dict())
    if workbench.tracker.shares_checkpoints and hold(claim):
        run.upload_resume_checkpoint(path)


def _log(claim: Claim, run: TrialRun, training: Training) -> bool:
    """Log epochs to MLflow and report them to Optuna; return False where the database is away, for the next call."""
    with suppress(StoreAway):
        if hold(claim):
            run.log_epochs(training.history)
            report(claim, training.history)
            return True
    return False


def _log_for_sure(claim: Claim, run: TrialRun, training: Training) -> None:
    if _log(claim, run, training):
        return
    logger.warning("Optuna's database does not answer; the trial has been trained, and waits for it")
    while not _log(claim, run, training):
        time.sleep(AWAY_SECONDS)


def _is_pruned(claim: Claim, spec: TrialSpec, training: Training) -> bool:
    """Ask the study's pruner; while the database is away, the trial goes on."""
    with suppress(StoreAway):
        if len(training.history) < spec.epochs and hold(claim):
            report(claim, training.history)
            return should_prune(claim)
    return False


def _pruned(spec: TrialSpec, training: Training) -> Outcome:
    return Outcome("pruned", None, f"pruned after epoch {len(training.history)} of {spec.epochs}")


# What the allocators of the CPU, of MPS and of CUDA's libraries say in a plain RuntimeError.
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def _is_out_of_memory(error: BaseException) -> bool:
    is_plain = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return is_plain or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def make_training(spec: TrialSpec, workbench: Workbench) -> Training:
    """Build the trial's network and optimizer, at its start."""
    model = build_model(
        spec.backbone, spec.truncate_at, spec.head_width, spec.head_pool, spec.num_classes, spec.image_size
    )
    initialise(model, spec.backbone, workbench.weights if STRATEGIES[spec.strategy].pretrained else None, spec.seed)
    model = model.to(workbench.device).to(memory_format=torch.channels_last)
    blocks = STRATEGIES[spec.strategy].frozen_blocks(len(model.blocks), spec.freeze_depth)
    frozen = frozen_part(model, blocks, workbench.normalisation, spec.precision)
    images = workbench.features.source(workbench.train_images, frozen, spec.augmentation)
    sample = images.subset(calibration_sample(len(workbench.train_images)))
    calibrate(model, sample.in_order(), sample.start, spec.precision, head_alone=spec.head_warmup_epochs > 0)
    groups = apply_strategy(
        model,
        spec.strategy,
        freeze_depth=spec.freeze_depth,
        lr=spec.lr,
        backbone_lr_scale=spec.backbone_lr_scale,
        weight_decay=spec.weight_decay,
    )
    optimizer = make_optimizer(spec.optimizer, groups, workbench.device)
    scaler = torch.amp.GradScaler(workbench.device.type, enabled=spec.precision == "float16")
    return Training(model, frozen, optimizer, scaler)


def _epochs(training: Training, spec: TrialSpec, workbench: Workbench) -> Iterator[EpochMetrics]:
    return train(
        training,
        workbench.features.source(workbench.train_images, training.frozen, spec.augmentation),
        workbench.features.source(workbench.val_images, training.frozen, "none"),
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        schedule=spec.schedule,
        label_smoothing=spec.label_smoothing,
        class_weights=spec.class_weights,
        max_grad_norm=spec.max_grad_norm,
        head_warmup_epochs=spec.head_warmup_epochs,
        precision=spec.precision,
        compile_mode=spec.compile,
        seed=spec.seed,
    )


def _restore(training: Training, claim: Claim, run: TrialRun, workbench: Workbench) -> None:
    """Go on from the last resume checkpoint that can be read, of this machine or of another."""
    with TemporaryDirectory() as folder:
        for path in _checkpoints_found(claim, run, workbench, Path(folder)):
            try:
                training.load_state_dict(load_resume_checkpoint(path, workbench.device))
            except CorruptCheckpoint as error:
                logger.warning("%s; going on from the one before, or from the start", error)
                path.unlink()
                continue
            break
    if not training.devices:
        training.devices.append((1, workbench.device.type))
    elif training.devices[-1][1] != workbench.device.type:
        training.devices.append((len(training.history) + 1, workbench.device.type))
    if len(training.devices) > 1:
        run.log_devices(", ".join(f"{device} from epoch {epoch}" for epoch, device in training.devices))


def _checkpoints_found(claim: Claim, run: TrialRun, workbench: Workbench, folder: Path) -> Iterator[Path]:
    here = resume_checkpoints(claim.folder)
    if workbench.tracker.shares_checkpoints and claim.continued:
        yield from run.download_resume_checkpoints(folder, after=here[0].name if here else "")
    yield from here


def _record_best(workbench: Workbench, claim: Claim, spec: TrialSpec, run: TrialRun, training: Training) -> None:
    """Log the best epoch's figures and its checkpoint."""
    path = claim.folder / Path(tracking.CHECKPOINT_FILE).name
    save_best(path, training, spec, workbench.classes, workbench.normalisation)
    best = training.best
    images = len(workbench.train_images)
    values = {
        "best_val_accuracy": best.val_accuracy,
        "best_epoch": best.epoch,
        "trained_parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
        "training_seconds": sum(images / metrics.images_per_second for metrics in training.history),
    }
    run.log_result(values, best.timestamp, path)


def _record_test(workbench: Workbench, claim: Claim, run: TrialRun, training: Training) -> None:
    """Evaluate the best epoch on the test split and log the figures, with what the model says of every image.

    A crash after the evaluation finds its predictions in the trial's folder, so that it is made once.
    """
    path = claim.folder / Path(tracking.PREDICTIONS_FILE).name
    model = tensors_digest(training.best_tensors.items())
    if not _predictions_are_of(path, model):
        _save_predictions(path, model, workbench, training)
    tensors, metadata = _read_tensors(path)
    labels_N, predicted_N = tensors["labels"].long().numpy(), tensors["predicted"].long().numpy()
    balanced_accuracy, macro_f1 = balanced_accuracy_and_macro_f1(labels_N, predicted_N, len(workbench.classes))
    values = {
        "test_accuracy": float((predicted_N == labels_N).mean()),
        "test_balanced_accuracy": balanced_accuracy,
        "test_macro_f1": macro_f1,
        "test_loss": float(metadata["loss"]),
    }
    run.log_test(values, training.best.timestamp, path)


def _save_predictions(path: Path, model: str, workbench: Workbench, training: Training) -> None:
    labels_N = workbench.test_labels_N
    everything = np.arange(len(labels_N))
    load_tensors(training.model, training.best_tensors)
    images = to_device(workbench.test_images_NHWC, labels_N, everything, workbench.device)
    frozen = replace(training.frozen, precision="float32")
    with exact_float32():  # so that the champion, wherever it is loaded, agrees
        logits_NK = predict(training.model, workbench.features.source(images, frozen, "none")).cpu()
    loss = cross_entropy(logits_NK.double(), torch.from_numpy(labels_N)).item()
    number_type = torch.uint8 if len(workbench.classes) <= 256 else torch.int32
    probabilities_NK, predicted_N = logits_NK.softmax(1).half(), logits_NK.argmax(1)
    mistakes_M = confident_mistakes(probabilities_NK.numpy(), predicted_N.numpy(), labels_N)
    mistaken_MCHW = torch.from_numpy(workbench.test_images_NHWC[mistakes_M]).permute(0, 3, 1, 2)
    tensors = {
        "probabilities": probabilities_NK,
        "predicted": predicted_N.to(number_type),  # float16 may make two probabilities equal
        "labels": torch.from_numpy(labels_N).to(number_type),
        # The report has no other way to the images.
        "mistakes": torch.from_numpy(mistakes_M),
        "mistake_images": torch.from_numpy(as_fed(mistaken_MCHW, workbench.normalisation)),
    }
    write_atomically(path, save(tensors, {"model": model, "loss": repr(loss)}))


def _predictions_are_of(path: Path, model: str) -> bool:
    return path.exists() and _read_tensors(path)[1]["model"] == model


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - not a dict


def save_best(
    path: Path, training: Training, spec: TrialSpec, classes: list[str], normalisation: Normalisation
) -> None:
    """Write the best epoch's trained tensors; the metadata says what they belong to, frozen tensors by their digest.

    Raises:
        StoreError: the disk is full, or cannot be written.
    """
    frozen = _frozen_tensors(training.model, training.best_tensors)
    metadata = {
        "spec": json.dumps(spec.to_params()),
        "classes": json.dumps(classes),
        "input_mean": json.dumps(normalisation.mean),
        "input_std": json.dumps(normalisation.std),
        "epoch": str(training.best.epoch),
        "val_accuracy": str(training.best.val_accuracy),
        "frozen_digest": tensors_digest(frozen.items()),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in training.best_tensors.items()}
    write_atomically(path, save(tensors, metadata))


def _frozen_tensors(model: TransferModel, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name not in trained}


def load_model(
    run: str, *, store: str | None = None, weights: str | None = None, module: str | None = None
) -> TransferModel:
    """Rebuild a finished trial's model at its best epoch, on the CPU, in evaluation mode.

    Args:
        run: the id of the trial's MLflow run.
        store: the store's folder; as for `--store`, the environment's addresses or `mlruns` by default.
        weights: where the pretrained weights are now, for a trial with frozen layers; where they were by default.
        module: where the Python file of a backbone of one's own is now; it is run.

    Returns:
        A module from normalised images NCHW (float32) to logits NK. Its attributes `classes` (list of str),
        `image_size` (height and width in pixels), `input_mean` and `input_std` (three floats each, for pixels scaled to
        0..1) say what goes in and comes out.

    Raises:
        InputError: there is no such run, it kept no checkpoint, or the weights, or the code of a backbone of one's own,
            are not those that it was trained with.
    """
    found = find_store(store)
    record = tracking.read_run(found, run)
    spec = TrialSpec.from_params(record.params)
    if custom.is_custom(spec.backbone):
        _load_own_backbone(run, spec, module)
    with tracking.run_file(found, record, tracking.CHECKPOINT_FILE) as path:
        trained, metadata = _read_tensors(path)
    model = build_model(
        spec.backbone, spec.truncate_at, spec.head_width, spec.head_pool, spec.num_classes, spec.image_size
    )
    pretrained = None
    if _frozen_tensors(model, trained):  # else the checkpoint holds all there is
        named = weights or str(spec.weights)
        pretrained = read_weights(spec.backbone, named)
        if pretrained.digest != spec.weights_digest:
            raise InputError(f"{named}: not the weights that run {run} was trained with")
    initialise(model, spec.backbone, pretrained, spec.seed)
    load_tensors(model, trained)
    if tensors_digest(_frozen_tensors(model, trained).items()) != metadata["frozen_digest"]:
        raise InputError(f"run {run}: its frozen layers cannot be rebuilt from {spec.weights}")
    model.classes = json.loads(metadata["classes"])
    model.image_size = spec.image_size
    model.input_mean, model.input_std = json.loads(metadata["input_mean"]), json.loads(metadata["input_std"])
    return model.eval()


def _load_own_backbone(run: str, spec: TrialSpec, module: str | None) -> None:
    """Run the file of a trial's backbone, if it is what it was."""
    named = module or str(spec.backbone_module)
    try:
        found = custom.load(named, custom.function_name(spec.backbone))
    except ValueError as error:
        raise InputError(f"run {run}: its backbone cannot be made: {error}") from None
    if found != spec.backbone:
        raise InputError(f"{named}: makes {found}, but run {run} was trained with {spec.backbone}")
