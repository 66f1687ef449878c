"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """Weights W' <- W' + (1 - decay) (W - W') after every step, from those of the first step on.

    All floating-point entries of the state dict are averaged, BatchNorm's statistics too; others are copied. The
    numbers are those of timm's `ModelEmaV3`, which goes through all modules of both networks in every step; here the
    tensors are looked up once, and a step is one call for all of them.

    Args:
        model: whose weights are averaged; `follow` is to be called when it gets other tensors.
        decay: what is left of the average after a step, in [0, 1].
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        self.module = copy.deepcopy(model).eval()
        self.decay = decay
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Average the tensors that `model` and its average have now."""
        pairs = list(zip(*(_tensors(network) for network in (self.module, model)), strict=True))
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 1)."""
        averages, weights = zip(*self.averaged, strict=True)
        torch._foreach_lerp_(averages, weights, weight=1 - self.decay if step > 1 else 1.0)
        for own, other in self.copied:
            own.copy_(other)


def _tensors(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers of the state dict themselves, in its order."""
    return list(model.state_dict(keep_vars=True).values())
