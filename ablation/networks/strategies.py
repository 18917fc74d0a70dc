"""Applies a strategy to a network: freezes blocks, and groups the other parameters by learning rate."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ablation.networks.transfer_model import TransferModel
from ablation.spec.parameters import STRATEGIES, StrategyName


@dataclass(frozen=True)
class Learning:
    """Which parts of a network learn, and how fast.

    Attributes:
        strategy: determines whether the blocks start pretrained, and which of them stay frozen.
        lr: peak learning rate of the head.
        freeze_depth: number of leading blocks that stay frozen; None for strategies without this parameter.
        backbone_lr_scale: learning rate of pretrained blocks relative to `lr`; None is 1.
        weight_decay: of tensors with more than one dimension; biases and scales of channels are not decayed.
    """

    strategy: StrategyName
    lr: float
    freeze_depth: int | None = None
    backbone_lr_scale: float | None = None
    weight_decay: float = 5e-4

    def frozen_blocks(self, kept: int) -> int:
        """Return the number of leading blocks, out of `kept`, that stay frozen."""
        return STRATEGIES[self.strategy].frozen_blocks(kept, self.freeze_depth)


def apply_strategy(model: TransferModel, learning: Learning) -> list[dict[str, Any]]:
    """Freeze the strategy's frozen blocks and return the optimizer's groups for all other parameters.

    Each group has `params`, `name` ('head' or 'backbone'), `peak_lr` and `weight_decay`; biases and scales of channels
    (in batch and layer norms, and ConvNeXt's layer scale) are not decayed.
    """
    blocks = list(model.blocks)
    model.frozen_blocks = learning.frozen_blocks(len(blocks))
    for block in blocks[: model.frozen_blocks]:
        block.requires_grad_(False)
    scale = learning.backbone_lr_scale if STRATEGIES[learning.strategy].starts_pretrained else None
    backbone_lr = learning.lr * (1.0 if scale is None else scale)
    learning_blocks = blocks[model.frozen_blocks :]
    groups = []
    for name, peak_lr, modules in (("head", learning.lr, [model.head]), ("backbone", backbone_lr, learning_blocks)):
        named = [pair for module in modules for pair in module.named_parameters()]
        decayed = [p for name, p in named if p.ndim > 1 and not name.endswith("layer_scale")]
        undecayed = [p for name, p in named if p.ndim <= 1 or name.endswith("layer_scale")]
        for decay, members in ((learning.weight_decay, decayed), (0.0, undecayed)):
            if members:
                groups.append({"params": members, "name": name, "peak_lr": peak_lr, "weight_decay": decay})
    check_coverage(model, groups)
    return groups


def check_coverage(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Assert that every parameter is either frozen or in exactly one group.

    Raises:
        AssertionError: names the first parameter for which this does not hold.
    """
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    for name, parameter in model.named_parameters():
        expected = 1 if parameter.requires_grad else 0
        if grouped.count(id(parameter)) != expected:
            raise AssertionError(f"{name} is in {grouped.count(id(parameter))} optimizer groups, not in {expected}")
