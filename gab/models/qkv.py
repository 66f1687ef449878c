"""What makes queries, keys and values.

A part of this socket maps tokens (B, N, C), prefix tokens first, to (B, N, 3C): q, k and v side by side, each with its
heads one after the other.
"""

from torch import nn


class PlainQKV(nn.Linear):
    """One linear map for all three."""

    def __init__(self, dim: int, bias: bool = True):
        super().__init__(dim, 3 * dim, bias=bias)
