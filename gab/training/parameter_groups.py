"""Which parameters decay, and which learn at a rate of their own."""

import inspect
from typing import Any

from timm.optim import param_groups_weight_decay
from torch import nn

from gab.config import OptimConfig
from gab.errors import UserError


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """timm's two groups (1-D parameters and what `no_weight_decay` names are exempt), and the Gaussians' A and sigma.

    Every group has a `name` for people and an `lr_scale` for the trainer.

    Raises:
        UserError: `optim.decay=released` for a network that is not this package's.
    """
    exempt = _exempt(model, optim.decay)
    gaussians = [p for n, p in model.named_parameters() if ".gaussian." in n and p.requires_grad]
    own = {id(p) for p in gaussians}
    groups: dict[str, dict[str, Any]] = {}
    for group in param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=exempt):
        parameters = [p for p in group["params"] if id(p) not in own]
        decay = group["weight_decay"]
        name = "decayed" if decay else "exempt"
        groups.setdefault(name, {"name": name, "params": [], "weight_decay": decay, "lr_scale": 1.0})
        groups[name]["params"] += parameters
    groups["gaussian"] = {
        "name": "gaussian",
        "params": gaussians,
        "weight_decay": 0.0,
        "lr_scale": optim.gaussian_lr_scale,
    }
    return [group for group in groups.values() if group["params"]]


def _exempt(model: nn.Module, decay: str) -> set[str]:
    """What the network itself names; with `released`, what the released code of its paper does."""
    named = getattr(model, "no_weight_decay", None)
    if decay == "ours":
        return set(named()) if callable(named) else set()
    if not callable(named) or "released" not in inspect.signature(named).parameters:
        raise UserError("optim.decay=released is for this project's networks: leave it at ours for one of timm.")
    return named(released=True)
