"""torchvision's networks and custom backbones as an ordered list of named blocks, cut at a block or a unit.

Legend: N images, C channels, H and W pixels, T tokens, D numbers of a token.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer
from torchvision.models.convnext import CNBlock
from torchvision.models.vgg import VGG, make_layers
from torchvision.models.vision_transformer import Encoder

from ablation.networks.custom_backbone import make_custom_blocks
from ablation.networks.excerpts import assemble, named_tensors
from ablation.networks.vision_transformers import Embedding, resize_positions
from ablation.spec.architectures import ARCHITECTURES, cut_before_pool, is_custom, kept_units, unit_names

NARROW_CHANNELS = ((8,) * 2, (16,) * 2, (32,) * 3, (64,) * 3, (64,) * 3)  # of vgg16_narrow, block by block
LINEAR_STD = 0.02  # of ConvNeXt (Liu et al., 2022, "A ConvNet for the 2020s") and DeiT (Touvron et al., 2021)
LAYER_SCALE = 1e-6  # of ConvNeXt

# The modules of one unit, or the pool between two blocks: kind of module -> its path in torchvision's network.
Step = dict[str, str]
KINDS: dict[type[nn.Module], str] = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
# In place of a path, where torchvision's network computes in its own code and has no module.
FUNCTION = "relu()"
EMBEDDING = "embedding"


def _plain(network: nn.Module) -> Iterator[Step]:
    """Yield the units of VGG and AlexNet: each convolution begins one."""
    step: Step = {}
    for number, module in enumerate(network.get_submodule("features").children()):
        kind = KINDS[type(module)]
        if step and kind in ("conv", "pool"):
            yield step
            step = {}
        step[kind] = f"features.{number}"
    yield step


def _resnet(network: nn.Module) -> Iterator[Step]:
    yield {"conv": "conv1", "bn": "bn1", "relu": "relu"}
    yield {"pool": "maxpool"}
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        yield from _children(network, layer)


def _densenet(network: nn.Module) -> Iterator[Step]:
    yield {"conv": "features.conv0", "bn": "features.norm0", "relu": "features.relu0"}
    yield {"pool": "features.pool0"}
    for number in (1, 2, 3):
        yield {"unit": f"features.denseblock{number}"}
        yield {"pool": f"features.transition{number}"}
    yield {"unit": "features.denseblock4", "bn": "features.norm5", "relu": FUNCTION}


def _efficientnet(network: nn.Module) -> Iterator[Step]:
    *stages, last = (f"features.{name}" for name, _ in network.get_submodule("features").named_children())
    yield {"unit": stages[0]}
    for stage in stages[1:]:
        yield from _children(network, stage)
    yield {"unit": last}


def _convnext(network: nn.Module) -> Iterator[Step]:
    for number in (0, 2, 4, 6):
        first, *others = _children(network, f"features.{number + 1}")
        yield {"downsample": f"features.{number}", **first}
        yield from others


def _regnet(network: nn.Module) -> Iterator[Step]:
    yield {"unit": "stem"}
    for name, _ in network.get_submodule("trunk_output").named_children():
        yield from _children(network, f"trunk_output.{name}")


def _transformer(network: nn.Module) -> Iterator[Step]:
    yield {"unit": EMBEDDING}
    *layers, last = _children(network, "encoder.layers")
    yield from layers
    yield {**last, "norm": "encoder.ln"}


def _children(network: nn.Module, path: str) -> Iterator[Step]:
    for name, _ in network.get_submodule(path).named_children():
        yield {"unit": f"{path}.{name}"}


# A function that yields the units and pools of a network in order, by the beginning of the network's name.
FAMILIES: dict[str, Callable[[nn.Module], Iterator[Step]]] = {
    "vgg": _plain,
    "alexnet": _plain,
    "resnet": _resnet,
    "resnext": _resnet,
    "wide_resnet": _resnet,
    "densenet": _densenet,
    "efficientnet": _efficientnet,
    "mobilenet": functools.partial(_children, path="features"),
    "convnext": _convnext,
    "regnet": _regnet,
    "vit": _transformer,
}


@dataclass(frozen=True)
class Part:
    """A module of a unit, or the pool at the end of a block.

    Attributes:
        block: the number of its block, from 1.
        units: the number of units up to and including its own, counted from the first block.
        unit: the name of its unit, such as `conv3_2`; for a pool, the name of its block.
        name: its name in the block, such as `conv3_2`, `relu3_2`, `pool3`.
        path: its path in torchvision's network, such as `features.12`.
    """

    block: int
    units: int
    unit: str
    name: str
    path: str


@functools.cache
def _parts(backbone: str) -> list[Part]:
    """Return the parts of a backbone in order, distributed over the blocks as `spec.architectures` says."""
    if is_custom(backbone):
        paths = enumerate(make_custom_blocks(backbone, 0), start=1)
        return [Part(number, number, f"unit{number}_1", f"unit{number}_1", path) for number, path in paths]
    steps = next(family for beginning, family in FAMILIES.items() if backbone.startswith(beginning))(_network(backbone))
    parts: list[Part] = []
    units = 0
    for block, names in enumerate(unit_names(backbone), start=1):
        for name in names:
            units += 1
            number = name.partition(str(block))[2]
            parts += [Part(block, units, name, f"{kind}{block}{number}", path) for kind, path in next(steps).items()]
        if block <= ARCHITECTURES[backbone].pools:
            parts.append(Part(block, units, f"block{block}", f"pool{block}", next(steps)["pool"]))
    assert next(steps, None) is None, f"{backbone} has more units than spec.architectures says"
    return parts


def kept_parts(backbone: str, truncate_at: str) -> list[Part]:
    """Return the parts of a backbone up to a cut, in order."""
    units = kept_units(backbone, truncate_at)
    kept = [part for part in _parts(backbone) if part.units <= units]
    return kept[:-1] if cut_before_pool(backbone, truncate_at) else kept


class _ParametersOnMeta(TorchFunctionMode):
    """Creates new tensors on the meta device, so that they take no memory.

    Not `with torch.device("meta")`: RegNets compute their widths with tensors, which then have no values. (An outer
    `with torch.device` could have the same effect; `_network` overrides it.)
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@functools.lru_cache(maxsize=4)
def _network(backbone: str, image_size: int | None = None) -> nn.Module:
    """Return torchvision's network with its tensors on the meta device; a custom backbone has real ones.

    Only a vision transformer depends on the image size; None is the size for which torchvision makes it.
    """
    if is_custom(backbone):
        return assemble(make_custom_blocks(backbone, 0))
    with torch.device("cpu"), _ParametersOnMeta():
        if backbone in ("vgg16_narrow", "vgg16_narrow_bn"):
            channels: list[str | int] = [entry for widths in NARROW_CHANNELS for entry in (*widths, "M")]
            layers = make_layers(channels, batch_norm=backbone.endswith("_bn"))
            narrow: nn.Module = VGG(layers, init_weights=False)
            return narrow
        size = {} if image_size is None else {"image_size": image_size}
        network: nn.Module = torchvision.models.get_model(backbone, weights=None, **size)
    return network


