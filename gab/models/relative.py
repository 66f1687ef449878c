"""Learned relative position biases: a small MLP of log offsets, or a table (timm's RelPosMlp and RelPosBias)."""

import torch
import torch.nn.functional as F
from timm.layers import Mlp, resize_rel_pos_bias_table
from torch import Tensor, nn

from gab.config import GaussianConfig
from gab.models.bias import ScoreBias
from gab.models.gaussian import Grid, bell, start_sigma
from gab.models.offsets import spread_offsets
from gab.models.stochastic import BiasDropout


def pad_prefix(bias: Tensor, prefix_tokens: int) -> Tensor:
    """Zero rows and columns for prefix tokens in front of (1, H, P, P)."""
    return F.pad(bias, (prefix_tokens, 0, prefix_tokens, 0)) if prefix_tokens else bias


def log_offsets(grid: Grid) -> Tensor:
    """sign(d) ln(1 + |d|) of all (row, column) offsets d on `grid`: (2h - 1, 2w - 1, 2)."""
    axes = (torch.arange(1 - n, n, dtype=torch.float32) for n in grid)
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return offsets.sign() * offsets.abs().log1p()


def gaussian_of_offsets(config: GaussianConfig, grid: Grid) -> Tensor:
    """The Gaussian of `config`, as it starts, at all offsets on `grid`: float32 (2h - 1, 2w - 1)."""
    row, column = torch.meshgrid(*(torch.arange(1 - n, n) for n in grid), indexing="ij")
    sigma = torch.tensor(start_sigma(config.sigma, grid))
    return bell(float(config.amplitude), sigma, row**2 + column**2)


def add_class_token(bias: Tensor, rows: Tensor) -> Tensor:
    """(1, H, P, P) with one class token in front, by three table rows (3, H): to patches, from them, itself (BEiT)."""
    to_patches, from_patches, itself = rows.view(3, 1, -1, 1, 1)
    patches = bias.shape[-1]
    bias = torch.cat((from_patches.expand(-1, -1, patches, -1), bias), dim=-1)
    first = torch.cat((itself, to_patches.expand(-1, -1, -1, patches)), dim=-1)
    return torch.cat((first, bias), dim=-2)


