"""Absolute position embeddings; `gab.models.joins` says how they join the tokens."""

import math

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from gab.errors import UserError, check_choice
from gab.models.gaussian import Grid

POSITIONS = ("none", "learnable", "sincos_1d", "sincos_2d")


def sincos_1d(tokens: int, dim: int) -> Tensor:
    """Sinusoids of the token number, sine on even channels and cosine on odd: (1, tokens, dim).

    Rate 10000^(-2 floor(i / 2) / dim) at channel i ("Attention Is All You Need", section 3.5). The prefix tokens are
    the first positions.
    """
    channel = torch.arange(dim)
    rate = 10000.0 ** (-2 * (channel // 2).double() / dim)
    angle = torch.arange(tokens).double()[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


def sincos_2d(grid: Grid, dim: int, prefix_tokens: int = 0) -> Tensor:
    """Sinusoids of the column in the first half of the channels and of the row in the last: (1, prefix + h w, dim).

    Rows of prefix tokens are zero. `dim` must be a multiple of 4.
    """
    rate = torch.exp(torch.arange(dim // 4).double() * (-2 * math.log(10000.0) / (dim / 2)))
    height, width = grid

    def axis(count: int) -> Tensor:
        angle = torch.arange(count).double()[:, None] * rate
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # (count, dim / 2)

    columns = axis(width).expand(height, width, -1)
    rows = axis(height)[:, None].expand(height, width, -1)
    patches = torch.cat((columns, rows), dim=-1).reshape(height * width, dim)
    return torch.cat((patches.new_zeros(prefix_tokens, dim), patches)).float().unsqueeze(0)


def position_embedding(kind: str, grid: Grid, dim: int, prefix_tokens: int, layers: int = 1) -> nn.Parameter | None:
    """The embedding (layers, prefix tokens + patches, dim) of one of `POSITIONS`; sinusoids are frozen, `none` is None.

    Raises:
        UserError: an unknown kind, or a width that `sincos_2d` cannot share among sines and cosines of two axes.
    """
    check_choice("model.position", kind, POSITIONS)
    if kind == "none":
        return None
    tokens = prefix_tokens + grid[0] * grid[1]
    if kind == "learnable":
        return nn.Parameter(torch.zeros(layers, tokens, dim))
    if kind == "sincos_2d" and dim % 4:
        raise UserError(f"model.position=sincos_2d needs a width that is a multiple of 4; model.embed_dim is {dim}.")
    table = sincos_1d(tokens, dim) if kind == "sincos_1d" else sincos_2d(grid, dim, prefix_tokens)
    return nn.Parameter(table, requires_grad=False)


def resample_position(position: Tensor, old: Grid, new: Grid, prefix_tokens: int) -> Tensor:
    """Bicubic (layers, N, dim) from one token grid to another, rows of prefix tokens kept."""
    own = [resample_abs_pos_embed(layer[None], list(new), list(old), prefix_tokens) for layer in position]
    return torch.cat(own)


def resize_position(
    kind: str, position: nn.Parameter | None, old: Grid, new: Grid, prefix_tokens: int
) -> nn.Parameter | None:
    """The embedding for another token grid: learnt ones are resampled, sinusoids computed again."""
    if position is None or old == new:
        return position
    if not kind.startswith("sincos"):
        resampled = resample_position(position.detach(), old, new, prefix_tokens)
        return nn.Parameter(resampled, requires_grad=position.requires_grad)
    fresh = position_embedding(kind, new, position.shape[-1], prefix_tokens)
    assert fresh is not None
    return nn.Parameter(fresh.to(position), requires_grad=False)
