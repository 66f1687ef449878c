"""Our networks as networks of timm itself, to be loaded without this package.

timm has no Gaussian, but relative position tables: where the sum of a layer's biases depends on the offset of two
patches alone, a table holds it exactly.
"""

import copy
from typing import Any, NoReturn

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.block import Attention
from gab.models.gaussian import Grid
from gab.models.swin import SwinTransformer, WindowAttention
from gab.models.vit import VisionTransformer

TOLERANCE = 1e-6  # of a bias, relative to the largest of its layer

Weights = dict[str, Tensor]


@torch.no_grad()
def to_timm(model: nn.Module) -> nn.Module:
    """The network of timm that gives the same outputs; `model` is left as it is.

    A ViT becomes timm's VisionTransformerRelPos; with an absolute position beside its biases Beit, and without biases
    VisionTransformer (DeiT). Swin stays Swin. A network that is timm's own is returned as it is.

    Raises:
        UserError: timm has no place for a part: LaPE, LIFE, a bias that depends on more than the offset.
    """
    if type(model).__module__.startswith("timm."):
        return model
    model = copy.deepcopy(model).eval()
    if type(model) is VisionTransformer:
        name, arguments, weights = _vit(model)
    elif type(model) is SwinTransformer:
        name, arguments, weights = _swin(model)
    else:
        _refuse(f"no {type(model).__name__} like this one")
    plain = timm.create_model(name, **arguments)
    own, given = ({key: value.shape for key, value in w.items()} for w in (plain.state_dict(), weights))
    if own != given:
        differing = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
        _refuse(f"no place for {', '.join(differing[:3])}")
    plain.load_state_dict(weights)
    return plain.eval()


def _refuse(what: str) -> NoReturn:
    raise UserError(
        f"timm has {what}, so this network needs this package: export it without --fold, or as ONNX (--onnx)."
    )


def _vit(model: VisionTransformer) -> tuple[str, dict[str, Any], Weights]:
    """Name, keywords and weights of timm's network."""
    cfg = model.cfg
    if cfg.join != "add":
        _refuse(f"no way to join positions like {cfg.join}")
    if cfg.life:
        _refuse("no LIFE in its attention")
    arguments = {
        "img_size": model.patch_embed.img_size,
        "patch_size": model.patch_embed.patch_size,
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": cfg.num_heads,
        "mlp_ratio": cfg.mlp_ratio,
        "qkv_bias": cfg.qkv_bias,
        "init_values": cfg.layer_scale or 0,  # create_model drops what is None
    }
    pooled_norm = cfg.pool == "avg"
    weights = _without_biases(model)
    tables = _vit_tables(model)
    if not tables:
        return _deit(model, arguments | {"fc_norm": pooled_norm}, weights)
    if model.pos_embed is None:
        arguments |= {"rel_pos_type": "bias", "class_token": cfg.class_token, "fc_norm": pooled_norm}
        return "vit_relpos_base_patch16_224", arguments, weights | _named(tables, "attn.rel_pos")
    if model.cls_token is None:
        _refuse("no network with biases beside an absolute position but without a class token")
    arguments |= {"use_abs_pos_emb": True, "use_rel_pos_bias": True, "use_fc_norm": pooled_norm}
    return "beit_base_patch16_224", arguments, _beit(weights) | _named(tables, "attn")


def _deit(model: VisionTransformer, arguments: dict[str, Any], weights: Weights) -> tuple[str, dict[str, Any], Weights]:
    """A ViT without biases."""
    if model.dist_token is not None:
        return "deit_base_distilled_patch16_224", arguments, weights
    arguments |= {
        "class_token": model.cls_token is not None,
        "pos_embed": "none" if model.pos_embed is None else "learn",
    }
    return "deit_base_patch16_224", arguments, weights


