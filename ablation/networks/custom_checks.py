"""Checks of a custom backbone's blocks, on images of the study's size."""

import math

import torch
from torch import nn

from ablation.base.text import first_line
from ablation.networks.blocks import kept_parts, outline_blocks
from ablation.networks.custom_backbone import make_custom_blocks
from ablation.spec.architectures import ARCHITECTURES, function_name, is_timm


def check_custom_blocks(backbone: str, cut: str, image_size: int, *, learns: bool, starts_random: bool) -> None:
    """Refuse a custom backbone whose blocks do not fit each other, or cannot be trained or cached as the study needs.

    Args:
        backbone: the name of a loaded custom backbone.
        cut: the last block that the study needs.
        image_size: height and width in pixels of the study's images.
        learns: whether any trial trains blocks.
        starts_random: whether any trial starts blocks at random.

    Raises:
        ValueError: names the block and its fault.
    """
    name = f"name: {function_name(backbone)}" if is_timm(backbone) else f"function: {function_name(backbone)}()"
    extra_tokens = ARCHITECTURES[backbone].extra_tokens
    try:
        blocks = outline_blocks(backbone, cut)
    except Exception as error:
        raise ValueError(f"{name}: its blocks cannot be copied ({first_line(error)})") from None
    random = torch.Generator().manual_seed(0)
    images_NCHW = maps_NCHW = torch.rand(3, 3, image_size, image_size, generator=random)
    for part in kept_parts(backbone, cut):
        block = blocks.get_submodule(f"block{part.block}.{part.name}").eval()
        fault, maps_NCHW = _try_block(block, maps_NCHW, extra_tokens)
        if fault:
            raise ValueError(f"{name}: block{part.block} ({part.path}) {fault}")
    if learns:
        try:
            blocks.train()(images_NCHW).sum().backward()
        except Exception as error:
            raise ValueError(f"{name}: its blocks cannot be trained ({first_line(error)})") from None
    if starts_random and not is_timm(backbone):
        one, other = (make_custom_blocks(backbone, seed) for seed in (1, 2))
        for path, block in one.items():
            for inside, tensor in block.named_parameters():
                varies = tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())
                if varies and torch.equal(tensor, other[path].get_parameter(inside)):
                    raise ValueError(
                        f"{name} returns the same {path}.{inside} whatever the random seed: perhaps a pretrained one, "
                        "but some trials start at random; let it return random ones, and name the weights file in "
                        "backbone.weights (a tensor that is never trained must be a buffer)"
                    )


@torch.no_grad()
def _try_block(block: nn.Module, maps_NCHW: torch.Tensor, extra_tokens: int | None) -> tuple[str, torch.Tensor]:
    """Run a block in evaluation mode; return its fault ("" for none) and its output.

    The output for an image must depend on the image and the block's tensors alone, or cached features would be wrong.
    """
    input_shape = "x".join(map(str, maps_NCHW.shape))
    before, state = maps_NCHW.clone(), {key: tensor.clone() for key, tensor in block.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            output = block(maps_NCHW)
            if isinstance(output, torch.Tensor):
                output = output.clone()
            unchanged = torch.equal(maps_NCHW, before)
            torch.default_generator.manual_seed(2)
            again, first = block(before.clone()), block(before[[0, 2, 1]])[:1]
    except Exception as error:
        return f"fails on maps {input_shape} ({first_line(error)})", maps_NCHW
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
    if not _is_square(shape, extra_tokens) or shape[0] != len(before) or 0 in shape or output.dtype != torch.float32:
        kind = f"{'x'.join(map(str, shape))} of {output.dtype}" if shape else type(output).__name__
        what = "square maps NxCxHxH" if extra_tokens is None else f"{extra_tokens} tokens and those of a square NxTxD"
        return f"must make {what} of torch.float32, but makes {kind} of maps {input_shape}", maps_NCHW
    if not unchanged:
        return "changes its input in place, which may be a cached feature of other trials", output
    if any(not torch.equal(tensor, state[key]) for key, tensor in block.state_dict().items()):
        return "changes its own tensors in evaluation mode", output
    if not torch.equal(output, again):
        return "computes something else each time in evaluation mode", output
    alone = block(before[:2])[:1]
    if max(float((other - output[:1]).abs().max()) for other in (first, alone)) > 1e-4 * float(output.abs().max()):
        return "has an output for each image that depends on the other images of the batch", output
    return "", output


def _is_square(shape: tuple[int, ...], extra_tokens: int | None) -> bool:
    """Return whether a shape is one of square maps, or of extra tokens and those of a square of patches."""
    if extra_tokens is None:
        return len(shape) == 4 and shape[2] == shape[3]
    patches = shape[1] - extra_tokens if len(shape) == 3 else 0
    return patches > 0 and math.isqrt(patches) ** 2 == patches
