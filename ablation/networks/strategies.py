"""Applies a strategy to a network: freezes what does not learn, and groups the other parameters by learning rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ablation.networks.transfer_model import Head, TransferModel, build_model, set_training_mode
from ablation.spec.parameters import STRATEGIES, StrategyName
from ablation.spec.reuse import Reuse

# Ends of the names of parameters with several dimensions that are not decayed: ConvNeXt's layer scale; the tokens and
# positions of vision transformers, as torchvision and timm name them (neither decays them).
UNDECAYED = ("layer_scale", "class_token", "pos_embedding", "cls_token", "dist_token", "reg_token", "pos_embed")
# Parts of the names of relative positions, and of a scale per attention head, which timm does not decay either.
RELATIVE = ("relative_position_bias_table", "cpb_mlp", "rel_pos", "attention_biases", "logit_scale")

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Learning:
    """Which parts of a network learn, and how fast.

    Attributes:
        strategy: determines whether the blocks start pretrained, and which of them stay frozen.
        lr: peak learning rate of the head.
        freeze_depth: number of leading blocks that stay frozen, or the last unit that does; None for strategies without
            this parameter.
        backbone_lr_scale: learning rate of the topmost pretrained block relative to `lr`; None is 1.
        weight_decay: of tensors with more than one dimension; biases and scales of channels are not decayed.
        learn: what of the unfrozen part learns: 'all' (as None), 'norms' (scales and shifts of normalisation layers;
            Frankle et al., 2021), 'biases' (BitFit; Ben Zaken et al., 2022), or one block, such as 'block2' (surgical
            fine-tuning; Lee et al., 2023).
        lr_decay: learning rate of each pretrained block relative to that of the block above it, as timm's
            `layer_decay` and AutoGluon's `lr_decay`; None is 1.
    """

    strategy: StrategyName
    lr: float
    freeze_depth: int | str | None = None
    backbone_lr_scale: float | None = None
    weight_decay: float = 5e-4
    learn: str | None = None
    lr_decay: float | None = None

    def learning_layers(self, model: TransferModel) -> range:
        """Return the layers of a network, counted from 0, that learn."""
        reuse = Reuse(model.backbone, model.truncate_at, self.strategy, self.freeze_depth, self.learn or "all")
        units = reuse.learning or range(reuse.kept, reuse.kept)
        return range(model.layers_up_to(units.start), model.layers_up_to(units.stop))


def apply_strategy(model: TransferModel, learning: Learning) -> list[dict[str, Any]]:
    """Freeze what does not learn and return the optimizer's groups for all other parameters.

    Each group has `params`, `name` ('head', 'backbone', or the block's where blocks have rates of their own), `peak_lr`
    and `weight_decay`; biases, scales of channels (in batch and layer norms, and ConvNeXt's layer scale), and the class
    token and positions, absolute and relative, of vision transformers are not decayed.
    """
    model.learning_layers = learning.learning_layers(model)
    model.keeps_statistics = learning.learn == "biases"  # BitFit changes nothing but biases
    learning_parameters = set(_learning_parameters(model, learning.learn or "all"))
    for parameter in model.blocks.parameters():
        if parameter not in learning_parameters:
            parameter.requires_grad_(False)
    set_training_mode(model, model.learning_layers)
    model.frozen_tensors = frozenset(_frozen_tensors(model))
    groups = []
    for name, peak_lr, modules in _parts(model, learning):
        named = [(path, p) for module in modules for path, p in module.named_parameters() if p.requires_grad]
        for is_decayed, decay in ((True, learning.weight_decay), (False, 0.0)):
            if members := [p for path, p in named if _is_decayed(path, p) == is_decayed]:
                groups.append({"params": members, "name": name, "peak_lr": peak_lr, "weight_decay": decay})
    return groups


def has_learning_layers(reuse: Reuse, image_size: int) -> bool:
    """Return whether any parameter of a backbone's layers learns in such a trial."""
    model = build_model(reuse.backbone, reuse.truncate_at, Head(1), 2, image_size)
    apply_strategy(model, Learning(reuse.strategy, 1.0, reuse.freeze_depth, learn=reuse.learn))
    return any(parameter.requires_grad for parameter in model.blocks.parameters())


def _learning_parameters(model: TransferModel, learn: str) -> Iterator[nn.Parameter]:
    """Yield the parameters of the learning layers that learn."""
    layers = model.layers
    for module in (module for number in model.learning_layers for module in layers[number].modules()):
        for name, parameter in module.named_parameters(recurse=False):
            # By its name a norm of timm's, such as RmsNorm or GlobalResponseNorm, which share no base class.
            is_norm = isinstance(module, NORMS) or ("Norm" in type(module).__name__ and parameter.ndim == 1)
            is_chosen = {"norms": is_norm, "biases": name.endswith("bias")}
            if is_chosen.get(learn, True):
                yield parameter


def _is_decayed(path: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not path.endswith(UNDECAYED) and not any(part in path for part in RELATIVE)


def _frozen_tensors(model: TransferModel) -> Iterator[str]:
    """Yield the names of the parameters and buffers that training does not change, in its training mode."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                yield f"{path}.{name}"
        for name, _ in module.named_buffers(recurse=False):
            if not module.training:
                yield f"{path}.{name}"


def _parts(model: TransferModel, learning: Learning) -> Iterator[tuple[str, float, list[nn.Module]]]:
    """Yield the parts of a network that have a learning rate of their own, each as (name, peak rate, modules)."""
    yield "head", learning.lr, [model.head]
    scale = learning.backbone_lr_scale if STRATEGIES[learning.strategy].starts_pretrained else None
    backbone_lr = learning.lr * (1.0 if scale is None else scale)
    if learning.lr_decay in (None, 1.0):
        yield "backbone", backbone_lr, list(model.blocks)
        return
    for number, (name, block) in enumerate(reversed(list(model.blocks.named_children()))):
        yield name, backbone_lr * learning.lr_decay**number, [block]
