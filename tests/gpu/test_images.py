"""Images in a memory map: copied to the GPU where they fit there, else read from the map."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ablation.base.device import select_device
from ablation.data import images as images_module
from ablation.data.images import to_device

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("free", [10**9, 0])
def test_mapped_images_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    device = select_device("cuda")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    pixels.tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=pixels.shape)
    chosen_N = np.arange(1, 50, 3)
    monkeypatch.setattr(images_module, "BLOCK_IMAGES", 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    images = to_device(mapped, np.arange(50), chosen_N, device)
    assert images.images_NCHW.device.type == ("cuda" if free else "cpu")
    assert images.labels_N.tolist() == chosen_N.tolist()
    expected = torch.from_numpy(pixels[chosen_N]).permute(0, 3, 1, 2)
    for read in (torch.cat(list(images.in_order(3))), images.read(torch.arange(len(images)))):
        assert read.device.type == "cuda"
        assert torch.equal(read.cpu(), expected)
