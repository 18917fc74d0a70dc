"""`--demo`: any study on a machine without network, data or GPU.

The demo applies the study's factors to scikit-learn's handwritten digits: a narrow VGG-16 is pretrained on the digits
0-4 and transferred to the digits 5-9, the split-class protocol of Yosinski et al. (2014, "How transferable are features
in deep neural networks?"). `demo_network` pretrains it.
"""

import json
import re
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from ablation.analysis.wording import DEMO_NOTE
from ablation.spec.architectures import unit_names
from ablation.spec.parameters import Hyperparameters, levels_name
from ablation.spec.study import StudySpec
from ablation.storage.store import Store

TRANSFER_CLASSES = ["5", "6", "7", "8", "9"]
TRIALS_PER_ARM, EPOCHS, SEEDS = 2, 6, 3
IMAGES = 160  # for training and validation: so few that pretraining helps, as it does in the studies themselves
BATCH_SIZE = 32
PARTS = ("truncate_at", "freeze_depth", "learn")  # parameters whose values name a part of a network


def demo_weights_path(store: Store, backbone: str) -> Path:
    """Return the file of the pretrained weights of a demo's backbone."""
    return store.root / "demo" / f"{backbone}-digits0-4.safetensors"


def is_demo(spec: StudySpec, store: Store) -> bool:
    """Return whether the study is a demo, by its weights."""
    return spec.backbone.weights == str(demo_weights_path(store, spec.backbone.name))


def needs_pretraining(spec: StudySpec, store: Store) -> bool:
    """Return whether the study is a demo whose network has not been pretrained yet."""
    return is_demo(spec, store) and not demo_weights_path(store, spec.backbone.name).exists()


def demo_overrides(content: dict[str, Any], store: Store) -> list[tuple[list[str], Any]]:
    """Return the demo's changes of a study file's content, as (key path, value)."""
    backbone = "vgg16_narrow_bn" if _lets_norms_learn(content) else "vgg16_narrow"
    changes: list[tuple[list[str], Any]] = [
        (["backbone"], {"name": backbone, "weights": str(demo_weights_path(store, backbone))}),
        (["data"], {"source": "digits", "classes": TRANSFER_CLASSES, "limit": IMAGES, "val_fraction": 0.25}),
        (["trials_per_arm"], _trials(content)),
        (["epochs"], _epochs(content)),
        (["confirm", "seeds"], SEEDS),
        (["published"], []),
    ]
    if isinstance(content.get("question"), str):  # else it is refused as in the study itself
        changes.append((["question"], f"{content['question']} {DEMO_NOTE}"))
    changes += _cuts(content) + _depths(content) + _configurations(content)
    changes += _comparison(content, changes)
    if not any("batch_size" in table for table in _tables(content, "factors", "search")):
        changes.append((["fixed", "batch_size"], BATCH_SIZE))
    return changes


def _table(value: Any) -> dict[str, Any]:
    """Return a table of a study file; an empty one in place of anything else, which is refused in the demo, too."""
    return value if isinstance(value, dict) else {}