class RelPosMlp(ScoreBias, name="mlp"):
    """Relative position bias from an MLP on log offsets (Swin V2's idea in the form of timm's vit_relpos).

    Rows and columns of prefix tokens are zero.
    """

    log_offsets: Tensor
    gaussian_start: GaussianConfig | None = None

    def __init__(self, grid: Grid, num_heads: int, prefix_tokens: int = 0, hidden_dim: int = 128):
        super().__init__(grid, num_heads, prefix_tokens)
        self.mlp = Mlp(2, hidden_dim, num_heads, act_layer=nn.ReLU)
        self.mlp.drop1 = BiasDropout(0.125)  # type: ignore[assignment]  # typed nn.Dropout
        self._set_buffers(grid)

    def start_as_gaussian(self, config: GaussianConfig) -> None:
        """Starts as near to the Gaussian as fitting the MLP's last layer allows."""
        self.gaussian_start = config

    @torch.no_grad()
    def finish_start(self) -> None:
        """Solves the last layer for the Gaussian that the bias shall start as: least squares over all offsets.

        The hidden layer is as drawn, so the solution is a function of (seed, name); in float64 on the CPU. What is
        squared is the error expected under the MLP's own dropout, whose variance adds p / (1 - p) Σx² w² for a hidden
        unit x of weight w: without that the weights are so large that dropout drowns the bias.
        """
        if self.gaussian_start is None or self.mlp.fc1.weight.is_meta:
            return
        with torch.device("cpu"):
            wanted = gaussian_of_offsets(self.gaussian_start, self.grid).double().view(-1, 1)
            weight, bias = (p.cpu().double() for p in self.mlp.fc1.parameters())
            hidden = F.relu(F.linear(log_offsets(self.grid).double().flatten(0, 1), weight, bias))
            odds = self.mlp.drop1.p / (1 - self.mlp.drop1.p)
            noise = torch.diag((odds * hidden.square().sum(dim=0)).sqrt())
            rows = torch.cat((F.pad(hidden, (0, 1), value=1.0), F.pad(noise, (0, 1))))
            targets = torch.cat((wanted, wanted.new_zeros(len(noise), 1)))
            solution = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.flatten()
        last: nn.Linear = self.mlp.fc2  # type: ignore[assignment]
        last.weight.copy_(solution[:-1])  # the same for every head
        last.bias.copy_(solution[-1:])

    @torch.no_grad()
    def gaussian_error(self) -> float | None:
        """How far the bias is from the Gaussian that it was to start as: root mean square over offsets and heads."""
        if self.gaussian_start is None:
            return None
        hidden = self.mlp.act(self.mlp.fc1(self.log_offsets))
        wanted = gaussian_of_offsets(self.gaussian_start, self.grid).to(hidden).unsqueeze(-1)
        return (self.mlp.fc2(hidden) - wanted).square().mean().sqrt().item()

    def _set_buffers(self, grid: Grid) -> None:
        self.grid = grid
        self.register_buffer("log_offsets", log_offsets(self.grid).to(self.mlp.fc1.weight), persistent=False)

    def forward(self) -> Tensor:
        """The bias, (1, H, N, N)."""
        return pad_prefix(spread_offsets(self.mlp(self.log_offsets).flatten(0, 1), self.grid), self.prefix_tokens)

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid; the MLP, a function of offsets, is evaluated at the new ones."""
        self._set_buffers(grid)


class RelPosTable(ScoreBias, name="table"):
    """Relative position bias from a table with one row per offset (Swin), between patches alone.

    Rows and columns of prefix tokens are zero, and so is the start (LaPE's released `relative`), unless it starts as
    the Gaussian.
    """

    gaussian_start: GaussianConfig | None = None

    def __init__(self, grid: Grid, num_heads: int, prefix_tokens: int = 0):
        super().__init__(grid, num_heads, prefix_tokens)
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(self.rows(grid), num_heads))

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor | None:
        """The table: zero, or the Gaussian with zero rows for prefix tokens."""
        table = torch.zeros(parameter.shape)
        if self.gaussian_start is not None:
            values = gaussian_of_offsets(self.gaussian_start, self.grid).view(-1, 1)
            table[: len(values)] = values
        return table

    def start_as_gaussian(self, config: GaussianConfig) -> None:
        """Starts as exactly the Gaussian in every head."""
        self.gaussian_start = config

    def rows(self, grid: Grid) -> int:
        """Number of rows of the table, (2h − 1)(2w − 1): one per offset; the table is (rows, heads)."""
        return (2 * grid[0] - 1) * (2 * grid[1] - 1)

    def forward(self) -> Tensor:
        """The bias, (1, H, N, N)."""
        return pad_prefix(spread_offsets(self.relative_position_bias_table, self.grid), self.prefix_tokens)

    def resampled(self, name: str, value: Tensor, old: Grid, new: Grid) -> Tensor:
        """`value` of parameter `name` on the grid `old`, as it is on `new`: a table is interpolated by timm's rule."""
        return resize_rel_pos_bias_table(value, new, (self.rows(new), self.num_heads), old_window_size=old)

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid; every parameter is resampled."""
        old = self.grid
        if grid == old:
            return
        self.grid = grid
        for name, parameter in list(self.named_parameters()):
            value = self.resampled(name, parameter.detach(), old, grid)
            owner, _, own = name.rpartition(".")
            setattr(self.get_submodule(owner), own, nn.Parameter(value, requires_grad=parameter.requires_grad))


class NormedRelPosTable(RelPosTable, name="table_norm"):
    """A table whose bias goes through a LayerNorm over the keys of each query (LaPE's released `relative` with LN)."""

    def __init__(self, grid: Grid, num_heads: int, prefix_tokens: int = 0):
        super().__init__(grid, num_heads, prefix_tokens)
        self.norm = nn.LayerNorm(grid[0] * grid[1], eps=1e-5)

    def start_as_gaussian(self, config: GaussianConfig) -> None:
        """Refuses: the norm leaves no such start. Raises UserError."""
        ScoreBias.start_as_gaussian(self, config)

    def forward(self) -> Tensor:
        """The bias, (1, H, N, N)."""
        bias = spread_offsets(self.relative_position_bias_table, self.grid)
        return pad_prefix(self.norm(bias), self.prefix_tokens)

    def resampled(self, name: str, value: Tensor, old: Grid, new: Grid) -> Tensor:
        """As of the table; the norm's scale and shift are resampled as maps over the keys, bicubic."""
        if not name.startswith("norm."):
            return super().resampled(name, value, old, new)
        return F.interpolate(value.view(1, 1, *old), new, mode="bicubic").flatten()

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid; every parameter is resampled."""
        super().set_grid(grid)
        self.norm.normalized_shape = (grid[0] * grid[1],)


class RelPosBias(RelPosTable, name="bias"):
    """A table with three more rows for a class token (BEiT, timm), started from a truncated normal."""

    prefix_limit = 1

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor | None:
        """The table: None, which leaves it to the network's rule, unless it starts as the Gaussian."""
        return None if self.gaussian_start is None else super().start_value(name, parameter, generator)

    def rows(self, grid: Grid) -> int:
        """As many as offsets, and three for a class token."""
        return super().rows(grid) + 3 * self.prefix_tokens

    def forward(self) -> Tensor:
        """The bias, (1, H, N, N)."""
        table = self.relative_position_bias_table
        if not self.prefix_tokens:
            return spread_offsets(table, self.grid)
        return add_class_token(spread_offsets(table[:-3], self.grid), table[-3:])


def start_errors(model: nn.Module) -> list[float]:
    """How far each relative MLP of `model` is from the Gaussian that it was to start as; none if that was not asked."""
    errors = (part.gaussian_error() for part in model.modules() if isinstance(part, RelPosMlp))
    return [error for error in errors if error is not None]
