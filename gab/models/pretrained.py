"""Published weights into our networks: what a checkpoint lacks or holds for another image size."""

from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import checkpoint_filter_fn as timm_swin_filter
from torch import Tensor

from gab.models.gaussian import Gaussian, Grid, sigma_factor
from gab.models.position import resample_position
from gab.models.relative import RelPosTable
from gab.models.swin import SwinTransformer
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

    A missing Gaussian keeps its start; sigmas, tables and learnt positions are moved to the grid of `model` from that
    of the checkpoint's image size, which timm keeps in `model.pretrained_cfg`.
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
        weights["pos_embed"] = resample_position(weights["pos_embed"], source, grid, model.num_prefix_tokens)
    return weights


def swin_filter(weights: Weights, model: SwinTransformer) -> Weights:
    """Like `vit_filter` for Swin; the window of the checkpoint follows from the size of its tables."""
    tables = {name: value.shape[0] for name, value in weights.items() if name.endswith("relative_position_bias_table")}
    filtered = timm_swin_filter(weights, model)
    for name, part in model.named_modules():
        if isinstance(part, Gaussian):
            offsets = tables[name.replace("gaussian", "relative_position_bias_table")]  # (2 side - 1)²
            side = (int(offsets**0.5) + 1) // 2
            filtered |= _gaussian_weights(filtered, name, part, (side, side))
    return filtered
