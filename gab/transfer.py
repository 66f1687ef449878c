"""Many small tensors to a device, in one copy."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

_ALIGNMENT = 16  # bytes, as compiled code wants it


def to_device(tree: Any, device: torch.device, reader: torch.cuda.Stream | None = None) -> Any:
    """`tree`, made of tuples and lists, with the tensors in it on `device`. The host does not wait for it.

    Args:
        tree: its tensors lie on the CPU.
        reader: the stream that will use them, where it is not the current one.
    """
    tensors = list(_tensors(tree))
    if device.type == "cpu" or not tensors:
        return tree
    memory = pack(tensors, pin=True).to(device, non_blocking=True)
    if reader is not None:
        memory.record_stream(reader)
    return _exchanged(tree, iter(unpack(memory, tensors)))


def pack(tensors: list[Tensor], *, pin: bool = False) -> Tensor:
    """The bytes of `tensors` one after another, uint8.

    `pin`: in page-locked memory of PyTorch's pool, which gives it to nobody else while a copy is under way.
    """
    memory = torch.empty(_starts(tensors)[-1], dtype=torch.uint8, pin_memory=pin)
    for tensor, place in zip(tensors, _places(memory, tensors), strict=True):
        place.view(tensor.dtype).copy_(tensor.flatten())
    return memory


def unpack(memory: Tensor, like: list[Tensor]) -> list[Tensor]:
    """What `pack` put into `memory`, in the types and shapes of `like`; nothing is copied.

    By way of DLPack, since code that is compiled for a view is compiled for its place in the memory too.
    """
    places = zip(_places(memory, like), like, strict=True)
    return [from_dlpack(to_dlpack(place.view(tensor.dtype).view(tensor.shape))) for place, tensor in places]


def _places(memory: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The bytes of `memory` that belong to each tensor."""
    starts = zip(_starts(tensors), tensors, strict=False)
    return [memory[start : start + tensor.nbytes] for start, tensor in starts]


def _starts(tensors: list[Tensor]) -> list[int]:
    """Where each tensor begins, in bytes, and where one more would."""
    return [0, *accumulate(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)]


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of the tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)


def _exchanged(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree with the next of `tensors` in place of each of its own."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if not isinstance(tree, (tuple, list)):
        return tree
    parts = [_exchanged(part, tensors) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
