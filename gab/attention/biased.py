"""softmax(q kᵀ / √D + bias) v, written out and through PyTorch's fused attention."""

import torch.nn.functional as F
from torch import Tensor, nn


def _per_sample(bias: Tensor | None, batch: int) -> Tensor | None:
    """Repeats the biases of W windows for every image of a batch of images x W, window fastest."""
    if bias is None or bias.shape[0] in (1, batch):
        return bias
    images = batch // bias.shape[0]
    return bias.expand(images, *bias.shape).reshape(batch, *bias.shape[1:])


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: nn.Dropout | None) -> Tensor:
    """The definition, in plain PyTorch and any precision."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, N)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1)
    if dropout is not None:
        weights = dropout(weights)
    return weights @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: nn.Dropout | None) -> Tensor:
    """PyTorch's fused attention. Without a bias it may take the flash kernel, with one it cannot."""
    rate = dropout.p if dropout is not None and dropout.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)


BACKENDS = {"reference": reference, "sdpa": sdpa}


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    dropout: nn.Dropout | None = None,
    backend: str = "sdpa",
) -> Tensor:
    """Attention of every query to all keys, with `bias` added to the scaled scores.

    Args:
        q, k, v: (B, H, N, D).
        bias: broadcastable to (1 or W, H, N, N), in the dtype of `q`, with or without gradient. With W windows, B is
            images x W with the window index fastest, as in Swin.
        dropout: applied to the weights. `reference` calls the module, so hooks on it see the weights
            (timm's AttentionExtract); fused forms only read its rate.
        backend: a key of `BACKENDS`.

    Returns:
        (B, H, N, D).
    """
    return BACKENDS[backend](q, k, v, _per_sample(bias, q.shape[0]), dropout)
