"""What is stored is what it was before the package had folders: older stores stay readable and resumable.

`stored_format.json` was recorded from the study below (`tests/stored_format.py` says how): stopped by Ctrl-C in its
second trial, and then finished. Since commit b2e65c6 it has changed by additions alone, and by names of runs and seeds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ablation.networks.blocks import expected_tensors
from ablation.running import trial
from ablation.training import feature_cache
from tests.stored_format import stored_format
from tests.studies import Command, patched_train

RECORDED = Path(__file__).with_name("stored_format.json")

STUDY = """
question = "Which strategy?"
trials_per_arm = 1
epochs = 2

[backbone]
name = "vgg16_narrow"
weights = "weights.safetensors"

[data]
source = "digits"
limit = 200
val_fraction = 0.25

[fixed]
truncate_at = "block1"
batch_size = 32

[factors]
strategy = ["feature_extraction", "fine_tune_all"]

[search]
lr = { low = 1e-3, high = 1e-1, log = true }
head_width = { choices = [8, 16] }
backbone_lr_scale = { low = 0.01, high = 1.0, log = true }

[confirm]
seeds = 1
"""


def without_versions(text: str) -> str:
    """Return a text of which cached features are named, as it is with any torch and on any CPU."""
    text = text.replace(json.dumps(str(torch.__version__)), '"torch"')
    return text.replace(json.dumps(torch.backends.cpu.get_cpu_capability()), '"cpu"')


@pytest.fixture
def small_file(command: Command) -> Path:
    """The study's file, beside weights whose digest is the same everywhere."""
    shapes = {key: shape for key, (_, shape) in expected_tensors("vgg16_narrow", "block5").items()}
    tensors = {
        key: (np.arange(np.prod(shape)) % 13 - 6).astype(np.float32).reshape(shape) / 32
        for key, shape in shapes.items()
    }
    save_file(tensors, "weights.safetensors", {"architecture": "vgg16_narrow"})
    Path("small.toml").write_text(STUDY)
    return Path("small.toml")


def test_a_store_has_the_format_of_older_ones(
    command: Command, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, keys, tags, parameters, metrics, identities, digests, checkpoints and files, compared one by one."""
    real_digest = feature_cache.text_digest
    monkeypatch.setattr(feature_cache, "text_digest", lambda text: real_digest(without_versions(text)))
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    recorded: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    arguments = (small_file, "--store", "s", "--device", "cpu")

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) == (1, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(*arguments) == 130
    interrupted = stored_format(Path("s"))
    assert interrupted["search"] == recorded["interrupted"]["search"]
    assert checkpoints(interrupted) == checkpoints(recorded["interrupted"])
    assert command(*arguments) == 0
    finished = stored_format(Path("s"))
    for part in ("tables", "tracking", "search", "files"):
        assert finished[part] == recorded["finished"][part], part


def checkpoints(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in stored["files"].items() if name.startswith("checkpoints/")}
