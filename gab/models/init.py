"""The start of every tensor from (seed, its own name).

So two variants share the start of all that they share, whatever else they hold and in whatever order it was built.
The distributions are timm's, and each method's own where its module has a `start_value`.
"""

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from gab.errors import check_choice
from gab.models.gaussian import Gaussian
from gab.random import hash_key

SCHEMES = ("trunc_normal", "pytorch")
FIXED = (nn.LayerNorm, nn.BatchNorm2d, LayerScale, Gaussian)  # start from constants that they know themselves
STD = 0.02


def start_value(
    module: nn.Module, name: str, parameter: nn.Parameter, scheme: str, generator: torch.Generator
) -> Tensor:
    """A float32 start for the parameter `name` of `module`, drawn from `generator`; frozen ones keep their values.

    A module that knows better has a method `start_value(name, parameter, generator)` for its own parameters, frozen
    ones too, which returns a tensor, or None for this rule. One whose parameters start from one another has
    `finish_start()`, called when all are drawn.
    """
    own = getattr(module, "start_value", None)
    if own is not None and (value := own(name, parameter, generator)) is not None:
        return value
    if not parameter.requires_grad:
        return parameter.detach()
    value = torch.empty(parameter.shape)
    if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and scheme == "pytorch"):
        bound = module.weight[0].numel() ** -0.5  # PyTorch's own rule, Kaiming uniform with a = √5
        return value.uniform_(-bound, bound, generator=generator)
    if isinstance(module, nn.Linear) and name == "bias":
        return value.zero_()
    return nn.init.trunc_normal_(value, std=STD, generator=generator)  # linear weights, tokens, embeddings, tables


@torch.no_grad()
def initialise(model: nn.Module, scheme: str, seed: int | None = None) -> None:
    """Starts every parameter of `model` anew; frozen ones (sinusoids) keep their values unless their module draws them.

    Args:
        model: a network of this package.
        scheme: `trunc_normal` (linear weights 0.02, biases 0; DeiT, Swin) or `pytorch` (the layers' own, timm's
            vit_relpos).
        seed: without one it is drawn from PyTorch's global generator.
    """
    check_choice("model.init", scheme, SCHEMES)
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))  # also where tensors are made on another device
    for prefix, module in model.named_modules():
        if isinstance(module, FIXED):
            module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            generator = torch.Generator().manual_seed(hash_key("init", seed, name))
            parameter.copy_(start_value(module, name.rpartition(".")[2], parameter, scheme, generator))
    for module in model.modules():
        if callable(finish := getattr(module, "finish_start", None)):
            finish()