def _module(network: nn.Module, path: str) -> nn.Module:
    """Return a copy of what stands at a path of a network."""
    if path == FUNCTION:
        return nn.ReLU()
    if path == EMBEDDING:
        assert isinstance(network, VisionTransformer)
        return Embedding(network)
    return copy.deepcopy(network.get_submodule(path))


def build_blocks(backbone: str, truncate_at: str, image_size: int | None = None) -> nn.Sequential:
    """Build the kept part of a backbone on the CPU, with tensors that are not initialised.

    Args:
        backbone: a name in `ARCHITECTURES`.
        truncate_at: the cut.
        image_size: height and width in pixels of its images, on which the position embedding of a vision transformer
            depends and nothing else; None is the size for which torchvision makes it.

    Returns:
        A Sequential of blocks `block1`, ...; each is a Sequential of torchvision's own modules, named `conv1_1`,
        `relu1_1`, ..., `pool1`, or `unit2_1`, .... A cut at a block keeps its pool; a cut at a unit does not.
    """
    blocks = outline_blocks(backbone, truncate_at, image_size)
    return blocks if is_custom(backbone) else blocks.to_empty(device="cpu")


def outline_blocks(backbone: str, truncate_at: str, image_size: int | None = None) -> nn.Sequential:
    """Build the same with tensors on the meta device, which take no memory; a custom backbone has real ones."""
    blocks = nn.Sequential()
    depends_on_size = ARCHITECTURES[backbone].patch is not None
    network = _network(backbone, image_size) if depends_on_size else _network(backbone)  # made once for all sizes
    for number, parts in groupby(kept_parts(backbone, truncate_at), key=lambda part: part.block):
        block = nn.Sequential()
        for part in parts:
            module = _module(network, part.path)
            if is_custom(backbone):
                # Identifies its code, on which cached features depend: see `code_digest.module_description`.
                module.ablation_backbone = backbone  # type: ignore[assignment]
            block.add_module(part.name, module)
        blocks.add_module(f"block{number}", block)
    return blocks


