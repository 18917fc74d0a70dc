"""A plain PyTorch loop, as the tutorials write it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ablation.benchmark.subject import BATCH_SIZE
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation


@dataclass
class PlainImages(Dataset[Any]):
    """Images in memory, as (transformed image, label).

    Attributes:
        pixels_NHWC: uint8.
        labels: of the N images.
        transform: from a PIL image to what the network gets.
    """

    pixels_NHWC: np.ndarray
    labels: list[int]
    transform: transforms.Compose

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, number: int) -> Any:
        """Return an image, transformed, and its label."""
        return self.transform(Image.fromarray(self.pixels_NHWC[number])), self.labels[number]


def plain_loader(images: Images, normalisation: Normalisation, *, shuffle: bool) -> Any:
    """Return a DataLoader as in torchvision's tutorials: PIL images, transformed one by one by two worker processes."""
    pixels = images.read(torch.arange(len(images))).permute(0, 2, 3, 1).cpu().numpy()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(normalisation.mean, normalisation.std)])
    dataset = PlainImages(pixels, images.labels_N.tolist(), transform)
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=shuffle, num_workers=2)


def plain_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, device: torch.device) -> float:
    """Train one epoch with a plain loop; return its seconds."""
    started = time.perf_counter()
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        loss.item()  # for the running loss that tutorials print
    return time.perf_counter() - started


def plain_accuracy(model: nn.Module, loader: Any, device: torch.device) -> float:
    """Return the accuracy (fraction) on a loader's images."""
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
            total += len(labels)
    return correct / total
