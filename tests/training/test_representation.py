"""How a network changes while it trains, against values by hand and the published formula."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ablation.base.seeds import generator
from ablation.training.representation import distances_moved, learning_weights, linear_cka, relative_gradient_norms


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


def test_cka_of_a_rotation_is_one_and_of_constants_is_unknown() -> None:
    x_ND = random(30, 6, "x")
    rotation_DD, _ = torch.linalg.qr(random(6, 6, "rotation"))
    assert float(linear_cka(x_ND, 0.01 * x_ND @ rotation_DD)) == pytest.approx(1)
    assert float(linear_cka(x_ND.view(30, 2, 3, 1), x_ND)) == pytest.approx(1)  # activations NCHW
    assert math.isnan(float(linear_cka(x_ND, torch.ones(30, 2))))


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


def numbers(of_blocks: dict[str, torch.Tensor]) -> dict[str, float]:
    assert all(value.ndim == 0 for value in of_blocks.values())
    return {name: float(value) for name, value in of_blocks.items()}


def test_relative_gradient_norms_by_hand() -> None:
    blocks = two_blocks()
    weight, bias, last = blocks.parameters()
    assert numbers(relative_gradient_norms(blocks)) == {"block1": 0.0, "block2": 0.0, "block3": 0.0}
    weight.grad, bias.grad = torch.tensor([[0.3, 0.4]]), torch.tensor([1.2])  # norm 1.3, of 13
    assert numbers(relative_gradient_norms(blocks)) == pytest.approx({"block1": 0.1, "block2": 0.0, "block3": 0.0})
    weight.grad, last.grad = None, torch.tensor([[0.0, 5.0]])
    assert numbers(relative_gradient_norms(blocks)) == pytest.approx({"block1": 1.2 / 13, "block2": 0.0, "block3": 0.5})


def test_distances_moved_by_hand() -> None:
    blocks = two_blocks()
    weight, bias, last = blocks.parameters()
    last.requires_grad_(False)
    start = learning_weights(blocks)
    assert start.keys() == {"block1.0.weight", "block1.0.bias"}  # frozen weights take no memory
    assert numbers(distances_moved(blocks, start)) == {"block1": 0.0, "block2": 0.0, "block3": 0.0}
    with torch.no_grad():
        weight += torch.tensor([[3.0, -4.0]])
        bias += 12
    assert numbers(distances_moved(blocks, start)) == pytest.approx({"block1": 1.0, "block2": 0.0, "block3": 0.0})
    assert not any(value.requires_grad for value in distances_moved(blocks, start).values())


def test_weights_that_start_at_zero_have_no_relative_change() -> None:
    block = nn.Sequential()
    block.add_module("block1", nn.Linear(1, 1, bias=False))
    parameter = next(block.parameters())
    nn.init.zeros_(parameter)
    parameter.grad = torch.ones_like(parameter)
    assert numbers(relative_gradient_norms(block)) == {"block1": 0.0}
