"""From a table with one row per offset of two tokens to a bias for every pair of them, and back.

No index is involved, in either direction. Forward, the biases of one query are a window of the table, which moves with
the query: a view, turned round once. Backward, all pairs of one offset are brought into one column by moving row i of a
matrix i places to the left, and columns are summed: no scatter, no atomics, the same order in every run.
"""

from typing import Any

import torch
from torch import Tensor

from gab.models.gaussian import Grid


def spread_offsets(table: Tensor, grid: Grid) -> Tensor:
    """Spreads a table over pairs of tokens.

    Args:
        table: ((2h - 1)(2w - 1), H); row (dr + h - 1)(2w - 1) + dc + w - 1 belongs to the offset (dr, dc), query minus
            key.
        grid: rows h and columns w of the tokens.

    Returns:
        (1, H, N, N) with N = h w, contiguous; a row belongs to a query.
    """
    return _Spread.apply(table, grid)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(table: Tensor, grid: Grid) -> Tensor:
        h, w = grid
        windows = table.t().unflatten(1, (2 * h - 1, 2 * w - 1)).unfold(1, h, 1).unfold(2, w, 1)  # (H, h, w, h, w)
        bias = windows.flip(3, 4).flatten(3).flatten(1, 2)  # the larger the key, the smaller the offset
        return bias.unsqueeze(0).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Grid], output: Tensor) -> None:
        ctx.grid = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        h, w = ctx.grid
        heads = gradient.shape[1]
        by_column = _sum_by_offset(gradient.unflatten(3, (h, w)).reshape(heads * h, w, h, w, 1))
        by_both = _sum_by_offset(by_column.view(heads, h, 1, h, 2 * w - 1))
        table = by_both.view(heads, 2 * h - 1, 2 * w - 1).flip(1, 2)  # query minus key again
        return table.flatten(1).t().to(gradient.dtype), None


def _sum_by_offset(pairs: Tensor) -> Tensor:
    """Sums of (A, n, B, n, C) over all i, j with equal j - i, in float32 at least: (A, B, 2n - 1, C)."""
    a, n, b, _, c = pairs.shape
    length = b * (2 * n - 1) * c  # of a row i that has room for all offsets: j stands at j + n - 1
    rows = pairs.new_zeros(a, n * (length + c), dtype=torch.promote_types(pairs.dtype, torch.float32))
    rows[:, : n * length].view(a, n, b, 2 * n - 1, c)[:, :, :, n - 1 :] = pairs
    moved = rows.view(a, n, length + c)  # read with longer rows, j of row i stands at j - i + n - 1
    return moved.sum(dim=1)[:, :length].reshape(a, b, 2 * n - 1, c)
