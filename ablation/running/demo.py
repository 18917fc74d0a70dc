"""`--demo`: any study on a machine without network, data or GPU.

The demo applies the study's factors to scikit-learn's handwritten digits: a narrow VGG-16 is pretrained on the digits
0-4 and transferred to the digits 5-9, the split-class protocol of Yosinski et al. (2014, "How transferable are features
in deep neural networks?"). `demo_network` pretrains it.
"""

import re
from pathlib import Path
from typing import Any

from ablation.spec.architectures import unit_names
from ablation.spec.study import StudySpec
from ablation.storage.store import Store

TRANSFER_CLASSES = ["5", "6", "7", "8", "9"]
TRIALS_PER_ARM, EPOCHS, SEEDS = 2, 6, 3
BATCH_SIZE = 32  # of 537 training images


def demo_weights_path(store: Store) -> Path:
    """Return the file of the demo's pretrained weights."""
    return store.root / "demo" / "vgg16_narrow-digits0-4.safetensors"


def needs_pretraining(spec: StudySpec, store: Store) -> bool:
    """Return whether the study is a demo whose network has not been pretrained yet."""
    return spec.backbone.weights == str(demo_weights_path(store)) and not demo_weights_path(store).exists()


def demo_overrides(content: dict[str, Any], store: Store) -> list[tuple[list[str], Any]]:
    """Return the demo's changes of a study file's content, as (key path, value)."""
    changes: list[tuple[list[str], Any]] = [
        (["backbone"], {"name": "vgg16_narrow", "weights": str(demo_weights_path(store))}),
        (["data"], {"source": "digits", "classes": TRANSFER_CLASSES, "val_fraction": 0.25}),
        (["question"], f"{content.get('question')} (demo: a narrow VGG-16 from the digits 0-4 to the digits 5-9)"),
        (["trials_per_arm"], TRIALS_PER_ARM),
        (["epochs"], EPOCHS),
        (["confirm", "seeds"], SEEDS),
        (["published"], []),
    ]
    changes += _cuts(content)
    tables = [content.get(name) for name in ("factors", "search")]
    if not any(isinstance(table, dict) and "batch_size" in table for table in tables):
        changes.append((["fixed", "batch_size"], BATCH_SIZE))
    return changes


def _cuts(content: dict[str, Any]) -> list[tuple[list[str], Any]]:
    """Return changes that replace another backbone's cuts by the demo's nearest, without duplicates."""
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
    match = re.fullmatch(r"(block)([1-9]\d*)|(unit)([1-9]\d*)_([1-9]\d*)", cut) if isinstance(cut, str) else None
    if match is None:
        return cut
    units = unit_names("vgg16_narrow")
    block, number = int(match[2] or match[4]), int(match[5] or 1)
    if match[1] or block > len(units):
        return f"block{min(block, len(units))}"
    return units[block - 1][min(number, len(units[block - 1])) - 1]