def _beit(weights: Weights) -> Weights:
    """Names as in Beit, which has no bias for keys: softmax ignores what is the same for all keys of a query."""
    renamed = {}
    for name, value in weights.items():
        if name.endswith("attn.qkv.bias"):
            renamed[name.replace("qkv.bias", "q_bias")], _, renamed[name.replace("qkv.bias", "v_bias")] = value.chunk(3)
        else:
            renamed[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    return renamed


def _swin(model: SwinTransformer) -> tuple[str, dict[str, Any], Weights]:
    """Name, keywords and weights of timm's network."""
    cfg = model.cfg
    arguments = {
        "img_size": model.patch_embed.img_size,
        "patch_size": cfg.patch_size,
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
        "global_pool": model.head.global_pool.pool_type,
        "embed_dim": cfg.embed_dim,
        "depths": tuple(cfg.depths),
        "num_heads": tuple(cfg.num_heads),
        "window_size": cfg.window_size,
        "mlp_ratio": cfg.mlp_ratio,
    }
    weights = {name: value for name, value in model.state_dict().items() if ".gaussian." not in name}
    for name, part in model.named_modules():
        if isinstance(part, WindowAttention):
            bias = part.get_bias(torch.float32)
            if bias is None:
                bias = torch.zeros(1, 1, part.window_area, part.window_area)
            weights[f"{name}.relative_position_bias_table"] = bias_table(bias, part.window_size, part.num_heads)
    return "swin_base_patch4_window7_224", arguments, weights


def _without_biases(model: VisionTransformer) -> Weights:
    """All weights but those of biases."""
    parts = [
        f"{name}.{bias}."
        for name, module in model.named_modules()
        if isinstance(module, Attention)
        for bias in module.bias_names
    ]
    return {name: value for name, value in model.state_dict().items() if not name.startswith(tuple(parts))}


def _vit_tables(model: VisionTransformer) -> list[Tensor]:
    """The sum of the biases of each layer as a table; none where there are no biases."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    biases = [bias for attn in attentions if (bias := attn.get_bias(torch.float32)) is not None]
    if biases and model.dist_token is not None:
        _refuse("no relative position bias with a distillation token")
    grid, heads = model.patch_embed.grid_size, model.cfg.num_heads
    return [bias_table(bias, grid, heads, model.num_prefix_tokens) for bias in biases]


def _named(tables: list[Tensor], where: str) -> Weights:
    return {f"blocks.{i}.{where}.relative_position_bias_table": table for i, table in enumerate(tables)}


def relative_position_index(grid: Grid) -> Tensor:
    """Index (dr + h - 1)(2w - 1) + dc + w - 1 of the offset query minus key, flat over (query, key): int64 (N * N,)."""
    height, width = grid
    row, column = (c.flatten() for c in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    rows = row[:, None] - row + height - 1
    columns = column[:, None] - column + width - 1
    return (rows * (2 * width - 1) + columns).flatten()


def prefix_position_index(index: Tensor, offsets: int) -> Tensor:
    """`relative_position_index` with one class token in front, which has three table rows of its own (BEiT's rule)."""
    tokens = int(index.numel() ** 0.5)
    index = F.pad(index.view(tokens, tokens), (1, 0, 1, 0))
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index.flatten()


def bias_table(bias: Tensor, grid: Grid, num_heads: int, prefix_tokens: int = 0) -> Tensor:
    """The table that, spread over all pairs of tokens, is a bias.

    Args:
        bias: (1, 1 or H, N, N).
        grid: rows h and columns w of the patches, or of a window.
        num_heads: H.
        prefix_tokens: 0, or 1 for a class token, which has three rows of its own (BEiT's rule).

    Returns:
        ((2h - 1)(2w - 1) + 3 prefix tokens, H).

    Raises:
        UserError: the bias does not depend on the offset alone.
    """
    index, rows = relative_position_index(grid), (2 * grid[0] - 1) * (2 * grid[1] - 1)
    if prefix_tokens:
        index = prefix_position_index(index, rows)
    index = index.to(bias.device)
    pairs = bias.expand(-1, num_heads, -1, -1)[0].flatten(1).T  # (N N, H)
    table = pairs.new_zeros(rows + 3 * prefix_tokens, num_heads).index_copy_(0, index, pairs)
    if (table[index] - pairs).abs().max() > TOLERANCE * pairs.abs().max():
        _refuse(
            "tables by offset, and here the bias of two tokens depends on more (model.gaussian.class_bias=row_mean and "
            "model.rel_pos=table_norm make it so)"
        )
    return table
