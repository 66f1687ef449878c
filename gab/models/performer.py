"""The Performer on tokens: attention whose cost is linear in their number, in the reductions of ViTAE and T2T-ViT."""

import torch
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.precision import no_autocast

DROPOUT = 0.1  # in training always, whatever the network's own rates say: as in both released codes
EPS = 1e-8  # keeps the division finite


def random_features(u: Tensor, w: Tensor) -> Tensor:
    """Positive features exp(u wᵀ - |u|² / 2) / √m of queries or keys u (B, N, t), by m directions w (m, t): (B, N, m).

    Their products estimate exp(q · k) ("Rethinking Attention with Performers", ICLR 2021, lemma 1).
    """
    return (u @ w.T - u.square().sum(dim=-1, keepdim=True) / 2).exp() / w.shape[0] ** 0.5


def linear_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """φ(q) (φ(k)ᵀ v) / (φ(q) · Σ φ(k)), all (B, N, t), by random features φ.

    In float32 at least, whatever autocast says: the exponentials leave the range of half precision.
    """
    with no_autocast(q.device):
        dtype = torch.promote_types(q.dtype, torch.float32)
        queries, keys = (random_features(u.to(dtype), w.to(dtype)) for u in (q, k))  # (B, N, m)
        summed = keys.transpose(1, 2) @ v.to(dtype)  # (B, m, t)
        total = queries @ keys.sum(dim=1).unsqueeze(2)  # (B, N, 1)
        return (queries @ summed / (total + EPS)).to(v.dtype)


class Performer(nn.Module):
    """A transformer layer with linear attention of one head, which also changes the width of its tokens.

    "Tokens-to-Token ViT" (ICCV 2021), section 3.1. The skip comes from the values, as the tokens have another width:

        k, q, v = split(Linear(LN(x))),  a = v + dropout(Linear(attention(q, k, v))),  a + MLP(LN(a))

    The directions `w` are drawn once, orthogonal, and never trained; they belong to the weights.

    Args:
        dim: width C of the tokens that come in.
        token_dim: width t of those that go out, even.
    """

    def __init__(self, dim: int, token_dim: int):
        super().__init__()
        if token_dim % 2:
            raise UserError(
                f"A Performer has half as many features as channels: its width of {token_dim} must be even."
            )
        self.w = nn.Parameter(torch.zeros(token_dim // 2, token_dim), requires_grad=False)
        self.norm1 = nn.LayerNorm(dim)
        self.kqv = nn.Linear(dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = nn.Sequential(
            nn.Linear(token_dim, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim), nn.Dropout(DROPOUT)
        )

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
        """`w` starts with orthogonal rows of length √m."""
        value = torch.empty(parameter.shape)
        return nn.init.orthogonal_(value, gain=parameter.shape[0] ** 0.5, generator=generator)

    def forward(self, x: Tensor, local: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) to (B, N, t); `local` (B, N, t) is added before the MLP (ViTAE's convolution branch)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.dropout(self.proj(linear_attention(q, k, v, self.w)))
        if local is not None:
            x = x + local
        return x + self.mlp(self.norm2(x))
