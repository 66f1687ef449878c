import copy

import pytest
import timm
import torch

from gab.config import OptimConfig, TrainConfig, ViTConfig
from gab.errors import UserError
from gab.models import build
from gab.training.average import Average
from gab.training.optimizer import make_optimizer
from gab.training.sizes import move, resize, size_at, trained_at, trained_sizes
from gab.training.state import TrainState

TINY = ViTConfig(base="v", patch_size=8, embed_dim=24, depth=1, num_heads=3, rel_pos="bias", gab=True)


def test_the_last_entry_before_an_epoch_counts() -> None:
    sizes = {100: 192, 0: 128}
    assert [size_at(sizes, epoch, 224) for epoch in (0, 99, 100, 300)] == [128, 128, 192, 192]
    assert [size_at({3: 32}, epoch, 64) for epoch in (2, 3)] == [64, 32]
    assert size_at({}, 5, 224) == 224


def test_sizes_that_are_trained_at() -> None:
    assert trained_sizes(TrainConfig(epochs=9, sizes={0: 128, 5: 192, 9: 256}), 224) == {128, 192}
    assert trained_sizes(TrainConfig(epochs=9, sizes={3: 192}), 224) == {192, 224}


def trained(name: str) -> tuple[TrainState, OptimConfig]:
    """A state after two steps at 16 pixels."""
    torch.manual_seed(0)
    optim = OptimConfig(name=name, lr=1e-2)
    model = build(TINY, image_size=16, num_classes=2, seed=0)
    state = TrainState(model, make_optimizer(model, optim), Average(model), torch.zeros((), dtype=torch.int64), 16)
    for _ in range(2):
        step(state)
    return state, optim


def step(state: TrainState) -> None:
    images = torch.randn(4, 3, state.image_size, state.image_size)
    state.model(images).square().sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_what_has_the_shape_of_the_grid_is_moved_and_all_else_goes_on(name: str) -> None:
    state, optim = trained(name)
    before = copy.deepcopy(state)
    expected = copy.deepcopy(before.model)
    expected.set_input_size(32)
    move(state, 32, optim)
    moved = {"pos_embed", "blocks.0.attn.rel_pos.relative_position_bias_table"}
    old = {n: before.optimizer.state.get(p) for n, p in before.model.named_parameters()}
    new = {n: state.optimizer.state.get(p) for n, p in state.model.named_parameters()}
    for kind in {kind for held in old.values() for kind in held} - {"step"}:  # moments go the way of the weights
        with torch.no_grad():
            for n, parameter in before.model.named_parameters():
                parameter.copy_(old[n][kind].sqrt() if kind == "exp_avg_sq" else old[n][kind])
        carrier = copy.deepcopy(before.model)
        carrier.set_input_size(32)
        for n in moved:
            old[n][kind] = carrier.get_parameter(n).detach()
            assert old[n][kind].any()
            if kind == "exp_avg_sq":
                old[n][kind] = old[n][kind].square()
    for n in new:
        assert new[n].keys() == old[n].keys()
        for key, value in new[n].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(old[n][key])), (n, key)
    for group, earlier in zip(state.optimizer.param_groups, before.optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in earlier.items() if k != "params"}
    for n, value in state.model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[n])
    assert state.ema.module.pos_embed.shape == state.model.pos_embed.shape
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in state.model.parameters()}
    positions = state.model.pos_embed.detach().clone()
    step(state)
    assert not torch.equal(state.model.pos_embed, positions)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_steps_are_no_larger_after_a_move(name: str) -> None:
    """Of what is moved, after so many steps that a count which does not belong to its moments would show."""

    def change() -> float:
        positions = state.model.pos_embed.detach().clone()
        step(state)
        return float((state.model.pos_embed.detach() - positions).abs().mean())

    state, optim = trained(name)
    for _ in range(60):
        before = change()
    move(state, 32, optim)
    assert change() < 3 * before


def test_a_network_of_one_size_is_refused() -> None:
    model = timm.create_model("levit_128s", num_classes=2)
    with pytest.raises(UserError, match=r"works at 224 pixels only: set data\.image_size=224"):
        resize(model, 224, 192)
    assert not resize(timm.create_model("test_resnet"), 224, 192)
    assert not resize(model, 224, 224)


def test_older_checkpoints_know_one_size() -> None:
    assert trained_at({"config": {"data": {"image_size": 64}}}) == 64
    assert trained_at({"image_size": 32, "config": {"data": {"image_size": 64}}}) == 32
