"""Pretrained weights: read without running code, checked against the backbone, as NumPy arrays.

torch is imported only for `imagenet` and `.pth` files, so that a wrong safetensors file is refused at once.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablation import architecture
from ablation.spec import InputError, expand, first_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB pixels scaled to 0..1, as torchvision's pretrained networks expect them
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """Tensors of a backbone's convolutions by torchvision's key (float32), and what the images are normalised with.

    `digest` is the SHA-256 of the tensors and of the normalisation, whatever file they came in.
    """

    tensors: dict[str, np.ndarray]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str


def expected_tensors(backbone: str, truncate_at: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return torchvision's keys of the kept convolutions, each with the layer's name and the tensor's shape."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in architecture.kept_layers(backbone, truncate_at):
        prefix = f"features.{layer.torchvision_index}"
        expected[f"{prefix}.weight"] = (layer.name, (layer.out_channels, layer.in_channels, 3, 3))
        expected[f"{prefix}.bias"] = (layer.name, (layer.out_channels,))
    return expected


def read_weights(backbone: str, weights: str) -> Weights:
    """Read and check a backbone's pretrained weights; layers may be missing (see `check_layers`).

    Args:
        backbone: a name in `architecture.VGG_CHANNELS`.
        weights: 'imagenet', or the path of a .safetensors or .pth file in torchvision's key names. The metadata of a
            safetensors file may hold `architecture`, and `input_mean` and `input_std` (JSON lists of three).

    Raises:
        InputError: the file is missing, corrupt, pickled code, or of another architecture, or the download failed.
    """
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if weights == "imagenet":
        return _weights(backbone, weights, _download(backbone), mean, std)
    path = expand(weights)
    if not path.is_file():
        raise InputError(f"backbone.weights: {weights}: no such file")
    if path.suffix != ".safetensors":
        return _weights(backbone, weights, _read_pth(path), mean, std)

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith("features.")}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"backbone.weights: {weights}: not a readable safetensors file ({error})") from None
    made_for = metadata.get("architecture", backbone)
    if made_for != backbone:
        raise InputError(f"backbone.weights: {weights}: holds {made_for}, but backbone.name is {backbone}")
    try:
        mean = _three_numbers(metadata["input_mean"]) if "input_mean" in metadata else mean
        std = _three_numbers(metadata["input_std"]) if "input_std" in metadata else std
    except (ValueError, TypeError):
        raise InputError(f"backbone.weights: {weights}: input_mean and input_std must be three numbers each") from None
    return _weights(backbone, weights, tensors, mean, std)


def check_layers(weights: Weights, named: str, backbone: str, cuts: Iterable[str]) -> None:
    """Refuse weights that lack a layer which one of the cuts keeps.

    Raises:
        InputError: names the first missing layer and the shallowest cut that needs it.
    """
    for cut in sorted(set(cuts), key=lambda cut: len(architecture.kept_layers(backbone, cut))):
        for key, (layer, _) in expected_tensors(backbone, cut).items():
            if key not in weights.tensors:
                raise InputError(
                    f"backbone.weights: {named}: has no {layer} ({key}), which truncate_at = {cut} needs; "
                    'cut earlier, or start missing layers at random with backbone.missing_layers = "random"'
                )


def _three_numbers(text: str) -> tuple[float, float, float]:
    first, second, third = (float(number) for number in json.loads(text))
    return first, second, third


def _weights(
    backbone: str,
    named: str,
    tensors: dict[str, np.ndarray],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Weights:
    """Check names and shapes, and add the digest."""
    expected = expected_tensors(backbone, architecture.block_names(backbone)[-1])
    for key, tensor in tensors.items():
        if key not in expected:
            raise InputError(f"backbone.weights: {named}: {key} does not belong to {backbone}: another architecture")
        if tensor.shape != expected[key][1]:
            raise InputError(
                f"backbone.weights: {named}: {key} has shape {list(tensor.shape)}, but {expected[key][0]} of "
                f"{backbone} has {list(expected[key][1])}: another architecture"
            )
        if not np.isfinite(tensor).all():
            raise InputError(f"backbone.weights: {named}: {key} holds values that are not finite")
    if not tensors:
        raise InputError(f"backbone.weights: {named}: has no tensor called features.<n>.weight: not a VGG network")
    tensors = {key: np.ascontiguousarray(tensor, np.float32) for key, tensor in tensors.items()}
    digest = hashlib.sha256(json.dumps([mean, std]).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].tobytes())
    return Weights(tensors, mean, std, digest.hexdigest())


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"backbone.weights: {path}: corrupt, or holds pickled code, which is not run; "
            "save only the tensors, with torch.save(model.state_dict(), ...)"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"backbone.weights: {path}: cannot be read: {first_line(error)}") from None
    is_state = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not is_state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"backbone.weights: {path}: must hold a state_dict: tensors by name, and nothing else")
    return {key: tensor.detach().float().numpy() for key, tensor in state.items() if key.startswith("features.")}


def _download(backbone: str) -> dict[str, np.ndarray]:
    import torch
    import torchvision

    url = torchvision.models.get_model_weights(backbone).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hash_prefix = path.stem.rpartition("-")[2]  # torchvision puts it into the name
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"backbone.weights: {url} could not be downloaded ({first_line(error)}); place it at {path}, name a "
                "local file with --set backbone.weights=FILE, or try --demo"
            ) from None
    return _read_pth(path)
