"""The state of a training: how it begins (what is frozen, the optimizer), and what a checkpoint holds of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning, apply_strategy
from ablation.networks.transfer_model import TransferModel, calibrate, set_training_mode
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import ACCURACY, OBJECTIVES, Objective
from ablation.training.checkpoint import CorruptCheckpoint
from ablation.training.schedule import best_epoch, layers_learning
from ablation.training.settings import TrainingSettings
from ablation.training.sources import FrozenPart, Source, frozen_part

CALIBRATION_IMAGES = 1000
KINDS_OF_KERNEL = ("fused", "foreach", "capturable")  # of an optimizer: the device's, whatever saved a checkpoint


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
    averages: dict[str, torch.Tensor] = field(default_factory=dict)
    """The moving averages of the tensors that learn, by name; empty without `ema`."""
    start: dict[str, torch.Tensor] = field(default_factory=dict)
    """The tensors of the blocks that learn, before the training, by name; no part of a checkpoint."""
    objective: Objective = ACCURACY
    """The validation metric that chooses the best epoch; no part of a checkpoint."""
    may_capture: bool = True
    """Whether steps may be captured in a CUDA graph, whose memory nothing else can use; no part of a checkpoint."""
    has_graph: bool = False
    """Whether a step has been captured in one."""

    @property
    def best(self) -> EpochMetrics:
        """The epoch with the best validation value of the objective; among equals, the first."""
        return best_epoch(self.history, self.objective)

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values only, which are read without running code."""
        return {
            "trained": trained_tensors(self.model),
            "best": self.best_tensors,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "devices": self.devices,
            "history": [asdict(metrics) for metrics in self.history],
            **({"averages": {n: t.clone() for n, t in self.averages.items()}} if self.averages else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned.

        Raises:
            CorruptCheckpoint: other parameters learned, or were decayed; nothing has changed.
        """
        groups, saved_groups = self.optimizer.param_groups, state["optimizer"]["param_groups"]
        if [len(group["params"]) for group in groups] != [len(saved["params"]) for saved in saved_groups]:
            raise CorruptCheckpoint("the last checkpoint is of an earlier version, which let other parameters learn")
        load_tensors(self.model, state["trained"])
        self.best_tensors = state["best"]
        for group, saved in zip(groups, saved_groups, strict=True):
            saved |= {key: group[key] for key in KINDS_OF_KERNEL if key in group}
        self.optimizer.load_state_dict(state["optimizer"])
        _fill_momenta(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
        self.devices = state["devices"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]


def begin_training(
    model: TransferModel,
    learning: Learning,
    settings: TrainingSettings,
    normalisation: Normalisation,
    read_images: Callable[[FrozenPart], Source] | None = None,
) -> Training:
    """Freeze the layers that do not learn, standardise the features, and make the optimizer.

    Args:
        model: the initialised network, on its device.
        learning: which parts of the network learn, and how fast.
        settings: the settings of the training.
        normalisation: the preprocessing before the first layer.
        read_images: returns the source of the training images behind a frozen part; up to 1,000 of them give the
            constants that standardise the features (see `calibrate`). Without it, the features are not standardised.
    """
    device = model.feature_mean_D.device
    groups = apply_strategy(model, learning)
    frozen = frozen_part(model, model.learning_layers.start, normalisation, settings.precision)
    if read_images is not None:
        source = read_images(frozen)
        sample = source.subset(calibration_sample(len(source.labels_N)))
        set_training_mode(model, layers_learning(model, settings, epoch=1))
        calibrate(model, sample.in_order(), sample.start, settings.precision)
    if settings.l2_sp > 0:  # it takes the place of weight decay
        for group in groups:
            group["weight_decay"] = group["weight_decay"] if group["name"] == "head" else 0.0
    optimizer = make_optimizer(settings.optimizer, groups, device, settings.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    start = {name: tensor for name, tensor in trained_tensors(model).items() if name.startswith("blocks.")}
    training = Training(model, frozen, optimizer, scaler, start=start, objective=OBJECTIVES[settings.objective])
    if settings.ema > 0:
        training.averages = {n: t for n, t in trained_tensors(model).items() if t.is_floating_point()}
    return training


def trained_tensors(model: TransferModel) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that training may change, and of those that standardise the features, by name.

    A frozen layer's batch-norm statistics are as frozen as its parameters.
    """
    state = model.state_dict().items()
    return {name: tensor.detach().clone() for name, tensor in state if name not in model.frozen_tensors}


def load_tensors(model: TransferModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model by name; its other tensors stay unchanged.

    Raises:
        RuntimeError: the model has no tensor of a name or shape.
    """
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"the model has no tensor {unknown[0]}")


def make_optimizer(
    name: str, groups: list[dict[str, Any]], device: torch.device, precision: str = "float32"
) -> torch.optim.Optimizer:
    """Return the optimizer over the groups of `apply_strategy`.

    Its kernel updates a tensor in one pass ("fused"), except in float32 on a CPU, where the last bit would differ from
    that of the textbook's formula.
    """
    for group in groups:
        group["lr"] = group["peak_lr"]
    is_cuda = device.type == "cuda"
    fused = is_cuda or (device.type == "cpu" and precision != "float32")
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused, capturable=is_cuda)
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
