"""Dropout of attention weights by hashes of where a weight stands: every way to compute attention drops the same.

A row of weights, which belongs to one sample, head and query, has a number that is well mixed already (`row_numbers`).
A weight of it survives by 32-bit arithmetic alone, which a kernel repeats for every weight wherever it needs it: the
row's number, exclusive or the position of the key, through an integer hash (Wellons, "Prospecting for hash functions",
2018: lowbias32 without its last shift, which the comparison does not see).
"""

import torch
from torch import Tensor

from gab.random import fold_in

FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32  # as signed 32-bit integers


def row_numbers(keys: Tensor, salt: int, heads: int, tokens: int) -> Tensor:
    """A number for every row of weights of a layer: keys of the samples, int64 (B,), to int32 (B, H, N)."""
    head, query = (torch.arange(count, device=keys.device) for count in (heads, tokens))
    return (fold_in(fold_in(fold_in(keys, salt)[:, None], head)[..., None], query) >> 32).to(torch.int32)


def threshold(p: float) -> int:
    """A weight survives where its hash, a signed 32-bit integer, is at least this; a share of `p` is below."""
    return round(p * 2**32) - 2**31


def survivors(rows: Tensor, tokens: int, p: float) -> Tensor:
    """Which weights are kept, bool (B, H, N, keys), for row numbers (B, H, N); each is dropped with probability p."""
    x = rows[..., None] ^ torch.arange(tokens, dtype=torch.int32, device=rows.device)
    x = (x ^ _shift(x, 16)) * FIRST
    x = (x ^ _shift(x, 15)) * SECOND
    return x >= threshold(p)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; that of int32 tensors copies the sign."""
    return (x >> bits) & (2 ** (32 - bits) - 1)
