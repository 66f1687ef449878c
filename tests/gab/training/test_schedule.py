import itertools

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from gab.config import OptimConfig
from gab.training.schedule import effective_lr, learning_rate

OPTIM = OptimConfig(lr=1e-3, warmup_lr=1e-6, min_lr=1e-5, warmup_epochs=3, cooldown_epochs=2)
SHAPE = {"batch_size": 256, "steps_per_epoch": 10, "epochs": 25}


def curve(optim: OptimConfig, **shape) -> list[float]:
    shape = {**SHAPE, **shape}
    steps = range(shape["epochs"] * shape["steps_per_epoch"])
    return [learning_rate(step, optim=optim, **shape) for step in steps]


def test_warm_up_cosine_cooldown() -> None:
    lr = curve(OPTIM)
    assert lr[0] == 1e-6
    assert lr[15] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 2)
    assert lr[30] == max(lr) == pytest.approx(1e-3)
    assert lr[130] == pytest.approx((1e-3 + 1e-5) / 2)  # half-way from 30 to 230
    assert lr[80] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + 0.5**0.5) / 2)  # a quarter: cos 45 degrees
    assert lr[230:] == pytest.approx([1e-5] * 20)


def test_no_jumps() -> None:
    lr = curve(OPTIM)
    assert max(abs(a - b) for a, b in itertools.pairwise(lr)) <= 1e-3 / 30 * 1.01


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_short_run_still_rises_and_falls(epochs: int) -> None:
    lr = curve(OPTIM, epochs=epochs)
    assert max(lr) == pytest.approx(1e-3)
    assert lr[0] < 1e-5
    assert lr[-1] == pytest.approx(1e-5)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert curve(OptimConfig(lr=1e-3, warmup_epochs=0))[0] == 1e-3


def test_scaling_by_batch_is_an_option() -> None:
    assert effective_lr(OptimConfig(lr=5e-4), 2304) == 5e-4
    assert effective_lr(OptimConfig(lr=5e-4, lr_batch=512), 2048) == 2e-3
    assert max(curve(OptimConfig(lr=1e-3, lr_batch=128))) == pytest.approx(2e-3)


@pytest.mark.parametrize("cooldown", [0, 3])
def test_by_epoch_and_from_the_start_it_is_timms(cooldown: int) -> None:
    """timm 0.6.7's cosine, which published recipes count from epoch 0 and change between epochs."""
    optim = OptimConfig(
        lr=1e-3,
        warmup_lr=1e-6,
        min_lr=1e-5,
        warmup_epochs=5,
        cooldown_epochs=cooldown,
        lr_per="epoch",
        cosine_from="start",
    )
    epochs = 20 + cooldown
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(dummy, t_initial=20, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    expected = []
    for epoch in range(epochs):
        theirs.step(epoch)
        expected += [dummy.param_groups[0]["lr"]] * 10
    assert curve(optim, epochs=epochs) == pytest.approx(expected)


def test_the_fine_tuning_of_gab_is_torchs_cosine() -> None:
    optim = OptimConfig(lr=0.01, min_lr=0, warmup_epochs=0, cooldown_epochs=0, lr_per="epoch", cosine_from="start")
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(dummy, T_max=20)
    expected = []
    for _ in range(20):
        expected += [dummy.param_groups[0]["lr"]] * 10
        dummy.step()
        theirs.step()
    assert curve(optim, epochs=20) == pytest.approx(expected)


def test_by_step_and_after_the_warm_up_it_is_swins() -> None:
    optim = OptimConfig(lr=1e-3, warmup_lr=1e-6, min_lr=1e-5, warmup_epochs=5, cooldown_epochs=0)
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(
        dummy, t_initial=150, lr_min=1e-5, warmup_t=50, warmup_lr_init=1e-6, warmup_prefix=True, t_in_epochs=False
    )
    expected = []
    for step in range(200):
        theirs.step_update(step)
        expected.append(dummy.param_groups[0]["lr"])
    assert curve(optim, epochs=20) == pytest.approx(expected)
