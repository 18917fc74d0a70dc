"""What is checked before a study touches its store."""

from pathlib import Path

from ablation.base.errors import InputError
from ablation.base.terminal import say, track_progress
from ablation.base.text import count_arms
from ablation.data.reading import ImageSet, Split, check_split, load_split, measure_data, split_seed
from ablation.networks.custom_checks import check_custom_blocks
from ablation.networks.weights import Weights, check_layers, read_weights, torchvision_weights
from ablation.running.demo import needs_pretraining
from ablation.spec.architectures import is_custom, kept_blocks
from ablation.spec.arms import arms
from ablation.spec.parameters import STRATEGIES
from ablation.spec.study import StudySpec
from ablation.storage.store import Store


def check_study(spec: StudySpec, store: Store, path: Path) -> None:
    """Say that a study can run, once its images and its weights file have been looked at, too; nothing is downloaded.

    Raises:
        InputError: something is wrong with them.
    """
    is_to_pretrain = needs_pretraining(spec, store)
    if spec.backbone.has_weights_file and not is_to_pretrain:
        load_weights(spec)
    elif spec.backbone.weights is not None and not is_to_pretrain:
        torchvision_weights(spec.backbone.name, spec.backbone.weights)
    size = measure_data(spec.data)
    if spec.data.source in ("imagefolder", "digits"):  # others may not be there yet
        check_split(spec.data, split_seed(spec.seed))
    trainings = len(arms(spec)) * (spec.trials_per_arm + spec.confirm.seeds)
    say(
        f"{path} is fine: {count_arms(len(arms(spec)))}, {trainings} trainings on {size.train:,} images of "
        f"{size.classes} classes (with those for validation)"
    )


def check_custom_backbone(spec: StudySpec) -> None:
    """Refuse a backbone of the user's own that does not compute what it should on the study's images."""
    if not is_custom(spec.backbone.name):
        return
    backbone = spec.backbone.name
    cuts = {cut for levels in spec.combinations() for cut in spec.possible("truncate_at", levels)}
    strategies = {strategy for levels in spec.combinations() for strategy in spec.possible("strategy", levels)}
    try:
        check_custom_blocks(
            backbone,
            max(cuts, key=lambda cut: kept_blocks(backbone, cut)),
            spec.data.image_size,
            learns=any(STRATEGIES[strategy].freezes != "all" for strategy in strategies),
            starts_random=spec.backbone.missing_layers == "random"
            or not all(STRATEGIES[strategy].starts_pretrained for strategy in strategies),
        )
    except ValueError as error:
        raise InputError(f"backbone.{error}") from None


def load_weights(spec: StudySpec) -> Weights | None:
    """Read the pretrained weights if any arm starts from them, and check that they have every layer that is needed."""
    cuts: set[str] = set()
    for levels in spec.combinations():
        if any(STRATEGIES[strategy].starts_pretrained for strategy in spec.possible("strategy", levels)):
            cuts.update(spec.possible("truncate_at", levels))
    if not cuts or spec.backbone.weights is None:
        return None
    weights = read_weights(spec.backbone.name, spec.backbone.weights)
    if spec.backbone.missing_layers == "error":
        check_layers(weights, spec.backbone.weights, spec.backbone.name, cuts)
    return weights


def load_images_and_split(spec: StudySpec, processes: int) -> tuple[ImageSet, Split]:
    """Read the images and split them; so many processes will hold them."""
    return load_split(spec.data, split_seed(spec.seed), track=track_progress, processes=processes)
