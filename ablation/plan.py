"""What a study will cost, before anything runs."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ablation import architecture
from ablation.blocks import feature_shape
from ablation.data import DataSize
from ablation.design import Arm, arms
from ablation.models import build_model
from ablation.spec import Augmentation, HeadPool, Range, StudySpec
from ablation.strategies import apply_strategy

BYTES_PER_PARAMETER = 4  # checkpoints are float32
BYTES_PER_FEATURE = {"bfloat16": 2, "float16": 2}  # else 4
HEAD_POOL_SIZE = {1: 1, 2: 2, "flatten": 1024}  # for finding the largest


@dataclass(frozen=True)
class ArmPlan:
    """An arm's budget and the largest network that a trial of it can train; `checkpoint_bytes` is for the whole arm."""

    arm: Arm
    trials: int
    confirmations: int
    trained_parameters: int
    all_parameters: int
    checkpoint_bytes: int


def plan(spec: StudySpec, num_classes: int) -> list[ArmPlan]:
    """Return the plan of every arm."""
    found = []
    seeds = spec.confirm.seeds
    kept = spec.trials_per_arm + seeds if spec.tracking.checkpoints == "all" else 1 + min(1, seeds)
    for arm in arms(spec):
        trained, total = _largest(spec, arm, num_classes)
        found.append(ArmPlan(arm, spec.trials_per_arm, seeds, trained, total, kept * trained * BYTES_PER_PARAMETER))
    return found


def _largest(spec: StudySpec, arm: Arm, num_classes: int) -> tuple[int, int]:
    """Return the largest (trained, all) parameters of any trial of the arm."""
    width = max(spec.possible("head_width", arm.levels))
    pool = max(spec.possible("head_pool", arm.levels), key=lambda pool: HEAD_POOL_SIZE[pool])
    sizes = []
    for strategy in spec.possible("strategy", arm.levels):
        for cut in spec.possible("truncate_at", arm.levels):
            kept = architecture.kept_blocks(spec.backbone.name, cut)
            depth = min(*spec.possible("freeze_depth", arm.levels), kept) if strategy == "fine_tune_top" else None
            with torch.device("meta"):
                model = build_model(spec.backbone.name, cut, width, pool, num_classes, spec.data.image_size)
            apply_strategy(model, strategy, freeze_depth=depth, lr=1.0, backbone_lr_scale=None, weight_decay=0.0)
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
    augmentations: set[Augmentation] = set()
    for levels in spec.combinations():
        augmentations.update(spec.possible("augmentation", levels))
        for cut in spec.possible("truncate_at", levels):
            channels, side, _ = feature_shape(spec.backbone.name, cut, spec.data.image_size)
            kept = architecture.kept_blocks(spec.backbone.name, cut)
            for depth in _frozen_blocks(spec, levels, kept):
                if depth == kept:
                    for pool in spec.possible("head_pool", levels):
                        numbers[cut, pool] = channels * (side if pool == "flatten" else min(pool, side)) ** 2
                else:
                    shape = feature_shape(spec.backbone.name, f"block{depth}", spec.data.image_size)
                    numbers[f"block{depth}", None] = math.prod(shape)
    validation = round(size.train * spec.data.val_fraction)
    orientations = 2 if "flip" in augmentations else 1 if "none" in augmentations else 0  # random crops are not stored
    # ConvNeXt's blocks end in what autocast leaves in float32.
    bytes_each = 4 if spec.backbone.name.startswith("convnext") else BYTES_PER_FEATURE.get(spec.precision, 4)
    trained = ((size.train - validation) * orientations + validation) * bytes_each
    tested = (size.test if spec.confirm.seeds > 0 else 0) * 4  # always in float32
    # Layers without weights are random, in every trial others.
    networks = spec.trials_per_arm + spec.confirm.seeds if spec.backbone.missing_layers == "random" else 1
    return (trained + tested) * sum(numbers.values()) * networks


def _frozen_blocks(spec: StudySpec, levels: dict[str, Any], kept: int) -> set[int]:
    """Return how many of the kept blocks trials of an arm may freeze, if any."""
    strategies = spec.possible("strategy", levels)
    found = {kept} if "feature_extraction" in strategies else set()
    if "fine_tune_top" in strategies:
        depths = spec.possible("freeze_depth", levels)
        if isinstance(spec.search.get("freeze_depth"), Range):
            depths = list(range(depths[0], depths[1] + 1))
        found |= {depth for depth in depths if 0 < depth <= kept}
    return found
