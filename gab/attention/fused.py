"""Biased attention in three Triton kernels, whose bias gradient needs no (B, H, N, N) memory and no atomics.

For every sample b and head h, with bias B of its window and the head:

    S = q kᵀ / √D + B        scores
    L = log Σ_j exp S_ij     of every row
    P = exp(S - L)           weights
    O = P v                  output

and for a gradient dO of the output, with delta_i = Σ_d dO_id O_id = Σ_j P_ij dP_ij:

    dP = dO vᵀ,   dS = P (dP - delta)
    dV = Pᵀ dO,   dQ = dS k / √D,   dK = dSᵀ q / √D,   dB = Σ_samples dS

Matrices of N x N exist in tiles only. Dropout multiplies P by Z / (1 - p) where it meets v, and dP where it comes from
v, Z being 0 or 1 by a hash (`gab.attention.dropout`); delta stays what it is.

Tiling. `_forward`: a program per sample, head and block of queries goes over blocks of keys and keeps the largest score
so far, the sum of exponentials relative to it, and the output relative to it; when the largest grows, the two are
scaled down (Milakov and Gimelshein, 2018; Dao et al., "FlashAttention", NeurIPS 2022, Algorithm 1). It leaves O and L.
`_backward_keys`: a program per sample, head and block of keys goes over the queries, for dK and dV.
`_backward_queries`: a program per window, head, block of queries and split of the batch goes over the samples of its
split, and for each over all keys, for dQ. It meets the same tiles of dB in every sample, so it keeps their sum over the
samples in registers, in float32, and writes it once. That is BLOCK_M x N sums, so blocks get lower as N grows
(`query_tiles`), and the loop over the keys is written out, since registers have no index. delta is a by-product of
`_backward_queries`, which is why it goes first. In all, 2 + 7 matrix products per tile (4 for dK and dV, 3 for dQ): S
and dP are computed twice, since nobody else may add to dQ and dB. A kernel that adds up dQ by atomics, without a bias,
takes 2 + 5, and other bits in every run.

Memory traffic. Programs are numbered so that those that run together share what they read. In the kernels of a program
per sample, the sample is the fastest: one tile of the bias serves them all from the second-level cache. In
`_backward_queries` it is the block of queries, since all of them read the same keys and values. The bias has its rows
filled up with -inf to P columns, a multiple of 64 (`padded`): tiles are then read in whole vectors, and keys past the
end get the weight 0 without a mask. Rows past the end read the last row; L = inf takes their weights away. q, k, v and
dO may have any strides but that of D. O, dQ, dK and dV lie in memory as (B, N, H, D), so that joining the heads
afterwards copies nothing.

Order of reduction. Everything that is summed, is summed by one program in the order of its loop, but dB: that is
written per split, (splits, W, H, N, P) in float32, and `torch.sum` adds the splits, and the heads that share
a bias, in an order of its own that does not change. `_splits` is a function of the shapes. So gradients are the same
bits in every run on one kind of GPU. The workspace has one split where dB has tiles for 512 programs; below, it stays
under 80 MiB (26 MB for 12 heads of 196 tokens).

Exactness. It is attention itself, not an approximation of it. Products are accumulated in float32; exponentials, sums
and dB are float32; P and dS are rounded to the dtype of the inputs where they enter a product, as in every fused
attention. Exponentials are powers of 2, so scores and L are in units of log 2. float32 inputs are multiplied in full
precision, or in TF32 where PyTorch may use that.

D is filled up to a power of 2 with zeros, at least 16. Not here: the Gaussian computed in the kernel from A and σ.
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from gab.attention import dropout

COLUMNS = 64  # columns of the padded bias are a multiple; every block of keys divides it
PROGRAMS = 512  # wanted of `_backward_queries`; a GPU runs one to three hundred at a time

LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
FIRST: tl.constexpr = tl.constexpr(dropout.FIRST)
SECOND: tl.constexpr = tl.constexpr(dropout.SECOND + 2**32)


@triton.jit
def _tile(matrix, first, stride, tokens, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows first, first + 1, ... of a matrix (N, D), zeros outside."""
    row, depth = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    inside = row < tokens - first
    if D < BLOCK_D:
        inside = inside & (depth < D)
    return tl.load(matrix + first * stride + (row * stride + depth), mask=inside, other=0.0)


