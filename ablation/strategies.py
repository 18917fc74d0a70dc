"""The four ways to reuse a network: what starts pretrained, what is frozen, and what learns at which rate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ablation.models import TransferModel
from ablation.spec import StrategyName


@dataclass(frozen=True)
class Strategy:
    """Whether the backbone starts pretrained, and how many of its leading blocks stay frozen.

    `frozen_blocks` takes the number of kept blocks and the trial's `freeze_depth`.
    """

    pretrained: bool
    frozen_blocks: Callable[[int, int | None], int]


def _freeze_depth(blocks: int, freeze_depth: int | None) -> int:
    assert freeze_depth is not None
    assert freeze_depth <= blocks
    return freeze_depth


STRATEGIES: dict[StrategyName, Strategy] = {
    "feature_extraction": Strategy(pretrained=True, frozen_blocks=lambda blocks, _: blocks),
    "fine_tune_top": Strategy(pretrained=True, frozen_blocks=_freeze_depth),
    "fine_tune_all": Strategy(pretrained=True, frozen_blocks=lambda blocks, _: 0),
    "from_scratch": Strategy(pretrained=False, frozen_blocks=lambda blocks, _: 0),
}


def apply_strategy(
    model: TransferModel,
    strategy: StrategyName,
    *,
    freeze_depth: int | None,
    lr: float,
    backbone_lr_scale: float | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Freeze what the strategy freezes and return the optimizer's groups for everything else.

    Each group has `params`, `name` ('head' or 'backbone'), `peak_lr` and `weight_decay`; biases and what scales
    channels (in batch and layer norms, and ConvNeXt's layer scale) are not decayed.
    """
    blocks = list(model.blocks)
    frozen = STRATEGIES[strategy].frozen_blocks(len(blocks), freeze_depth)
    model.frozen_blocks = frozen
    for block in blocks[:frozen]:
        block.requires_grad_(False)
    backbone_lr = lr * backbone_lr_scale if STRATEGIES[strategy].pretrained and backbone_lr_scale is not None else lr
    groups = []
    for name, peak_lr, modules in (("head", lr, [model.head]), ("backbone", backbone_lr, blocks[frozen:])):
        named = [named for module in modules for named in module.named_parameters()]
        decayed = [p for name, p in named if p.ndim > 1 and not name.endswith("layer_scale")]
        others = [p for name, p in named if p.ndim <= 1 or name.endswith("layer_scale")]
        for decay, members in ((weight_decay, decayed), (0.0, others)):
            if members:
                groups.append({"params": members, "name": name, "peak_lr": peak_lr, "weight_decay": decay})
    check_coverage(model, groups)
    return groups


def check_coverage(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Assert that every parameter is either frozen or in exactly one group.

    Raises:
        AssertionError: names the first parameter that is not.
    """
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    for name, parameter in model.named_parameters():
        expected = 1 if parameter.requires_grad else 0
        if grouped.count(id(parameter)) != expected:
            raise AssertionError(f"{name} is in {grouped.count(id(parameter))} optimizer groups, not in {expected}")
