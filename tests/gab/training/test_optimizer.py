import pytest
import timm.optim
import torch
from torch import nn

from gab.config import GaussianConfig, OptimConfig, ViTConfig
from gab.models import build
from gab.training.optimizer import make_optimizer

TINY = ViTConfig(base="v", patch_size=8, embed_dim=24, depth=1, num_heads=3)


def stepped(optim: OptimConfig, steps: int = 3) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A layer after some steps towards zero, with the rate that the trainer would set."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    optimizer = make_optimizer(layer, optim)
    inputs = torch.randn(5, 4)
    for _ in range(steps):
        layer(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


def test_sgd_is_classical_momentum_with_decay_in_the_gradient() -> None:
    optim = OptimConfig(name="sgd", lr=0.1, momentum=0.5, weight_decay=0.01, decay="all")
    layer, _ = stepped(optim)
    torch.manual_seed(0)
    other = nn.Linear(4, 3)
    by_hand, inputs = {name: torch.zeros_like(p) for name, p in other.named_parameters()}, torch.randn(5, 4)
    for _ in range(3):
        gradients = torch.autograd.grad(other(inputs).square().sum(), list(other.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(other.named_parameters(), gradients, strict=True):
                by_hand[name] = 0.5 * by_hand[name] + gradient + 0.01 * p
                p -= 0.1 * by_hand[name]
    torch.testing.assert_close(layer.weight, other.weight)
    torch.testing.assert_close(layer.bias, other.bias)


def test_lamb_is_timms_without_a_clip_of_its_own() -> None:
    layer, optimizer = stepped(OptimConfig(name="lamb", lr=0.01, weight_decay=0.05, eps=1e-8))
    assert type(optimizer) is timm.optim.Lamb
    assert optimizer.defaults["max_grad_norm"] is None
    torch.manual_seed(0)
    other = nn.Linear(4, 3)
    groups = [{"params": [other.bias], "weight_decay": 0.0}, {"params": [other.weight], "weight_decay": 0.05}]
    theirs, inputs = timm.optim.Lamb(groups, lr=0.01, eps=1e-8, max_grad_norm=None), torch.randn(5, 4)
    for _ in range(3):
        other(inputs).square().sum().backward()
        theirs.step()
        theirs.zero_grad()
    assert torch.equal(layer.weight, other.weight)


def test_adamw_is_the_fused_one() -> None:
    _, optimizer = stepped(OptimConfig(betas=[0.8, 0.9], eps=1e-6))
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["fused"], optimizer.defaults["betas"], optimizer.defaults["eps"]) == (
        True,
        (0.8, 0.9),
        1e-6,
    )


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_a_frozen_gaussian_is_not_in_it(name: str) -> None:
    model = build(
        ViTConfig(**{**vars(TINY), "gab": True, "gaussian": GaussianConfig(frozen=True)}),
        image_size=16,
        num_classes=2,
        seed=0,
    )
    groups = make_optimizer(model, OptimConfig(name=name)).param_groups
    assert {group["name"] for group in groups} == {"decayed", "exempt"}
    held = {id(p) for group in groups for p in group["params"]}
    left = {name for name, p in model.named_parameters() if id(p) not in held}
    assert left == {"blocks.0.attn.gaussian.amplitude", "blocks.0.attn.gaussian.sigma"}
