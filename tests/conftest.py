"""Shared fixtures: small studies on scikit-learn's digits, and the real images and weights where they are at hand."""

import os
import tarfile
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address from outside, and no cache in the home folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.setenv("ABLATION_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of all layers of vgg16_narrow, as a safetensors file."""
    import torch
    from safetensors.torch import save_file

    from ablation.weights import expected_tensors

    random = torch.Generator().manual_seed(7)
    shapes = {key: shape for key, (_, shape) in expected_tensors("vgg16_narrow", "block5").items()}
    tensors = {key: torch.randn(shape, generator=random) * 0.1 for key, shape in shapes.items()}
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_file(tensors, path, {"architecture": "vgg16_narrow"})
    return path


STUDY = """
question = "Which cut of a small network?"
trials_per_arm = 2
epochs = 3

[backbone]
name = "vgg16_narrow"
weights = "{weights}"

[data]
source = "digits"
limit = 200
val_fraction = 0.25

[fixed]
batch_size = 32

[factors]
truncate_at = ["block1", "conv2_1"]
strategy = ["feature_extraction", "fine_tune_all"]

[search]
lr = {{ low = 1e-3, high = 1e-1, log = true }}
head_width = {{ choices = [8, 16] }}
backbone_lr_scale = {{ low = 0.01, high = 1.0, log = true }}
"""


@pytest.fixture
def study_file(tmp_path: Path, narrow_weights: Path) -> Path:
    """A study of four arms that runs in seconds."""
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(weights=narrow_weights))
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real images and weights; see the README."""
    path = Path(os.environ.get("ABLATION_REAL_DATA") or REPOSITORY.parent / "shared")
    if not (path / "data" / "cifar10-jpeg.tar.xz").is_file():
        pytest.skip(f"no real images and weights in {path}; set ABLATION_REAL_DATA to a folder that has them")
    return path


@pytest.fixture(scope="session")
def real_images(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with the first 120 training and 5 test images of every class of CIFAR-10 (JPEG copy)."""
    root = tmp_path_factory.mktemp("real")
    counts: dict[str, int] = {}
    with tarfile.open(real_data / "data" / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            folder = str(Path(member.name).parent)
            if member.isfile() and counts.get(folder, 0) < (120 if "/train/" in member.name else 5):
                counts[folder] = counts.get(folder, 0) + 1
                archive.extract(member, root, filter="data")
    return root / "cifar10"
