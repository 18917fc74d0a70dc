"""`python -m ablation.backbones NAME`: the cuts of a backbone, and the size and cost of each."""

import math
import sys
from itertools import groupby

import click

from ablation import __version__
from ablation.base.command_line import run_command
from ablation.base.errors import InputError
from ablation.base.text import Table, nearest
from ablation.spec.architectures import ARCHITECTURES, block_names, image_size_fault, is_timm, smallest_image


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--image-size",
    type=click.IntRange(1),
    default=32,
    metavar="S",
    help="Images of S x S pixels.  [default: 32, as CIFAR-10]",
)
@click.option(
    "--module", metavar="FILE", help="Python file in which the function NAME returns a custom backbone's blocks."
)
@click.version_option(__version__)
def cli(name: str | None, image_size: int, module: str | None) -> None:
    """Show the blocks and units of the backbone NAME; without NAME, all backbones."""
    from ablation.base.terminal import say, show_table

    if module is not None and name is None:
        raise InputError("--module: which of its functions? give its name")
    if name is None:
        show_table(all_backbones())
        return
    if module is not None or is_timm(name):
        name = _load(module, name, image_size)
    if name not in ARCHITECTURES:
        raise InputError(f"unknown backbone {name!r}{nearest(name, ARCHITECTURES)}")
    show_table(cuts_table(name, image_size))
    weights = weights_table(name)
    if weights.rows:
        show_table(weights)
    else:
        say(f"Weights: {'timm' if is_timm(name) else 'torchvision'} has none; set backbone.weights to a file.")


def _load(module: str | None, function: str, image_size: int) -> str:
    """Load a custom backbone, or one of timm's networks, and check its blocks; return its name in full.

    Raises:
        InputError: it cannot be loaded, or its blocks do not fit each other or the images.
    """
    from ablation.networks.custom_checks import check_custom_blocks
    from ablation.networks.timm_backbones import load_backbone

    try:
        name = load_backbone(module, function, image_size)
        check_custom_blocks(name, block_names(name)[-1], image_size, learns=False, starts_random=False)
    except ValueError as error:
        raise InputError(str(error)) from None
    return name


def all_backbones() -> Table:
    """Return the table of all backbones."""
    rows = [[name, str(len(block_names(name))), str(sum(about.units))] for name, about in ARCHITECTURES.items()]
    return Table("Backbones", ["name", "blocks", "units"], rows, ["python -m ablation.backbones NAME shows one."])


def cuts_table(backbone: str, image_size: int) -> Table:
    """Return the table of a backbone's cuts from the input on: the kept modules, their output, size and cost.

    Raises:
        InputError: the images are too small for every cut, or cannot be divided into patches.
    """
    from ablation.networks.blocks import kept_parts, run_parts
    from ablation.networks.excerpts import Excerpt

    last = block_names(backbone)[-1]
    parts = kept_parts(backbone, last)
    if fault := image_size_fault(image_size, backbone, parts[0].unit):
        raise InputError(f"--image-size: {fault}")
    deepest = [part.unit for part in parts if smallest_image(backbone, part.unit) <= image_size][-1]
    ends = {part.block: part.unit for part in parts}  # the last unit of each block
    rows: list[list[str]] = []
    parameters = operations = 0
    for unit, of_unit in groupby(run_parts(backbone, deepest, image_size), key=lambda each: each[0].unit):
        paths = []
        for part, module, maps, of_part in of_unit:
            paths += module.paths if isinstance(module, Excerpt) else [part.path]
            parameters += sum(parameter.numel() for parameter in module.parameters())
            operations += of_part
            shape = " x ".join(map(str, maps.shape[1:]))
        sizes = [shape, f"{parameters:,}", f"{operations / 1e9:.3f}"]
        rows.append([unit, ", ".join(paths), *sizes])
        if unit == ends[part.block] != f"block{part.block}":  # no pool: the block ends with the unit
            rows.append([f"block{part.block}", "", *sizes])
    columns = ["truncate_at", "modules in the network", "output (C x H x W)", "parameters", "GFLOP per image"]
    notes = [
        "Parameters and floating point operations (a multiplication and an addition are two) count everything up to "
        "the cut, except the operations of normalisations and activations."
    ]
    extra_tokens = ARCHITECTURES[backbone].extra_tokens
    if extra_tokens is not None:
        side = math.isqrt(maps.shape[1] - extra_tokens)
        notes.append(
            f"The output is tokens x numbers of each: {extra_tokens} and those of {side} x {side} patches. Weights are "
            "made for 7 x 7 patches (of 32 pixels) or more, so that larger images suit them better."
        )
    if rows[-1][0] != last:
        notes.append(f"Deeper cuts need larger images: {last} needs {smallest_image(backbone, last)} pixels.")
    return Table(f"{backbone} at {image_size} x {image_size}", columns, rows, notes)


def weights_table(backbone: str) -> Table:
    """Return the table of the weights that torchvision, or timm, has for a backbone; without rows where it has none."""
    import torchvision

    from ablation.networks.timm_backbones import timm_weights

    if is_timm(backbone):
        rows = [[name, str(side)] for name, side in timm_weights(backbone)]
        notes = ["backbone.weights can also name a file with timm's tensor names."]
        return Table("Weights that timm has", ["backbone.name", "trained at (pixels)"], rows, notes)
    if backbone not in torchvision.models.list_models():
        return Table("Weights", ["backbone.weights"], [])
    all_weights = torchvision.models.get_model_weights(backbone)
    rows = []
    for weights in all_weights:
        accuracy = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
        name = f"{weights.name} (imagenet)" if weights == all_weights.DEFAULT else weights.name
        rows.append(
            [
                name,
                "-" if accuracy is None or math.isnan(accuracy) else f"{accuracy:.2f}",
                f"{weights.meta['_file_size']:.0f}",
                str(weights.transforms().crop_size[0]),
            ]
        )
    columns = ["backbone.weights", "ImageNet accuracy, whole network (%)", "size (MB)", "trained at (pixels)"]
    return Table("Weights that torchvision has", columns, rows, ["backbone.weights can also name a file."])


if __name__ == "__main__":
    sys.exit(run_command(cli))
