"""Published weights into our networks: what a checkpoint lacks or holds for another image size."""

from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import checkpoint_filter_fn as timm_swin_filter
from timm.models.swin_transformer_v2 import checkpoint_filter_fn as timm_swinv2_filter
from torch import Tensor, nn

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


def vit_filter(weights: Weights, model: VisionTransformer) -> Weights:
    """Weights of timm's network, or of ours, at any image size, as `model` takes them.

    A missing Gaussian keeps its start; sigmas, tables and positions are moved to the grid of `model` from that of the
    checkpoint's image size, which timm keeps in `model.pretrained_cfg`.
    """
    weights = dict(weights)
    height, width = model.pretrained_cfg["input_size"][1:]
    rows, columns = model.patch_embed.feat_ratio(as_scalar=False)  # type: ignore[misc]
    source, grid = (height // rows, width // columns), model.patch_embed.grid_size
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            weights |= _gaussian_weights(weights, name, part, source)
        table = f"{name}.relative_position_bias_table"
        if isinstance(part, RelPosTable) and table in weights and source != grid:
            shape = part.relative_position_bias_table.shape
            weights[table] = resize_rel_pos_bias_table(weights[table], grid, shape, old_window_size=source)
    if "pos_embed" in weights and source != grid:
        given = nn.Parameter(weights["pos_embed"], requires_grad=False)
        moved = resize_position(model.position_kind, given, source, grid, model.num_prefix_tokens)
        assert moved is not None
        weights["pos_embed"] = moved
    return weights


def swin_filter(weights: Weights, model: SwinTransformer) -> Weights:
    """Like `vit_filter` for Swin.

    The window of the checkpoint follows from the size of its tables (without them it is taken for that of `model`),
    the grid of its stages from the size of their positions, which is taken to be square.
    """
    tables = {name: value.shape[0] for name, value in weights.items() if name.endswith("relative_position_bias_table")}
    filtered = timm_swin_filter(weights, model)
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            offsets = tables.get(name.replace("gaussian", "relative_position_bias_table"))  # (2 side - 1)²
            side = (int(offsets**0.5) + 1) // 2 if offsets else 0
            filtered |= _gaussian_weights(filtered, name, part, (side, side) if side else part.grid)
        if isinstance(part, PositionedStage) and (position := filtered.get(f"{name}.pos_embed")) is not None:
            side = int(position.shape[1] ** 0.5)
            filtered[f"{name}.pos_embed"] = resample_position(position, (side, side), part.output_resolution, 0)
    return filtered


def swinv2_filter(weights: Weights, model: SwinTransformerV2) -> Weights:
    """Like `vit_filter` for Swin V2, where nothing but sigma depends on the window, which is taken to be the same."""
    filtered = timm_swinv2_filter(weights, model)
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            filtered |= _gaussian_weights(filtered, name, part, part.grid)
    return filtered
