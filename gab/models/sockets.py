"""What goes into the sockets of a transformer, and what does not go together.

Positions join the tokens (`JOINS`), biases are added to the attention scores (`BIASES` and the Gaussian), and a part of
its own makes queries, keys and values (`qkv`). Joins and biases are known by the name that their class gives.
"""

from typing import Any

from torch import nn

from gab.errors import UserError, check_choice
from gab.models.bias import BIASES
from gab.models.gaussian import Gaussian, Grid
from gab.models.joins import JOINS, Join
from gab.models.lape import LaPE
from gab.models.life import AUX_KEYS, LIFE
from gab.models.position import POSITIONS
from gab.models.position_norm import NORMS
from gab.models.qkv import PlainQKV

STARTS = ("default", "gaussian")  # of a relative bias


def check_position(cfg: Any) -> None:
    """Raises UserError for an unknown position, join or norm of a join, or for those that do not go together."""
    kind, join, norm = cfg.position, cfg.join, cfg.join_norm
    for key, value, known in (("position", kind, POSITIONS), ("join", join, JOINS), ("join_norm", norm, NORMS)):
        check_choice(f"model.{key}", value, known)
    if kind == "none" and join != "add":
        raise UserError(
            f"model.join={join} needs a position embedding: set model.position=learnable or model.join=add."
        )
    if kind != "learnable" and JOINS[join].per_layer:
        raise UserError(
            f"model.join={join} learns an embedding for every layer, which {kind} does not: set "
            "model.position=learnable or model.join=shared."
        )
    if norm != "layer_norm" and not issubclass(JOINS[join], LaPE):
        raise UserError(
            f"model.join_norm={norm} stands for LaPE's LayerNorm, which model.join={join} does not have: set "
            "model.join=lape, or leave model.join_norm at layer_norm."
        )


def check_biases(cfg: Any, prefix_tokens: int) -> None:
    """Raises UserError for an unknown bias, or one that has no row for the prefix tokens of `cfg`."""
    check_choice("model.rel_pos", cfg.rel_pos, ("none", *BIASES))
    check_choice("model.rel_pos_start", cfg.rel_pos_start, STARTS)
    if cfg.rel_pos == "none":
        if cfg.rel_pos_start != "default":
            raise UserError(
                f"model.rel_pos_start={cfg.rel_pos_start} needs a relative bias: set model.rel_pos=mlp or another one."
            )
        return
    limit = BIASES[cfg.rel_pos].prefix_limit
    if limit is not None and prefix_tokens > limit:
        raise UserError(
            f"model.rel_pos={cfg.rel_pos} has rows for a class token but none for a distillation token: set "
            "model.rel_pos=mlp or model.rel_pos=table."
        )


def check_life(cfg: Any) -> None:
    """Raises UserError for an unknown key of auxiliary tokens, or LIFE's norm without LIFE."""
    check_choice("model.aux_key", cfg.aux_key, AUX_KEYS)
    if cfg.qkv_norm and not cfg.life:
        raise UserError("model.qkv_norm is a part of LIFE: set model.life=true or model.qkv_norm=false.")


def position_join(cfg: Any, dim: int, depth: int, eps: float) -> Join | None:
    """The join of one stack of layers; None where there is no position."""
    join = JOINS[cfg.join]
    if cfg.position == "none":
        return None
    return join(dim, depth, eps, cfg.join_norm) if issubclass(join, LaPE) else join(dim, depth, eps)


def score_biases(cfg: Any, grid: Grid, num_heads: int, prefix_tokens: int) -> dict[str, nn.Module]:
    """The parts of one layer's bias socket, by name."""
    biases: dict[str, nn.Module] = {}
    if cfg.rel_pos != "none":
        biases["rel_pos"] = rel_pos = BIASES[cfg.rel_pos](grid, num_heads, prefix_tokens)
        if cfg.rel_pos_start == "gaussian":
            rel_pos.start_as_gaussian(cfg.gaussian)
    if cfg.gab:
        biases["gaussian"] = Gaussian(cfg.gaussian, grid, num_heads, prefix_tokens)
    return biases


def qkv(cfg: Any, dim: int, grid: Grid, prefix_tokens: int, bias: bool) -> nn.Module:
    """What makes queries, keys and values of one layer."""
    if cfg.life:
        return LIFE(dim, grid, prefix_tokens, cfg.qkv_norm, cfg.aux_key)
    return PlainQKV(dim, bias)
