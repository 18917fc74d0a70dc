"""Real images and pretrained weights."""

from pathlib import Path

import pytest

from tests.studies import (
    Command,
    runs,
)


@pytest.mark.real_data
def test_real_images_and_weights(command: Command, real_data: Path, real_images: Path) -> None:
    """Pretrained VGG-16 features of CIFAR-10 (JPEG copy) get better from block 1 to block 3."""
    weights = real_data / "weights" / "vgg16-imagenet-voc-blocks1-3.safetensors"
    assert command(
        "vgg_truncation", "--store", "s", "--trials", "1", "--epochs", "4",
        "--set", "data.source=imagefolder", "--set", f"data.root={real_images}", "--set", "data.val_fraction=0.25",
        "--set", f"backbone.weights={weights}",
        "--set", "factors={truncate_at=['block1', 'block3'], strategy=['feature_extraction']}",
        "--set", "search={lr={choices=[0.03]}}",
    ) == 0  # fmt: skip
    accuracy = {
        run.data.tags["truncate_at"]: run.data.metrics["best_val_accuracy"] for run in runs(Path("s"), "vgg_truncation")
    }
    # Chance is 0.1, and 300 images carry a standard error of 0.03.
    assert accuracy["block1"] > 0.25
    assert accuracy["block3"] > accuracy["block1"] + 0.05
