"""What a layer does to the position before it adds it: LaPE's LayerNorm, and what its paper puts in its place.

Table 8 of "LaPE" (ICCV 2023) takes the LayerNorm apart, to show which part does the work: g is a gain, one for all
channels or (.) one for each, b a shift of each channel, Norm a LayerNorm without either. By `model.join_norm`:

    identity            w                 gain                g w
    channel_gain        g(.) w            affine              g(.) w + b
    norm                Norm(w)           norm_gain           g Norm(w)
    norm_channel_gain   g(.) Norm(w)      layer_norm          g(.) Norm(w) + b, LaPE itself
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """g w, or g w + b: a LayerNorm that does not normalise.

    Args:
        size: of g and b: the width C, or 1 for all channels together.
        bias: whether there is a b.
    """

    def __init__(self, size: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
        """g starts at one, b at zero."""
        return torch.full(parameter.shape, float(name == "weight"))

    def forward(self, position: Tensor) -> Tensor:
        """A position (1, N, C) to one of the same shape."""
        position = self.weight * position
        return position if self.bias is None else position + self.bias


NORMS: dict[str, Callable[[int, float], nn.Module]] = {  # from width and eps, by the name of `model.join_norm`
    "layer_norm": lambda dim, eps: nn.LayerNorm(dim, eps),
    "identity": lambda dim, eps: nn.Identity(),
    "gain": lambda dim, eps: Affine(1, bias=False),
    "channel_gain": lambda dim, eps: Affine(dim, bias=False),
    "affine": lambda dim, eps: Affine(dim, bias=True),
    "norm": lambda dim, eps: nn.LayerNorm(dim, eps, elementwise_affine=False),
    "norm_gain": lambda dim, eps: nn.Sequential(NORMS["norm"](dim, eps), Affine(1, bias=False)),
    "norm_channel_gain": lambda dim, eps: nn.LayerNorm(dim, eps, bias=False),
}
