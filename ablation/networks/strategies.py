"""What learns, and at which rate: a strategy applied to a network."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ablation.networks.transfer_model import TransferModel
from ablation.spec.parameters import STRATEGIES, StrategyName


@dataclass(frozen=True)
class Learning:
    """What of a network learns, and how fast.

    Attributes:
        strategy: says what starts pretrained and which blocks stay frozen.
        lr: peak learning rate of the head.
        freeze_depth: leading blocks that stay frozen; None for strategies that do not have it.
        backbone_lr_scale: rate of pretrained blocks relative to `lr`; None for those that learn at `lr`.
        weight_decay: of what has more than one dimension; biases and scales of channels are not decayed.
    """

    strategy: StrategyName
    lr: float
    freeze_depth: int | None = None
    backbone_lr_scale: float | None = None
    weight_decay: float = 5e-4

    def frozen_blocks(self, kept: int) -> int:
        """Return how many of `kept` blocks stay frozen."""
        return STRATEGIES[self.strategy].frozen_blocks(kept, self.freeze_depth)


def apply_strategy(model: TransferModel, learning: Learning) -> list[dict[str, Any]]:
    """Freeze what the strategy freezes and return the optimizer's groups for everything else.

    Each group has `params`, `name` ('head' or 'backbone'), `peak_lr` and `weight_decay`; biases and what scales
    channels (in batch and layer norms, and ConvNeXt's layer scale) are not decayed.
    """
    blocks = list(model.blocks)
    frozen = learning.frozen_blocks(len(blocks))
    model.frozen_blocks = frozen
    for block in blocks[:frozen]:
        block.requires_grad_(False)
    scale = learning.backbone_lr_scale if STRATEGIES[learning.strategy].starts_pretrained else None
    backbone_lr = learning.lr * (1.0 if scale is None else scale)
    groups = []
    for name, peak_lr, modules in (("head", learning.lr, [model.head]), ("backbone", backbone_lr, blocks[frozen:])):
        named = [named for module in modules for named in module.named_parameters()]
        decayed = [p for name, p in named if p.ndim > 1 and not name.endswith("layer_scale")]
        others = [p for name, p in named if p.ndim <= 1 or name.endswith("layer_scale")]
        for decay, members in ((learning.weight_decay, decayed), (0.0, others)):
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
