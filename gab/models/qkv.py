"""What makes queries, keys and values.

A part of this socket maps tokens (B, N, C), prefix tokens first, to (B, N, 3C): q, k and v side by side, each with its
heads one after the other.
"""

from torch import Tensor, nn


class PlainQKV(nn.Linear):
    """One linear map for all three."""

    def __init__(self, dim: int, bias: bool = True):
        super().__init__(dim, 3 * dim, bias=bias)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v side by side (B, N, 3C) to three views (B, H, N, D).

    The three are taken apart before their axes are exchanged: their gradients are then put side by side in one copy.
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)  # each (B, N, H, D)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
