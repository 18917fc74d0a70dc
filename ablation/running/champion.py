"""The champion: the run with the best validation metric in the arm that was chosen, registered as a model.

Legend: N images, C channels, S their side in pixels.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ablation.analysis.arm_summaries import champion_run, confirmed_validation
from ablation.analysis.champion import Choice
from ablation.analysis.results import StudyResult
from ablation.analysis.runs import RunResult
from ablation.analysis.wording import shown_question
from ablation.base.errors import InputError
from ablation.base.text import escape_markdown
from ablation.data.image_set import ImageSet
from ablation.running.export import EXAMPLE_IMAGES, export_program
from ablation.running.outputs import load_model
from ablation.storage.store import Store
from ablation.tracking.client import KEY_TAG, REFUSAL_TAG
from ablation.tracking.registry import (
    PROGRAM_FILE,
    Candidate,
    Program,
    RegisteredVersion,
    keep_refusal,
    register_version,
)

logger = logging.getLogger(__name__)


def keep_examples(images: ImageSet) -> ImageSet:
    """Return an image set that holds only the pixels that `register_champion` needs, and no reference to others."""
    return replace(
        images,
        train_images_NHWC=images.train_images_NHWC[:0].copy(),
        test_images_NHWC=images.test_images_NHWC[:EXAMPLE_IMAGES].copy(),
    )


def register_champion(
    store: Store, result: StudyResult, images: ImageSet, choice: Choice | None
) -> RegisteredVersion | None:
    """Register the champion of a complete study; an incomplete study keeps the champion that it has, if any.

    Of the confirmation runs of its arm, the one with the best validation metric is the champion. Test metrics appear in
    the description, but no choice uses them. If the model cannot be built, for example because the pretrained weights
    are gone, a warning says why, the study's summary run keeps it, and the study has no new champion.

    Args:
        store: where the study is.
        result: the study's results.
        images: the study's images; the first two test images become the model's input example.
        choice: the champion's arm, see `choose_champion`.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    if choice is None or result.spec.confirm.seeds == 0 or result.missing_trials or result.missing_confirmations:
        return None
    arm = choice.arm
    run = champion_run(arm)
    spec = result.spec

    def build(folder: Path) -> Program:
        # The study may have been resumed with its weights in another place than the trial's.
        option = str(store.root) if store.has_own_tracking else None
        model = load_model(run.run_id, store=option, weights=spec.backbone.weights, module=spec.backbone.module)
        examples_NSSC = images.test_images_NHWC[:EXAMPLE_IMAGES].copy()
        program = folder / PROGRAM_FILE
        export_program(model, torch.from_numpy(examples_NSSC), program)
        about = {"study": spec.name, "arm": arm.arm.name, "run_id": run.run_id, "resize": spec.data.resize}
        return Program(program, examples_NSSC, model.classes, about)

    try:
        description = version_description(result, choice, run, images.test_images_NHWC.shape[1])
        question = escape_markdown(shown_question(spec.question))
        key = result.tags[KEY_TAG]
        candidate = Candidate(spec.name, result.experiment_id, run.run_id, question, description, choice.reason, key)
        registered = register_version(store, candidate, build)
    except InputError as error:
        logger.warning("no champion is registered: %s", error)
        keep_refusal(store, result.summary_run_id, str(error))
        return None
    if REFUSAL_TAG in result.tags:
        keep_refusal(store, result.summary_run_id, "")
    return registered


def version_description(result: StudyResult, choice: Choice, run: RunResult, side: int) -> str:
    """Return the registry's description of a version (markdown); `side` is the images' height and width in pixels."""
    arm = choice.arm
    val_S = confirmed_validation(arm)
    # Of all runs, also of those whose predictions are lost.
    test_S = np.array([other.test_value for other in arm.confirmations if other.test_value is not None])
    goal = result.spec.goal
    metrics = "accuracies" if goal.name == "accuracy" else f"values of {goal.label}"
    run_link = f"[{run.run_id}](#/experiments/{result.experiment_id}/runs/{run.run_id})"
    return "\n".join(
        [
            f"Study `{result.spec.name}`, arm {escape_markdown(arm.arm.name)}, confirmation run {run_link}, "
            f"chosen by validation alone: {escape_markdown(choice.reason)}. Its validation {metrics} chose it and are "
            f"therefore a little {'high' if goal.higher_is_better else 'low'}; its test {metrics} come from images "
            "that played no part.",
            "",
            f"| | this run | mean of the arm's {len(val_S)} runs |",
            "| --- | --- | --- |",
            f"| validation {goal.label} ({result.val_images} images) | {run.val_value:.4f} | {val_S.mean():.4f} |",
            f"| test {goal.label} ({result.test_images} images) | {run.test_value:.4f} | {test_S.mean():.4f} |",
            "",
            f"Input: RGB images, uint8, N x {side} x {side} x 3, scaled as `data.resize = "
            f'"{result.spec.data.resize}"` says (the model includes the rest of the preprocessing). '
            "Output: a row of probabilities per image, a column per class.",
        ]
    )
