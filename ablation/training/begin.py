"""A training at its start: settings, what is frozen, the optimizer; and what a checkpoint holds of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ablation.data.images import Normalisation
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import TransferModel, calibrate
from ablation.spec.metrics import EpochMetrics
from ablation.spec.parameters import ClassWeights
from ablation.training.sources import FrozenPart, Source, frozen_part

CALIBRATION_IMAGES = 1000
KINDS_OF_KERNEL = ("fused", "foreach", "capturable")  # of an optimizer: the device's, whatever saved a checkpoint


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training, whatever its network and images; `Hyperparameters` names their sources."""

    epochs: int
    """Passes over the training images in total; a resumed training counts those before it."""
    batch_size: int
    """Images per step."""
    seed: int
    """Determines the order of the images, their augmentation, and the random numbers of layers such as dropout."""
    precision: str
    """What the layers compute in: 'float32', 'bfloat16' or 'float16'."""
    optimizer: str = "sgd"
    """'sgd' (Nesterov momentum 0.9) or 'adamw'."""
    schedule: str = "cosine"
    """Learning rate over all steps: 'cosine' or 'constant'."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    class_weights: ClassWeights = "none"
    """'balanced' gives every class the same weight in the training loss."""
    max_grad_norm: float = 5.0
    """Longer gradients are scaled down to this norm."""
    head_warmup_epochs: int = 0
    """First epochs, in which only the head learns."""
    compile: str = "none"
    """A mode of `torch.compile`, or 'none'."""


@dataclass
class Training:
    """A training in progress: what a checkpoint holds, and the network's frozen part."""

    model: TransferModel
    frozen: FrozenPart
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    devices: list[tuple[int, str]] = field(default_factory=list)  # (first epoch, kind) of each device that it ran on
    history: list[EpochMetrics] = field(default_factory=list)
    best_tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best(self) -> EpochMetrics:
        """The epoch with the highest validation accuracy; among equals, the first."""
        return max(self.history, key=lambda metrics: metrics.val_accuracy)

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """Return `trained_tensors` of the network."""
        return trained_tensors(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values only, which are read without running code."""
        return {
            "trained": self.trained_tensors(),
            "best": self.best_tensors,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "devices": self.devices,
            "history": [asdict(metrics) for metrics in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        load_tensors(self.model, state["trained"])
        self.best_tensors = state["best"]
        for group, saved in zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
            saved |= {key: group[key] for key in KINDS_OF_KERNEL if key in group}
        self.optimizer.load_state_dict(state["optimizer"])
        _fill_momenta(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.devices = state["devices"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]


def begin_training(
    model: TransferModel,
    learning: Learning,
    settings: TrainingSettings,
    normalisation: Normalisation,
    read_images: Callable[[FrozenPart], Source] | None = None,
) -> Training:
    """Freeze the blocks that the strategy freezes, standardise the features, and make the optimizer.

    Args:
        model: the initialised network, on its device.
        learning: which parts of the network learn, and how fast.
        settings: the settings of the training.
        normalisation: the preprocessing before the first layer.
        read_images: returns the source of the training images behind a frozen part; up to 1,000 of them give the
            constants that standardise the features (see `calibrate`). Without it, the features are not standardised.
    """
    device = model.feature_mean_D.device
    frozen = frozen_part(model, learning.frozen_blocks(len(model.blocks)), normalisation, settings.precision)
    if read_images is not None:
        source = read_images(frozen)
        sample = source.subset(calibration_sample(len(source.labels_N)))
        head_alone = settings.head_warmup_epochs > 0
        calibrate(model, sample.in_order(), sample.start, settings.precision, head_alone=head_alone)
    optimizer = make_optimizer(settings.optimizer, apply_strategy(model, learning), device)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    return Training(model, frozen, optimizer, scaler)


def trained_tensors(model: TransferModel) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that training may change, and of those that standardise the features, by name.

    A frozen block's batch-norm statistics are as frozen as its parameters.
    """
    frozen = {
        f"blocks.{name}.{inside}"
        for name, block in list(model.blocks.named_children())[: model.frozen_blocks]
        for inside in block.state_dict()
    }
    return {name: t.detach().clone() for name, t in model.state_dict().items() if name not in frozen}


def set_training_mode(model: TransferModel, *, head_alone: bool) -> None:
    """Put learning blocks into training mode, others into evaluation mode: frozen batch norms keep their statistics."""
    model.train()
    for number, block in enumerate(model.blocks):
        block.train(number >= model.frozen_blocks and not head_alone)


def load_tensors(model: TransferModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model by name; its other tensors stay unchanged.

    Raises:
        RuntimeError: the model has no tensor of a name or shape.
    """
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"the model has no tensor {unknown[0]}")


def make_optimizer(name: str, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer over the groups of `apply_strategy`."""
    for group in groups:
        group["lr"] = group["peak_lr"]
    fused = device.type == "cuda"
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused, capturable=fused)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=fused)
    _fill_momenta(optimizer)
    return optimizer


def _fill_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Let momenta that do not exist yet start at zero, where kernels are fused.

    Otherwise the first step makes them of uninitialised memory, and does not fill them where float16 overflows in it.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] else []:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def calibration_sample(images: int) -> torch.Tensor:
    """Return the numbers of up to 1,000 of `images` images, evenly spaced, so that every class is among them."""
    return torch.linspace(0, images - 1, min(images, CALIBRATION_IMAGES)).long()