@functools.cache
def feature_shape(backbone: str, truncate_at: str, image_size: int) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of one image's features at a cut.

    For a vision transformer it is that of the map of its patches, D x H x W; `extra_tokens` come beside it.
    """
    with torch.no_grad():
        shape = outline_blocks(backbone, truncate_at, image_size).eval()(blank_image(backbone, image_size)).shape
    extra_tokens = ARCHITECTURES[backbone].extra_tokens
    if extra_tokens is None:
        _, channels, height, width = shape
        return channels, height, width
    side = math.isqrt(shape[1] - extra_tokens)
    return shape[2], side, side


def run_parts(backbone: str, truncate_at: str, image_size: int) -> Iterator[tuple[Part, nn.Module, torch.Tensor, int]]:
    """Yield each part up to a cut with its module, its output for a blank image, and its floating-point operations."""
    blocks = outline_blocks(backbone, truncate_at, image_size).eval()
    maps = blank_image(backbone, image_size)
    for part in kept_parts(backbone, truncate_at):
        module = blocks.get_submodule(f"block{part.block}.{part.name}")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            maps = module(maps)
        yield part, module, maps, counter.get_total_flops()


def blank_image(backbone: str, image_size: int) -> torch.Tensor:
    """Return a float32 image 1 x 3 x H x W, of which only the shape matters, on the device of `outline_blocks`."""
    device = "cpu" if is_custom(backbone) else "meta"
    return torch.zeros(1, 3, image_size, image_size, device=device)


@functools.cache
def expected_tensors(backbone: str, truncate_at: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the kept tensors by torchvision's key, each as (name of its unit, shape).

    `num_batches_tracked` of batch norms is left out: nothing depends on it.
    """
    network = _network(backbone)
    return {
        key: (part.unit, tuple(tensor.shape))
        for part in kept_parts(backbone, truncate_at)
        for key, tensor in named_tensors(part.path, _module(network, part.path)).items()
        if not key.endswith("num_batches_tracked")
    }


def all_tensor_names(backbone: str) -> set[str]:
    """Return torchvision's keys of the whole network, including its classifier."""
    return set(_network(backbone).state_dict())


def initialise_blocks(
    blocks: nn.Sequential, backbone: str, tensors: Mapping[str, np.ndarray] | None, generator: torch.Generator
) -> None:
    """Set every tensor of the blocks: to the pretrained one (by torchvision's key) if there is one, else at random.

    Random convolutions are normal with variance 2 / (number of inputs) and bias zero (He et al., 2015, fan-in), which
    keeps the scale of activations from layer to layer; torchvision's fan-out shrinks it wherever a network widens.
    Normalisations start as the identity. Layers with pretrained tensors draw from the generator, too, so that the start
    of a layer does not depend on which other layers have weights. A custom backbone starts as its function makes it.
    """
    with torch.no_grad():
        if is_custom(backbone):
            made = make_custom_blocks(backbone, generator.initial_seed())
            initial = {key: tensor for path, part in made.items() for key, tensor in named_tensors(path, part).items()}
            for key, tensor in torchvision_tensors(blocks, backbone).items():
                tensor.copy_(initial[key])
        else:
            for module in blocks.modules():
                _initialise_module(module, generator)
        for key, tensor in torchvision_tensors(blocks, backbone).items():
            if tensors is not None and key in tensors:
                pretrained = torch.from_numpy(tensors[key])
                # Shapes were checked when the weights were read: only a position embedding can have another one.
                fits = pretrained.shape == tensor.shape
                tensor.copy_(pretrained if fits else resize_positions(pretrained, tensor.shape[1]))


def torchvision_tensors(blocks: nn.Sequential, backbone: str) -> dict[str, torch.Tensor]:
    """Return the tensors of truncated blocks themselves, not copies, by torchvision's key."""
    modules = [module for block in blocks for module in block.children()]
    parts = _parts(backbone)[: len(modules)]
    named = [named_tensors(part.path, module) for part, module in zip(parts, modules, strict=True)]
    return {name: tensor for tensors in named for name, tensor in tensors.items()}


def _initialise_module(module: nn.Module, generator: torch.Generator) -> None:
    """Set the tensors of a module itself, not those of its children."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()), generator=generator)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=LINEAR_STD, generator=generator)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.trunc_normal_(module.in_proj_weight, std=LINEAR_STD, generator=generator)
        nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, Encoder):
        nn.init.trunc_normal_(module.pos_embedding, std=LINEAR_STD, generator=generator)
    elif isinstance(module, VisionTransformer):
        nn.init.zeros_(module.class_token)
    elif isinstance(module, CNBlock):
        nn.init.constant_(module.layer_scale, LAYER_SCALE)
    else:
        assert not [*module.parameters(recurse=False)], f"no initialisation is known for {type(module).__name__}"
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
