"""Parts of a network that are no module of it, whose tensors keep the names that they have in the whole network."""

from collections.abc import Mapping

import torch
from torch import nn


class Excerpt(nn.Module):
    """A part of a network that is no module of it."""

    def __init__(self, network: nn.Module, paths: list[str]):
        """Make a part.

        Args:
            network: holds its modules and tensors at their paths.
            paths: of its modules, and of tensors that no module of it has.
        """
        super().__init__()
        self.network = network
        self.paths = paths


def named_tensors(path: str, part: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a part of a network themselves, not copies, by their names in the network.

    Args:
        path: the part's path in the network; of no account for an `Excerpt`.
        part: the part.
    """
    if isinstance(part, Excerpt):
        return dict(part.network.state_dict())
    return {f"{path}.{name}": tensor for name, tensor in part.state_dict().items()}


def assemble(parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return a module that holds modules at their paths, such as `features.3`."""
    network = nn.Module()
    for path, part in parts.items():
        place = network
        *above, last = path.split(".")
        for name in above:
            if name not in dict(place.named_children()):
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, part)
    return network
