"""What the attention biases learned: relative bias, Gaussian and their sum as maps around a query; fits of Gaussians.

A bias (N, N) has a row for every query, which is a map over the keys. Softmax ignores what is the same for all keys of
a query, so only differences within a map have a meaning. The GAB paper fits a Gaussian to the relative bias of the
central query, mean over heads, with its minimum subtracted (Table 1). That takes one number of many for the floor; a
form with a free offset does not, and is the sounder one. Both are given.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from gab.errors import UserError
from gab.evaluators.erf import Target, choose_targets
from gab.evaluators.frozen import frozen
from gab.evaluators.gaussian_fit import GaussianFit, fit_gaussian
from gab.models.gaussian import Gaussian, Grid

PARTS = ("relative", "gaussian", "sum")
FORMS = ("paper", "offset")
FITTED = ["r_squared", "sigma_x", "sigma_y", "centre_x", "centre_y", "centre_distance", "inside", "height", "floor"]
FEWEST = 25  # points of a map that six parameters are fitted to


@dataclass(frozen=True)
class LayerBias:
    """The biases of one layer among its patches, or those of a window.

    Attributes:
        name: of the module that adds them.
        grid: patches (h, w), the window's in a Swin transformer.
        parts: some of PARTS: (H, h w, h w), or (1, ...) where all heads share it; a row belongs to a query. `sum` is
            there where there are two.
    """

    name: str
    grid: Grid
    parts: dict[str, np.ndarray]

    def query(self, query: Target = 1) -> Grid:
        """(row, column) of the query; 1: the one in the middle, by (side - 1) // 2.

        Raises:
            UserError: one outside of the grid, or several.
        """
        chosen = choose_targets(query, self.grid)
        if len(chosen) > 1:
            raise UserError(f"query={query} are {len(chosen)} patches: give (row, column) of one, or 1 for the middle")
        return chosen[0]

    def maps(self, part: str, query: Target = 1) -> np.ndarray:
        """The row of a query as a map for every head, (H or 1, h, w)."""
        row, column = self.query(query)
        return self.parts[part][:, row * self.grid[1] + column].reshape(-1, *self.grid)


def layer_biases(model: nn.Module) -> list[LayerBias]:
    """The biases of every layer that has any, in the order of the network, without rows and columns of prefix tokens.

    Raises:
        UserError: the network has none, or they are folded into a constant.
    """
    with frozen(model):  # a relative MLP has dropout
        found = [one for name, module in model.named_modules() if (one := _of_module(name, module)) is not None]
    if not found:
        raise UserError(
            f"{type(model).__name__} adds no bias to its attention that is read here: choose a network with a relative "
            "bias or a Gaussian"
        )
    return found


def _of_module(name: str, module: Any) -> LayerBias | None:
    if not hasattr(module, "qkv"):
        return None
    if getattr(module, "folded", None) is not None:
        raise UserError(f"the biases of {name} are folded into one constant: give the network as it was trained")
    gaussian = getattr(module, "gaussian", None)
    parts = {"relative": _relative(module), "gaussian": gaussian() if isinstance(gaussian, Gaussian) else None}
    given = {part: bias[0].float() for part, bias in parts.items() if bias is not None}  # (H or 1, N, N)
    if not given:
        return None
    grid = _grid(module)
    prefix = next(iter(given.values())).shape[-1] - grid[0] * grid[1]
    if len(given) == 2:
        given["sum"] = given["relative"] + given["gaussian"]
    arrays = {part: bias[:, prefix:, prefix:].detach().cpu().double().numpy() for part, bias in given.items()}
    return LayerBias(name, grid, arrays)


def _relative(module: Any) -> Tensor | None:
    """The relative bias (1, H, N, N) of an attention, ours or timm's; None where it has none."""
    part: Any = getattr(module, "rel_pos", None)
    if part is not None:
        return part.get_bias() if hasattr(part, "get_bias") else part()
    if getattr(module, "cpb_mlp", None) is not None:  # Swin V2
        table = module.cpb_mlp(module.relative_coords_table).view(-1, module.num_heads)
        return 16 * _spread(table, module.relative_position_index).sigmoid()
    table = getattr(module, "relative_position_bias_table", None)
    return None if table is None else _spread(table, module.relative_position_index)


