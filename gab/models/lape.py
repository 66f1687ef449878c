"""LaPE: a LayerNorm of its own for the position embedding in each layer."""

from torch import Tensor, nn

from gab.models.joins import Join, Placement
from gab.models.position_norm import NORMS


class LaPE(Join, name="lape"):
    """Layer-adaptive position embedding, progressive: every layer normalises what the layer before it made.

    "LaPE: Layer-adaptive Position Embedding for Vision Transformers with Independent Layer Normalization" (ICCV 2023):

        w_l = LN_l(w_{l-1}),  x = x + attention(LN(x) + w_l)

    The embedding never enters the residual stream, and has no batch axis: the chain costs L N C per forward, not per
    image.

    Args:
        dim, depth, eps: as of every join.
        norm: what stands for LN_l, one of `NORMS`.
    """

    def __init__(self, dim: int, depth: int, eps: float, norm: str = "layer_norm"):
        super().__init__(dim, depth, eps)
        self.norms = nn.ModuleList(NORMS[norm](dim, eps) for _ in range(depth))

    def forward(self, position: Tensor) -> list[Placement]:
        placements = []
        for norm in self.norms:
            position = norm(position)
            placements.append(Placement(attention=position))
        return placements

    def truncate(self, depth: int) -> None:
        super().truncate(depth)
        self.norms = self.norms[:depth]


class LaPESharing(LaPE, name="lape_sharing"):
    """The first version ("Position Embedding Needs an Independent Layer Normalization", arXiv 2212.05262).

    Every layer normalises the same embedding: w_l = LN_l(w).
    """

    def forward(self, position: Tensor) -> list[Placement]:
        return [Placement(attention=norm(position)) for norm in self.norms]
