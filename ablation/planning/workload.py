"""The work of a study: its arms, kinds of training, frozen parts, and the bytes that they store."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch

from ablation.base.device import select_precision
from ablation.data.reading import DataSize
from ablation.data.torchvision_sets import SIDES
from ablation.networks.blocks import run_parts
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import Head, build_model, feature_count
from ablation.planning.probe import Conditions, Kind
from ablation.spec.architectures import TIMM, is_faster_in_bfloat16
from ablation.spec.arms import Arm, arms
from ablation.spec.parameters import CACHEABLE, STRATEGIES, HeadPool
from ablation.spec.reuse import Reuse, cut_at_end
from ablation.spec.study import StudySpec

BYTES_PER_PARAMETER = 4  # checkpoints are float32
BYTES_PER_FEATURE = {"bfloat16": 2, "float16": 2}  # else 4
HEAD_POOL_SIZE = {1: 1, 2: 2, "flatten": 1024}  # only their order matters

STEP_OPERATIONS = 1000  # equivalent of an optimizer's step of one parameter, for ordering kinds of training by cost
ALIKE = 0.8  # a kind with at least this share of the costliest's operations needs no measurement of its own


@dataclass(frozen=True)
class ArmPlan:
    """The largest network that an arm's trials can train, and the range of its training cost.

    Attributes:
        arm: the arm.
        trained_parameters: of the largest network that the search can choose.
        all_parameters: of the same network.
        checkpoint_bytes: of all checkpoints that the arm keeps.
        cheapest: the cheapest kind of training that the search can choose; `costliest` where the two hardly differ.
        costliest: the costliest kind.
    """

    arm: Arm
    trained_parameters: int
    all_parameters: int
    checkpoint_bytes: int
    cheapest: Kind
    costliest: Kind


def plan(spec: StudySpec, num_classes: int, *, stores_features: bool = True) -> list[ArmPlan]:
    """Return the plan of every arm; `stores_features` says whether features of frozen layers are cached."""
    arm_plans = []
    seeds = spec.confirm.runs
    kept = spec.confirm.repeats * min(1, seeds)  # the best confirmation run of each repeat
    checkpoints = spec.trials_per_arm + seeds if spec.tracking.checkpoints == "all" else 1 + kept
    for arm in arms(spec):
        trained, total = _largest(spec, arm, num_classes)
        disk = checkpoints * trained * BYTES_PER_PARAMETER
        cheapest, costliest = _extreme_kinds(spec, arm, stores_features)
        arm_plans.append(ArmPlan(arm, trained, total, disk, cheapest, costliest))
    return arm_plans


def _largest(spec: StudySpec, arm: Arm, num_classes: int) -> tuple[int, int]:
    """Return the parameters (trained, all) of the largest network that a trial of the arm can train."""
    widths = spec.possible("head_width", arm.levels)
    pool = max(spec.possible("head_pool", arm.levels), key=lambda pool: HEAD_POOL_SIZE[pool])
    norms = spec.possible("head_norm", arm.levels)
    largest: dict[tuple[str, str], Reuse] = {}  # by cut and what learns: the one that freezes least
    for reuse in sorted(spec.reuses(arm.levels), key=lambda reuse: reuse.frozen, reverse=True):
        largest[reuse.truncate_at, reuse.learn] = reuse
    sizes = []
    for reuse, width in product(largest.values(), {max(widths), min(widths)}):  # 0 hidden units may have more weights
        with torch.device("meta"):
            head = Head(width, pool, norm=next(filter(lambda norm: norm != "none", norms), "none"))
            model = build_model(spec.backbone.name, reuse.truncate_at, head, num_classes, spec.data.image_size)
        apply_strategy(model, Learning(reuse.strategy, 1.0, reuse.freeze_depth, learn=reuse.learn))
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        sizes.append((learning, sum(parameter.numel() for parameter in model.parameters())))
    return max(sizes)


def feature_bytes(spec: StudySpec, size: DataSize, precision: str) -> int:
    """Return the bytes of all features that a study's trials may cache, see `training.feature_cache`.

    Args:
        spec: the study.
        size: of its data.
        precision: that the device computes in; never 'auto', see `Conditions`.
    """
    backbone, image_size = spec.backbone.name, spec.data.image_size
    # Features of an image, by cut, pool, and the networks that compute them for the split's images and for the test's.
    numbers: dict[tuple[str, HeadPool | None, tuple[int, int]], int] = {}
    # Layers without weights are random and differ between trials; each repeat has another split.
    trials = spec.trials_per_arm + spec.confirm.runs
    for levels in spec.combinations():
        for reuse in spec.reuses(levels):
            is_random = spec.backbone.missing_layers == "random" or not STRATEGIES[reuse.strategy].starts_pretrained
            networks = (trials, trials) if is_random else (spec.confirm.repeats, 1)
            if reuse.frozen == reuse.kept:
                for pool in spec.possible("head_pool", levels):
                    count = feature_count(backbone, reuse.truncate_at, image_size, pool)
                    numbers[reuse.truncate_at, pool, networks] = count
            elif reuse.frozen > 0:
                end = cut_at_end(backbone, reuse.frozen)
                numbers[end, None, networks] = feature_count(backbone, end, image_size, "flatten")
    # The last operation of these networks' blocks is one that autocast leaves in float32 (of timm's, some).
    bytes_each = 4 if spec.backbone.name.startswith(("convnext", "vit", TIMM)) else BYTES_PER_FEATURE.get(precision, 4)
    trained, tested = stored_images(spec, size)
    return sum(  # test features are always float32
        (of_split * trained * bytes_each + of_test * tested * 4) * count
        for (_, _, (of_split, of_test)), count in numbers.items()
    )


def stored_images(spec: StudySpec, size: DataSize) -> tuple[int, int]:
    """Return the numbers of images whose features are cached: for training (mirror images count) and for the test."""
    augmentations = {a for levels in spec.combinations() for a in spec.possible("augmentation", levels)}
    orientations = 2 if "flip" in augmentations else 1 if "none" in augmentations else 0  # random crops are not cached
    validation = size.validation(spec.data.val_fraction)
    return (size.train - validation) * orientations + validation, size.test if spec.confirm.seeds > 0 else 0


def _extreme_kinds(spec: StudySpec, arm: Arm, stores_features: bool) -> tuple[Kind, Kind]:
    """Return the cheapest and the costliest kind of training that an arm's search can choose.

    Where the cheapest costs nearly as much, the costliest is returned twice.
    """
    others = ("head_width", "head_pool", "batch_size", "augmentation", "optimizer")
    work = {}
    for reuse in spec.reuses(arm.levels):
        learn = reuse.learn if reuse.learning else "all"
        for width, pool, batch, augmentation, optimizer in product(*(spec.possible(o, arm.levels) for o in others)):
            stored = stores_features and reuse.frozen > 0 and augmentation in CACHEABLE
            kind = Kind(reuse.truncate_at, reuse.frozen, stored, width, pool, batch, augmentation, optimizer, learn)
            if kind not in work:
                work[kind] = _operations(spec, kind)
    cheapest, costliest = min(work, key=lambda kind: work[kind]), max(work, key=lambda kind: work[kind])
    return (costliest if work[cheapest] > ALIKE * work[costliest] else cheapest), costliest


@lru_cache
def _costs_of_parts(backbone: str, cut: str, image_size: int) -> tuple[tuple[int, int, int], ...]:
    """Return for each part of a network: the units up to its end, its operations for an image, its parameters."""
    return tuple(
        (part.units, operations, sum(parameter.numel() for parameter in module.parameters()))
        for part, module, _, operations in run_parts(backbone, cut, image_size)
    )


def _operations(spec: StudySpec, kind: Kind) -> float:
    """Return the approximate floating point operations for an image in an epoch.

    Gradients of a layer's input count as much as its output, and those of its weights again.
    """
    frozen = learning = parameters = 0
    learning_units, learns_weights = kind.reuse(spec.backbone.name).learning, kind.learn not in ("norms", "biases")
    for units, flops, weights in _costs_of_parts(spec.backbone.name, kind.truncate_at, spec.data.image_size):
        if units <= kind.frozen_units:
            frozen += flops
        elif units - 1 in learning_units and learns_weights:
            learning += 3 * flops
            parameters += weights
        else:
            learning += 2 * flops
    pooled = feature_count(spec.backbone.name, kind.truncate_at, spec.data.image_size, kind.head_pool)
    head = pooled * max(kind.head_width, 1)
    states = 2 if kind.optimizer == "adamw" else 1
    step = STEP_OPERATIONS * states * (parameters + head) / kind.batch_size
    return (0 if kind.reads_features else frozen) + learning + 6 * head + step


def frozen_parts(spec: StudySpec) -> list[tuple[str, int]]:
    """Return the (cut, units) whose features are computed: the longest network that is frozen whole, the deepest part.

    The features of all others are computed on the way to these.
    """
    frozen = [reuse for levels in spec.combinations() for reuse in spec.reuses(levels) if reuse.frozen > 0]
    whole = [reuse for reuse in frozen if reuse.frozen == reuse.kept]
    parts = [reuse for reuse in frozen if reuse.frozen < reuse.kept]
    deepest = [max(reuses, key=lambda reuse: reuse.frozen) for reuses in (whole, parts) if reuses]
    return [(reuse.truncate_at, reuse.frozen) for reuse in deepest]


def shared_conditions(spec: StudySpec, size: DataSize, device: torch.device) -> Conditions:
    """Return what all trainings of a study share on a device; precision 'auto' is resolved for it."""
    validation = size.validation(spec.data.val_fraction)
    return Conditions(
        backbone=spec.backbone.name,
        classes=size.classes,
        image_size=spec.data.image_size,
        side=SIDES.get(spec.data.source, spec.data.image_size),
        train_images=size.train - validation,
        val_images=validation,
        test_images=size.test,
        precision=select_precision(
            spec.precision, device, is_faster_in_bfloat16=is_faster_in_bfloat16(spec.backbone.name)
        ),
        device=device,
    )
