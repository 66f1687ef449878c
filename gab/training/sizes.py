"""Training on images of a size that changes from epoch to epoch: small ones first, which cost less."""

import copy
from bisect import bisect_right
from typing import Any

from torch import Tensor, nn

from gab.config import OptimConfig, TrainConfig
from gab.errors import UserError
from gab.training.optimizer import make_optimizer
from gab.training.state import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # of the optimisers that `optim.name` knows


def size_at(sizes: dict[int, int], epoch: int, usual: int) -> int:
    """The side in pixels of the training images of `epoch`: that of the last entry of {epoch: pixels} before or at it.

    Before the first entry it is `usual`.
    """
    begins = sorted(sizes)
    number = bisect_right(begins, epoch)
    return sizes[begins[number - 1]] if number else usual


def trained_sizes(train: TrainConfig, usual: int) -> set[int]:
    """All sides in pixels that a run's training images have."""
    return {size_at(train.sizes, epoch, usual) for epoch in (0, *train.sizes) if epoch < train.epochs}


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

    What has the shape of the token grid (positions, tables) is resampled into new tensors, its moments likewise.
    """
    resampled = _moments(state, size)
    before = dict(state.model.named_parameters())
    for model in (state.model, *([state.ema.module] if state.ema else [])):
        resize(model, state.image_size, size)
    if state.ema:
        state.ema.follow(state.model)
    optimizer = make_optimizer(state.model, optim)
    for new, old in zip(optimizer.param_groups, state.optimizer.param_groups, strict=True):
        new.update({key: value for key, value in old.items() if key != "params"})
    for name, parameter in state.model.named_parameters():
        if held := state.optimizer.state.get(before[name]):
            moved = parameter is not before[name]
            optimizer.state[parameter] = held | {key: m[name] for key, m in resampled.items()} if moved else held
    state.optimizer, state.image_size = optimizer, size


def _moments(state: TrainState, size: int) -> dict[str, dict[str, Tensor]]:
    """The optimiser's moments for images of `size` pixels, by kind and parameter.

    A copy of the network carries them there in place of its parameters, so that they are resampled by the rules of
    these; squares by their roots, since bicubic weights are partly negative.
    """
    found: dict[str, dict[str, Tensor]] = {}
    held = state.optimizer.state
    for kind in {key for one in held.values() for key in one if key in MOMENTS}:
        squared = kind == "exp_avg_sq"
        carrier = copy.deepcopy(state.model)
        for own, carried in zip(state.model.parameters(), carrier.parameters(), strict=True):
            if kind in held.get(own, {}):
                carried.data.copy_(held[own][kind].sqrt() if squared else held[own][kind])
        resize(carrier, state.image_size, size)
        moved = {name: carried.detach() for name, carried in carrier.named_parameters()}
        found[kind] = {name: value.square() for name, value in moved.items()} if squared else moved
    return found
