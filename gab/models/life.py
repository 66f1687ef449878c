"""LIFE: queries, keys and values from three scales of the token grid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.gaussian import Grid

SCALES = 3
AUX_KEYS = ("released", "per_scale")


class SeparableConv(nn.Module):
    """A depthwise convolution, zero-padded to keep the size, then a 1 x 1 convolution; no bias, norm or activation."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to the same."""
        return self.pointwise(self.depthwise(x))

    def rows(self, x: Tensor) -> Tensor:
        """Tokens without a place, (B, A, C): the 1 x 1 convolution alone."""
        return F.linear(x, self.pointwise.weight.flatten(1))


class LIFE(nn.Module):
    """Local information enhancer, a part of the qkv socket.

    "Enhancing performance of vision transformers on small datasets through local inductive bias incorporation"
    (Pattern Recognition 2024). A linear map and two cascaded separable convolutions (3 x 3, then 5 x 5) over the token
    grid; a third of the channels of q, k and v comes from each, so with a multiple of 3 heads every head sees one scale
    of 1, 3 or 7 patches.

    Args:
        dim: width C, a multiple of 3.
        grid: rows and columns of the patch tokens.
        prefix_tokens: auxiliary tokens in front (class, distillation), which skip the depthwise convolutions.
        qkv_norm: one LayerNorm for all of q, k and v.
        aux_key: the key of an auxiliary token. `released`: its first scale three times, as in the released code;
            `per_scale`: one third from each scale, as in the figure.
    """

    def __init__(self, dim: int, grid: Grid, prefix_tokens: int = 0, qkv_norm: bool = False, aux_key: str = "released"):
        super().__init__()
        if dim % SCALES:
            raise UserError(
                f"LIFE cuts q, k and v into {SCALES} scales, which a width of {dim} does not divide into: "
                "set model.embed_dim to a multiple of 3 or model.life=false."
            )
        self.grid = grid
        self.prefix_tokens = prefix_tokens
        self.aux_key = aux_key
        self.scale1 = nn.Linear(dim, dim)
        self.scale2 = SeparableConv(dim, 3)
        self.scale3 = SeparableConv(dim, 5)
        self.norm = nn.LayerNorm(dim, eps=1e-5) if qkv_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C), auxiliary ones first, to q, k and v side by side (B, N, 3C)."""
        first = self.scale1(x)
        auxiliary, patches = first[:, : self.prefix_tokens], first[:, self.prefix_tokens :]
        qkv = self.local(patches)  # (B, P, 3, C), then with the auxiliary tokens (B, N, 3, C)
        if self.prefix_tokens:
            qkv = torch.cat((self.auxiliary(auxiliary), qkv), dim=1)
        if self.norm is not None:
            qkv = self.norm(qkv)
        return qkv.flatten(2)

    def local(self, patches: Tensor) -> Tensor:
        """First scale of the patches (B, P, C) to q, k and v of all scales (B, P, 3, C)."""
        map1 = patches.transpose(1, 2).unflatten(2, self.grid)  # (B, C, h, w)
        map2 = self.scale2(map1)
        map3 = self.scale3(map2)
        return _by_scale(patches, map2.flatten(2).transpose(1, 2), map3.flatten(2).transpose(1, 2)).flatten(3)

    def auxiliary(self, rows: Tensor) -> Tensor:
        """First scale of the auxiliary tokens (B, A, C) to their q, k and v (B, A, 3, C)."""
        second = self.scale2.rows(rows)
        q, k, v = _by_scale(rows, second, self.scale3.rows(second)).unbind(2)  # each (B, A, scales, C / 3)
        if self.aux_key == "released":
            k = k[:, :, :1].expand_as(k)
        return torch.stack((q, k, v), dim=2).flatten(3)

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid; convolutions need nothing else."""
        self.grid = grid

    def extra_repr(self) -> str:
        return f"grid={self.grid}, prefix_tokens={self.prefix_tokens}, aux_key={self.aux_key}"


def _by_scale(*scales: Tensor) -> Tensor:
    """Each scale (B, N, C), cut into its q, k and v, to (B, N, 3, scales, C / 3)."""
    return torch.stack(scales, dim=2).unflatten(3, (3, -1)).transpose(2, 3)
