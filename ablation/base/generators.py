"""Generators of random numbers that named seeds start: see `ablation.base.seeds`."""

import random

import numpy as np
import torch

from ablation.base.seeds import named_seed


def generator(*names: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `named_seed`; drawing on the CPU gives every device the same numbers."""
    return torch.Generator().manual_seed(named_seed(*names))


def seed_globally(*names: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices), which layers and libraries may use."""
    seed = named_seed(*names)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
