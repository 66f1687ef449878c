"""Published weights into our networks: what a checkpoint lacks or holds for another image size."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from timm.models.swin_transformer import checkpoint_filter_fn as timm_swin_filter
from timm.models.swin_transformer_v2 import checkpoint_filter_fn as timm_swinv2_filter
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.gaussian import Gaussian, Grid, sigma_factor
from gab.models.position import resample_position, resize_position
from gab.models.relative import RelPosTable
from gab.models.swin import SwinTransformer
from gab.models.swin_position import PositionedStage
from gab.models.swinv2 import SwinTransformerV2
from gab.models.vit import VisionTransformer

Weights = dict[str, Tensor]


def _gaussian_weights(weights: Weights, name: str, gaussian: Gaussian, source: Grid) -> Weights:
    """The pair of one layer: from the checkpoint with sigma moved from the grid `source`, else as it starts."""
    own = {f"{name}.{key}": value for key, value in gaussian.state_dict().items()}
    given = {key: weights[key] for key in own if key in weights}
    if f"{name}.sigma" in given:
        given[f"{name}.sigma"] = given[f"{name}.sigma"] * sigma_factor(source, gaussian.grid)
    return own | given


def _offsets(window: Grid) -> int:
    """How many offsets two patches of a window can have: rows of Swin's table."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def _fitting(size: Callable[[Grid], int], given: int, likely: Iterable[Grid], name: str) -> Grid:
    """The grid that has `given` rows by `size`: the first such of `likely`, else a square one; UserError without."""
    squares = ((side, side) for side in range(1, given + 1))
    for grid in (*likely, *squares):
        if size(grid) == given:
            return grid
    raise UserError(
        f"{name} of the weights has {given} rows, which fit no square grid of tokens: give the size of the images they "
        "were trained with, pretrained_cfg_overlay=dict(input_size=(3, HEIGHT, WIDTH))"
    )


def _source(weights: Weights, model: VisionTransformer) -> Grid:
    """The token grid that `weights` belong to."""
    height, width = model.pretrained_cfg["input_size"][1:]
    rows, columns = model.patch_embed.feat_ratio(as_scalar=False)  # type: ignore[misc]
    stated, prefix = (height // rows, width // columns), model.num_prefix_tokens
    likely = (stated, model.patch_embed.grid_size)
    if (position := weights.get("pos_embed")) is not None:
        return _fitting(lambda grid: prefix + grid[0] * grid[1], position.shape[1], likely, "pos_embed")
    for name, part in model.named_modules():
        table = f"{name}.relative_position_bias_table"
        if isinstance(part, RelPosTable) and table in weights:
            return _fitting(part.rows, len(weights[table]), likely, table)
    return stated


def vit_filter(weights: Weights, model: VisionTransformer) -> Weights:
    """Weights of timm's network, or of ours, at any image size, as `model` takes them.

    A missing Gaussian keeps its start; sigmas, tables and positions are moved to the grid of `model` from that of the
    checkpoint. Positions or tables show which that is: the grid of the image size in `model.pretrained_cfg` or that of
    `model` where they fit it, else a square one. Where a checkpoint has neither, as with a relative MLP, it is taken
    from `model.pretrained_cfg`; of your own weights of another size say it:
    `pretrained_cfg_overlay=dict(file=..., input_size=(3, HEIGHT, WIDTH))`.

    Raises:
        UserError: positions or tables of no such grid.
    """
    weights = dict(weights)
    source, grid = _source(weights, model), model.patch_embed.grid_size
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            weights |= _gaussian_weights(weights, name, part, source)
        if isinstance(part, RelPosTable) and source != grid:
            given = {key: weights[f"{name}.{key}"] for key, _ in part.named_parameters() if f"{name}.{key}" in weights}
            weights |= {f"{name}.{key}": part.resampled(key, value, source, grid) for key, value in given.items()}
    if "pos_embed" in weights and source != grid:
        position = nn.Parameter(weights["pos_embed"], requires_grad=False)
        moved = resize_position(model.position_kind, position, source, grid, model.num_prefix_tokens)
        assert moved is not None
        weights["pos_embed"] = moved
    return weights


def swin_filter(weights: Weights, model: SwinTransformer) -> Weights:
    """Does what `vit_filter` does, for Swin.

    The windows of the checkpoint follow from the size of its tables (without them they are taken for those of `model`),
    the grids of its stages from the size of their positions: a square, unless it is that of `model`, or for positions
    of the image size in `model.pretrained_cfg`.

    Raises:
        UserError: positions of no such grid.
    """
    tables = {name: value.shape[0] for name, value in weights.items() if name.endswith("relative_position_bias_table")}
    filtered = timm_swin_filter(weights, model)
    cfg: Any = model.pretrained_cfg
    embed: Any = model.patch_embed
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            table = name.replace("gaussian", "relative_position_bias_table")
            source = _fitting(_offsets, tables[table], [part.grid], table) if table in tables else part.grid
            filtered |= _gaussian_weights(filtered, name, part, source)
        if isinstance(part, PositionedStage) and (position := filtered.get(f"{name}.pos_embed")) is not None:
            grid = rows, columns = part.output_resolution
            stated = (
                rows * cfg["input_size"][1] // embed.img_size[0],
                columns * cfg["input_size"][2] // embed.img_size[1],
            )
            source = _fitting(math.prod, position.shape[1], [stated, grid], f"{name}.pos_embed")
            if source != grid:
                filtered[f"{name}.pos_embed"] = resample_position(position, source, grid, 0)
    return filtered


def swinv2_filter(weights: Weights, model: SwinTransformerV2) -> Weights:
    """Does what `vit_filter` does, for Swin V2: only sigma depends on the window, which is taken to be the same."""
    filtered = timm_swinv2_filter(weights, model)
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            filtered |= _gaussian_weights(filtered, name, part, part.grid)
    return filtered
