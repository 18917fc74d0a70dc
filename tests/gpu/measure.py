"""How fast training steps are on a GPU, eager and captured: python -m tests.gpu.measure [FILE]

VGG-16 with random weights on random images of 32 x 32 pixels, bfloat16; heads on random stored features. A line of JSON
for each measurement: the median epoch of three, after one that does not count.
"""

import json
import statistics
import sys
import time
from itertools import islice
from typing import Any

import torch

from ablation.base.device import select_device
from ablation.data.images import Images, Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import build_model, initialise
from ablation.networks.weights import IMAGENET_MEAN, IMAGENET_STD
from ablation.training import step
from ablation.training.begin import TrainingSettings, begin_training
from ablation.training.loop import train
from ablation.training.sources import FeatureSource, ImageSource

IMAGES = 45_000
EPOCHS = 4


def seconds_of_an_epoch(cut: str, batch_size: int, *, on_features: bool) -> float:
    """Return the median seconds of an epoch of 45,000 images, its evaluation excluded."""
    device = select_device("cuda")
    model = build_model("vgg16", cut, 256, 2, 10, 32)
    initialise(model, "vgg16", None, 0)
    model = model.to(device).to(memory_format=torch.channels_last)
    settings = TrainingSettings(1000, batch_size, 0, "bfloat16", schedule="constant")
    learning = Learning("feature_extraction" if on_features else "fine_tune_all", 1e-4)
    training = begin_training(model, learning, settings, Normalisation(IMAGENET_MEAN, IMAGENET_STD))
    labels_N = torch.randint(10, (IMAGES,), device=device)
    source: Any
    if on_features:
        rows = torch.randn(IMAGES, 1024, device=device, dtype=torch.bfloat16)
        source = FeatureSource(rows, None, labels_N, len(model.blocks), 512)
    else:
        pixels = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, device=device)
        source = ImageSource(Images(pixels, labels_N), training.frozen, "none")
    few = source.subset(torch.arange(64, device=device))
    epochs = islice(train(training, source, few, settings), EPOCHS)
    return statistics.median([IMAGES / metrics.images_per_second for metrics in epochs][1:])


def main() -> None:
    out = open(sys.argv[1], "a") if len(sys.argv) > 1 else sys.stdout  # noqa: SIM115, PTH123
    fewest = step.FEWEST_REPLAYS
    for what, cut, on_features in (
        ("head on features", "block3", True), ("fine_tune_all", "block3", False), ("fine_tune_all", "block5", False)
    ):  # fmt: skip
        for batch_size in (64, 256, 1024):
            row: dict[str, Any] = {"what": what, "cut": cut, "batch_size": batch_size}
            for mode, limit in (("eager", 10**9), ("captured", fewest)):
                step.FEWEST_REPLAYS = limit
                begun = time.perf_counter()
                seconds = seconds_of_an_epoch(cut, batch_size, on_features=on_features)
                row |= {f"{mode}_epoch_s": round(seconds, 4), f"{mode}_images_per_s": round(IMAGES / seconds)}
                row[f"{mode}_wall_s"] = round(time.perf_counter() - begun, 1)
            print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main()
