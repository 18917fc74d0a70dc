"""Vision transformers: torchvision's embedding as a module, positions at other image sizes, the pool of tokens.

Legend: N images, T tokens, D numbers of a token, C channels, H and W pixels.
"""

import copy
import math

import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from ablation.networks.excerpts import Excerpt

POSITIONS = "encoder.pos_embedding"  # torchvision's key; 1 x T x D


class Embedding(Excerpt):
    """The tokens that enter the first encoder layer: the class token and the patches, with their positions."""

    network: VisionTransformer

    def __init__(self, network: VisionTransformer):
        network = copy.deepcopy(network)
        network.encoder.layers = nn.Sequential()
        network.encoder.ln = nn.Identity()
        network.heads = nn.Sequential()
        super().__init__(network, ["conv_proj", "class_token", POSITIONS])

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens NTD, the class token first, for normalised images NCHW."""
        patches_NTD = self.network.conv_proj(images_NCHW).flatten(2).transpose(1, 2)
        class_N1D = self.network.class_token.expand(len(images_NCHW), -1, -1)
        tokens_NTD: torch.Tensor = self.network.encoder(torch.cat([class_N1D, patches_NTD], dim=1))
        return tokens_NTD


class TokenPool(nn.Module):
    """Pools the patches' tokens as a map of `side` x `side`; the tokens before them, such as a class token, stay whole.

    So a linear probe gets what DINOv2's gets (Oquab et al., 2023): the class token beside the average of the patches.
    """

    def __init__(self, pool: nn.Module, side: int, extra_tokens: int):
        super().__init__()
        self.pool = pool
        self.side = side
        self.extra_tokens = extra_tokens

    def forward(self, tokens_NTD: torch.Tensor) -> torch.Tensor:
        """Return the features N x (extra tokens + pooled patches) * D, extra tokens first."""
        patches_NTD = tokens_NTD[:, self.extra_tokens :]
        maps_NDHW = patches_NTD.transpose(1, 2).reshape(len(patches_NTD), -1, self.side, self.side)
        return torch.cat([tokens_NTD[:, : self.extra_tokens].flatten(1), self.pool(maps_NDHW).flatten(1)], dim=1)

    def extra_repr(self) -> str:
        """Return what distinguishes this pool; a part of the name of cached features."""
        return f"side={self.side}, extra_tokens={self.extra_tokens}"


def can_resize(key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether a tensor is a position embedding for another number of patches, which `resize_positions` fits."""
    if key != POSITIONS or len(shape) != 3:
        return False
    return (shape[0], shape[2]) == (1, expected[2]) and shape[1] > 1 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1


def resize_positions(positions_1TD: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return torchvision's position embedding for another number of tokens, interpolated as torchvision does.

    The patches' positions are a square map, which is scaled bicubically with its corners kept; the class token's stays.
    """
    side = math.isqrt(tokens - 1)
    resized_1TD: torch.Tensor = interpolate_embeddings(side, 1, {POSITIONS: positions_1TD})[POSITIONS]
    return resized_1TD
