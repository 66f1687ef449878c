"""What may be added to the attention scores in place of a relative position bias: the base of all."""

from typing import Any

from torch import Tensor, nn

from gab.config import GaussianConfig
from gab.errors import UserError
from gab.models.gaussian import Grid

BIASES: dict[str, type["ScoreBias"]] = {}  # by the name that `model.rel_pos` chooses them by


class ScoreBias(nn.Module):
    """A bias that depends on where tokens are, and on no input.

    A subclass gives its name: `class X(ScoreBias, name="x")`.

    Args:
        grid: rows and columns of the patch tokens.
        num_heads: H.
        prefix_tokens: tokens without a place (class, distillation), in front of the patches.
    """

    prefix_limit: int | None = None  # most prefix tokens that it has a rule for; None: any number
    grid: Grid

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            BIASES[name] = cls

    def __init__(self, grid: Grid, num_heads: int, prefix_tokens: int = 0):
        super().__init__()
        self.num_heads = num_heads
        self.prefix_tokens = prefix_tokens

    def start_as_gaussian(self, config: GaussianConfig) -> None:
        """Makes the bias start as the Gaussian of `config`; called before it is started.

        Raises:
            UserError: it has no such start.
        """
        raise UserError("model.rel_pos_start=gaussian is for model.rel_pos=mlp, bias or table: choose one of them.")

    def forward(self) -> Tensor:
        """The bias, (1, 1 or H, N, N) with N = prefix tokens + patches; a row belongs to a query."""
        raise NotImplementedError

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid."""
        raise NotImplementedError
