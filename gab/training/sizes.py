"""Training on images of a size that changes from epoch to epoch: small ones first, which cost less."""

from bisect import bisect_right
from typing import Any

from torch import nn

from gab.config import OptimConfig
from gab.errors import UserError
from gab.training.optimizer import make_optimizer
from gab.training.state import TrainState


def size_at(sizes: dict[int, int], epoch: int, usual: int) -> int:
    """The side in pixels of the training images of `epoch`: that of the last entry of {epoch: pixels} before or at it.

    Before the first entry it is `usual`.
    """
    begins = sorted(sizes)
    number = bisect_right(begins, epoch)
    return sizes[begins[number - 1]] if number else usual


def trained_at(content: dict[str, Any]) -> int:
    """The side in pixels of the images that the weights of a checkpoint are made for."""
    return content.get("image_size") or content["config"]["data"]["image_size"]  # older ones knew of one size only


def resize(model: nn.Module, old: int, new: int) -> bool:
    """Move `model` from images of `old` pixels to `new` ones, in place; whether it has anything that moves.

    Raises:
        UserError: it is made for one size and has no way to another.
    """
    if old == new:
        return False
    move = getattr(model, "set_input_size", None)
    if callable(move):
        move(new)
        return True
    if getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):
        raise UserError(f"this network works at {old} pixels only: set data.image_size={old}")
    return False


def move(state: TrainState, size: int, optim: OptimConfig) -> None:
    """Move weights, their average and the optimiser to images of `size` pixels, once.

    What has the shape of the token grid (positions, tables) is resampled into new tensors, whose moments begin anew;
    all others keep theirs.
    """
    before = dict(state.model.named_parameters())
    for model in (state.model, *([state.ema.module] if state.ema else [])):
        resize(model, state.image_size, size)
    optimizer = make_optimizer(state.model, optim)
    for new, old in zip(optimizer.param_groups, state.optimizer.param_groups, strict=True):
        new.update({key: value for key, value in old.items() if key != "params"})
    for name, parameter in state.model.named_parameters():
        if parameter is before[name] and parameter in state.optimizer.state:
            optimizer.state[parameter] = state.optimizer.state[parameter]
    state.optimizer, state.image_size = optimizer, size
