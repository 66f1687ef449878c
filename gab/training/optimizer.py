"""The optimiser that a config names."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from gab.config import OptimConfig
from gab.training.parameter_groups import parameter_groups

SKIPPING = ("adamw",)  # those that leave a step out where the device finds that its gradient is not finite


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """timm's `adamw` (Loshchilov & Hutter, ICLR 2019; PyTorch's fused one), `lamb` (You et al., ICLR 2020) or `sgd`.

    SGD has classical momentum and decays by the gradient, as PyTorch's. LAMB does not clip by itself: that is
    `optim.clip_grad`, which DeiT-III's recipe sets to what Apex's FusedLAMB does unasked.
    """
    names: dict[str, tuple[str, dict[str, Any]]] = {
        "adamw": ("adamw", {"betas": tuple(optim.betas), "eps": optim.eps, "fused": True}),
        "lamb": ("lamb", {"betas": tuple(optim.betas), "eps": optim.eps, "max_grad_norm": None}),
        "sgd": ("momentum", {"momentum": optim.momentum}),  # timm's sgd has Nesterov's
    }
    name, options = names[optim.name]
    return create_optimizer_v2(parameter_groups(model, optim), name, lr=optim.lr, **options)
