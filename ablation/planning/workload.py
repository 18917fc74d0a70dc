"""The work of a study: its arms, kinds of training, frozen parts, and the bytes that they store."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ablation.base.device import select_precision
from ablation.data.reading import DataSize
from ablation.data.torchvision_sets import SIDES
from ablation.networks.blocks import blank_image, feature_shape, outline_blocks
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import build_model
from ablation.planning.probe import Conditions, Kind
from ablation.spec.architectures import kept_blocks, kept_units
from ablation.spec.arms import Arm, arms
from ablation.spec.parameters import STRATEGIES, HeadPool, Range
from ablation.spec.study import StudySpec

BYTES_PER_PARAMETER = 4  # checkpoints are float32
BYTES_PER_FEATURE = {"bfloat16": 2, "float16": 2}  # else 4
HEAD_POOL_SIZE = {1: 1, 2: 2, "flatten": 1024}  # only their order matters

STEP_OPERATIONS = 1000  # equivalent of an optimizer's step of one parameter, for ordering kinds of training by cost
ALIKE = 0.8  # a kind with at least this share of the costliest's operations needs no measurement of its own


@dataclass(frozen=True)
class ArmPlan:
    """An arm's budget, the largest network that its trials can train, and the range of its training cost.

    Attributes:
        arm: the arm.
        trials: their number.
        confirmations: number of confirmation runs.
        trained_parameters: of the largest network that the search can choose.
        all_parameters: of the same network.
        checkpoint_bytes: of all checkpoints that the arm keeps.
        cheapest: the cheapest kind of training that the search can choose; `costliest` where the two hardly differ.
        costliest: the costliest kind.
    """

    arm: Arm
    trials: int
    confirmations: int
    trained_parameters: int
    all_parameters: int
    checkpoint_bytes: int
    cheapest: Kind
    costliest: Kind


def plan(spec: StudySpec, num_classes: int, *, stores_features: bool = True) -> list[ArmPlan]:
    """Return the plan of every arm; `stores_features` says whether features of frozen layers are cached."""
    arm_plans = []
    seeds = spec.confirm.seeds
    checkpoints = spec.trials_per_arm + seeds if spec.tracking.checkpoints == "all" else 1 + min(1, seeds)
    for arm in arms(spec):
        trained, total = _largest(spec, arm, num_classes)
        disk = checkpoints * trained * BYTES_PER_PARAMETER
        cheapest, costliest = _extreme_kinds(spec, arm, stores_features)
        arm_plans.append(ArmPlan(arm, spec.trials_per_arm, seeds, trained, total, disk, cheapest, costliest))
    return arm_plans


def _largest(spec: StudySpec, arm: Arm, num_classes: int) -> tuple[int, int]:
    """Return the parameters (trained, all) of the largest network that a trial of the arm can train."""
    width = max(spec.possible("head_width", arm.levels))
    pool = max(spec.possible("head_pool", arm.levels), key=lambda pool: HEAD_POOL_SIZE[pool])
    sizes = []
    for strategy in spec.possible("strategy", arm.levels):
        for cut in spec.possible("truncate_at", arm.levels):
            kept = kept_blocks(spec.backbone.name, cut)
            depth = min(_frozen_blocks(spec, {**arm.levels, "strategy": strategy}, kept))
            with torch.device("meta"):
                model = build_model(spec.backbone.name, cut, width, pool, num_classes, spec.data.image_size)
            apply_strategy(model, Learning(strategy, lr=1.0, freeze_depth=depth))
            sizes.append(
                (
                    sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
                    sum(parameter.numel() for parameter in model.parameters()),
                )
            )
    return max(sizes)


def feature_bytes(spec: StudySpec, size: DataSize, precision: str) -> int:
    """Return the bytes of all features that a study's trials may cache, see `training.feature_cache`.

    Args:
        spec: the study.
        size: of its data.
        precision: that the device computes in; never 'auto', see `Conditions`.
    """
    numbers: dict[tuple[str, HeadPool | None], int] = {}  # features of an image, by cut or block and by pool
    for levels in spec.combinations():
        for cut in spec.possible("truncate_at", levels):
            channels, side, _ = feature_shape(spec.backbone.name, cut, spec.data.image_size)
            kept = kept_blocks(spec.backbone.name, cut)
            for depth in _frozen_blocks(spec, levels, kept) - {0}:
                if depth == kept:
                    for pool in spec.possible("head_pool", levels):
                        numbers[cut, pool] = channels * (side if pool == "flatten" else min(pool, side)) ** 2
                else:
                    shape = feature_shape(spec.backbone.name, f"block{depth}", spec.data.image_size)
                    numbers[f"block{depth}", None] = math.prod(shape)
    # The last operation of ConvNeXt's blocks is one that autocast leaves in float32.
    bytes_each = 4 if spec.backbone.name.startswith("convnext") else BYTES_PER_FEATURE.get(precision, 4)
    trained, tested = stored_images(spec, size)
    # Layers without weights are random and differ between trials.
    networks = spec.trials_per_arm + spec.confirm.seeds if spec.backbone.missing_layers == "random" else 1
    return (trained * bytes_each + tested * 4) * sum(numbers.values()) * networks  # test features are always float32


def stored_images(spec: StudySpec, size: DataSize) -> tuple[int, int]:
    """Return the numbers of images whose features are cached: for training (mirror images count) and for the test."""
    augmentations = {a for levels in spec.combinations() for a in spec.possible("augmentation", levels)}
    orientations = 2 if "flip" in augmentations else 1 if "none" in augmentations else 0  # random crops are not cached
    validation = round(size.train * spec.data.val_fraction)
    return (size.train - validation) * orientations + validation, size.test if spec.confirm.seeds > 0 else 0


def _frozen_blocks(spec: StudySpec, levels: dict[str, Any], kept: int) -> set[int]:
    """Return the numbers of leading blocks that trials of an arm may freeze, of the blocks that are kept."""
    numbers: set[int] = set()
    for strategy in spec.possible("strategy", levels):
        has_depth = STRATEGIES[strategy].freezes == "freeze_depth"
        depths = [depth for depth in _depths(spec, levels) if depth <= kept] if has_depth else [None]
        numbers |= {STRATEGIES[strategy].frozen_blocks(kept, depth) for depth in depths}
    return numbers


def _depths(spec: StudySpec, levels: dict[str, Any]) -> list[int]:
    """Return every freeze depth that a trial of an arm may have."""
    search = spec.search.get("freeze_depth")
    if isinstance(search, Range) and "freeze_depth" not in levels:
        return list(range(search.low, search.high + 1, search.step or 1))
    depths: list[int] = spec.possible("freeze_depth", levels)
    return depths


def _extreme_kinds(spec: StudySpec, arm: Arm, stores_features: bool) -> tuple[Kind, Kind]:
    """Return the cheapest and the costliest kind of training that an arm's search can choose.

    Where the cheapest costs nearly as much, the costliest is returned twice.
    """
    others = ("head_width", "head_pool", "batch_size", "augmentation", "optimizer")
    work = {}
    for cut in spec.possible("truncate_at", arm.levels):
        kept = kept_blocks(spec.backbone.name, cut)
        for frozen in sorted(_frozen_blocks(spec, arm.levels, kept)):
            for width, pool, batch, augmentation, optimizer in product(*(spec.possible(o, arm.levels) for o in others)):
                stored = stores_features and frozen > 0 and augmentation != "crop_flip"
                kind = Kind(cut, frozen, stored, width, pool, batch, augmentation, optimizer)
                work[kind] = _operations(spec, kind)
    cheapest, costliest = min(work, key=lambda kind: work[kind]), max(work, key=lambda kind: work[kind])
    return (costliest if work[cheapest] > ALIKE * work[costliest] else cheapest), costliest


def _operations(spec: StudySpec, kind: Kind) -> float:
    """Return the approximate floating point operations for an image in an epoch; backward counts twice forward."""
    blocks = outline_blocks(spec.backbone.name, kind.truncate_at).eval()
    maps = blank_image(spec.backbone.name, spec.data.image_size)
    frozen = learning = parameters = 0
    for number, block in enumerate(blocks):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            maps = block(maps)
        if number < kind.frozen_blocks:
            frozen += counter.get_total_flops()
        else:
            learning += counter.get_total_flops()
            parameters += sum(parameter.numel() for parameter in block.parameters())
    _, channels, side, _ = maps.shape
    pooled = channels * (side if kind.head_pool == "flatten" else min(kind.head_pool, side)) ** 2
    head = pooled * kind.head_width
    states = 2 if kind.optimizer == "adamw" else 1
    step = STEP_OPERATIONS * states * (parameters + head) / kind.batch_size
    return (0 if kind.reads_features else frozen) + 3 * (learning + 2 * head) + step


def frozen_parts(spec: StudySpec) -> list[tuple[str, int]]:
    """Return the (cut, blocks) whose features are computed: the longest network that is frozen whole, the deepest part.

    The features of all others are computed on the way to these.
    """
    backbone = spec.backbone.name
    whole: list[tuple[str, int]] = []
    parts: list[tuple[str, int]] = []
    for levels in spec.combinations():
        for cut in spec.possible("truncate_at", levels):
            kept = kept_blocks(backbone, cut)
            for depth in _frozen_blocks(spec, levels, kept) - {0}:
                (whole if depth == kept else parts).append((cut, depth))
    longest = max(whole, key=lambda part: kept_units(backbone, part[0]), default=None)
    deepest = max(parts, key=lambda part: part[1], default=None)
    return [part for part in (longest, deepest) if part is not None]


def shared_conditions(spec: StudySpec, size: DataSize, device: torch.device) -> Conditions:
    """Return what all trainings of a study share on a device; precision 'auto' is resolved for it."""
    validation = round(size.train * spec.data.val_fraction)
    return Conditions(
        backbone=spec.backbone.name,
        classes=size.classes,
        image_size=spec.data.image_size,
        side=SIDES.get(spec.data.source, spec.data.image_size),
        train_images=size.train - validation,
        val_images=validation,
        test_images=size.test,
        precision=select_precision(spec.precision, device),
        device=device,
    )
