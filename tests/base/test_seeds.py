"""Named seeds."""

import hashlib

import torch

from ablation.base.generators import generator
from ablation.base.seeds import named_seed


def test_named_seed_is_the_hash_of_its_names() -> None:
    digest = hashlib.sha256(b"0\0trial\x001").digest()
    assert named_seed(0, "trial", 1) == int.from_bytes(digest[:8], "big") // 2
    assert named_seed(0, "trial", 1) != named_seed(0, "trial", 2)
    assert named_seed(1, "2") != named_seed(12, "")
    assert 0 <= named_seed("x") < 2**63


def test_generators_of_one_name_agree() -> None:
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))
    assert not torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "b")))
