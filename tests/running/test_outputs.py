"""What a trial records of its best epoch and of the test split."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ablation.base.generators import generator
from ablation.data.image_set import ImageSet
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, build_model, initialise
from ablation.running.outputs import record_best, record_test
from ablation.running.workbench import SplitImages
from ablation.spec.objective import ACCURACY
from ablation.training.loop import train
from ablation.training.settings import TrainingSettings
from ablation.training.sources import ImageSource, Source
from ablation.training.state import begin_training

NORMALISATION = Normalisation((0.5,) * 3, (0.25,) * 3)
SETTINGS = TrainingSettings(1, 8, 0, "float32")


def some_images(n: int) -> Images:
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator(n, "pixels"))
    return Images(pixels, torch.arange(n) % 2)


class Features:
    """The trials' cache of features, which notes how many images it is asked for, and beside what."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Source | None]] = []

    def source(self, images: Images, frozen: Any, augmentation: Any, beside: Source | None = None) -> Source:
        self.asked.append((len(images), beside))
        return ImageSource(images, frozen, augmentation)


def test_only_the_test_images_are_read_anew(tmp_path: Path) -> None:
    """Another process may have evicted the features of the training images, which nobody needs any more."""
    train_images, val_images, test_images = some_images(24), some_images(12), some_images(10)
    model = build_model("vgg16_narrow", "block2", Head(4, 1), 2, 32)
    initialise(model, None, 0)
    training = begin_training(model, Learning("fine_tune_top", 0.01, 1), SETTINGS, NORMALISATION)
    val_source = ImageSource(val_images, training.frozen, "none")
    list(train(training, ImageSource(train_images, training.frozen, "none"), val_source, SETTINGS))
    features = Features()
    no_NHWC = np.zeros((0, 32, 32, 3), np.uint8)
    test_NHWC = np.ascontiguousarray(test_images.images_NCHW.permute(0, 2, 3, 1).numpy())
    dataset = ImageSet(no_NHWC, np.array([], np.int64), test_NHWC, test_images.labels_N.numpy(), ["a", "b"], "")
    workbench: Any = SimpleNamespace(
        images_of=lambda spec: SplitImages(train_images, val_images),
        features=features,
        normalisation=NORMALISATION,
        device=torch.device("cpu"),
        session=SimpleNamespace(images=dataset),
    )
    spec: Any = SimpleNamespace(
        goal=ACCURACY, objective="accuracy", precision="float32", image_size=32, augmentation="none", to_params=dict
    )
    logged: dict[str, float] = {}
    run: Any = SimpleNamespace(
        log_result=lambda values, *_: logged.update(values),
        log_test=lambda values, *_: logged.update(values),
        log_picture=lambda path: None,
    )
    claim: Any = SimpleNamespace(folder=tmp_path)
    record_best(workbench, claim, spec, run, training, val_source)
    assert features.asked == []
    assert 0 < logged["similarity_to_start/block2"] < 1
    record_test(workbench, claim, spec, run, training, val_source)
    assert features.asked == [(10, val_source)]
