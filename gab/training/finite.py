"""Whether training has left the numbers that a computer can hold."""

import math

import torch

from gab.training import batchnorm
from gab.training.meter import Meter
from gab.training.state import TrainState


def trouble(state: TrainState, meter: Meter, allowed: int) -> str | None:
    """What a broken step has touched, in words; None while all is finite. Waits for the device.

    Args:
        meter: has seen the losses since the row before.
        allowed: steps whose gradient was not finite that may have been left out; 0: no loss may be so.
    """
    skipped = int(state.skipped)
    if allowed and skipped > allowed:
        return f"the gradients of {skipped} steps were not finite, train.skip_non_finite={allowed} allows fewer"
    step = None if allowed else meter.first_non_finite()
    if step:
        return f"the loss of step {step:,} is not finite"
    for what, tensors in (
        ("weights", list(state.model.parameters())),
        ("statistics of BatchNorm", list(batchnorm.running(state.model).values())),
    ):
        if tensors and not math.isfinite(torch.stack([one.detach().float().sum() for one in tensors]).sum().item()):
            return f"the {what} after step {state.step:,} are not finite"
    return None
