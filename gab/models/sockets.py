"""What goes into the sockets of a transformer, and what does not go together.

Positions join the tokens (`JOINS`), biases are added to the attention scores (`BIASES` and the Gaussian), and a part of
its own makes queries, keys and values (`qkv`). Joins and biases are known by the name that their class gives.
"""

from typing import Any

from torch import nn

from gab.errors import UserError
from gab.models.bias import BIASES
from gab.models.gaussian import Gaussian, Grid
from gab.models.joins import JOINS, Join
from gab.models.life import AUX_KEYS, LIFE
from gab.models.position import POSITIONS
from gab.models.qkv import PlainQKV

STARTS = ("default", "gaussian")  # of a relative bias


def check_position(kind: str, join: str) -> None:
    """Raises UserError for an unknown position or join, or two that do not go together."""
    for key, value, known in (("position", kind, POSITIONS), ("join", join, tuple(JOINS))):
        if value not in known:
            raise UserError(f"model.{key} is {value!r}; choose one of {', '.join(known)}.")
    if kind == "none" and join != "add":
        raise UserError(
            f"model.join={join} needs a position embedding: set model.position=learnable or model.join=add."
        )
    if kind != "learnable" and JOINS[join].per_layer:
        raise UserError(
            f"model.join={join} learns an embedding for every layer, which {kind} does not: set "
            "model.position=learnable or model.join=shared."
        )


def check_biases(cfg: Any, prefix_tokens: int) -> None:
    """Raises UserError for an unknown bias, or one that has no row for the prefix tokens of `cfg`."""
    if cfg.rel_pos_start not in STARTS:
        raise UserError(f"model.rel_pos_start is {cfg.rel_pos_start!r}; choose one of {', '.join(STARTS)}.")
    if cfg.rel_pos == "none":
        if cfg.rel_pos_start != "default":
            raise UserError(
                f"model.rel_pos_start={cfg.rel_pos_start} needs a relative bias: set model.rel_pos=mlp or another one."
            )
        return
    if cfg.rel_pos not in BIASES:
        raise UserError(f"model.rel_pos is {cfg.rel_pos!r}; choose one of none, {', '.join(BIASES)}.")
    limit = BIASES[cfg.rel_pos].prefix_limit
    if limit is not None and prefix_tokens > limit:
        raise UserError(
            f"model.rel_pos={cfg.rel_pos} has rows for a class token but none for a distillation token: set "
            "model.rel_pos=mlp or model.rel_pos=table."
        )


def check_life(cfg: Any) -> None:
    """Raises UserError for an unknown key of auxiliary tokens, or LIFE's norm without LIFE."""
    if cfg.aux_key not in AUX_KEYS:
        raise UserError(f"model.aux_key is {cfg.aux_key!r}; choose one of {', '.join(AUX_KEYS)}.")
    if cfg.qkv_norm and not cfg.life:
        raise UserError("model.qkv_norm is a part of LIFE: set model.life=true or model.qkv_norm=false.")


def position_join(kind: str, join: str, dim: int, depth: int, eps: float) -> Join | None:
    """The join of one stack of layers; None where there is no position."""
    return None if kind == "none" else JOINS[join](dim, depth, eps)


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
