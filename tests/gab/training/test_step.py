"""What the host may wait for in a step: nothing, until a row is logged."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conf.schema import typed
from gab.distributed.processes import Processes
from gab.models import build
from gab.training.assembly import begin, make_step
from gab.training.batchnorm import running
from gab.training.finite import trouble
from gab.training.meter import Meter
from gab.training.step import TrainStep

WAITING = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
}


class NothingRead(TorchDispatchMode):
    """Refuses what has to know a number on the device: on a GPU the host would wait there for all kernels so far."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.overloadpacket in WAITING:
            raise AssertionError(f"{function} in a step")
        return function(*arguments, **(options or {}))


NORMED = ("data=digits", "model=timm", "model.name=test_efficientnet", "train.skip_non_finite=3", "augment=none")
VIT = ("experiment=digits", "model.gab=true", "model.depth=2")
SETTINGS = {
    "adamw": (*VIT, "augment=deit", "optim.clip_grad=1.0", "train.skip_non_finite=3", "train.ema_decay=0.9"),
    "sgd": (
        *VIT,
        "augment=deit3",
        "optim.name=sgd",
        "run.micro_batch=4",
        "augment.mixing_group=4",
        "train.loss=bce",
        "augment.label_smoothing=0",
    ),
    "BatchNorm": NORMED,
}  # timm's LAMB reads its count of steps, a tensor that is always the host's


def make(config: Any) -> tuple[TrainStep, SimpleNamespace]:
    """A step of a network of ten classes, and a batch for it."""
    settings, processes = typed(config), Processes()
    model = build(settings.model, image_size=32, num_classes=10, seed=0)
    step = make_step(settings, begin(settings, model, processes, 32), processes, None)
    step.state.model.train()
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    return step, SimpleNamespace(images=images, labels=torch.arange(8), indices=torch.arange(8))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_reads_nothing_from_the_device(name: str, config: Callable[..., Any]) -> None:
    step, batch = make(config(*SETTINGS[name]))
    meter = Meter(step.processes)
    for number in range(2):
        parts = step.draw(batch, epoch=0, step=number)
        with NothingRead():
            meter.add(step(batch, parts, lr=1e-3), 8, step.state.step)
    with NothingRead(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        meter.first_non_finite()


def test_a_step_that_is_left_out_leaves_no_trace_in_batchnorm(config: Callable[..., Any]) -> None:
    """Its forward pass has seen what is not finite, which no later batch would bring out of the statistics."""
    step, batch = make(config(*NORMED, "train.ema_decay=0.5"))
    state, meter = step.state, Meter(step.processes)
    networks = {"raw": state.model, "ema": state.ema.module}
    first = state.model.get_submodule("blocks.0")

    def seen() -> dict[str, dict[str, torch.Tensor]]:
        return {name: {key: one.clone() for key, one in running(model).items()} for name, model in networks.items()}

    step(batch, step.draw(batch, epoch=0, step=0), lr=1e-3)
    before = seen()
    with first.register_forward_pre_hook(lambda _, given: (given[0] * float("inf"),)):
        step(batch, step.draw(batch, epoch=0, step=1), lr=1e-3)
    assert int(state.skipped) == 1
    after = seen()
    for name, statistics in before.items():
        assert statistics
        assert all(torch.equal(value, after[name][key]) for key, value in statistics.items())
    assert trouble(state, meter, 3) is None
    next(iter(running(state.model).values())).fill_(float("nan"))
    assert trouble(state, meter, 3) == "the statistics of BatchNorm after step 2 are not finite"
