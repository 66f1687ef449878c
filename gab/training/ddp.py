"""DistributedDataParallel that adds up gradients in the same order in every start of a run."""

import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gab.models.stochastic import Keys


def distributed(
    model: nn.Module, keys: Keys, device: torch.device, *, count: int, image_size: int, bf16: bool
) -> DistributedDataParallel:
    """`model` in DDP, past its first backward pass.

    After that one DDP regroups the gradients, and with three or more processes the groups decide in which order
    sums are taken: a resumed run has to begin with those that an undisturbed one has.

    Args:
        count: images of a (micro-)batch of this process.
    """
    with warnings.catch_warnings():  # torch 2.15 has a new name for broadcast_buffers, 2.11 only this one
        warnings.simplefilter("ignore", FutureWarning)
        network = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # no second copy of all gradients
        )
    keys.set(0, 0, torch.arange(count))
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        output = network(torch.zeros(count, 3, image_size, image_size, device=device))
    sum(logits.float().sum() for logits in (output if isinstance(output, tuple) else (output,))).backward()
    model.zero_grad(set_to_none=True)
    for buffer, value in zip(model.buffers(), before, strict=True):  # such as BatchNorm's statistics
        buffer.copy_(value)
    return network
