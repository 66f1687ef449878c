"""What BatchNorm layers have seen: each process for itself, until the end of an epoch makes it one model again.

Or, with `train.sync_batchnorm`, all processes together in every step.
"""

from typing import Any

from timm.layers import convert_sync_batchnorm
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gab.distributed.processes import Processes
from gab.training.state import TrainState


def synchronised(model: nn.Module, processes: Processes) -> nn.Module:
    """`model` with BatchNorm over the batches of all processes, which takes GPUs; unchanged with a single process."""
    return convert_sync_batchnorm(model) if processes.count > 1 else model


def describe(model: nn.Module, processes: Processes, images: int) -> str | None:
    """What its BatchNorm layers see, if the model has any and there are several processes.

    Args:
        images: of a (micro-)batch of one process.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms or processes.count == 1:
        return None
    if all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return f"BatchNorm: statistics synchronised, over {images * processes.count} images of all processes"
    return (
        f"BatchNorm: statistics per process, over {images} images each, averaged after every epoch; "
        "train.sync_batchnorm=true takes all processes together"
    )


def average(state: TrainState, processes: Processes) -> None:
    """Give all processes the mean of their statistics, in the weights' model and in their average's.

    Once a step: the mean of equal numbers may differ from them by rounding, and a run that was stopped in an evaluation
    comes here again.
    """
    if processes.count > 1 and state.averaged < state.step:
        for model in _models(state):
            distribute_bn(model, processes.count, reduce=True)
    state.averaged = state.step


def gather(state: TrainState, processes: Processes) -> list[list[dict[str, Tensor]]]:
    """The statistics of every process, for a checkpoint; none where all have those of the model that it holds."""
    if processes.count == 1 or state.averaged == state.step:
        return []
    return processes.gather_objects(
        [{name: buffer.cpu() for name, buffer in running(model).items()} for model in _models(state)]
    )


def restore(state: TrainState, processes: Processes, stored: list[list[dict[str, Tensor]]]) -> None:
    """Take up this process's own; those of the first stay where the run had another number of processes."""
    if len(stored) != processes.count:
        state.averaged = state.step
        return
    for model, values in zip(_models(state), stored[processes.rank], strict=True):
        for name, buffer in running(model).items():
            buffer.copy_(values[name])


def running(model: nn.Module) -> dict[str, Any]:
    """The statistics themselves, by name."""
    return {name: b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def _models(state: TrainState) -> list[nn.Module]:
    return [state.model, state.ema.module] if state.ema else [state.model]
