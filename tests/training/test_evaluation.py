import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn

from ablation.training.class_metrics import balanced_accuracy_and_macro_f1
from ablation.training.evaluation import inference_operations, inference_seconds


def test_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    # Recalls 3/4 and 1/2; F1 scores 2 * 3 / (4 + 4) and 2 * 1 / (2 + 2).
    assert balanced_accuracy_and_macro_f1(labels, predicted, 2) == pytest.approx((0.625, 0.625))


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn(seed: int) -> None:
    """Also where a class has no images, is never predicted, or neither."""
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, 2, 3], 200, p=[0.7, 0.2, 0.08, 0.02])
    predicted = np.where(random.random(200) < 0.6, labels, random.choice([0, 1, 2, 4], 200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the class that is only predicted
        expected = balanced_accuracy_score(labels, predicted), f1_score(labels, predicted, average="macro")
    assert balanced_accuracy_and_macro_f1(labels, predicted, 6) == pytest.approx(expected)


class Transposed(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.transpose(1, 2)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8 * 2 * 2, 10),
    )  # fmt: skip


def test_operations_of_attention_count() -> None:
    """Also where PyTorch computes it in a single operation: projections of 4 tokens, scores, weighted sums."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2), nn.Flatten(2), Transposed(), layer, nn.Flatten(), nn.Linear(32, 5)
    )
    attention = 4 * 8 * 24 + 4 * 8 * 8 + 2 * (4 * 4 * 8)
    assert inference_operations(model, 4) == 2 * (4 * 12 * 8 + attention + 2 * 4 * 8 * 16 + 32 * 5)


def test_operations_are_two_for_each_multiplication() -> None:
    """3 x 3 kernels over 8 x 8 pixels from 3 to 8 channels, then a matrix of 32 x 10."""
    assert inference_operations(network(), 8) == 2 * (3 * 3 * 3 * 8 * 8 * 8 + 32 * 10)


def test_timing_an_inference_changes_neither_the_network_nor_what_is_random() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert 0 < inference_seconds(model, 8, "bfloat16", inference_operations(model, 8)) < 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
