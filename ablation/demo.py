"""`--demo`: any study on a machine without network, data or GPU.

The study's own factors go to scikit-learn's handwritten digits: a narrow VGG-16 is pretrained on the digits 0-4 and
transferred to the digits 5-9, the split-class protocol of Yosinski et al. (2014, "How transferable are features in deep
neural networks?").
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from ablation.architecture import unit_names
from ablation.spec import Data
from ablation.store import Store

PRETRAINING_CLASSES = ["0", "1", "2", "3", "4"]
TRANSFER_CLASSES = ["5", "6", "7", "8", "9"]
TRIALS_PER_ARM, EPOCHS, SEEDS, PRETRAINING_EPOCHS = 2, 6, 3, 12
BATCH_SIZE = 32  # of 537 training images


def weights_path(store: Store) -> Path:
    """Return where the demo's pretrained weights are kept."""
    return store.root / "demo" / "vgg16_narrow-digits0-4.safetensors"


def overrides(content: dict[str, Any], store: Store) -> list[tuple[list[str], Any]]:
    """Return what the demo changes in a study file's content."""
    changes: list[tuple[list[str], Any]] = [
        (["backbone"], {"name": "vgg16_narrow", "weights": str(weights_path(store))}),
        (["data"], {"source": "digits", "classes": TRANSFER_CLASSES, "val_fraction": 0.25}),
        (["question"], f"{content.get('question')} (demo: a narrow VGG-16 from the digits 0-4 to the digits 5-9)"),
        (["trials_per_arm"], TRIALS_PER_ARM),
        (["epochs"], EPOCHS),
        (["confirm", "seeds"], SEEDS),
        (["published"], []),
    ]
    changes += _cuts(content)
    varied = [content.get(table) for table in ("factors", "search")]
    if not any(isinstance(table, dict) and "batch_size" in table for table in varied):
        changes.append((["fixed", "batch_size"], BATCH_SIZE))
    return changes


def _cuts(content: dict[str, Any]) -> list[tuple[list[str], Any]]:
    """Return what replaces the cuts of another backbone: the demo's nearest; of equal ones, the first remains."""
    changes: list[tuple[list[str], Any]] = []
    for keys in (["fixed", "truncate_at"], ["factors", "truncate_at"], ["search", "truncate_at", "choices"],
                 ["confirm", "control", "truncate_at"]):  # fmt: skip
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            changes.append((keys, demo_cut(value)))
        elif isinstance(value, list):
            changes.append((keys, list(dict.fromkeys(map(demo_cut, value)))))
    return changes


def demo_cut(cut: Any) -> Any:
    """Return the demo network's cut for another backbone's: `conv3_2` for `unit3_2`, its last block for a later one."""
    named = re.fullmatch(r"(block)([1-9]\d*)|(unit)([1-9]\d*)_([1-9]\d*)", cut) if isinstance(cut, str) else None
    if named is None:
        return cut
    units = unit_names("vgg16_narrow")
    block, number = int(named[2] or named[4]), int(named[5] or 1)
    if named[1] or block > len(units):
        return f"block{min(block, len(units))}"
    return units[block - 1][min(number, len(units[block - 1])) - 1]


def make_weights(path: Path) -> None:
    """Pretrain the narrow VGG-16 on the digits 0-4 and write its weights; takes a few seconds on a CPU."""
    import torch
    from safetensors.torch import save_file

    from ablation.blocks import torchvision_tensors
    from ablation.data import Normalisation, load_images, split_train_val, to_device
    from ablation.features import ImageSource, frozen_part
    from ablation.models import build_model, calibrate, initialise
    from ablation.strategies import apply_strategy
    from ablation.train import Training, make_optimizer, train

    device = torch.device("cpu")
    images = load_images(Data(source="digits", classes=PRETRAINING_CLASSES))
    pixels, labels = images.train_images_NHWC, images.train_labels_N
    split = split_train_val(labels, 0.2, None, seed=0)
    train_images, val_images = (to_device(pixels, labels, chosen, device) for chosen in (split.train_N, split.val_N))
    normalisation = Normalisation((0.3,) * 3, (0.35,) * 3)  # about the mean and spread of the digits' pixels
    model = build_model("vgg16_narrow", "block5", 64, 2, len(PRETRAINING_CLASSES), 32)
    initialise(model, "vgg16_narrow", None, seed=0)
    frozen = frozen_part(model, 0, normalisation, "float32")
    train_source, val_source = (ImageSource(part, frozen, "none") for part in (train_images, val_images))
    calibrate(model, train_source.in_order(), 0, "float32")
    groups = apply_strategy(
        model, "from_scratch", freeze_depth=None, lr=2e-3, backbone_lr_scale=None, weight_decay=5e-4
    )
    optimizer = make_optimizer("adamw", groups, device)
    training = Training(model, frozen, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    for _ in train(
        training,
        train_source,
        val_source,
        epochs=PRETRAINING_EPOCHS,
        batch_size=BATCH_SIZE,
        schedule="cosine",
        label_smoothing=0.0,
        class_weights="none",
        max_grad_norm=5.0,
        head_warmup_epochs=0,
        precision="float32",
        compile_mode="none",
        seed=0,
    ):
        pass
    tensors = {key: t.contiguous() for key, t in torchvision_tensors(model.blocks, "vgg16_narrow").items()}
    metadata = {
        "architecture": "vgg16_narrow",
        "description": f"trained on scikit-learn's digits {', '.join(PRETRAINING_CLASSES)}; "
        f"accuracy on held-out ones {training.history[-1].val_accuracy:.4f}",
        "input_mean": json.dumps(normalisation.mean),
        "input_std": json.dumps(normalisation.std),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata)
    temporary.replace(path)
