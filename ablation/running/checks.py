"""Checks of a study before it touches its store."""

from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ablation.analysis.boundaries import planned_levels
from ablation.analysis.scores import FEWEST_OF_CLASS, units_of_classes
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.statistics import FEWEST_DISCORDANT
from ablation.analysis.wording import percent
from ablation.base.errors import InputError
from ablation.base.terminal import say, say_prose, track_progress
from ablation.base.text import plural
from ablation.data.image_set import ImageSet
from ablation.data.reading import DataSize, list_own_images, load_split, measure_data
from ablation.data.split import split_seed
from ablation.networks.custom_checks import check_custom_blocks
from ablation.networks.strategies import has_learning_layers
from ablation.networks.transfer_model import Head, build_model
from ablation.networks.weights import Weights, check_download, check_layers, read_weights
from ablation.running.demo import needs_pretraining
from ablation.running.export import EXAMPLE_IMAGES, trace
from ablation.spec.architectures import function_name, is_custom, kept_blocks, kept_units
from ablation.spec.arms import arms
from ablation.spec.objective import ACCURACY
from ablation.spec.parameters import STRATEGIES
from ablation.spec.study import StudySpec
from ablation.spec.tables import TIMM_WEIGHTS, Data
from ablation.storage.store import Store
from ablation.training.feature_cache import pretrained_cuts

MOST_POINTS_PER_IMAGE = 1.0  # of accuracy: 100 images
MOST_SHRINKING = 2  # of a picture's shorter side to an image size that nobody chose
SAMPLED_FILES = 50
MOST_NAMED = 5  # classes in a hint
FEWEST_PER_CLASS = 5  # training images; few-shot learning begins with one to five, where other methods are used


def check_study(spec: StudySpec, store: Store, path: Path) -> None:
    """Read the study's images and weights as well, then print that the study can run; download nothing.

    Args:
        spec: the study.
        store: where its results go.
        path: of its file.

    Raises:
        InputError: the images or the weights cannot be used.
    """
    is_to_pretrain = needs_pretraining(spec, store)
    weights = None if is_to_pretrain or not pretrained_cuts(spec) else spec.backbone.weights
    download = ""
    if weights == TIMM_WEIGHTS:
        download = f"not checked: weights = {TIMM_WEIGHTS!r}, which timm downloads"
    elif weights is not None and not spec.backbone.has_weights_file:
        download = check_download(spec.backbone.name, weights)
    if weights is not None and not download:
        load_weights(spec)
    size = measure_data(spec.data)
    of_classes: list[str] = []
    val_images = size.validation(spec.data.val_fraction)
    if spec.data.is_own or spec.data.source == "digits":  # others may not have been downloaded yet
        images, split = load_split(spec.data, split_seed(spec.seed), track=track_progress)
        if images.reading:
            say_prose(images.reading)
        of_classes = class_hints(spec, images)
        val_images = len(split.val_N)  # groups are not divided
    trainings = plural(len(arms(spec)) * (spec.trials_per_arm + spec.confirm.runs), "training")
    say_prose(
        f"{path} is fine: {plural(len(arms(spec)), 'arm')}, {trainings} on {size.train:,} images of "
        f"{size.classes} classes (validation images included)"
    )
    if size.test_groups is not None:
        say(f"Tested on {plural(size.test, 'image')} of {plural(size.test_groups, 'group')}")
    if download:
        say_prose(download)
    if spec.confirm.looks:
        levels = zip(spec.confirm.looks, planned_levels(spec.confirm.looks), strict=True)
        say_prose(f"Looks: {', '.join(f'at {seeds} seeds tested at {percent(level)}' for seeds, level in levels)}")
    if spec.preregister:
        say_prose(
            "Sealed before the first trial: the question, the arms, the tests, the digests of data, weights and code"
        )
    for warning in too_small(spec, size, val_images):
        say_prose(f"warning: {warning}")
    for hint in export_hints(spec, size.classes) + objective_hints(spec) + size_hints(spec.data) + of_classes:
        say_prose(hint)


def export_hints(spec: StudySpec, classes: int) -> list[str]:
    """Return the line on a custom network, or one of timm's, that cannot become a registered champion; else none."""
    backbone = spec.backbone.name
    if not is_custom(backbone) or spec.confirm.seeds == 0:
        return []
    levels_of_cuts = {cut for levels in spec.combinations() for cut in spec.possible("truncate_at", levels)}
    cuts = sorted(levels_of_cuts, key=lambda cut: (kept_units(backbone, cut), cut))
    if not _export_refusal(spec, cuts[-1], classes):  # which has the layers of all
        return []
    refusals = ((cut, _export_refusal(spec, cut, classes)) for cut in cuts)
    first, refusal = next((cut, refusal) for cut, refusal in refusals if refusal)
    where = "" if first == cuts[0] else f" if {first} or a deeper cut wins"
    return [f"hint: {function_name(backbone)} will have no registered champion{where}: {refusal}"]


def _export_refusal(spec: StudySpec, cut: str, classes: int) -> str:
    """Return why `torch.export` cannot export the network of a cut; '' where it can."""
    side = spec.data.image_size
    model = build_model(spec.backbone.name, cut, Head(width=0), classes, side)
    model.image_size, model.input_mean, model.input_std = side, [0.0] * 3, [1.0] * 3
    try:
        trace(model, torch.zeros(EXAMPLE_IMAGES, side, side, 3, dtype=torch.uint8))
    except InputError as error:
        return str(error)
    return ""