def _tables(content: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the tables with these names, and each of [[arms]]."""
    arms = content.get("arms")
    return [_table(table) for table in (*map(content.get, names), *(arms if isinstance(arms, list) else []))]


def _trials(content: dict[str, Any]) -> int:
    """Return the trials of an arm: the demo's number for each repeat of the tuning."""
    repeats = _table(content.get("confirm")).get("repeats")
    return TRIALS_PER_ARM * (repeats if isinstance(repeats, int) and repeats > 0 else 1)


def _epochs(content: dict[str, Any]) -> int:
    """Return the epochs of a trial: more than the demo's number where a study needs more to be accepted.

    A warm-up of exactly that number stays.
    """
    tables, epochs = _tables(content, "fixed", "factors", "search"), EPOCHS
    for table, (name, most) in product(tables, (("head_warmup_epochs", EPOCHS), ("unfreeze_every", EPOCHS - 1))):
        value = table.get(name)
        if isinstance(value, dict):
            value = value.get("choices", value.get("high"))
        numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        epochs = max([epochs, *(number + 1 for number in numbers if number > most)])
    return epochs


def _depths(content: dict[str, Any]) -> list[tuple[list[str], Any]]:
    """Return the change of a searched range of depths that ends below the demo network's last block."""
    most = len(unit_names("vgg16_narrow"))
    depths = _table(_table(content.get("search")).get("freeze_depth"))
    low, high, step = (depths.get(key) for key in ("low", "high", "step"))
    if not isinstance(low, int) or not isinstance(high, int) or high <= most:
        return []
    if low + (step if isinstance(step, int) else 1) > most:
        return [(["search", "freeze_depth"], {"choices": [min(low, most)]})]
    return [(["search", "freeze_depth", "high"], most)]


def _known_depth(content: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return one of [[known]] with a depth that the demo's search can choose: where its range is cut, one of its steps.

    Args:
        content: the study file.
        table: one of [[known]] with the parts of the demo's network.
    """
    depth = table.get("freeze_depth")
    if not isinstance(depth, int) or not _depths(content):
        return table
    low, step = (content["search"]["freeze_depth"].get(key) for key in ("low", "step"))
    low, step = min(low, len(unit_names("vgg16_narrow"))), step if isinstance(step, int) and step > 0 else 1
    return table | {"freeze_depth": low + (depth - low) // step * step}


def _comparison(content: dict[str, Any], changes: list[tuple[list[str], Any]]) -> list[tuple[list[str], Any]]:
    """Return what becomes of looks, for one of which the demo's seeds are enough, and of a control.

    Args:
        content: the study file.
        changes: what else the demo changes: arms and levels that are the same in its network are one.
    """
    confirm, replaced = _table(content.get("confirm")), {tuple(keys): value for keys, value in changes}
    levels, arms = _table(content.get("factors")).items(), replaced.get(("arms",))
    counts = [len(values) for name, each in levels if isinstance(values := replaced.get(("factors", name), each), list)]
    looks = [SEEDS] if (prod(counts) if arms is None else len(arms)) > 1 else []
    found: list[tuple[list[str], Any]] = [(["confirm", "looks"], looks)] if confirm.get("looks") else []
    control = confirm.get("control")
    if arms is not None and isinstance(control, dict) and confirm.get("compare") == "control":  # else it is dropped
        same = next((table for table in content["arms"] if _label(table) == control.get("arm")), None)
        name = None if same is None else _same_arm(arms, same)
        if name not in (None, control.get("arm")):
            found.append((["confirm", "control", "arm"], name))
    return found


def _same_arm(arms: list[dict[str, Any]], table: dict[str, Any]) -> Any:
    """Return the name of the demo's arm that trains what one of the study does."""
    alike = _demo_parts(table) | {"name": ""}
    return next((_label(arm) for arm in arms if arm | {"name": ""} == alike), _label(table))


def _label(table: dict[str, Any]) -> Any:
    """Return the name of one of [[arms]]; without one, its values (see `_NamedTable.label`)."""
    levels = {name: table[name] for name in Hyperparameters.model_fields if name in table}
    return table.get("name") or levels_name(levels)


def _lets_norms_learn(content: dict[str, Any]) -> bool:
    """Return whether some trial of a study file has `learn = "norms"`, which needs a network that has some."""
    return '"norms"' in json.dumps(content, default=str)


def _cuts(content: dict[str, Any]) -> list[tuple[list[str], Any]]:
    """Return changes that replace the parts of another backbone by the demo's nearest, without duplicates."""
    changes: list[tuple[list[str], Any]] = []
    for name, table in product(PARTS, (["fixed"], ["factors"], ["search"], ["confirm", "control"])):
        keys = [*table, name, "choices"] if table == ["search"] else [*table, name]
        value: Any = content
        for key in keys:
            value = _table(value).get(key)
        changed = demo_part(name, value)
        if isinstance(value, list):
            changed = list(dict.fromkeys(demo_part(name, each) for each in value))
        if changed != value:
            changes.append((keys, changed))
    return changes


def _configurations(content: dict[str, Any]) -> list[tuple[list[str], Any]]:
    """Return changes of [[arms]] and [[known]]: the demo's cuts, no arm or configuration twice, no more than trials."""
    changes: list[tuple[list[str], Any]] = []
    for key, most in (("arms", None), ("known", TRIALS_PER_ARM)):
        tables = content.get(key)
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            continue
        different: list[dict[str, Any]] = []
        for table in tables:
            table = _demo_parts(table) if key == "arms" else _known_depth(content, _demo_parts(table))
            if not any(table | {"name": ""} == other | {"name": ""} for other in different):
                different.append(table)
        changes.append(([key], different[:most]))
    return changes


def _demo_parts(table: dict[str, Any]) -> dict[str, Any]:
    """Return one of [[arms]] or [[known]] with the parts of the demo's network."""
    return table | {name: demo_part(name, table[name]) for name in PARTS if name in table}


def demo_part(parameter: str, value: Any) -> Any:
    """Return what a parameter that names a part of another backbone is for the demo's."""
    if parameter != "freeze_depth":
        return demo_cut(value)
    if isinstance(value, int):  # blocks
        return min(value, len(unit_names("vgg16_narrow")))
    cut = demo_cut(value)
    return int(cut.removeprefix("block")) if isinstance(cut, str) and cut.startswith("block") else cut


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
