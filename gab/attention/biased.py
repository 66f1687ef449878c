"""softmax(q kᵀ / √D + bias) v: written out, through PyTorch's fused attention, and through kernels of our own."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gab.attention.choice import choose
from gab.errors import UserError


class WeightDropout(Protocol):
    """Dropout of attention weights, a module (`gab.models.stochastic.AttentionDropout`)."""

    p: float
    training: bool

    def row_numbers(self, batch: int, heads: int, tokens: int, device: torch.device) -> Tensor:
        """Row numbers of `gab.attention.dropout`, int32 (B, H, N)."""

    def __call__(self, weights: Tensor) -> Tensor:
        """Weights (B, H, N, N) to what is left of them."""


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: WeightDropout | None) -> Tensor:
    """The definition, in plain PyTorch and any precision."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, N)
    if bias is not None:
        scores = scores + _per_sample(bias, q.shape[0])
    weights = scores.softmax(dim=-1)
    if dropout is not None:
        weights = dropout(weights)
    return weights @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: WeightDropout | None) -> Tensor:
    """PyTorch's fused attention. Without a bias it may take the flash kernel, with one it cannot.

    It draws dropout from a state of its own, so with dropout the definition takes its place.
    """
    if _drops(dropout):
        return reference(q, k, v, bias, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else _per_sample(bias, q.shape[0]))


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: WeightDropout | None) -> Tensor:
    """Triton kernels (`gab.attention.fused`), with the bias gradient reduced over the batch inside."""
    from gab.attention import fused as kernels  # Triton need not be there for the others

    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    rows, p = None, 0.0
    if dropout is not None and _drops(dropout):
        batch, heads, tokens, _ = q.shape
        rows, p = dropout.row_numbers(batch, heads, tokens, q.device), dropout.p
    if bias is not None:
        bias = kernels.padded(bias.expand(-1, -1, q.shape[-2], q.shape[-2]))
    return kernels.attention(q, k, v, bias, rows, p)[0]


BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference, "sdpa": sdpa, "fused": fused}


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    dropout: WeightDropout | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of every query to all keys, with `bias` added to the scaled scores.

    Args:
        q, k, v: (B, H, N, D).
        bias: (1 or W, 1 or H, 1 or N, 1 or N), in the dtype of `q`, with or without gradient. With W windows, B is
            images x W with the window index fastest, as in Swin.
        dropout: of the weights, the same in all backends. `reference` calls the module, so hooks on it see the weights
            (timm's AttentionExtract).
        backend: a key of `BACKENDS`, or `auto` (`gab.attention.choice`).

    Returns:
        (B, H, N, D).

    Raises:
        UserError: an unknown backend, `fused` where it is not possible, or other shapes.
    """
    _check_shapes(q, k, v, bias)
    return BACKENDS[choose(backend, q, bias, dropout)](q, k, v, bias, dropout)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> None:
    """Refuses what a kernel would read past its end."""
    batch, heads, tokens, _ = q.shape
    if k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise UserError(f"q, k and v have the shapes {shapes}: attention takes three of one shape (B, H, N, D)")
    if bias is None:
        return
    sides = zip(bias.shape[1:], (heads, tokens, tokens), strict=False)
    if bias.ndim != 4 or batch % bias.shape[0] or any(own not in (1, other) for own, other in sides):
        raise UserError(
            f"a bias of shape {tuple(bias.shape)} does not fit {batch} samples of {heads} heads and {tokens} tokens: "
            "give one of (1 or W, 1 or H, 1 or N, 1 or N), where W divides the samples"
        )


def _per_sample(bias: Tensor, batch: int) -> Tensor:
    """Repeats the biases of W windows for every image of a batch of images x W, window fastest."""
    if bias.shape[0] in (1, batch):
        return bias
    images = batch // bias.shape[0]
    return bias.expand(images, *bias.shape).reshape(batch, *bias.shape[1:])


def _drops(dropout: WeightDropout | None) -> bool:
    return dropout is not None and dropout.training and dropout.p > 0
