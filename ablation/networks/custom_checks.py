"""Checks of a custom backbone's blocks, on images of the study's size."""

import torch
from torch import nn

from ablation.base.text import first_line
from ablation.networks.blocks import kept_parts, outline_blocks
from ablation.networks.custom_backbone import make_custom_blocks
from ablation.spec.architectures import function_name


def check_custom_blocks(backbone: str, cut: str, image_size: int, *, learns: bool, starts_random: bool) -> None:
    """Refuse a backbone of one's own whose blocks do not fit each other, or what is done with them.

    Args:
        backbone: its name.
        cut: the last block that is needed.
        image_size: height and width in pixels of its images.
        learns: whether any training changes its blocks.
        starts_random: whether any training starts without pretrained weights.

    Raises:
        ValueError: says which block is wrong, and how.
    """
    name = f"function: {function_name(backbone)}()"
    try:
        blocks = outline_blocks(backbone, cut)
    except Exception as error:
        raise ValueError(f"{name}: its blocks cannot be copied ({first_line(error)})") from None
    random = torch.Generator().manual_seed(0)
    images_NCHW = maps_NCHW = torch.rand(3, 3, image_size, image_size, generator=random)
    for part in kept_parts(backbone, cut):
        block = blocks.get_submodule(f"block{part.block}.{part.name}").eval()
        wrong, maps_NCHW = _tried(block, maps_NCHW)
        if wrong:
            raise ValueError(f"{name}: block{part.block} ({part.path}) {wrong}")
    if learns:
        try:
            blocks.train()(images_NCHW).sum().backward()
        except Exception as error:
            raise ValueError(f"{name}: its blocks cannot be trained ({first_line(error)})") from None
    if starts_random:
        one, other = (make_custom_blocks(backbone, seed) for seed in (1, 2))
        for path, block in one.items():
            for inside, tensor in block.named_parameters():
                varies = tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())
                if varies and torch.equal(tensor, other[path].get_parameter(inside)):
                    raise ValueError(
                        f"{name} returns the same {path}.{inside} whatever the random seed: a pretrained one, say, "
                        "from which from_scratch must not start; let it return random ones, and name the file in "
                        "backbone.weights (a tensor that is never trained is to be a buffer)"
                    )


@torch.no_grad()
def _tried(block: nn.Module, maps_NCHW: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Return what is wrong with a block in evaluation mode, nothing if it can be used, and what it makes of maps.

    What it computes must depend on each image and its tensors alone, or stored features would differ from it.
    """
    given = "x".join(map(str, maps_NCHW.shape))
    before, state = maps_NCHW.clone(), {key: tensor.clone() for key, tensor in block.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            made = block(maps_NCHW)
            if isinstance(made, torch.Tensor):
                made = made.clone()
            unchanged = torch.equal(maps_NCHW, before)
            torch.default_generator.manual_seed(2)
            again, first = block(before.clone()), block(before[[0, 2, 1]])[:1]
    except Exception as error:
        return f"fails on maps {given} ({first_line(error)})", maps_NCHW
    shape = tuple(made.shape) if isinstance(made, torch.Tensor) else ()
    if len(shape) != 4 or shape[0] != len(before) or shape[2] != shape[3] or 0 in shape or made.dtype != torch.float32:
        kind = f"{'x'.join(map(str, shape))} of {made.dtype}" if shape else type(made).__name__
        return f"must make square maps NxCxHxH of torch.float32, but makes {kind} of maps {given}", maps_NCHW
    if not unchanged:
        return "changes its input in place, which may be kept for other trials", made
    if any(not torch.equal(tensor, state[key]) for key, tensor in block.state_dict().items()):
        return "changes its own tensors in evaluation mode", made
    if not torch.equal(made, again):
        return "computes something else each time in evaluation mode", made
    alone = block(before[:2])[:1]
    if max(float((other - made[:1]).abs().max()) for other in (first, alone)) > 1e-4 * float(made.abs().max()):
        return "makes of an image what depends on the other images of the batch", made
    return "", made
