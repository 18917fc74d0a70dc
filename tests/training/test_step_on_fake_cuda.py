"""The training step on tensors that say they are on CUDA but have no numbers: no GPU is needed.

An operation on tensors of two devices raises an error, and so does one that needs a number on the host, which would
stall a GPU and could not be captured in a graph.
"""

from itertools import product
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from ablation.base.generators import generator
from ablation.data import images
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, TransferModel, build_model, initialise, set_training_mode
from ablation.spec.parameters import Augmentation, StrategyName
from ablation.training.settings import TrainingSettings
from ablation.training.sources import FeatureSource, ImageSource, Source, batch_places, draw_epoch
from ablation.training.state import begin_training
from ablation.training.step import TrainingStep

CUDA = torch.device("cuda", 0)
IMAGES, BATCH = 74, 32  # two batches of 32 and one of 10
STRATEGIES: tuple[StrategyName, ...] = ("feature_extraction", "fine_tune_top", "fine_tune_all", "from_scratch")
AUGMENTATIONS: tuple[Augmentation, ...] = ("none", "flip", "crop_flip", "strong")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Replaces what needs a driver: a fused update looks at its arguments, and a way backward gives gradients."""

    def update(*arguments: Any, **more: Any) -> None:
        assert {leaf.device for leaf in tree_leaves((arguments, more)) if isinstance(leaf, torch.Tensor)} == {CUDA}

    monkeypatch.setattr(torch, "_fused_sgd_", update)
    monkeypatch.setattr(torch, "_fused_adamw_", update)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *arguments: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(images, "_kept_channel_constant", images._channel_constant)  # else fake ones would be kept
    return FakeTensorMode()


def fake_network(fake: FakeTensorMode, backbone: str) -> TransferModel:
    """Return an initialised network whose tensors are fake ones on CUDA."""
    model = build_model(backbone, "block2", Head(16, 2), 3, 32)
    initialise(model, None, 0)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    on_host = fake.from_tensor(tensor.detach())
                    with fake:
                        on_cuda = on_host.to(CUDA)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(on_cuda) if is_parameter else on_cuda
    return model


def make_steps(model: TransferModel, source: Source, step: TrainingStep) -> None:
    """Make the steps of an epoch, and one that reads its places from the device, as a captured one does."""
    set_training_mode(model, range(len(model.layers)))
    batches = batch_places(IMAGES, BATCH)
    order = draw_epoch(source, torch.arange(IMAGES), BATCH, generator(0, "augmentation"))
    step.begin_epoch(order, [1.0] * len(batches), [0.9] * len(batches), range(len(model.layers)))
    for places in batches:
        step.run(places, steps_left=1)
    step._step(step._images_read + torch.arange(BATCH, device=CUDA))


def begin(
    model: TransferModel, strategy: StrategyName, optimizer: str, augmentation: Augmentation, precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Source, TrainingStep]:  # fmt: skip
    """Begin a training with every setting that adds to a step; call it in the fake mode."""

    def backward(loss: torch.Tensor) -> None:
        assert loss.device == CUDA
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    settings = TrainingSettings(
        1, BATCH, 0, precision, optimizer=optimizer, label_smoothing=0.1, max_grad_norm=1.0, ema=0.9,
        l2_sp=0.1 if strategy.startswith("fine_tune") else 0.0,
    )  # fmt: skip
    learning = Learning(strategy, 0.02, 1 if strategy == "fine_tune_top" else None, 0.5)
    training = begin_training(model, learning, settings, Normalisation((0.5,) * 3, (0.25,) * 3))
    training.may_capture = False
    pixels_NCHW = torch.zeros(IMAGES, 3, 32, 32, dtype=torch.uint8, device=CUDA)
    labels_N = torch.zeros(IMAGES, dtype=torch.int64, device=CUDA)
    source: Source = ImageSource(Images(pixels_NCHW, labels_N), training.frozen, augmentation)
    if strategy == "feature_extraction" and augmentation in ("none", "flip"):
        rows_ND = torch.zeros(IMAGES, model.feature_mean_D.numel(), device=CUDA)
        mirrored = rows_ND if augmentation == "flip" else None
        source = FeatureSource(rows_ND, mirrored, labels_N, len(model.layers), IMAGES)
    step = TrainingStep(training, source, settings)
    step.weights_K = torch.ones(3, device=CUDA)  # counting real labels is a matter of the host, before the first step
    return source, step


CASES = [
    *product(STRATEGIES, ("sgd", "adamw"), AUGMENTATIONS, ("bfloat16",), ("vgg16_narrow",)),
    *product(("fine_tune_top",), ("sgd", "adamw"), ("strong",), ("float32", "float16"), ("resnet18",)),
]


@pytest.mark.parametrize(("strategy", "optimizer", "augmentation", "precision", "backbone"), CASES)
def test_a_step_is_made_on_the_device_alone(
    strategy: StrategyName, optimizer: str, augmentation: Augmentation, precision: str, backbone: str,
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = fake_network(fake, backbone)
    with fake:
        make_steps(model, *begin(model, strategy, optimizer, augmentation, precision, monkeypatch))


def test_what_would_stall_or_fail_on_a_gpu_is_found(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake_network(fake, "vgg16_narrow")
    with fake:
        source, step = begin(model, "fine_tune_all", "sgd", "strong", "bfloat16", monkeypatch)
        step.weights_K = torch.ones(3)
        with pytest.raises(RuntimeError, match="two different devices|same device"):
            make_steps(model, source, step)
        step.weights_K = None
        monkeypatch.setattr(step, "_average", lambda: step.loss_sum.item())
        with pytest.raises(DataDependentOutputException):
            make_steps(model, source, step)