def _spread(table: Tensor, index: Tensor) -> Tensor:
    """A table (rows, H) over all pairs of tokens, by the rows (N, N) that theirs are: (1, H, N, N)."""
    return table[index].permute(2, 0, 1).unsqueeze(0)


def _grid(module: Any) -> Grid:
    """Of the patches that the biases of an attention lie between."""
    for holder in (getattr(module, "rel_pos", None), getattr(module, "gaussian", None), module):
        for key in ("grid", "window_size"):
            if (grid := getattr(holder, key, None)) is not None:
                return int(grid[0]), int(grid[1])
    raise UserError(f"the biases of {type(module).__name__} lie on no grid that is known")


def fit_bias(found: np.ndarray, form: str = "paper") -> tuple[GaussianFit, float]:
    """A Gaussian for a map (h, w): the fit of the map with its minimum subtracted, and the sum that it was divided by.

    Args:
        form: `paper`: what is left falls to zero; `offset`: to a level that is fitted too.

    Raises:
        UserError: too few points, or a map that is the same everywhere or not finite.
    """
    if found.size < FEWEST:
        raise UserError(f"{found.size} points are too few for a fit")
    if not np.isfinite(found).all():
        raise UserError("the bias is not finite")
    if np.ptp(found) == 0:
        raise UserError("the bias is the same everywhere")
    left = found - found.min()
    return fit_gaussian(left, offset=form == "offset"), float(left.sum())


def fit_rows(biases: list[LayerBias], query: Target = 1) -> list[dict[str, Any]]:
    """Fits of the relative bias and of the sum, mean over heads, of every layer in both forms.

    σ, the middle and its distance from the query in patches; `inside`: whether it lies on the grid. `height` of the
    peak over the floor, and `floor` over the map's minimum, in logits. Where there is no fit, `note` says why.
    """
    found = []
    for number, layer in enumerate(biases, start=1):
        row, column = layer.query(query)
        for part in ("relative", "sum"):
            for form in FORMS if part in layer.parts else ():
                key = {"layer": number, "part": part, "form": form, "row": row, "column": column}
                found.append(key | _fitted(layer.maps(part, query).mean(0), form, (row, column)))
    return found


def _fitted(found: np.ndarray, form: str, query: Grid) -> dict[str, Any]:
    """The numbers of one fit, all None where there is none."""
    try:
        fit, total = fit_bias(found, form)
    except UserError as error:
        empty: dict[str, Any] = dict.fromkeys(FITTED)
        return empty | {"note": str(error)}
    height = fit.amplitude / (2 * np.pi * fit.sigma_x * fit.sigma_y) * total
    distance = float(np.hypot(fit.y - query[0], fit.x - query[1]))
    inside = -0.5 <= fit.y <= found.shape[0] - 0.5 and -0.5 <= fit.x <= found.shape[1] - 0.5
    level = fit.offset * total
    values = (fit.r_squared, fit.sigma_x, fit.sigma_y, fit.x, fit.y, distance, inside, height, level)
    return dict(zip(FITTED, values, strict=True)) | {"note": ""}


def map_rows(biases: list[LayerBias], query: Target = 1) -> list[dict[str, Any]]:
    """Every value of the maps of a query, as it is added to the scores: one row per layer, part, head and key."""
    found = []
    for number, layer in enumerate(biases, start=1):
        query_row, query_column = layer.query(query)
        for part in layer.parts:
            maps = layer.maps(part, query)
            for (head, row, column), value in np.ndenumerate(maps):
                name = head + 1 if len(maps) > 1 else "all"
                key = {
                    "layer": number,
                    "part": part,
                    "head": name,
                    "query_row": query_row,
                    "query_column": query_column,
                }
                found.append({**key, "row": row, "column": column, "value": float(value)})
    return found
