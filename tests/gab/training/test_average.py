import copy

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from gab.config import OptimConfig, ViTConfig
from gab.models import build
from gab.training.average import Average
from gab.training.optimizer import make_optimizer
from gab.training.sizes import move
from gab.training.state import TrainState

TINY = ViTConfig(base="v", patch_size=8, embed_dim=24, depth=2, num_heads=3, rel_pos="bias", gab=True)


def change(model: nn.Module) -> None:
    """Other weights and statistics, as a step leaves them: in place."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_the_numbers_are_those_of_timm() -> None:
    """To the bit, in networks with and without BatchNorm, whose statistics are averaged and whose counts are copied."""
    for model in (build(TINY, image_size=16, num_classes=2, seed=0), timm.create_model("test_resnet")):
        ours, theirs = Average(model, 0.9), ModelEmaV3(model, decay=0.9)
        for step in range(1, 5):
            change(model)
            ours.update(step)
            theirs.update(model, step)
            assert equal(ours.module, theirs.module)
            assert (step == 1) == equal(ours.module, model)  # it begins with the weights after the first step
        assert not ours.module.training


def test_it_follows_to_another_size() -> None:
    optim = OptimConfig()
    model = build(TINY, image_size=16, num_classes=2, seed=0)
    ema = Average(model, 0.9)
    state = TrainState(model, make_optimizer(model, optim), ema, torch.zeros((), dtype=torch.int64), 16)
    ema.update(1)
    move(state, 32, optim)
    theirs = ModelEmaV3(model, decay=0.9)
    theirs.module.load_state_dict(ema.module.state_dict())
    change(model)
    ema.update(2)
    theirs.update(model, 2)
    assert equal(ema.module, theirs.module)


def test_a_copy_is_of_its_own() -> None:
    """As of a whole state: the copied average follows the copied network."""
    model = build(TINY, image_size=16, num_classes=2, seed=0)
    ema = Average(model, 0.9)
    other_model, other = copy.deepcopy((model, ema))
    change(other_model)
    other.update(1)
    assert equal(other.module, other_model)
    assert equal(ema.module, model)
    assert not equal(other.module, ema.module)