@triton.jit
def _store(matrix, values, first, stride, tokens, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """Writes rows first, first + 1, ... of a matrix (N, D)."""
    row, depth = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    inside = (row < tokens - first) & (depth < D)
    tl.store(matrix + first * stride + (row * stride + depth), values.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def _scores(x, y, scale, bias, inside, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr):
    """x yᵀ scale plus the bias behind the pointers `bias`, in units of log 2; -inf for keys that are not `inside`."""
    scores = tl.dot(x, tl.trans(y), input_precision=PRECISION) * (scale * LOG2E)
    if HAS_BIAS:
        return scores + tl.load(bias).to(tl.float32) * LOG2E
    return tl.where(inside, scores, -float("inf"))


@triton.jit
def _survivors(rows, keys, threshold):
    """`gab.attention.dropout.survivors` for row numbers and keys that broadcast."""
    x = rows.to(tl.uint32, bitcast=True) ^ keys.to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _forward(
    q, k, v, bias, rows, out, lse,
    scale, threshold, keep,
    q_sample, q_head, k_sample, k_head, v_sample, v_head, bias_window, bias_head,
    images, windows,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, bias_row: tl.constexpr,
    heads: tl.constexpr, tokens: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O and L of one block of queries."""
    program = tl.program_id(0)
    image, program = program % images, program // images
    blocks = tl.cdiv(tokens, BLOCK_M)
    block, program = program % blocks, program // blocks
    head, window = program % heads, program // heads
    sample = (image * windows + window).to(tl.int64)
    row = (sample * heads + head) * tokens  # the first of this sample and head
    k, v = k + sample * k_sample + head * k_head, v + sample * v_sample + head * v_head
    bias += window.to(tl.int64) * bias_window + head * bias_head

    first = block * BLOCK_M
    queries = first + tl.arange(0, BLOCK_M)
    q_tile = _tile(q + sample * q_sample + head * q_head, first, q_token, tokens, D, BLOCK_D, BLOCK_M)
    bias_rows = bias + tl.minimum(queries, tokens - 1)[:, None] * bias_row
    if HAS_DROPOUT:
        row_numbers = tl.load(rows + row + queries, mask=queries < tokens, other=0)

    largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    output = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_tile = _tile(k, start, k_token, tokens, D, BLOCK_D, BLOCK_N)
        scores = _scores(q_tile, k_tile, scale, bias_rows + keys[None, :], keys[None, :] < tokens, HAS_BIAS, PRECISION)
        larger = tl.maximum(largest, tl.max(scores, 1))
        reference = tl.where(larger == -float("inf"), 0.0, larger)  # a row may begin with keys that are all excluded
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(largest - reference)
        total = total * shrink + tl.sum(weights, 1)
        if HAS_DROPOUT:
            weights = tl.where(_survivors(row_numbers[:, None], keys[None, :], threshold), weights * keep, 0.0)
        v_tile = _tile(v, start, v_token, tokens, D, BLOCK_D, BLOCK_N)
        output = output * shrink[:, None] + tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        largest = larger

    joined = out + sample * tokens * heads * D + head * D  # where its (N, D) begins in (B, N, H, D)
    _store(joined, output / total[:, None], first, heads * D, tokens, D, BLOCK_D, BLOCK_M)
    tl.store(lse + row + queries, largest + tl.log2(total), mask=queries < tokens)


@triton.jit
def _backward_queries(
    q, k, v, bias, rows, out, lse, d_out, d_q, d_bias, delta,
    scale, threshold, keep,
    q_sample, q_head, k_sample, k_head, v_sample, v_head, bias_window, bias_head,
    d_sample, d_head, images, windows, splits, columns,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, bias_row: tl.constexpr, d_token: tl.constexpr,
    heads: tl.constexpr, tokens: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS_N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ and delta of one block of queries in all samples of one split, and the sum of their dS."""
    program = tl.program_id(0)
    blocks = tl.cdiv(tokens, BLOCK_M)
    block, program = program % blocks, program // blocks
    split, program = program % splits, program // splits
    head, window = program % heads, program // heads
    bias += window.to(tl.int64) * bias_window + head * bias_head
    first = block * BLOCK_M
    queries = first + tl.arange(0, BLOCK_M)
    inside = queries < tokens
    bias_rows = bias + tl.minimum(queries, tokens - 1)[:, None] * bias_row

    sums = ()  # of dS, a tile per block of keys
    if BIAS_GRADIENT:
        for _ in tl.static_range(BLOCKS_N):
            sums = sums + (tl.zeros([BLOCK_M, BLOCK_N], tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for image in range(split * images // splits, (split + 1) * images // splits):
        sample = (image * windows + window).to(tl.int64)
        row = (sample * heads + head) * tokens
        joined = sample * tokens * heads * D + head * D  # where its (N, D) begins in (B, N, H, D)
        q_tile = _tile(q + sample * q_sample + head * q_head, first, q_token, tokens, D, BLOCK_D, BLOCK_M)
        d_out_tile = _tile(d_out + sample * d_sample + head * d_head, first, d_token, tokens, D, BLOCK_D, BLOCK_M)
        out_tile = _tile(out + joined, first, heads * D, tokens, D, BLOCK_D, BLOCK_M)
        delta_tile = tl.sum(out_tile.to(tl.float32) * d_out_tile.to(tl.float32), 1)
        tl.store(delta + row + queries, delta_tile, mask=inside)
        lse_tile = tl.load(lse + row + queries, mask=inside, other=float("inf"))
        if HAS_DROPOUT:
            row_numbers = tl.load(rows + row + queries, mask=inside, other=0)
        d_q_tile = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        grown = ()
        for j in tl.static_range(BLOCKS_N):
            keys = j * BLOCK_N + tl.arange(0, BLOCK_N)
            k_tile = _tile(k + sample * k_sample + head * k_head, j * BLOCK_N, k_token, tokens, D, BLOCK_D, BLOCK_N)
            v_tile = _tile(v + sample * v_sample + head * v_head, j * BLOCK_N, v_token, tokens, D, BLOCK_D, BLOCK_N)
            pointers = bias_rows + keys[None, :]
            scores = _scores(q_tile, k_tile, scale, pointers, keys[None, :] < tokens, HAS_BIAS, PRECISION)
            weights = tl.exp2(scores - lse_tile[:, None])
            d_weights = tl.dot(d_out_tile, tl.trans(v_tile), input_precision=PRECISION)
            if HAS_DROPOUT:
                kept = _survivors(row_numbers[:, None], keys[None, :], threshold)
                d_weights = tl.where(kept, d_weights * keep, 0.0)
            d_scores = weights * (d_weights - delta_tile[:, None])
            if BIAS_GRADIENT:
                grown = grown + (sums[j] + d_scores,)  # type: ignore[assignment]  # noqa: RUF005
            d_q_tile += tl.dot(d_scores.to(k_tile.dtype), k_tile, input_precision=PRECISION)
        sums = grown
        _store(d_q + joined, d_q_tile * scale, first, heads * D, tokens, D, BLOCK_D, BLOCK_M)
    if BIAS_GRADIENT:
        tile = ((split * windows + window).to(tl.int64) * heads + head) * tokens * columns
        d_bias_rows = d_bias + tile + queries[:, None] * columns
        for j in tl.static_range(BLOCKS_N):
            tl.store(d_bias_rows + (j * BLOCK_N + tl.arange(0, BLOCK_N))[None, :], sums[j], mask=inside[:, None])


@triton.jit
def _backward_keys(
    q, k, v, bias, rows, lse, delta, d_out, d_k, d_v,
    scale, threshold, keep,
    q_sample, q_head, k_sample, k_head, v_sample, v_head, bias_window, bias_head,
    d_sample, d_head, images, windows,
    q_token: tl.constexpr, k_token: tl.constexpr, v_token: tl.constexpr, bias_row: tl.constexpr, d_token: tl.constexpr,
    heads: tl.constexpr, tokens: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys. Tiles are transposed: a row belongs to a key, a column to a query."""
    program = tl.program_id(0)
    image, program = program % images, program // images
    blocks = tl.cdiv(tokens, BLOCK_N)
    block, program = program % blocks, program // blocks
    head, window = program % heads, program // heads
    sample = (image * windows + window).to(tl.int64)
    row = (sample * heads + head) * tokens
    q, d_out = q + sample * q_sample + head * q_head, d_out + sample * d_sample + head * d_head
    bias += window.to(tl.int64) * bias_window + head * bias_head

    first = block * BLOCK_N
    keys = first + tl.arange(0, BLOCK_N)
    k_tile = _tile(k + sample * k_sample + head * k_head, first, k_token, tokens, D, BLOCK_D, BLOCK_N)
    v_tile = _tile(v + sample * v_sample + head * v_head, first, v_token, tokens, D, BLOCK_D, BLOCK_N)
    bias_columns = bias + keys[:, None]
    d_k_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    d_v_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, tokens, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        inside = queries < tokens
        q_tile = _tile(q, start, q_token, tokens, D, BLOCK_D, BLOCK_M)
        d_out_tile = _tile(d_out, start, d_token, tokens, D, BLOCK_D, BLOCK_M)
        lse_tile = tl.load(lse + row + queries, mask=inside, other=float("inf"))
        delta_tile = tl.load(delta + row + queries, mask=inside, other=0.0)
        pointers = bias_columns + tl.minimum(queries, tokens - 1)[None, :] * bias_row
        scores = _scores(k_tile, q_tile, scale, pointers, keys[:, None] < tokens, HAS_BIAS, PRECISION)
        weights = tl.exp2(scores - lse_tile[None, :])
        d_weights = tl.dot(v_tile, tl.trans(d_out_tile), input_precision=PRECISION)
        dropped = weights
        if HAS_DROPOUT:
            row_numbers = tl.load(rows + row + queries, mask=inside, other=0)
            kept = _survivors(row_numbers[None, :], keys[:, None], threshold)
            dropped = tl.where(kept, weights * keep, 0.0)
            d_weights = tl.where(kept, d_weights * keep, 0.0)
        d_v_tile += tl.dot(dropped.to(d_out_tile.dtype), d_out_tile, input_precision=PRECISION)
        d_scores = weights * (d_weights - delta_tile[None, :])
        d_k_tile += tl.dot(d_scores.to(q_tile.dtype), q_tile, input_precision=PRECISION)

    joined = sample * tokens * heads * D + head * D
    _store(d_k + joined, d_k_tile * scale, first, heads * D, tokens, D, BLOCK_D, BLOCK_N)
    _store(d_v + joined, d_v_tile, first, heads * D, tokens, D, BLOCK_D, BLOCK_N)


class Tiles(NamedTuple):
    """Queries and keys of a block, warps of a program, and loads that are under way at once."""

    queries: int
    keys: int
    warps: int
    stages: int


def forward_tiles(single: bool) -> Tiles:
    """Tile sizes of `_forward`; `single`: float32 inputs."""
    if single:
        return Tiles(32, 32, 4, 1)
    return Tiles(64, 32, 4, 2)


def key_tiles(depth: int, single: bool) -> Tiles:
    """Tile sizes of `_backward_keys`; `depth` is the padded D."""
    if single:
        return Tiles(32, 32, 4, 1)
    return Tiles(32, 64, 4 if depth <= 64 else 8, 2)


def query_tiles(tokens: int, depth: int, single: bool, hopper: bool) -> Tiles:
    """Tile sizes of `_backward_queries`: the largest whose sums stay in registers (as test_compiles.py verifies).

    `hopper`: compute capability 9, whose matrix products take 64 queries of 4 warps.
    """
    if single:
        return Tiles(32 if tokens <= 224 else 16, 32, 4, 1)
    if depth > 64 or tokens > 640:
        return Tiles(16, 64, 8, 1)
    return Tiles(64, 32, 4, 1) if hopper and tokens <= 224 else Tiles(32, 64, 8, 1)


def filled_depth(depth: int) -> int:
    """D, filled up to what a matrix product takes."""
    return max(16, triton.next_power_of_2(depth))


def _splits(images: int, programs: int) -> int:
    """Parts of the batch whose sums of dS are kept apart, for `programs` per part."""
    return min(images, triton.cdiv(PROGRAMS, programs))


def padded(bias: Tensor) -> Tensor:
    """A bias (..., N, N), its rows filled up with -inf to P columns."""
    return F.pad(bias, (0, -bias.shape[-1] % COLUMNS), value=-math.inf)


class _Problem:
    """What the kernels are told about the tensors, and how they are started."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Tensor | None, p: float):
        batch, self.heads, self.tokens, depth = q.shape
        self.windows = 1 if bias is None else bias.shape[0]
        self.images = batch // self.windows
        self.single = q.dtype == torch.float32
        self.block_d = filled_depth(depth)
        bias_strides = (0, 0) if bias is None else (bias.stride(0), bias.stride(1) if bias.shape[1] > 1 else 0)
        self.device = q.device
        self.hopper = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9
        self.inputs = (q, k, v, q if bias is None else bias, q if rows is None else rows)
        self.numbers = (depth**-0.5, dropout.threshold(p), 1 / (1 - p))
        self.strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *bias_strides)
        self.counts = (self.images, self.windows)
        self.constants = {
            "q_token": q.stride(2),
            "k_token": k.stride(2),
            "v_token": v.stride(2),
            "bias_row": 0 if bias is None else bias.stride(2),
            "heads": self.heads,
            "tokens": self.tokens,
            "D": depth,
            "BLOCK_D": self.block_d,
            "HAS_BIAS": bias is not None,
            "HAS_DROPOUT": rows is not None,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        }

    def start(self, kernel: Any, programs: int, tiles: Tiles, *arguments: Any, **constants: Any) -> None:
        """Runs a kernel on the device of the tensors."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            kernel[(programs,)](
                *arguments,
                BLOCK_M=tiles.queries,
                BLOCK_N=tiles.keys,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
                **self.constants,
                **constants,
            )


def _joined(q: Tensor) -> Tensor:
    batch, heads, tokens, depth = q.shape
    return q.new_empty(batch, tokens, heads, depth).transpose(1, 2)


def _readable(*tensors: Tensor | None) -> list[Any]:
    """The same, copied where D is not contiguous, or where 32 bits do not hold the places in a sample."""
    return [t if t is None or _reachable(t) else t.contiguous() for t in tensors]


def _reachable(t: Tensor) -> bool:
    _, heads, tokens, _ = t.shape
    return t.stride(-1) == 1 and heads * t.stride(1) + tokens * t.stride(2) < 2**31


@torch.library.custom_op("gab::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Tensor | None, p: float
) -> tuple[Tensor, Tensor]:
    """O and L. The bias is `padded`, rows are the `row_numbers` of dropout by probability p."""
    q, k, v, bias = _readable(q, k, v, bias)
    rows = None if rows is None else rows.contiguous()
    problem = _Problem(q, k, v, bias, rows, p)
    out, lse = _joined(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    tiles = forward_tiles(problem.single)
    programs = q.shape[0] * problem.heads * triton.cdiv(problem.tokens, tiles.queries)
    arguments = (*problem.inputs, out, lse, *problem.numbers, *problem.strides, *problem.counts)
    problem.start(_forward, programs, tiles, *arguments)
    return out, lse


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Tensor | None, p: float) -> Any:
    return _joined(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("gab::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    out: Tensor,
    lse: Tensor,
    p: float,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dQ, dK, dV and dB, which is empty unless `bias_gradient`."""
    q, k, v, bias, d_out = _readable(q, k, v, bias, d_out)
    rows = None if rows is None else rows.contiguous()
    out, lse = out.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()  # as they were written
    problem = _Problem(q, k, v, bias, rows, p)
    d_q, d_k, d_v, delta = _joined(q), _joined(q), _joined(q), torch.empty_like(lse)
    strides, heads, tokens = (*problem.strides, *d_out.stride()[:2]), problem.heads, problem.tokens

    tiles = query_tiles(tokens, problem.block_d, problem.single, problem.hopper)
    programs = problem.windows * heads * triton.cdiv(tokens, tiles.queries)
    splits = _splits(problem.images, programs) if bias_gradient else problem.images
    columns = 0 if bias is None else bias.shape[-1]
    shape = (splits, problem.windows, heads, tokens, columns) if bias_gradient else (0,)
    sums = q.new_empty(shape, dtype=torch.float32)
    blocks = triton.cdiv(tokens, tiles.keys)
    written = blocks * tiles.keys  # of the columns; the rest belongs to no block of keys
    problem.start(
        _backward_queries,
        programs * splits,
        tiles,
        *(*problem.inputs, out, lse, d_out, d_q, sums, delta),
        *(*problem.numbers, *strides, *problem.counts, splits, columns),
        d_token=d_out.stride(2),
        BLOCKS_N=blocks,
        BIAS_GRADIENT=bias_gradient,
    )
    tiles = key_tiles(problem.block_d, problem.single)
    problem.start(
        _backward_keys,
        q.shape[0] * heads * triton.cdiv(tokens, tiles.keys),
        tiles,
        *(*problem.inputs, lse, delta, d_out, d_k, d_v),
        *(*problem.numbers, *strides, *problem.counts),
        d_token=d_out.stride(2),
    )
    if bias is None or not bias_gradient:
        return d_q, d_k, d_v, sums
    shared = (0, 2) if bias.shape[1] == 1 else (0,)  # splits, and heads where they have one bias
    d_bias = sums.sum(shared, keepdim=True)[0].to(bias.dtype)
    d_bias[..., written:] = 0
    return d_q, d_k, d_v, d_bias


@attention_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    out: Tensor,
    lse: Tensor,
    p: float,
    bias_gradient: bool,
) -> Any:
    if bias is None or not bias_gradient:
        d_bias = q.new_empty(0, dtype=torch.float32)
    else:
        d_bias = bias.new_empty(bias.shape)
    return *(_joined(q) for _ in range(3)), d_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.p = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # L has none


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    bias_gradient = ctx.needs_input_grad[3]
    *gradients, d_bias = attention_backward(d_out, *ctx.saved_tensors, ctx.p, bias_gradient)
    return *gradients, d_bias if bias_gradient else None, None, None


attention.register_autograd(_differentiate, setup_context=_save)
