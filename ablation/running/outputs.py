"""A trial's outputs: the best epoch's checkpoint, the test predictions, and the model rebuilt from them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import cross_entropy

from ablation.base.device import exact_float32
from ablation.base.errors import InputError
from ablation.base.files import write_over
from ablation.data.images import to_device
from ablation.data.normalisation import Normalisation
from ablation.data.run_pictures import confusion_png, mistakes_png
from ablation.data.sample_drawing import as_fed
from ablation.data.samples import confident_mistakes
from ablation.networks.timm_backbones import load_backbone
from ablation.networks.transfer_model import TransferModel, initialise
from ablation.networks.weights import read_weights
from ablation.running.workbench import Workbench, make_model
from ablation.search.claims import Claim
from ablation.spec.architectures import function_name, is_custom, is_timm
from ablation.spec.parameters import STRATEGIES
from ablation.spec.trial import TrialSpec
from ablation.storage.store import find_store
from ablation.tracking import mlflow_settings
from ablation.tracking.client import CHECKPOINT_FILE, PREDICTIONS_FILE
from ablation.tracking.reading import read_run, run_file
from ablation.tracking.trial_run import TrialRun
from ablation.training.checkpoint import tensors_digest
from ablation.training.class_metrics import balanced_accuracy_and_macro_f1
from ablation.training.evaluation import inference_operations, inference_seconds, predict
from ablation.training.representation import mean_gradient_norms, similarities_to_start
from ablation.training.sources import Source
from ablation.training.state import Training, load_tensors


def record_best(
    workbench: Workbench, claim: Claim, spec: TrialSpec, run: TrialRun, training: Training, val_source: Source
) -> None:
    """Log the best epoch's metrics, its checkpoint, and how far its features are from where they started."""
    path = claim.folder / Path(CHECKPOINT_FILE).name
    save_best(path, training, spec, workbench.session.images.classes, workbench.normalisation)
    best = training.best
    images = len(workbench.images_of(spec).train)
    values = {
        "best_val_accuracy": best.val_accuracy,
        spec.goal.best_metric: best.value(spec.goal),
        "best_epoch": best.epoch,
        "trained_parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
        "training_seconds": sum(images / metrics.images_per_second for metrics in training.history),
    }
    similarities = similarities_to_start(training, val_source, spec.precision)
    values |= {f"similarity_to_start/{block}": similarity for block, similarity in similarities.items()}
    norms = mean_gradient_norms(training.history)
    values |= {f"mean_relative_gradient_norm/{block}": norm for block, norm in norms.items()}
    run.log_result(values, best.timestamp, path)


def record_test(
    workbench: Workbench, claim: Claim, spec: TrialSpec, run: TrialRun, training: Training, val_source: Source
) -> None:
    """Evaluate the best epoch on the test split; log the metrics, the model's predictions, and what one costs.

    After a crash, predictions that are already in the trial's folder are used, so that the evaluation happens once.
    """
    path = claim.folder / Path(PREDICTIONS_FILE).name
    model = tensors_digest(training.best_tensors.items())
    if not _predictions_are_of(path, model):
        _save_predictions(path, model, workbench, spec, training, val_source)
    tensors, metadata = _read_tensors(path)
    labels_N, predicted_N = tensors["labels"].long().numpy(), tensors["predicted"].long().numpy()
    classes = workbench.session.images.classes
    balanced_accuracy, macro_f1 = balanced_accuracy_and_macro_f1(labels_N, predicted_N, len(classes))
    operations = inference_operations(training.model, spec.image_size)
    values = {
        "test_accuracy": float((predicted_N == labels_N).mean()),
        "test_balanced_accuracy": balanced_accuracy,
        "test_macro_f1": macro_f1,
        "test_loss": float(metadata["loss"]),
        "inference_operations": float(operations),
        "inference_seconds": inference_seconds(training.model, spec.image_size, spec.precision, operations),
    }
    run.log_test(values, training.best.timestamp, path)
    for name, picture in _test_pictures(tensors, predicted_N, labels_N, classes).items():
        write_over(claim.folder / name, picture)
        run.log_picture(claim.folder / name)


def _test_pictures(
    tensors: dict[str, torch.Tensor], predicted_N: np.ndarray, labels_N: np.ndarray, classes: list[str]
) -> dict[str, bytes]:
    """Return PNG files, name -> content, of the most confident mistakes and of the confusion matrix."""
    captions = []
    for number in tensors["mistakes"].tolist():
        predicted, true = int(predicted_N[number]), int(labels_N[number])
        probability = float(tensors["probabilities"][number, predicted])
        captions.append((f"{classes[predicted]} ({probability:.0%})", f"is {classes[true]}"))
    counts_KK = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts_KK, (labels_N, predicted_N), 1)
    mistakes = mistakes_png(tensors["mistake_images"].numpy(), captions)
    return {"mistakes.png": mistakes, "confusion.png": confusion_png(counts_KK, classes)}


