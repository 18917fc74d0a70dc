"""The demo's pretrained network: a narrow VGG-16, trained on the digits 0-4."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

from ablation.base.files import write_atomically
from ablation.data.images import to_device
from ablation.data.normalisation import Normalisation
from ablation.data.reading import load_images
from ablation.data.split import split_train_val
from ablation.networks.blocks import torchvision_tensors
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.spec.tables import Data
from ablation.training.loop import train
from ablation.training.settings import TrainingSettings
from ablation.training.sources import ImageSource
from ablation.training.state import begin_training

PRETRAINING_CLASSES = ["0", "1", "2", "3", "4"]
SETTINGS = TrainingSettings(epochs=12, batch_size=32, seed=0, precision="float32", optimizer="adamw")


def pretrain_demo_network(path: Path, backbone: str) -> None:
    """Pretrain a narrow VGG-16 on the digits 0-4 and write its weights; takes a few seconds on a CPU.

    One thread computes: the order of sums depends on the number of threads, and the weights' digest identifies a study,
    so that machines with other numbers of cores could not share it. Kinds of CPU still differ, so that of machines
    which pretrain at the same time for a shared folder, the first one's file is kept.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrained = _pretrained(backbone)
    finally:
        torch.set_num_threads(threads)
    write_atomically(path, pretrained, keep=True)


def _pretrained(backbone: str) -> bytes:
    """Return a file of pretrained weights."""
    device = torch.device("cpu")
    images = load_images(Data(source="digits", classes=PRETRAINING_CLASSES))
    pixels, labels = images.train_images_NHWC, images.train_labels_N
    split = split_train_val(labels, 0.2, seed=0)
    train_images, val_images = (
        to_device(pixels, labels, indices_N, device) for indices_N in (split.train_N, split.val_N)
    )
    normalisation = Normalisation((0.3,) * 3, (0.35,) * 3)  # about the mean and deviation of the digits' pixels
    model = build_model(backbone, "block5", Head(64), len(PRETRAINING_CLASSES), 32)
    initialise(model, None, seed=0)
    training = begin_training(
        model,
        Learning("from_scratch", lr=2e-3),
        SETTINGS,
        normalisation,
        lambda frozen: ImageSource(train_images, frozen, "none"),
    )
    train_source, val_source = (ImageSource(part, training.frozen, "none") for part in (train_images, val_images))
    for _ in train(training, train_source, val_source, SETTINGS):
        pass
    tensors = {key: t.contiguous() for key, t in torchvision_tensors(model.blocks, backbone).items()}
    metadata = {
        "architecture": backbone,
        "description": f"trained on scikit-learn's digits {', '.join(PRETRAINING_CLASSES)}; "
        f"accuracy on held-out ones {training.history[-1].val_accuracy:.4f}",
        "input_mean": json.dumps(normalisation.mean),
        "input_std": json.dumps(normalisation.std),
    }
    return save(tensors, metadata)
