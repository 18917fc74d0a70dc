"""The workbench: what all trials of a study share in one process."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ablation.base.device import is_out_of_memory, make_deterministic
from ablation.base.errors import InputError
from ablation.base.machine import describe_environment
from ablation.base.seeds import repeat_seed
from ablation.data.image_set import ImageSet
from ablation.data.images import Images, normalisation_for, to_device
from ablation.data.normalisation import Normalisation
from ablation.data.split import Split, split_seed, split_train_val
from ablation.networks.strategies import Learning
from ablation.networks.transfer_model import Head, TransferModel, build_model, initialise
from ablation.running.session import Session
from ablation.spec.parameters import STRATEGIES
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.training.compiler import check_compiler
from ablation.training.feature_cache import FeatureCache
from ablation.training.settings import TrainingSettings
from ablation.training.sources import Source
from ablation.training.state import Training, begin_training


@dataclass(frozen=True)
class SplitImages:
    """The images of a repeat's split, on the device: those for training, and those for validation."""

    train: Images
    val: Images
    val_groups_N: np.ndarray | None = None  # what the validation images belong to, as numbers from 0, int64


@dataclass(frozen=True)
class Workbench:
    """What all trials of a study share in one process: its session, images and features on the device.

    Only confirmation runs use the test images of the session, once each.
    """

    session: Session
    device: torch.device
    splits: list[SplitImages]  # one for each repeat of the tuning
    features: FeatureCache
    environment: dict[str, str]
    threads: int | None  # of new trials on the CPU; a resumed trial keeps its own number

    @property
    def patience(self) -> float:
        """Seconds to wait for a database that is away."""
        return self.session.options.delivery_patience

    def images_of(self, spec: TrialSpec) -> SplitImages:
        """Return the images that a trial trains on and validates with."""
        return self.splits[spec.repeat or 0]

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the pretrained weights (ImageNet's if there are none) at the study's image size."""
        return normalisation_for(self.session.weights, self.session.spec.data.image_size)


def set_up_workbench(session: Session, device: torch.device, features: FeatureCache) -> Workbench:
    """Copy the training and validation images to the device; the test images stay in the host's memory.

    Args:
        session: the study's images and weights, and where results go.
        device: the device that trains.
        features: cached features of frozen layers.

    Raises:
        InputError: the images do not fit into the device's memory, or `torch.compile` does not work here.
    """
    study, images, split = session.spec, session.images, session.split
    if study.deterministic:
        make_deterministic()
    if study.compile != "none":
        check_compiler(study.compile, device)
    pixels = images.train_images_NHWC
    try:
        splits = _split_images(images, splits_of(study, images, split), device)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = (len(split.train_N) + len(split.val_N)) * pixels[0].nbytes / 1e9
        raise InputError(f"data: {size:.1f} GB of images do not fit into {device}; set data.limit") from None
    return Workbench(
        session=session,
        device=device,
        splits=splits,
        features=features,
        environment=describe_environment(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
    )


def splits_of(study: StudySpec, images: ImageSet, first: Split) -> list[Split]:
    """Return the split of each repeat: the study's own, then others of the same images."""
    return [
        first,
        *(
            split_train_val(
                images.train_labels_N,
                study.data.val_fraction,
                split_seed(repeat_seed(study.seed, repeat)),
                images.train_groups_N,
            )
            for repeat in range(1, study.confirm.repeats)
        ),
    ]


def _split_images(images: ImageSet, splits: list[Split], device: torch.device) -> list[SplitImages]:
    """Copy the images of each split to the device; several splits share one copy of the pixels."""
    pixels, labels_N = images.train_images_NHWC, images.train_labels_N
    if len(splits) == 1:
        train, val = (
            to_device(pixels, labels_N, numbers_N, device) for numbers_N in (splits[0].train_N, splits[0].val_N)
        )
        return [SplitImages(train, val, _val_groups(images, splits[0]))]
    everything = to_device(pixels, labels_N, np.arange(len(labels_N)), device)
    if everything.rows_N is None:
        rows_N = torch.arange(len(labels_N), device=everything.images_NCHW.device)
        everything = replace(everything, rows_N=rows_N)
    return [
        SplitImages(
            everything.subset(torch.from_numpy(split.train_N)),
            everything.subset(torch.from_numpy(split.val_N)),
            _val_groups(images, split),
        )
        for split in splits
    ]


def _val_groups(images: ImageSet, split: Split) -> np.ndarray | None:
    if images.train_groups_N is None:
        return None
    groups_N: np.ndarray = np.unique(images.train_groups_N[split.val_N], return_inverse=True)[1]
    return groups_N


def make_model(spec: TrialSpec) -> TransferModel:
    """Build the trial's network on the CPU; `initialise` sets its parameters."""
    head = Head(spec.head_width, spec.head_pool, spec.head_norm, spec.head_dropout)
    return build_model(spec.backbone, spec.truncate_at, head, spec.num_classes, spec.image_size)


def make_training(spec: TrialSpec, workbench: Workbench) -> Training:
    """Build the trial's network and optimizer, before the first epoch."""
    model = make_model(spec)
    weights = workbench.session.weights if STRATEGIES[spec.strategy].starts_pretrained else None
    initialise(model, weights, spec.seed)
    model = model.to(workbench.device).to(memory_format=torch.channels_last)
    learning = Learning(
        spec.strategy,
        spec.lr,
        spec.freeze_depth,
        spec.backbone_lr_scale,
        spec.weight_decay,
        learn=spec.learn,
        lr_decay=spec.lr_decay,
    )
    return begin_training(
        model,
        learning,
        training_settings(spec),
        workbench.normalisation,
        lambda frozen: workbench.features.source(workbench.images_of(spec).train, frozen, spec.augmentation),
    )


def training_sources(training: Training, spec: TrialSpec, workbench: Workbench) -> tuple[Source, Source]:
    """Return what a training reads, and what it validates with; on a GPU features of both stay where they are."""
    images, features = workbench.images_of(spec), workbench.features
    train_source = features.source(images.train, training.frozen, spec.augmentation)
    return train_source, features.source(images.val, training.frozen, "none", beside=train_source)


def training_settings(spec: TrialSpec) -> TrainingSettings:
    """Return the settings of a trial's training."""
    return TrainingSettings(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        seed=spec.seed,
        precision=spec.precision,
        optimizer=spec.optimizer,
        schedule=spec.schedule,
        label_smoothing=spec.label_smoothing,
        class_weights=spec.class_weights,
        max_grad_norm=spec.max_grad_norm,
        l2_sp=spec.l2_sp or 0.0,
        head_warmup_epochs=spec.head_warmup_epochs,
        unfreeze_every=spec.unfreeze_every or 0,
        ema=spec.ema,
        patience=spec.patience,
        objective=spec.objective,
        compile=spec.compile,
    )
