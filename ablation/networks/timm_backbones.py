"""timm's networks as custom backbones: each block ends where timm says that a feature stage ends.

timm is optional: it is imported once a study names one of its networks. A backbone is named timm:NETWORK@DIGEST, with a
digest of timm's version and of the network's configuration, to which its image size belongs if it depends on it.

Legend: N images, C channels, H and W pixels, T tokens, D numbers of a token.
"""

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ablation.base.errors import InputError
from ablation.base.text import first_line, nearest
from ablation.networks.code_digest import module_description
from ablation.networks.custom_backbone import DIGEST_LENGTH, add_loaded_backbone, checked_blocks, load_custom_backbone
from ablation.networks.excerpts import Excerpt, assemble
from ablation.spec.architectures import TIMM, function_name

Three = tuple[float, float, float]


class Beginning(Excerpt):
    """A network of timm's whose later modules are identities; in its own code, it adds class token and positions."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens NTD for normalised images NCHW."""
        tokens_NTD: torch.Tensor = self.network.forward_features(images_NCHW)  # type: ignore[operator]
        return tokens_NTD


class Stage(Excerpt):
    """Modules of a network of timm's that run one after the other."""

    def __init__(self, modules: Mapping[str, nn.Module], *, gets_nhwc: bool, gives_nhwc: bool):
        super().__init__(assemble(modules), list(modules))
        self.gets_nhwc = gets_nhwc
        self.gives_nhwc = gives_nhwc

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return maps NCHW for images or maps NCHW, or tokens NTD for tokens NTD."""
        if self.gets_nhwc:
            activations = activations.permute(0, 2, 3, 1)
        for path in self.paths:
            activations = self.network.get_submodule(path)(activations)
        return activations.permute(0, 3, 1, 2) if self.gives_nhwc else activations


@dataclass(frozen=True)
class _Plan:
    """How a network is divided.

    Attributes:
        stages: the paths of the modules that run in each stage, in order.
        others: the paths of all other modules, such as the classifier.
        is_nhwc: whether its maps are NHWC.
        extra_tokens: see `Architecture`.
    """

    stages: list[list[str]]
    others: list[str]
    is_nhwc: bool
    extra_tokens: int | None


_IMAGE_SIZES: dict[str, int] = {}  # of loaded backbones, by name


def load_backbone(module: str | None, name: str, image_size: int) -> str:
    """Load a custom backbone, the function `name` of a file, or without a file one of timm's; return its full name.

    Raises:
        ValueError: as `load_custom_backbone` and `load_timm_backbone`.
    """
    return load_timm_backbone(name, image_size) if module is None else load_custom_backbone(module, name)


def load_timm_backbone(name: str, image_size: int) -> str:
    """Add one of timm's networks to `ARCHITECTURES`; nothing is downloaded.

    Args:
        name: 'timm:' and timm's name of the network, with or without a tag of its weights, such as `timm:resnet18`.
        image_size: height and width in pixels of the images, for which a network that depends on it is made.

    Returns:
        The backbone's name in full.

    Raises:
        ValueError: timm is not installed or has no such network, the network does not run on such images, or it is not
            a row of blocks. The message begins with the key of [backbone] that is wrong.
    """
    network = _create(name, image_size, 0)
    plan = _plan(network, name, image_size)
    blocks = _blocks(network, plan, name)
    descriptions = [[path, module_description(block)] for path, block in blocks.items()]
    digest = hashlib.sha256(repr([_timm().__version__, descriptions]).encode()).hexdigest()
    backbone = f"{name}@{digest[:DIGEST_LENGTH]}"

    def make_blocks(seed: int) -> dict[str, nn.Module]:
        return _blocks(_create(name, image_size, seed), plan, name)

    add_loaded_backbone(backbone, blocks, make_blocks, plan.extra_tokens)
    _IMAGE_SIZES[backbone] = image_size
    return backbone


def pretrained_tensors(backbone: str) -> dict[str, torch.Tensor]:
    """Return the tensors of timm's weights for a loaded backbone, downloaded if the cache does not have them.

    Raises:
        InputError: timm has no weights for it, or the download failed.
    """
    name = function_name(backbone)
    try:
        network = _timm().create_model(name.removeprefix(TIMM), pretrained=True)
    except Exception as error:  # of timm, of the Hugging Face Hub, or of what it downloads with
        raise InputError(
            f"backbone.weights: timm has no weights for {name}, or they could not be downloaded "
            f"({first_line(error)}); name a local file with --set backbone.weights=FILE"
        ) from None
    tensors: dict[str, torch.Tensor] = network.state_dict()
    return tensors


def fit_to_image_size(backbone: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors with those that depend on the image size, such as position embeddings, fitted to the backbone's.

    timm interpolates them. Tensors for other sizes than timm's own for the network are left as they are.
    """
    network = _new_network(function_name(backbone))
    if not hasattr(network, "set_input_size"):
        return tensors
    own = network.state_dict()
    known = {key for key, tensor in tensors.items() if key in own and tuple(own[key].shape) == tensor.shape}
    network.load_state_dict({**own, **{key: torch.from_numpy(tensors[key]) for key in known}})
    network.set_input_size(img_size=_IMAGE_SIZES[backbone])
    fitted = network.state_dict()
    return {key: fitted[key].numpy() if key in known else tensor for key, tensor in tensors.items()}


def timm_normalisation(backbone: str) -> tuple[Three, Three]:
    """Return the mean and standard deviation of images, scaled to 0..1, for which timm's weights were trained."""
    config = _timm().get_pretrained_cfg(function_name(backbone).removeprefix(TIMM))
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (config.mean, config.std))
    return mean, std


