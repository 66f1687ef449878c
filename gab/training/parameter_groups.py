"""Which parameters decay, and which learn at a rate of their own."""

import inspect
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from gab.config import OptimConfig
from gab.errors import UserError
from gab.models.protocol import GAUSSIAN


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """timm's groups: by decay (vectors and what `no_weight_decay` names are exempt) and, with `optim.layer_decay`, by
    layer (the rate falls by that factor from the head to the stem). The Gaussians' A and sigma are groups of their own.

    Every group has a `name` for people and an `lr_scale` for the trainer. Frozen parameters are in none.

    Raises:
        UserError: `optim.decay=released` for a network that is not this package's.
    """
    own = {id(p) for n, p in model.named_parameters() if ".gaussian." in n}
    groups: dict[tuple[str, float], dict[str, Any]] = {}  # by the rate itself: printed ones may coincide
    for group in _by_timm(model, optim):
        layer_scale = group.get("lr_scale", 1.0)
        for parameter in group["params"]:
            gaussian = id(parameter) in own
            kind = "gaussian" if gaussian else "decayed" if group["weight_decay"] else "exempt"
            name = kind if layer_scale == 1 else f"{kind} x {layer_scale:.6g}"
            scale = layer_scale * optim.gaussian_lr_scale if gaussian else layer_scale
            decay = 0.0 if gaussian else group["weight_decay"]
            empty = {"name": name, "params": [], "weight_decay": decay, "lr_scale": scale}
            groups.setdefault((kind, layer_scale), empty)["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: group["name"].startswith("gaussian"))  # these last


def _by_timm(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    rules: dict[str, Any] = {
        "weight_decay": optim.weight_decay,
        "no_weight_decay_list": _exempt(model, optim.decay),
        "weight_decay_exclude_1d": optim.decay != "all",
    }
    if optim.layer_decay is None:
        return param_groups_weight_decay(model, **rules)
    return param_groups_layer_decay(model, **rules, layer_decay=optim.layer_decay)


def _exempt(model: nn.Module, decay: str) -> set[str]:
    """What the network itself names; with `released`, what the released code of its paper does; with `all`, A and sigma
    alone."""
    if decay == "all":
        return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] in GAUSSIAN}
    named = getattr(model, "no_weight_decay", None)
    if decay == "ours":
        return set(named()) if callable(named) else set()
    if not callable(named) or "released" not in inspect.signature(named).parameters:
        raise UserError("optim.decay=released is for this project's networks: leave it at ours for one of timm.")
    return named(released=True)
