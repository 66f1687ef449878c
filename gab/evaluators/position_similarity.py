"""What position embeddings learned: how alike those of two patches are, in every layer that is given one.

LaPE's figures show, for one patch, the cosine similarity of its embedding with that of all others, after the norm of
each layer (the released script takes the patch in row and column 6 of 14 x 14). A learned absolute position or a
sinusoid has the same map without a norm; it is seen once, before the first layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.errors import UserError
from gab.evaluators.erf import Target, choose_targets
from gab.models.gaussian import Grid


@dataclass(frozen=True)
class Similarity:
    """Of one layer.

    Attributes:
        layer: its number, from 1; the first where the position joins the patches once, before all layers.
        grid: patches (h, w).
        values: cosine similarity of every two patches, (h w, h w) float64.
    """

    layer: int
    grid: Grid
    values: np.ndarray

    def targets(self, target: Target = 1) -> list[Grid]:
        """Patches (row, column) by the rule of `choose_targets`; raises UserError for one outside."""
        return choose_targets(target, self.grid)

    def map(self, target: Grid) -> np.ndarray:
        """Similarity with one patch, (h, w)."""
        return self.values[target[0] * self.grid[1] + target[1]].reshape(self.grid)

    def by_distance(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances that two patches can have (patches, rounded), from 0, and the mean similarity at each."""
        nearest = np.rint(_distances(self.grid)).astype(int).ravel()
        counts = np.bincount(nearest)
        there = counts > 0
        return np.flatnonzero(there), (np.bincount(nearest, self.values.ravel())[there] / counts[there])

    def summary(self) -> dict[str, float | None]:
        """`distance_correlation`: Pearson, over pairs of patches, of similarity with distance.

        `half_distance`: patches, where the mean similarity has come half the way from 1 to the mean of all pairs;
        None where it never does, and where neighbours are already less alike than that, as those of positions that
        learned nothing. `mean`: of all pairs.
        """
        pairs = np.triu_indices(len(self.values), 1)
        similarity, distance = self.values[pairs], _distances(self.grid)[pairs]
        flat = similarity.std() < 1e-9
        correlation = None if flat else float(np.corrcoef(similarity, distance)[0, 1])
        mean = float(similarity.mean())
        radii, curve = self.by_distance()
        below = np.flatnonzero(curve <= (1 + mean) / 2)
        half = None
        if not flat and len(below) and below[0] > 1:  # never 0: a patch is like itself
            after = below[0]
            share = (curve[after - 1] - (1 + mean) / 2) / (curve[after - 1] - curve[after])
            half = float(radii[after - 1] + share * (radii[after] - radii[after - 1]))
        return {"distance_correlation": correlation, "half_distance": half, "mean": mean}


@torch.no_grad()
def position_similarity(model: nn.Module) -> list[Similarity]:
    """Of every layer that the network gives a position to, in order.

    Raises:
        UserError: it has no absolute position, or one on no grid that is known.
    """
    found = [
        Similarity(layer, grid, _cosines(embedding[-grid[0] * grid[1] :]).cpu().numpy())  # prefix tokens come first
        for layer, grid, embedding in _embeddings(model)
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no absolute position embedding that is read here: choose a network with one, "
            "such as model.position=learnable"
        )
    return found


def _embeddings(model: Any) -> Iterator[tuple[int, Grid, Tensor]]:
    """Number, grid and embedding (N, C) of every layer that is given one."""
    stages = [one for one in model.modules() if hasattr(one, "placements") and getattr(one, "join", None) is not None]
    layer = 0
    for stage in stages:
        grid = tuple(stage.output_resolution) if hasattr(stage, "output_resolution") else stage.patch_embed.grid_size
        for number, placement in enumerate(stage.placements(), start=layer + 1):
            given = placement.stream if placement.attention is None else placement.attention
            if given is not None:
                yield number, grid, given[0].double()
        layer += len(stage.blocks)
    position = getattr(model, "pos_embed", None)
    if not stages and isinstance(position, Tensor):  # timm's
        yield 1, _grid_of(model, position), position.flatten(0, -2).double()


def _grid_of(model: Any, position: Tensor) -> Grid:
    """The patches that an embedding of timm lies on: maps (1, h, w, C), or rows (1, prefix + h w, C).

    Raises:
        UserError: it is neither, such as one with channels first or of a part of the image.
    """
    stated = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (0, 0)
    height, width = position.shape[1:3] if position.ndim == 4 else stated
    before = position.shape[:-1].numel() - height * width
    widths = {getattr(model, key, None) for key in ("embed_dim", "num_features")}
    if position.shape[-1] in widths and before in (0, getattr(model, "num_prefix_tokens", 0)):
        return height, width
    raise UserError(
        f"the position embedding of {type(model).__name__} is of shape {tuple(position.shape)}, in which there is no "
        "known grid of patches: choose a ViT"
    )


def _cosines(embedding: Tensor) -> Tensor:
    unit = F.normalize(embedding, dim=1)
    return (unit @ unit.T).clamp(-1, 1)


def _distances(grid: Grid) -> np.ndarray:
    """Between all patches, in patches: (h w, h w)."""
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    return np.hypot(rows[:, None] - rows, columns[:, None] - columns)


def summary_rows(found: list[Similarity]) -> list[dict[str, Any]]:
    """A row per layer."""
    return [{"layer": one.layer, "rows": one.grid[0], "columns": one.grid[1], **one.summary()} for one in found]


def map_rows(found: list[Similarity], target: Target = 1) -> list[dict[str, Any]]:
    """Every value of the maps of the chosen patches."""
    return [
        {"layer": one.layer, "patch_row": patch[0], "patch_column": patch[1], "row": row, "column": column}
        | {"similarity": float(value)}
        for one in found
        for patch in one.targets(target)
        for (row, column), value in np.ndenumerate(one.map(patch))
    ]
