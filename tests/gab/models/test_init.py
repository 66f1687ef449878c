from dataclasses import replace

import pytest
import torch
from torch import nn

from gab.errors import UserError
from gab.models.init import initialise
from gab.models.swin import SwinTransformer
from gab.models.vit import VisionTransformer


def start(cfg, seed=0):
    return VisionTransformer(cfg, 32, num_classes=5, seed=seed).state_dict()


def test_variants_share_the_start_of_all_that_they_share(relpos):
    plain = start(relpos())
    for other in (relpos(gab=True), relpos(depth=5), relpos(class_token=True, position="learnable")):
        weights = start(other)
        assert plain.keys() < weights.keys()
        assert all(torch.equal(plain[name], weights[name]) for name in plain)


def test_swin_with_and_without_the_gaussian(swin):
    plain, gab = (
        SwinTransformer(replace(swin(), gab=on), 32, num_classes=5, seed=0).state_dict() for on in (False, True)
    )
    assert len(gab) == len(plain) + 8
    assert all(torch.equal(plain[name], gab[name]) for name in plain)


def test_seed_and_name_decide(relpos):
    first, again, other = start(relpos(), 0), start(relpos(), 0), start(relpos(), 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], first["blocks.1.mlp.fc1.weight"])


def test_independent_of_the_order_of_modules():
    def make(order):
        model = nn.Module()
        for name in order:
            model.add_module(name, nn.Linear(4, 4))
        initialise(model, "pytorch", seed=0)
        return model.state_dict()

    a, b = make("xy"), make("yx")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["x.weight"], a["y.weight"])


def test_without_a_seed_torchs_generator_decides(relpos):
    def draw():
        torch.manual_seed(7)
        return start(relpos(), None)

    first, again = draw(), draw()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], start(relpos(), None)["head.weight"])


def test_pytorch_distributions(relpos):
    weights = start(relpos(embed_dim=192, depth=1))
    for name, fan_in in {
        "blocks.0.mlp.fc1": 192,
        "blocks.0.attn.rel_pos.mlp.fc2": 128,
        "patch_embed.proj": 192,
    }.items():
        bound = fan_in**-0.5
        assert 0.9 * bound < weights[f"{name}.weight"].abs().max() <= bound
        assert 0.5 * bound < weights[f"{name}.bias"].abs().max() <= bound
        assert weights[f"{name}.weight"].std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert weights["blocks.0.ls1.gamma"].eq(1e-6).all()
    assert weights["fc_norm.weight"].eq(1).all()
    assert not weights["fc_norm.bias"].any()


def test_truncated_normal_distributions(deit):
    weights = start(deit(embed_dim=192, depth=1, gab=True, rel_pos="bias"))
    table = "blocks.0.attn.rel_pos.relative_position_bias_table"
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight", "pos_embed", "cls_token", table):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.2)
        assert abs(weights[name].mean().item()) < 0.005
    assert not any(weights[name].any() for name in weights if name.endswith("bias") and "patch_embed" not in name)
    assert weights["patch_embed.proj.weight"].std().item() == pytest.approx((3 * 192) ** -0.5, rel=0.1)
    assert weights["blocks.0.attn.gaussian.amplitude"].tolist() == [2]
    assert weights["blocks.0.attn.gaussian.sigma"].tolist() == [5]


def test_unknown_scheme(relpos):
    with pytest.raises(UserError, match=r"model\.init=jax is unknown: choose one of trunc_normal, pytorch"):
        start(relpos(init="jax"))
