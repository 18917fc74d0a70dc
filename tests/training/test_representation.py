"""How a network changes while it trains, against values by hand and the published formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ablation.base.generators import generator
from ablation.data.images import normalise
from ablation.training.loop import train
from ablation.training.representation import (
    distances_moved,
    linear_cka,
    mean_gradient_norms,
    relative_gradient_norms,
    similarities_to_start,
)
from ablation.training.settings import TrainingSettings
from ablation.training.state import Training, load_tensors
from tests.training.test_loop import NORMALISATION, SETTINGS, VAL, begun, sources


def random(n: int, dimensions: int, name: str) -> torch.Tensor:
    return torch.randn(n, dimensions, generator=generator(1, name)).double()


@pytest.mark.parametrize(("first", "second"), [(5, 9), (30, 4)])
def test_cka_is_the_published_formula(first: int, second: int) -> None:
    """Kornblith et al. (2019), section 3: with X and Y centred, |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms."""
    x_ND, y_NE = random(20, first, "x") + 3, random(20, second, "y").relu()
    x, y = ((rows - rows.mean(0)).numpy() for rows in (x_ND, y_NE))
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert float(linear_cka(x_ND, y_NE)) == pytest.approx(expected)
    assert 0 < expected < 1


def test_cka_by_hand() -> None:
    x_ND = torch.tensor([[0.0], [2.0], [4.0]])  # centred: -2, 0, 2
    assert float(linear_cka(x_ND, x_ND * -7 + 3)) == pytest.approx(1)
    assert float(linear_cka(x_ND, torch.tensor([[1.0], [-2.0], [1.0]]))) == pytest.approx(0)
    # centred: -1, 0, 1 and -1, 2, -1: inner products 4 and 0; |X'X| = 8, |Y'Y| = norm of the diagonal matrix (2, 6)
    y_NE = torch.tensor([[-1.0, -1.0], [0.0, 2.0], [1.0, -1.0]])
    assert float(linear_cka(x_ND, y_NE)) == pytest.approx(16 / (8 * math.sqrt(4 + 36)))


def test_cka_of_a_rotation_is_one_and_of_constants_is_zero() -> None:
    x_ND = random(30, 6, "x")
    rotation_DD, _ = torch.linalg.qr(random(6, 6, "rotation"))
    assert float(linear_cka(x_ND, 0.01 * x_ND @ rotation_DD)) == pytest.approx(1)
    assert float(linear_cka(x_ND.view(30, 2, 3, 1), x_ND)) == pytest.approx(1)  # activations NCHW
    assert float(linear_cka(x_ND, torch.ones(30, 2))) == float(linear_cka(torch.zeros(30, 2), x_ND)) == 0


def test_what_is_not_a_number_is_not_called_unlike_or_unmoved() -> None:
    x_ND, bad_ND, blocks = random(30, 6, "x"), random(30, 6, "x"), two_blocks()
    bad_ND[3, 2] = math.nan
    assert math.isnan(linear_cka(x_ND, bad_ND))
    assert math.isnan(linear_cka(bad_ND, bad_ND))
    start = {f"blocks.{path}": parameter.detach().clone() for path, parameter in blocks.named_parameters()}
    start["blocks.block1.0.bias"] = torch.tensor([math.nan])
    assert distances_moved(blocks, start) == pytest.approx({"block1": math.nan, "block3": 0.0}, nan_ok=True)


def two_blocks() -> nn.Sequential:
    """Return block1 with a weight of (3, 4) and a bias of 12, a block without parameters, and block3 with (6, 8)."""
    blocks = nn.Sequential()
    blocks.add_module("block1", nn.Sequential(nn.Linear(2, 1)))
    blocks.add_module("block2", nn.Sequential(nn.ReLU()))
    blocks.add_module("block3", nn.Sequential(nn.Linear(2, 1, bias=False)))
    with torch.no_grad():
        for parameter, values in zip(blocks.parameters(), ([[3.0, 4.0]], [12.0], [[6.0, 8.0]]), strict=True):
            parameter.copy_(torch.tensor(values))
    return blocks


def test_relative_gradient_norms_by_hand() -> None:
    blocks = two_blocks()
    weight, bias, last = blocks.parameters()
    assert relative_gradient_norms(blocks, nn.Identity()) == {}
    weight.grad, bias.grad = torch.tensor([[0.3, 0.4]]), torch.tensor([1.2])  # norm 1.3, of 13
    assert relative_gradient_norms(blocks, nn.Identity()) == pytest.approx({"block1": 0.1})
    weight.grad, last.grad = None, torch.tensor([[0.0, 5.0]])
    assert relative_gradient_norms(blocks, nn.Identity()) == pytest.approx({"block1": 1.2 / 13, "block3": 0.5})
    last.requires_grad_(False)  # a gradient from when it still learned
    assert relative_gradient_norms(blocks, nn.Identity()) == pytest.approx({"block1": 1.2 / 13})


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("place", ["block", "head"])
def test_a_gradient_that_is_not_finite_leaves_no_norm(bad: float, place: str) -> None:
    """Clipping by a norm that is not finite has made the others zero, or not a number."""
    blocks, head = two_blocks(), nn.Linear(1, 1)
    for parameter in (*blocks.parameters(), *head.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    assert relative_gradient_norms(blocks, head) == {"block1": 0.0, "block3": 0.0}
    broken = blocks.block1[0].bias if place == "block" else head.bias
    broken.grad = torch.tensor([bad])
    assert relative_gradient_norms(blocks, head) == pytest.approx({"block1": math.nan, "block3": math.nan}, nan_ok=True)


def test_the_mean_gradient_norm_is_that_of_finite_epochs(trained: Training) -> None:
    norms = [{}, {"block2": math.nan}, {"block2": 0.5}, {"block1": math.nan, "block2": 0.1}]
    history = [replace(trained.history[0], relative_gradient_norm=norm) for norm in norms]
    assert mean_gradient_norms(history) == pytest.approx({"block1": 0.0, "block2": 0.2})  # (0 + 0.5 + 0.1) / 3
    assert mean_gradient_norms(history[1:2]) == pytest.approx({"block2": math.nan}, nan_ok=True)
    assert mean_gradient_norms(history[:1]) == {}


def test_steps_that_float16_skips_have_no_gradient_norms() -> None:
    settings = TrainingSettings(**(SETTINGS | {"precision": "float16", "batch_size": 10**4, "epochs": 8}))
    state = begun(settings)
    scale, norms = state.scaler.get_scale(), []
    for epoch in train(state, *sources(state.frozen), settings):
        is_skipped = state.scaler.get_scale() < scale
        scale = state.scaler.get_scale()
        norms.append((is_skipped, list(epoch.relative_gradient_norm.values())))
    assert {is_skipped for is_skipped, _ in norms} == {True, False}
    for is_skipped, values in norms:
        assert all(math.isnan(value) if is_skipped else 0 < value < math.inf for value in values)


def test_distances_moved_by_hand() -> None:
    blocks = two_blocks()
    weight, bias, last = blocks.parameters()
    start = {"blocks.block1.0.weight": weight.detach().clone(), "blocks.block1.0.bias": bias.detach().clone()}
    assert distances_moved(blocks, start) == {"block1": 0.0}
    with torch.no_grad():
        weight += torch.tensor([[3.0, -4.0]])
        bias += 12
        last += 1
    assert distances_moved(blocks, start) == pytest.approx({"block1": 1.0})


def test_weights_that_start_at_zero_have_no_relative_change() -> None:
    block = nn.Sequential()
    block.add_module("block1", nn.Linear(1, 1, bias=False))
    parameter = next(block.parameters())
    nn.init.zeros_(parameter)
    parameter.grad = torch.ones_like(parameter)
    assert relative_gradient_norms(block, nn.Identity()) == {"block1": 0.0}


@pytest.fixture(scope="module")
def trained() -> Training:
    """Block 2 of two was fine-tuned for two epochs."""
    state = begun(TrainingSettings(**SETTINGS), strategy="fine_tune_top", freeze_depth=1)
    list(train(state, *sources(state.frozen), TrainingSettings(**(SETTINGS | {"epochs": 2}))))
    return state


def test_each_epoch_says_where_the_network_wanted_to_change_and_how_far_it_moved(trained: Training) -> None:
    moved = weights = 0.0
    for name, parameter in trained.model.blocks.block2.named_parameters(prefix="blocks.block2"):
        moved += float(((parameter.detach() - trained.start[name]) ** 2).sum())
        weights += float((trained.start[name] ** 2).sum())
    first, last = trained.history
    assert last.distance_moved == pytest.approx({"block2": math.sqrt(moved / weights)})
    assert 0 < first.distance_moved["block2"] != last.distance_moved["block2"]
    gradients = [parameter.grad for parameter in trained.model.blocks.block2.parameters()]
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients if gradient is not None))
    weights_now = math.sqrt(sum(float((p.detach() ** 2).sum()) for p in trained.model.blocks.block2.parameters()))
    assert last.relative_gradient_norm == pytest.approx({"block2": norm / weights_now})


def test_a_head_alone_changes_no_block() -> None:
    settings = TrainingSettings(**(SETTINGS | {"epochs": 1}))
    state = begun(settings, strategy="feature_extraction")
    (epoch,) = train(state, *sources(state.frozen), settings)
    assert epoch.relative_gradient_norm == epoch.distance_moved == {}
    assert similarities_to_start(state, sources(state.frozen)[1], "float32") == {}


def test_similarity_of_the_best_features_to_those_before_training(trained: Training) -> None:
    """Against features that a forward pass of the whole network gives to a hook, and the published formula."""
    features = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
        features.append(output.mean((2, 3)))

    images_NCHW = normalise(VAL.images_NCHW, NORMALISATION)
    trained.model.eval()
    with trained.model.blocks.block2.register_forward_hook(keep), torch.no_grad():
        for tensors in (trained.start, trained.best_tensors):
            load_tensors(trained.model, tensors)
            trained.model.blocks(images_NCHW)
    before, after = ((rows - rows.mean(0)).double().numpy() for rows in features)
    expected = np.linalg.norm(after.T @ before) ** 2 / (
        np.linalg.norm(before.T @ before) * np.linalg.norm(after.T @ after)
    )
    found = similarities_to_start(trained, sources(trained.frozen)[1], "float32")
    assert found == pytest.approx({"block2": expected}, rel=1e-4)
    assert 0.1 < expected < 0.9999


class CachingConv(nn.Conv2d):
    """Keeps its weights in evaluation mode until a mode is set, as some of timm's attention keeps its biases."""

    kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> "CachingConv":
        self.kept = None
        return super().train(mode)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.weight.clone()
        return nn.functional.conv2d(activations, self.kept, self.bias, padding=self.padding)


def test_what_a_layer_keeps_of_the_start_is_not_taken_for_the_end(
    trained: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    val_source = sources(trained.frozen)[1]
    expected = similarities_to_start(trained, val_source, "float32")
    for module in trained.model.blocks.block2.modules():
        if isinstance(module, nn.Conv2d):
            monkeypatch.setattr(module, "__class__", CachingConv)
    assert similarities_to_start(trained, val_source, "float32") == expected
