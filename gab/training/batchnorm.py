"""What BatchNorm layers have seen: each process for itself, until the end of an epoch makes it one model again."""

from typing import Any

from timm.utils import distribute_bn
from torch import Tensor, nn

from gab.distributed.processes import Processes
from gab.training.state import TrainState


def average(state: TrainState, processes: Processes) -> None:
    """Give all processes the mean of their statistics, in the weights' model and in their average's."""
    if processes.count > 1:
        for model in _models(state):
            distribute_bn(model, processes.count, reduce=True)


def gather(state: TrainState, processes: Processes) -> list[list[dict[str, Tensor]]]:
    """The statistics of every process, for a checkpoint in mid-epoch; none of a single one, whose model holds them."""
    own = [{name: buffer.cpu() for name, buffer in _running(model).items()} for model in _models(state)]
    return processes.gather_objects(own) if processes.count > 1 else []


def restore(state: TrainState, processes: Processes, stored: list[list[dict[str, Tensor]]]) -> None:
    """Take up this process's own; those of the first stay where the run had another number of processes."""
    if len(stored) == processes.count:
        for model, values in zip(_models(state), stored[processes.rank], strict=True):
            for name, buffer in _running(model).items():
                buffer.copy_(values[name])


def _models(state: TrainState) -> list[nn.Module]:
    return [state.model, state.ema.module] if state.ema else [state.model]


def _running(model: nn.Module) -> dict[str, Any]:
    return {name: b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
