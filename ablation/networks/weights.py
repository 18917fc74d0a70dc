"""Reads pretrained weights as NumPy arrays, without running pickled code, and checks them against the backbone."""

import hashlib
import json
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError, safe_open

from ablation.base.device import is_out_of_memory
from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.base.text import first_line, nearest
from ablation.networks.blocks import all_tensor_names, expected_tensors
from ablation.networks.timm_backbones import Three, fit_to_image_size, pretrained_tensors, timm_normalisation
from ablation.networks.vision_transformers import can_resize
from ablation.spec.architectures import block_names, is_custom, is_timm, kept_units
from ablation.spec.tables import TIMM_WEIGHTS, WEIGHTS_FILES

STATE_KEYS = ("state_dict", "model_state_dict", "model")  # the network's key in checkpoints of training scripts
SECONDS_TO_ANSWER = 10  # of the server that has torchvision's weights
IMAGENET_MEAN: Three = (0.485, 0.456, 0.406)  # of RGB pixels scaled to 0..1; most pretrained networks expect these
IMAGENET_STD: Three = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """Tensors of a backbone's blocks by torchvision's key (float32 or integers), and the normalisation of its images.

    `digest` is the SHA-256 of the tensors and the normalisation; it does not depend on the file's format.
    """

    tensors: dict[str, np.ndarray]
    mean: Three
    std: Three
    digest: str


def read_weights(backbone: str, weights: str) -> Weights:
    """Read and check a backbone's pretrained weights; layers may be missing (see `check_layers`).

    Args:
        backbone: a name in `ARCHITECTURES`.
        weights: 'imagenet' (torchvision's default weights), the name of other torchvision weights, such as
            'IMAGENET1K_V1', or the path of a .safetensors or .pth file with torchvision's tensor names. The metadata of
            a safetensors file may contain `architecture`, and `input_mean` and `input_std` (JSON lists of three). For a
            network of timm's: 'pretrained' (what timm downloads), or a file with timm's tensor names.

    Raises:
        InputError: the file is missing, is corrupt, contains pickled code, or is of another architecture; torchvision
            or timm has no such weights; or the download failed.
    """
    mean, std = timm_normalisation(backbone) if is_timm(backbone) else (IMAGENET_MEAN, IMAGENET_STD)
    if weights == TIMM_WEIGHTS:
        return _weights(backbone, weights, pretrained_tensors(backbone), mean, std)
    if not weights.endswith(WEIGHTS_FILES):
        return _read_torchvision_weights(backbone, weights)
    path = expand(weights)
    if not path.is_file():
        raise InputError(f"backbone.weights: {weights}: no such file")
    if path.suffix != ".safetensors":
        return _weights(backbone, weights, _read_pth(path), mean, std)

    try:
        with safe_open(path, framework="pt") as file:  # NumPy has no bfloat16
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"backbone.weights: {weights}: not a readable safetensors file ({error})") from None
    architecture = metadata.get("architecture", backbone)
    if architecture != backbone and not is_custom(backbone):
        raise InputError(f"backbone.weights: {weights}: holds {architecture}, but backbone.name is {backbone}")
    try:
        mean = _three_numbers(metadata["input_mean"]) if "input_mean" in metadata else mean
        std = _three_numbers(metadata["input_std"]) if "input_std" in metadata else std
        if min(std) <= 0:
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(
            f"backbone.weights: {weights}: input_mean and input_std must be three finite numbers each, and those of "
            "input_std above 0"
        ) from None
    return _weights(backbone, weights, tensors, mean, std)


def check_layers(weights: Weights, named: str, backbone: str, cuts: Iterable[str]) -> None:
    """Refuse weights that lack a layer that one of the cuts keeps.

    Raises:
        InputError: names the first missing layer and the shallowest cut that needs it.
    """
    for cut in sorted(set(cuts), key=lambda cut: kept_units(backbone, cut)):
        for key, (layer, _) in expected_tensors(backbone, cut).items():
            if key not in weights.tensors:
                raise InputError(
                    f"backbone.weights: {named}: has no {layer} ({key}), which truncate_at = {cut} needs; "
                    'cut earlier, or start missing layers at random with backbone.missing_layers = "random"'
                )


def _three_numbers(text: str) -> Three:
    first, second, third = (float(number) for number in json.loads(text))
    if not np.isfinite([first, second, third]).all():
        raise ValueError
    return first, second, third


def _weights(backbone: str, named: str, tensors: dict[str, torch.Tensor], mean: Three, std: Three) -> Weights:
    """Check the tensors' names and shapes, leave out the classifier, and add the digest."""
    known = all_tensor_names(backbone)
    expected = expected_tensors(backbone, block_names(backbone)[-1])
    tensors = {_known_name(key, known): tensor for key, tensor in tensors.items()}
    for key in tensors:
        if key not in known and not is_custom(backbone):  # whose other tensors are unknown
            raise InputError(f"backbone.weights: {named}: {key} does not belong to {backbone}: another architecture")
    # Popped, so that the weights are not in memory twice.
    kept = {key: _array(named, key, tensors.pop(key)) for key in list(tensors) if key in expected}
    if not kept:
        raise InputError(f"backbone.weights: {named}: has none of {backbone}'s tensors, such as {next(iter(expected))}")
    if is_timm(backbone) and any(tensor.shape != expected[key][1] for key, tensor in kept.items()):
        kept = fit_to_image_size(backbone, kept)
    for key, tensor in kept.items():
        if tensor.shape != expected[key][1] and not can_resize(key, tensor.shape, expected[key][1]):
            raise InputError(
                f"backbone.weights: {named}: {key} has shape {list(tensor.shape)}, but {expected[key][0]} of "
                f"{backbone} has {list(expected[key][1])}: another architecture"
            )
        if not np.isfinite(tensor).all():
            raise InputError(f"backbone.weights: {named}: {key} holds values that are not finite in float32")
    digest = hashlib.sha256(json.dumps([mean, std]).encode())
    for key in sorted(kept):
        digest.update(key.encode())
        digest.update(kept[key].tobytes())
    return Weights(kept, mean, std, digest.hexdigest())