def _save_predictions(
    path: Path, model: str, workbench: Workbench, spec: TrialSpec, training: Training, val_source: Source
) -> None:
    dataset = workbench.session.images
    labels_N = dataset.test_labels_N
    all_N = np.arange(len(labels_N))
    load_tensors(training.model, training.best_tensors)
    images = to_device(dataset.test_images_NHWC, labels_N, all_N, workbench.device)
    frozen = replace(training.frozen, precision="float32")
    with exact_float32():  # so that the champion computes the same on every device
        source = workbench.features.source(images, frozen, "none", beside=val_source)
        logits_NK = predict(training.model, source, "float32").cpu()
    val = workbench.images_of(spec)
    val_logits_NK = predict(training.model, val_source, spec.precision).cpu()
    loss = cross_entropy(logits_NK.double(), torch.from_numpy(labels_N)).item()
    val_labels_N = val.val.labels_N.cpu()
    number_type = torch.uint8 if len(dataset.classes) <= 256 else torch.int32
    probabilities_NK, predicted_N = logits_NK.softmax(1).half(), logits_NK.argmax(1)
    mistakes_M = confident_mistakes(probabilities_NK.numpy(), predicted_N.numpy(), labels_N)
    mistaken_MCHW = torch.from_numpy(dataset.test_images_NHWC[mistakes_M]).permute(0, 3, 1, 2)
    tensors = {
        "probabilities": probabilities_NK,
        "predicted": predicted_N.to(number_type),  # float16 may make two probabilities equal
        "labels": torch.from_numpy(labels_N).to(number_type),
        # The report cannot read the images themselves.
        "mistakes": torch.from_numpy(mistakes_M),
        "mistake_images": torch.from_numpy(as_fed(mistaken_MCHW, workbench.normalisation)),
        # By which the cheapest arm that is good enough is chosen.
        "val_probabilities": val_logits_NK.softmax(1).half(),
        "val_predicted": val_logits_NK.argmax(1).to(number_type),
        "val_labels": val_labels_N.to(number_type),
    }
    if spec.objective == "loss":  # which float16 probabilities do not tell
        tensors["losses"] = cross_entropy(logits_NK.double(), torch.from_numpy(labels_N), reduction="none")
        tensors["val_losses"] = cross_entropy(val_logits_NK.double(), val_labels_N, reduction="none")
    if val.val_groups_N is not None:
        tensors["val_groups"] = torch.from_numpy(val.val_groups_N)
    if dataset.test_groups_N is not None:
        tensors["groups"] = torch.from_numpy(dataset.test_groups_N)
    write_over(path, save(tensors, {"model": model, "loss": repr(loss)}))


def _predictions_are_of(path: Path, model: str) -> bool:
    """Return whether predictions that a crash left are of a model; a damaged file is of none."""
    try:
        return _read_tensors(path)[1].get("model") == model
    except (OSError, SafetensorError):
        return False


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict


def save_best(
    path: Path, training: Training, spec: TrialSpec, classes: list[str], normalisation: Normalisation
) -> None:
    """Write the best epoch's trained tensors; of the frozen tensors, the metadata holds the digest.

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
    write_over(path, save(tensors, metadata))


def _frozen_tensors(model: TransferModel, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name not in trained}


@mlflow_settings()
@torch.random.fork_rng(devices=[])  # new layers draw their first parameters from the global generator
def load_model(
    run: str,
    *,
    store: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    module: str | os.PathLike[str] | None = None,
) -> TransferModel:
    """Rebuild a finished trial's model at its best epoch, on the CPU, in evaluation mode.

    Args:
        run: the id of the trial's MLflow run.
        store: the store's folder; as for `--store`, the environment's addresses or `mlruns` by default.
        weights: the pretrained weights, for a trial with frozen layers; by default, where they were for the trial.
        module: the Python file of a custom backbone, which is run; by default, where it was for the trial.

    Returns:
        A module from normalised images NCHW (float32) to logits NK. Its attributes `classes` (list of str),
        `image_size` (height and width in pixels), `input_mean` and `input_std` (three floats each, for pixels scaled to
        0..1) describe its input and output.

    Raises:
        InputError: there is no such run, it kept no checkpoint, or the weights, or the code of a custom backbone, are
            not those that it was trained with.
    """
    opened_store = find_store(store)
    record = read_run(opened_store, run)
    spec = TrialSpec.from_params(record.params)
    if is_custom(spec.backbone):
        _check_custom_backbone(run, spec, module)
    with run_file(opened_store, record, CHECKPOINT_FILE) as path:
        trained, metadata = _read_tensors(path)
    model = make_model(spec)
    pretrained = None
    is_pretrained = STRATEGIES[spec.strategy].starts_pretrained
    if is_pretrained and _frozen_tensors(model, trained):  # else the seed or the checkpoint has every tensor
        address = str(spec.weights) if weights is None else os.fspath(weights)
        pretrained = read_weights(spec.backbone, address)
        if pretrained.digest != spec.weights_digest:
            raise InputError(f"{address}: not the weights that run {run} was trained with")
    initialise(model, pretrained, spec.seed)
    load_tensors(model, trained)
    if tensors_digest(_frozen_tensors(model, trained).items()) != metadata["frozen_digest"]:
        raise InputError(f"run {run}: its frozen layers cannot be rebuilt from {spec.weights}")
    model.classes = json.loads(metadata["classes"])
    model.image_size = spec.image_size
    model.input_mean, model.input_std = json.loads(metadata["input_mean"]), json.loads(metadata["input_std"])
    return model.eval()


def _check_custom_backbone(run: str, spec: TrialSpec, module: str | os.PathLike[str] | None) -> None:
    """Run the file of a trial's custom backbone; refuse code that has changed since."""
    path = str(spec.backbone_module) if module is None else os.fspath(module)
    try:
        file = None if is_timm(spec.backbone) else path
        backbone = load_backbone(file, function_name(spec.backbone), spec.image_size)
    except ValueError as error:
        raise InputError(f"run {run}: its backbone cannot be built: {error}") from None
    if backbone != spec.backbone:
        path = "timm" if is_timm(backbone) else path
        raise InputError(f"{path}: defines {backbone}, but run {run} was trained with {spec.backbone}")
