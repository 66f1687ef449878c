"""GAB, LaPE and LIFE on one ViT: every combination."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from gab.config import GaussianConfig
from gab.models import gaussians
from gab.models.lape import LaPE
from gab.models.life import LIFE
from gab.models.vit import VisionTransformer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SWITCHES = [dict(zip(("gab", "lape", "life"), on)) for on in itertools.product((False, True), repeat=3)]


@pytest.fixture
def make(relpos, raise_layer_scale):
    def build(gab: bool, lape: bool, life: bool, **changes) -> VisionTransformer:
        position = {"position": "learnable", "join": "lape"} if lape else {}
        cfg = relpos(gab=gab, life=life, depth=2, **position, **changes)
        return raise_layer_scale(VisionTransformer(cfg, 32, num_classes=5, seed=0))

    return build


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(k for k, on in s.items() if on) or "none")
def test_every_combination_learns_and_exports(make, switches):
    model = make(**switches).train()
    assert len(gaussians(model)) == 2 * switches["gab"]
    assert isinstance(model.join, LaPE) == switches["lape"]
    assert all(isinstance(block.attn.qkv, LIFE) == switches["life"] for block in model.blocks)
    learns(model)
    exported = torch.export.export(model.eval(), (IMAGES,)).module()
    assert torch.allclose(exported(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("class_bias", ["zero", "row_mean", "learned"])
def test_all_three_beside_a_class_token_learn_and_compile(make, class_bias):
    gaussian = GaussianConfig(class_bias=class_bias)
    model = make(gab=True, lape=True, life=True, class_token=True, pool="token", gaussian=gaussian).train()
    learns(model)
    torch.compiler.reset()  # the other parameters' graphs count towards the limit
    compiled = torch.compile(copy.deepcopy(model.eval()), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(IMAGES), model(IMAGES), atol=1e-5)


def learns(model: VisionTransformer) -> None:
    """Every parameter gets a finite gradient."""
    model(IMAGES).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize("name", ["gab", "lape", "life"])
def test_each_idea_changes_the_output_beside_the_others(make, name):
    on = dict.fromkeys(("gab", "lape", "life"), True)
    with_it, without = make(**on), make(**{**on, name: False})
    assert (with_it.eval()(IMAGES) - without.eval()(IMAGES)).abs().max() > 1e-4


def test_all_together_moves_to_another_image_size(make):
    model = make(gab=True, lape=True, life=True).eval()
    model.set_input_size((48, 64))
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 5)


def test_arms_share_what_they_share(make):
    """Everything but qkv, which LIFE replaces, and what GAB and LaPE add."""
    plain = make(gab=False, lape=False, life=False).state_dict()
    every = make(gab=True, lape=True, life=True).state_dict()
    shared = {name for name in plain if "qkv" not in name}
    assert all(torch.equal(plain[name], every[name]) for name in shared)


def test_a_class_bias_that_is_learned_changes_nothing_at_the_start(deit):
    cfg = deit(gab=True)
    zero, learned = (
        VisionTransformer(replace(cfg, gaussian=GaussianConfig(class_bias=rule)), 32, seed=0).eval()
        for rule in ("zero", "learned")
    )
    assert torch.equal(zero(IMAGES), learned(IMAGES))
    assert "blocks.0.attn.gaussian.class_bias" in learned.no_weight_decay()
