"""The Gaussian attention bias (GAB)."""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.config import GaussianConfig
from gab.errors import UserError, check_choice
from gab.models.precision import no_autocast

Grid = tuple[int, int]

CLASS_BIASES = ("zero", "row_mean", "learned")

SIGMA_SQUARED_FLOOR = 1e-6  # keeps values and gradients finite; one near the smallest float gives NaN gradients


def squared_distances(grid: Grid) -> Tensor:
    """Squared distance in patches between all tokens of `grid` (rows, columns), row-major: int32 (N, N).

    Integers, because casting a network to bfloat16 would round them from 257 on.
    """
    row, column = (c.flatten() for c in torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"))
    return ((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2).to(torch.int32)


def bell(amplitude: Tensor | float, sigma: Tensor, sq_distance: Tensor) -> Tensor:
    """A² exp(-d² / 2σ²) for squared distances in patches, broadcast, in the type of `sigma`."""
    rate = -0.5 / (sigma * sigma).clamp_min(SIGMA_SQUARED_FLOOR)
    return amplitude * amplitude * torch.exp(rate * sq_distance.to(sigma.dtype))


def start_sigma(sigma: float | str, grid: Grid) -> float:
    """The start value of sigma in patches; `auto` is 5 on 14 x 14 and in proportion on other grids."""
    if sigma == "auto":
        return 5.0 * math.sqrt(grid[0] * grid[1]) / 14
    try:
        return float(sigma)
    except (TypeError, ValueError):
        raise UserError(f"model.gaussian.sigma is {sigma!r}; give a number of patches or `auto`.") from None


def _class_rule(rule: str, prefix_tokens: int) -> str:
    check_choice("model.gaussian.class_bias", rule, CLASS_BIASES)
    if rule != "zero" and not prefix_tokens:
        raise UserError(
            f"model.gaussian.class_bias={rule} needs a class token, and this network has none: leave it at zero."
        )
    return rule


class Gaussian(nn.Module):
    """Bias A² exp(-d² / 2σ²) between two patches at distance d (in patches), centred on the query.

    "Understanding Gaussian Attention Bias of Vision Transformers Using Effective Receptive Fields" (BMVC 2023), in
    closed form. One pair (A, σ) per layer, or per head. Only σ² enters, so its sign means nothing. Computed in float32
    at least, whatever autocast says.

    Prefix tokens (class, distillation) have no place. As queries they get zero, which softmax ignores. As keys of a
    patch they get what `config.class_bias` says (our options; the paper's networks have no such tokens):

        zero      no bias. Not neutral: A² >= 0 lifts every patch above the class key.
        row_mean  the mean of the patch's own row, so that the Gaussian favours neither class nor patches.
        learned   one scalar of the layer, which starts at zero.

    With `config.frozen` A and σ stay as they start.

    Raises:
        UserError: an unknown `class_bias`, or one without prefix tokens.
    """

    sq_distance: Tensor
    class_bias: nn.Parameter | None

    def __init__(self, config: GaussianConfig, grid: Grid, num_heads: int, prefix_tokens: int = 0):
        super().__init__()
        pairs = num_heads if config.per_head else 1
        self.grid = grid
        self.prefix_tokens = prefix_tokens
        self.class_rule = _class_rule(config.class_bias, prefix_tokens)
        self.start = (float(config.amplitude), start_sigma(config.sigma, self.grid))
        self.amplitude = nn.Parameter(torch.empty(pairs), requires_grad=not config.frozen)
        self.sigma = nn.Parameter(torch.empty(pairs), requires_grad=not config.frozen)
        self.class_bias = nn.Parameter(torch.empty(1)) if self.class_rule == "learned" else None
        self.register_buffer("sq_distance", squared_distances(self.grid), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.amplitude.fill_(self.start[0])
            self.sigma.fill_(self.start[1])
            if self.class_bias is not None:
                self.class_bias.zero_()

    def forward(self) -> Tensor:
        """The bias, (1, 1 or H, N, N) with N = prefix tokens + patches."""
        with no_autocast(self.sigma.device):
            dtype = torch.promote_types(self.sigma.dtype, torch.float32)
            amplitude, sigma = (p.to(dtype).view(-1, 1, 1) for p in (self.amplitude, self.sigma))
            bias = bell(amplitude, sigma, self.sq_distance)  # (1 or H, P, P)
            if self.prefix_tokens:
                bias = self._with_prefix(bias)
        return bias.unsqueeze(0)

    def _with_prefix(self, bias: Tensor) -> Tensor:
        """(1 or H, P, P) with columns of the prefix tokens by `class_bias`, and with their rows, which are zero."""
        shape = (*bias.shape[:2], self.prefix_tokens)
        if self.class_rule == "row_mean":
            columns = bias.mean(dim=-1, keepdim=True).expand(shape)
        elif self.class_bias is not None:
            columns = self.class_bias.to(bias).expand(shape)
        else:
            columns = bias.new_zeros(shape)
        return F.pad(torch.cat((columns, bias), dim=-1), (0, 0, self.prefix_tokens, 0))

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid: σ keeps its extent on the image, so it is multiplied by new / old side.

        For a grid of another shape the factor is the geometric mean of both axes'. A stays as it is.
        """
        if grid == self.grid:
            return
        with torch.no_grad():
            self.sigma.mul_(sigma_factor(self.grid, grid))
        self.grid = grid
        self.sq_distance = squared_distances(grid).to(self.sq_distance.device)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, pairs={self.sigma.numel()}, prefix_tokens={self.prefix_tokens}"


def sigma_factor(old: Grid, new: Grid) -> float:
    """What σ is multiplied by when the token grid changes from `old` to `new`."""
    return math.sqrt(new[0] * new[1] / (old[0] * old[1]))


def gaussians(model: nn.Module) -> dict[int, Gaussian]:
    """The Gaussians of a network by layer number, counted from 1 in the order of the network."""
    return dict(enumerate((m for m in model.modules() if isinstance(m, Gaussian)), start=1))


def gaussian_values(model: nn.Module) -> dict[str, list[Any]]:
    """|sigma| (patches) and A of every layer, in network order: a number, or one per head."""
    layers = list(gaussians(model).values())
    if not layers:
        return {}
    read = iter(torch.cat([torch.cat([g.sigma.abs(), g.amplitude]) for g in layers]).tolist())
    sigma: list[Any] = []
    amplitude: list[Any] = []
    for count in (len(g.sigma) for g in layers):
        for values in (sigma, amplitude):
            pair = list(itertools.islice(read, count))
            values.append(pair if count > 1 else pair[0])
    return {"sigma": sigma, "amplitude": amplitude}
