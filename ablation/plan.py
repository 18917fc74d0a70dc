"""What a study will cost, before anything runs."""

from dataclasses import dataclass

import torch

from ablation import architecture
from ablation.design import Arm, arms
from ablation.models import build_model
from ablation.spec import StudySpec
from ablation.strategies import apply_strategy

BYTES_PER_PARAMETER = 4  # checkpoints are float32
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