def _array(named: str, key: str, tensor: torch.Tensor) -> np.ndarray:
    """Return a copy of a tensor, whose file may change: float32, or integers."""
    try:
        if tensor.is_complex():
            raise TypeError
        numbers = tensor.detach()
        return np.array((numbers.float() if numbers.is_floating_point() else numbers).numpy(), order="C")
    except (TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        kind = f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
        raise InputError(
            f"backbone.weights: {named}: {key} ({kind}) cannot be read as float32; save it as dense real numbers"
        ) from None


def _read_pth(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"backbone.weights: {path}: corrupt, or holds pickled code, which is not run; "
            "save only the tensors, with torch.save(model.state_dict(), ...)"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, MemoryError) as error:
        raise InputError(f"backbone.weights: {path}: cannot be read: {first_line(error)}") from None
    except Exception:  # of many kinds, with texts about torch's reader
        raise InputError(f"backbone.weights: {path}: damaged, or not a file that torch.save wrote") from None
    if isinstance(state, dict):  # perhaps a checkpoint of a training script
        state = next((state[key] for key in STATE_KEYS if isinstance(state.get(key), dict)), state)
    is_state = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not is_state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(
            f"backbone.weights: {path}: must hold a state_dict (tensors by name and nothing else), or one as "
            f"{' or '.join(STATE_KEYS)}"
        )
    tensors: dict[str, torch.Tensor] = state
    return tensors


def _known_name(key: str, known: Iterable[str]) -> str:
    """Return a tensor's name in the backbone.

    torch's wrappers for several GPUs and for compiling add a prefix, and torchvision's files of DenseNets have older
    names than its networks.
    """
    unwrapped = re.sub(r"^((module|_orig_mod)\.)+", "", key)
    current = re.sub(r"(\.denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", unwrapped)
    return next((name for name in (key, unwrapped, current) if name in known), key)


def torchvision_weights(backbone: str, weights: str) -> Any:
    """Return torchvision's entry for weights of a backbone, without downloading them.

    Raises:
        InputError: torchvision has no weights of that name.
    """
    known = torchvision.models.get_model_weights(backbone)
    if weights != "imagenet" and weights not in known.__members__:
        hint = nearest(weights, known.__members__)
        raise InputError(f"backbone.weights: torchvision has no {weights!r} for {backbone}{hint}")
    return known.DEFAULT if weights == "imagenet" else known[weights]


def _cached_file(entry: Any) -> Path:
    """Return where torch.hub's cache has torchvision's weights, or would have them."""
    return Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])


def _not_downloaded(entry: Any, error: Exception) -> str:
    return (
        f"backbone.weights: {entry.url} could not be downloaded ({first_line(error)}); place it at "
        f"{_cached_file(entry)}, name a local file with --set backbone.weights=FILE, or try --demo"
    )


def check_download(backbone: str, weights: str) -> str:
    """Return what is to be downloaded of torchvision's weights, or why it cannot be; "" if torch.hub's cache has them.

    Downloads nothing: it asks their server for the size.

    Raises:
        InputError: torchvision has no weights of that name.
    """
    entry = torchvision_weights(backbone, weights)
    path = _cached_file(entry)
    if path.is_file():
        return ""
    try:
        with urlopen(Request(entry.url, method="HEAD"), timeout=SECONDS_TO_ANSWER) as answer:
            size = int(answer.headers.get("Content-Length", 0))
    except (OSError, ValueError, HTTPException) as error:
        return f"warning: {_not_downloaded(entry, error)}"
    return f"weights to be downloaded: {entry.url} ({size / 1e6:,.0f} MB) to {path}"


def _read_torchvision_weights(backbone: str, weights: str) -> Weights:
    """Read torchvision's weights, after downloading them if torch.hub's cache does not have them.

    Raises:
        InputError: torchvision has no weights of that name, or the download failed.
    """
    entry = torchvision_weights(backbone, weights)
    path = _cached_file(entry)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hash_prefix = path.stem.rpartition("-")[2]  # torchvision puts it into the file's name
            torch.hub.download_url_to_file(entry.url, str(path), hash_prefix, progress=True)
        except (OSError, RuntimeError) as error:
            raise InputError(_not_downloaded(entry, error)) from None
    preprocessing = entry.transforms()
    mean, std = ((r, g, b) for r, g, b in (preprocessing.mean, preprocessing.std))
    return _weights(backbone, weights, _read_pth(path), mean, std)
