"""The champion: of the arm that won, the run with the best validation accuracy, registered as a model.

Legend: N images, C channels, S their side in pixels, K classes.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ablation.analysis.comparison import champion_run, confirmed_validation, winner
from ablation.analysis.results import ArmResult, RunResult, StudyResult
from ablation.base.errors import InputError
from ablation.base.text import first_line
from ablation.data.images import Normalisation, normalise
from ablation.data.reading import ImageSet
from ablation.networks.transfer_model import TransferModel
from ablation.running.outputs import load_model
from ablation.storage.store import Store
from ablation.tracking.registry import RegisteredVersion, register_version, save_model

EXAMPLE_IMAGES = 2  # shown with the model; export needs more than one, else it takes their number for a constant
logger = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A trained network with what surrounds it: pixels as they are in a file go in, class probabilities come out."""

    def __init__(self, model: TransferModel):
        super().__init__()
        self.model = model
        (r_mean, g_mean, b_mean), (r_std, g_std, b_std) = model.input_mean, model.input_std
        self.normalisation = Normalisation((r_mean, g_mean, b_mean), (r_std, g_std, b_std), model.image_size)

    def forward(self, images_NSSC: torch.Tensor) -> torch.Tensor:
        """Return probabilities NK (float32) for RGB images (uint8)."""
        images_NCSS = normalise(images_NSSC.permute(0, 3, 1, 2), self.normalisation)
        logits_NK: torch.Tensor = self.model(images_NCSS)
        return logits_NK.softmax(1)


def export_program(model: TransferModel, images_NSSC: torch.Tensor, path: Path) -> None:
    """Write a network as a program of `torch.export`, which needs torch alone to run; frozen layers are in it, too.

    Args:
        model: as `load_model` returns it.
        images_NSSC: at least two images, uint8; the program takes any number of that size.
        path: the file, .pt2.

    Raises:
        InputError: torch cannot export the network.
    """
    dynamic = ({0: torch.export.Dim("N")},)
    try:
        program = torch.export.export(Classifier(model).eval(), (images_NSSC,), dynamic_shapes=dynamic)
    except Exception as error:  # of many kinds, for a network that it does not understand
        raise InputError(f"torch.export cannot export it ({first_line(error)})") from None
    torch.export.save(program, path)


def register_champion(store: Store, result: StudyResult, images: ImageSet) -> RegisteredVersion | None:
    """Register the winner of a study that is complete; an incomplete one keeps the champion it had, if any.

    The arm with the highest mean validation accuracy over its confirmation runs wins, and of its runs the one with the
    highest validation accuracy is the champion; test accuracies are described, but choose nothing. Where the champion
    cannot be made (its pretrained weights are gone, say), a warning says why and the study's results stand without it.

    Args:
        store: where the study is.
        result: the study as it stands.
        images: its images; the first two test images become the model's input example.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    if result.spec.confirm.seeds == 0 or result.missing_trials or result.missing_confirmations:
        return None
    arm = winner(result)
    if arm is None:
        return None
    run = champion_run(arm)
    spec = result.spec

    def build(folder: Path, model_id: str) -> None:
        # The study may have gone on with its weights in another place than the trial found them.
        option = str(store.root) if store.has_own_tracking else None
        model = load_model(run.run_id, store=option, weights=spec.backbone.weights, module=spec.backbone.module)
        examples_NSSC = images.test_images_NHWC[:EXAMPLE_IMAGES].copy()
        program = folder.with_name("program.pt2")
        export_program(model, torch.from_numpy(examples_NSSC), program)
        about = {"study": spec.name, "arm": arm.arm.name, "run_id": run.run_id}
        save_model(folder, program, examples_NSSC, model.classes, about, model_id)

    try:
        return register_version(
            store,
            spec.name,
            result.experiment_id,
            run.run_id,
            spec.question,
            version_description(result, arm, run, images.test_images_NHWC.shape[1]),
            build,
        )
    except InputError as error:
        logger.warning("no champion is registered: %s", error)
        return None


def version_description(result: StudyResult, arm: ArmResult, run: RunResult, side: int) -> str:
    """Return what the registry says of a version (markdown), whose images have a side of so many pixels."""
    val_S = confirmed_validation(arm)
    # Not only of the runs whose predictions are still there.
    test_S = np.array([found.test_accuracy for found in arm.confirmations if found.test_accuracy is not None])
    run_link = f"[{run.run_id}](#/experiments/{result.experiment_id}/runs/{run.run_id})"
    return "\n".join(
        [
            f"Study `{result.spec.name}`, arm `{arm.arm.name}`, confirmation run {run_link}, "
            "chosen by validation accuracy alone.",
            "",
            f"| | this run | mean of the arm's {len(val_S)} runs |",
            "| --- | --- | --- |",
            f"| validation accuracy ({result.val_images} images) | {run.val_accuracy:.4f} | {val_S.mean():.4f} |",
            f"| test accuracy ({result.test_images} images) | {run.test_accuracy:.4f} | {test_S.mean():.4f} |",
            "",
            f"Input: RGB images, uint8, any number x {side} x {side} x 3, as they are (what is done to them before the "
            "network is in the model). Output: a row per image, a column per class.",
        ]
    )
