"""A network for inference alone: what depends on parameters alone is computed once, and the parts that made it go."""

from typing import TypeVar

import torch
from torch import nn

from gab.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def fold(model: Network) -> Network:
    """Makes constants of all biases (their sum in each layer) and of all that joins place, in place.

    Same outputs, and neither Gaussians nor tables, MLPs of offsets or norms of positions are computed any more. What
    can be folded has a method `fold()`. The network then knows images of its present size only, and its parameters
    are frozen: a folded network is not trained. Fold a copy to keep the other.

    Args:
        model: a network of this package; of any other nothing is folded.

    Returns:
        `model`, in evaluation mode.
    """
    model.eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(model.modules()):
            if callable(own := getattr(module, "fold", None)):
                own()
    if hasattr(model, "set_input_size"):
        model.set_input_size = refuse_another_size  # type: ignore[assignment]  # typed for modules and tensors
    return model


def refuse_another_size(*args: object, **kwargs: object) -> None:
    """Takes the place of `set_input_size`; raises UserError."""
    raise UserError("This network is folded for images of one size: call set_input_size before fold.")