def timm_weights(backbone: str) -> list[tuple[str, int]]:
    """Return all of timm's weights for a backbone's architecture: (name of the backbone with them, side in pixels)."""
    timm = _timm()
    architecture = function_name(backbone).removeprefix(TIMM).partition(".")[0]
    names = [name for name in timm.list_pretrained(f"{architecture}.*") if name.startswith(f"{architecture}.")]
    return [(f"{TIMM}{name}", timm.get_pretrained_cfg(name).input_size[-1]) for name in names]


def _timm() -> Any:
    """Return the module timm.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise ValueError("name: timm's networks need timm: python -m pip install timm") from None


def _new_network(name: str) -> Any:
    """Return a network of timm's with random tensors, made for timm's own image size.

    Raises:
        ValueError: timm has no such network.
    """
    timm = _timm()
    network = name.removeprefix(TIMM)
    architecture = network.partition(".")[0]
    if not timm.is_model(architecture):  # also of `hf_hub:` and the like, which would download
        hint = nearest(architecture, timm.list_models())
        hint = hint if "did you mean" in hint else "; timm.list_models() names all"  # about 1,400
        raise ValueError(f"name: timm {timm.__version__} has no {network!r}{hint}")
    try:
        with torch.device("cpu"):
            return timm.create_model(network)
    except Exception as error:  # such as an unknown tag of weights
        raise ValueError(f"name: timm cannot make {network!r} ({first_line(error)})") from None


def _create(name: str, image_size: int, seed: int) -> nn.Module:
    """Return a network in evaluation mode, with random tensors from a seed, made for an image size if it has one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _new_network(name)
        if hasattr(network, "set_input_size"):
            patch, *_ = getattr(getattr(network, "patch_embed", None), "patch_size", (1,))
            if image_size % patch:
                raise ValueError(f"name: {name}: {image_size} pixels are no multiple of the {patch} pixels of a patch")
            try:
                network.set_input_size(img_size=image_size)
            except Exception as error:
                raise ValueError(_too_small(name, image_size, error)) from None
    network.eval()
    assert isinstance(network, nn.Module)
    return network


def _too_small(name: str, image_size: int, error: Exception) -> str:
    return f"name: {name} does not run on images of {image_size} x {image_size} pixels ({first_line(error)})"


@torch.no_grad()
def _plan(network: Any, name: str, image_size: int) -> _Plan:
    """Divide a network into stages, and check that these compute what the network does.

    Raises:
        ValueError: the network's code does something between its stages that no module does.
    """
    features = [str(stage["module"]) for stage in getattr(network, "feature_info", [])]
    leaves = dict(_leaves(network, features))
    images_NCHW = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    calls: list[str] = []
    hooks = [leaf.register_forward_hook(lambda *_, path=path: calls.append(path)) for path, leaf in leaves.items()]
    try:
        expected = network.forward_features(images_NCHW)
    except Exception as error:
        raise ValueError(_too_small(name, image_size, error)) from None
    finally:
        for hook in hooks:
            hook.remove()
    refusal = f"name: {name} is no row of blocks: timm's code does more between its feature stages than to call modules"
    if not features or len(set(calls)) < len(calls) or not set(features) <= set(calls):
        raise ValueError(refusal)
    ends = [calls.index(path) + 1 for path in features]
    ends[-1] = len(calls)  # what follows the last stage, such as a norm, belongs to it
    stages = [calls[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    others = [path for path in leaves if path not in calls]
    is_nhwc = expected.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC"
    extra_tokens = getattr(network, "num_prefix_tokens", 0) if expected.ndim == 3 else None
    plan = _Plan(stages, others, is_nhwc, extra_tokens)
    if not all(stages):
        raise ValueError(refusal)
    try:
        activations = images_NCHW
        for block in _blocks(network, plan, name).values():
            activations = block(activations)
    except Exception:
        raise ValueError(refusal) from None
    if not torch.equal(activations, expected.permute(0, 3, 1, 2) if is_nhwc else expected):
        raise ValueError(refusal)
    return plan


def _leaves(module: nn.Module, features: list[str], above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of the largest modules that contain no end of a feature stage but their own."""
    for name, child in module.named_children():
        path = f"{above}{name}"
        if any(feature.startswith(f"{path}.") for feature in features):
            yield from _leaves(child, features, f"{path}.")
        else:
            yield path, child


def _blocks(network: nn.Module, plan: _Plan, name: str) -> dict[str, nn.Module]:
    """Return the blocks of a network, which are made of its modules, by the names stage1, stage2, ..."""
    modules = {path: network.get_submodule(path) for stage in plan.stages for path in stage}
    blocks: dict[str, nn.Module] = {}
    for number, paths in enumerate(plan.stages, start=1):
        stage = {path: modules[path] for path in paths}
        blocks[f"stage{number}"] = Stage(stage, gets_nhwc=plan.is_nhwc and number > 1, gives_nhwc=plan.is_nhwc)
    if next(network.parameters(recurse=False), None) is not None:  # class token or positions, which no module has
        for path in (*(path for stage in plan.stages[1:] for path in stage), *plan.others):
            network.set_submodule(path, nn.Identity())
        tokens = [name for name, _ in network.named_parameters(recurse=False)]
        blocks["stage1"] = Beginning(network, [*tokens, *plan.stages[0]])
    return checked_blocks(blocks, f"name: {name}")