def objective_hints(spec: StudySpec) -> list[str]:
    """Return the line on a study that trains for all classes alike but chooses for all images alike; else none."""
    weights = {weight for levels in spec.combinations() for weight in spec.possible("class_weights", levels)}
    if "balanced" not in weights or spec.goal != ACCURACY:
        return []
    return [
        "hint: class_weights = 'balanced' trains for all classes alike, but objective = 'accuracy' chooses by the "
        "share of images; objective = 'balanced_accuracy' would choose as it trains"
    ]


def class_hints(spec: StudySpec, images: ImageSet) -> list[str]:
    """Return the line on classes with few test images, of a study whose objective weighs all classes alike; else none.

    With groups, on classes whose test images are of few groups.
    """
    if spec.objective not in ("balanced_accuracy", "macro_f1") or spec.confirm.seeds == 0:
        return []
    units_K = units_of_classes(images.test_labels_N, images.test_groups_N, len(images.classes))
    is_few_K = (units_K > 0) & (units_K < FEWEST_OF_CLASS)  # one without any is not in the metric
    few = [f"{images.classes[k]!r} has {units_K[k]}" for k in np.flatnonzero(is_few_K)]
    if not few:
        return []
    what = "test images" if images.test_groups_N is None else "groups of test images"
    more = f" and {plural(len(few) - MOST_NAMED, 'other')}" if len(few) > MOST_NAMED else ""
    return [
        f"hint: classes with fewer than {FEWEST_OF_CLASS} {what} ({', '.join(few[:MOST_NAMED])}{more}) make the "
        f"intervals of {spec.goal.label} wide, because all classes count alike in it"
    ]


def size_hints(data: Data) -> list[str]:
    """Return the line on pictures that lose most of their pixels because nobody chose their size; else none."""
    if not data.is_own or "image_size" in data.model_fields_set:
        return []
    listing = list_own_images(data)
    files = [path for split in (listing.files or {}).values() for path, _ in split]
    sides = []
    for path in files[:: max(1, len(files) // SAMPLED_FILES)]:
        with suppress(Exception), listing.open_image(path) as image:  # Pillow raises many kinds for broken files
            sides.append(min(image.size))
    side = median(sides) if sides else 0
    if side < MOST_SHRINKING * data.image_size:
        return []
    return [
        f"hint: data.image_size is not set: images with a shorter side of {side:.0f} pixels (median) become "
        f"{data.image_size} x {data.image_size}; ImageNet's networks were trained at 224, and 64 or 128 may do"
    ]


def too_small(spec: StudySpec, size: DataSize, val_images: int) -> list[str]:
    """Return why a study is too small to answer its question, a sentence each."""
    warnings = []
    compares = len(arms(spec)) > 1
    unit = "repeats" if spec.confirm.repeats > 1 and spec.confirm.seeds > 0 else "seeds"
    if compares and getattr(spec.confirm, unit) < FEWEST_SEEDS:
        few = f"arms with fewer than {FEWEST_SEEDS} are not compared"
        warnings.append(f"[confirm] {unit} is {getattr(spec.confirm, unit)}; {few}")
    per_image = 100 / max(1, val_images)
    if per_image > MOST_POINTS_PER_IMAGE:
        warnings.append(
            f"{plural(val_images, 'validation image')}, each worth {per_image:.1f} points of accuracy; "
            "tuning and choosing a champion need at least 100"
        )
    if compares and size.test and 100 / size.test > MOST_POINTS_PER_IMAGE:
        warnings.append(
            f"{plural(size.test, 'test image')}, each worth {100 / size.test:.1f} points of accuracy; "
            "smaller differences of arms cannot be found"
        )
    if compares and size.test_groups is not None and size.test_groups < FEWEST_DISCORDANT:
        warnings.append(
            f"{plural(size.test_groups, 'group')} of test images, which the report's tests count, not the images; "
            f"fewer than {FEWEST_DISCORDANT} seldom show a difference"
        )
    if size.train - val_images < FEWEST_PER_CLASS * size.classes:
        warnings.append(f"there are fewer than {FEWEST_PER_CLASS} training images per class")
    return warnings


def check_custom_backbone(spec: StudySpec) -> None:
    """Refuse a custom backbone whose blocks do not work on the study's images, or have nothing that is to learn.

    Raises:
        InputError: says what is wrong with which block.
    """
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
    reuses = {reuse for levels in spec.combinations() for reuse in spec.reuses(levels) if reuse.learning}
    for reuse in reuses:
        if reuse.learn in ("norms", "biases") and not has_learning_layers(reuse, spec.data.image_size):
            layers = f"layers of {function_name(backbone)} that {reuse.truncate_at} keeps and that are not frozen"
            raise InputError(f"learn: {reuse.learn!r} has no effect: there are none in the {layers}")


def load_weights(spec: StudySpec) -> Weights | None:
    """Read the pretrained weights if any arm starts from them, and check that they have every layer of the deepest cut.

    Raises:
        InputError: the weights cannot be read, or lack a layer.
    """
    cuts = pretrained_cuts(spec)
    if not cuts or spec.backbone.weights is None:
        return None
    weights = read_weights(spec.backbone.name, spec.backbone.weights)
    if spec.backbone.missing_layers == "error":
        check_layers(weights, spec.backbone.weights, spec.backbone.name, cuts)
    return weights
