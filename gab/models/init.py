"""The start of every tensor from (seed, its own name).

So two variants share the start of all that they share, whatever else they hold and in whatever order it was built.
The distributions are timm's.
"""

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from gab.errors import UserError
from gab.models.gaussian import Gaussian
from gab.random import hash_key

SCHEMES = ("trunc_normal", "pytorch")
FIXED = (nn.LayerNorm, LayerScale, Gaussian)  # start from constants that they know themselves
STD = 0.02


def start_value(module: nn.Module, name: str, shape: torch.Size, scheme: str, generator: torch.Generator) -> Tensor:
    """A float32 start of `shape` for the parameter `name` of `module`, drawn from `generator`."""
    value = torch.empty(shape)
    if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and scheme == "pytorch"):
        bound = module.weight[0].numel() ** -0.5  # PyTorch's own rule, Kaiming uniform with a = √5
        return value.uniform_(-bound, bound, generator=generator)
    if isinstance(module, nn.Linear) and name == "bias":
        return value.zero_()
    return nn.init.trunc_normal_(value, std=STD, generator=generator)  # linear weights, tokens, embeddings, tables


@torch.no_grad()
def initialise(model: nn.Module, scheme: str, seed: int | None = None) -> None:
    """Starts every trainable parameter of `model` anew; frozen ones (sinusoids) keep their values.

    Args:
        model: a network of this package.
        scheme: `trunc_normal` (linear weights 0.02, biases 0; DeiT, Swin) or `pytorch` (the layers' own, timm's
            vit_relpos).
        seed: without one it is drawn from PyTorch's global generator.
    """
    if scheme not in SCHEMES:
        raise UserError(f"model.init is {scheme!r}; choose one of {', '.join(SCHEMES)}.")
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    for prefix, module in model.named_modules():
        if isinstance(module, FIXED):
            module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(hash_key("init", seed, name))
                own_name = name.rpartition(".")[2]
                parameter.copy_(start_value(module, own_name, parameter.shape, scheme, generator))
