"""What a study would compute: arms, kinds of training, frozen parts, bytes."""

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
from ablation.training.feature_cache import frozen_cuts

BYTES_PER_PARAMETER = 4  # checkpoints are float32
BYTES_PER_FEATURE = {"bfloat16": 2, "float16": 2}  # else 4
HEAD_POOL_SIZE = {1: 1, 2: 2, "flatten": 1024}  # for finding the largest

STEP_OPERATIONS = 1000  # for which an optimizer's step of one parameter stands, in choosing what is measured
ALIKE = 0.8  # kinds of training whose operations differ by less are not worth two measurements


@dataclass(frozen=True)
class ArmPlan:
    """An arm's budget and the largest network that a trial of it can train; `checkpoint_bytes` is for the whole arm.

    `cheapest` and `costliest` are the kinds of training that its search can choose; the same where they hardly differ.
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
    """Return the plan of every arm; `stores_features` says whether what frozen layers compute is computed once."""
    found = []
    seeds = spec.confirm.seeds
    kept = spec.trials_per_arm + seeds if spec.tracking.checkpoints == "all" else 1 + min(1, seeds)
    for arm in arms(spec):
        trained, total = _largest(spec, arm, num_classes)
        disk = kept * trained * BYTES_PER_PARAMETER
        cheapest, costliest = _extreme_kinds(spec, arm, stores_features)
        found.append(ArmPlan(arm, spec.trials_per_arm, seeds, trained, total, disk, cheapest, costliest))
    return found


def _largest(spec: StudySpec, arm: Arm, num_classes: int) -> tuple[int, int]:
    """Return the largest (trained, all) parameters of any trial of the arm."""
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


def feature_bytes(spec: StudySpec, size: DataSize) -> int:
    """Return the bytes of everything that a study's trials may store of frozen layers, see `features`."""
    numbers: dict[tuple[str, HeadPool | None], int] = {}  # of an image, behind a cut or block, pooled or not
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
    # ConvNeXt's blocks end in what autocast leaves in float32.
    bytes_each = 4 if spec.backbone.name.startswith("convnext") else BYTES_PER_FEATURE.get(spec.precision, 4)
    trained, tested = stored_images(spec, size)
    # Layers without weights are random, in every trial others.
    networks = spec.trials_per_arm + spec.confirm.seeds if spec.backbone.missing_layers == "random" else 1
    return (trained * bytes_each + tested * 4) * sum(numbers.values()) * networks  # tests are always in float32


def stored_images(spec: StudySpec, size: DataSize) -> tuple[int, int]:
    """Return of how many images for trainings and of how many test images what frozen layers compute is stored."""
    augmentations = {a for levels in spec.combinations() for a in spec.possible("augmentation", levels)}
    orientations = 2 if "flip" in augmentations else 1 if "none" in augmentations else 0  # random crops are not stored
    validation = round(size.train * spec.data.val_fraction)
    return (size.train - validation) * orientations + validation, size.test if spec.confirm.seeds > 0 else 0


def _frozen_blocks(spec: StudySpec, levels: dict[str, Any], kept: int) -> set[int]:
    """Return how many of the kept blocks trials of an arm may freeze."""
    numbers: set[int] = set()
    for strategy in spec.possible("strategy", levels):
        has_depth = STRATEGIES[strategy].freezes == "freeze_depth"
        depths = [depth for depth in _depths(spec, levels) if depth <= kept] if has_depth else [None]
        numbers |= {STRATEGIES[strategy].frozen_blocks(kept, depth) for depth in depths}
    return numbers


def _depths(spec: StudySpec, levels: dict[str, Any]) -> list[int]:
    """Return every freeze depth that a trial of an arm may have."""
    searched = spec.search.get("freeze_depth")
    if isinstance(searched, Range) and "freeze_depth" not in levels:
        return list(range(searched.low, searched.high + 1, searched.step or 1))
    depths: list[int] = spec.possible("freeze_depth", levels)
    return depths


def _extreme_kinds(spec: StudySpec, arm: Arm, stores_features: bool) -> tuple[Kind, Kind]:
    """Return the cheapest and the costliest kind of training that an arm's search can choose."""
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
    """Return roughly how many floating point operations an image takes in an epoch; backward is twice forward."""
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
    """Return the (cut, blocks) of which what they compute is stored: the longest whole network and the deepest part.

    All others are computed on the way, if the deeper ones come later.
    """
    backbone = spec.backbone.name
    whole = [(cut, kept_blocks(backbone, cut)) for cut in frozen_cuts(spec)]
    parts = []
    for levels in spec.combinations():
        for cut in spec.possible("truncate_at", levels):
            kept = kept_blocks(backbone, cut)
            parts += [(cut, depth) for depth in _frozen_blocks(spec, levels, kept) if 0 < depth < kept]
    longest = max(whole, key=lambda part: kept_units(backbone, part[0]), default=None)
    deepest = max(parts, key=lambda part: part[1], default=None)
    return [part for part in (longest, deepest) if part is not None]


def conditions(spec: StudySpec, size: DataSize, device: torch.device) -> Conditions:
    """Return what all trainings of a study have in common."""
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
