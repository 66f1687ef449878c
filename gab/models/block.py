"""Self-attention with its sockets, and the pre-norm transformer block."""

import torch
from timm.layers import LayerScale, Mlp, use_fused_attn
from torch import Tensor, nn

from gab.attention import biased_attention
from gab.models.qkv import split_heads
from gab.models.stochastic import AttentionDropout, DropPath

EPS = 1e-6  # of the LayerNorms of most vision transformers


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: width C.
        num_heads: H, a divisor of C.
        qkv: maps tokens (B, N, C) to q, k and v side by side (B, N, 3C); has `set_grid(grid)` if it knows the grid.
        biases: parts whose sum is added to the scaled scores, by the name that each gets as a submodule. A part is
            called without arguments, returns (1, 1 or H, N, N), and has `set_grid(grid)`.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate of the output.
    """

    folded: Tensor | None
    attention_backend = "auto"  # or another of gab.attention.choice, set by its `use`

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv: nn.Module,
        biases: dict[str, nn.Module],
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = bool(use_fused_attn())
        self.qkv = qkv
        self.bias_names = tuple(biases)
        for name, part in biases.items():
            self.add_module(name, part)
        self.register_buffer("folded", None)
        self.attn_drop = AttentionDropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def get_bias(self, dtype: torch.dtype) -> Tensor | None:
        """The sum of all parts, (1, 1 or H, N, N), rounded once to `dtype`: the one way into the scores."""
        if self.folded is not None:
            return self.folded.to(dtype)
        parts = [getattr(self, name)() for name in self.bias_names]
        return sum(parts[1:], start=parts[0]).to(dtype) if parts else None

    def fold(self) -> None:
        """Makes the sum of all biases a constant (`gab.models.fold`)."""
        self.folded = self.get_bias(torch.float32)
        for name in self.bias_names:
            delattr(self, name)
        self.bias_names = ()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        batch, tokens, dim = x.shape
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        backend = self.attention_backend if self.fused_attn else "reference"
        x = biased_attention(q, k, v, self.get_bias(q.dtype), dropout=self.attn_drop, backend=backend)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, dim)))


def add_position(x: Tensor, position: Tensor | None) -> Tensor:
    """`x` plus the position, where there is one."""
    return x if position is None else x + position


class Block(nn.Module):
    """x + attention(norm x + position), then x + MLP(norm x), each branch with optional LayerScale and drop-path."""

    def __init__(
        self,
        dim: int,
        attn: Attention,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        eps: float = EPS,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C); `position` (1, N, C) joins the normalised input of attention."""
        x = x + self.drop_path1(self.ls1(self.attn(add_position(self.norm1(x), position))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
