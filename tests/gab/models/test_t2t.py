"""T2T-ViT against its formula, counts and rules."""

import re
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn

from gab.config import OptimConfig, T2TConfig
from gab.errors import UserError
from gab.models.position import sincos_1d
from gab.models.stochastic import attach_keys
from gab.models.t2t import OFFICIAL, T2TTransformer, soft_split
from gab.training.flops import macs
from gab.training.parameter_groups import parameter_groups

TINY = T2TConfig(base="t2t", embed_dim=24, depth=2, num_heads=2, token_width=8, drop_path_rate=0.0)
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def tiny(img_size=(32, 48), **changes) -> T2TTransformer:
    return T2TTransformer(replace(TINY, **changes), img_size, num_classes=5, seed=0).eval()


def count(model, trainable=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, seed=0, **options)


def test_counts():
    model = on_meta("t2t_vit_7")
    assert (count(model), count(model, trainable=True)) == (4_310_222, 4_310_222 - 54_528)
    assert {n: p.numel() for n, p in model.named_parameters() if not p.requires_grad} == {
        "pos_embed": 50_432,
        "patch_embed.attention1.w": 2048,
        "patch_embed.attention2.w": 2048,
    }
    assert count(on_meta("t2t_vit_7", join="lape")) == 4_310_222 + 3_584
    twelve = on_meta("t2t_vit_12", num_classes=100)
    assert (count(twelve), count(twelve, trainable=True)) == (6_710_602, 6_656_074)  # LIFE's table: 6.66M


@pytest.mark.slow
def test_macs():
    assert round(macs(timm.create_model("t2t_vit_7"), 224) / 1e9, 1) == 1.1


def test_official_names():
    """The 111 keys of the methods sheet, and no other."""
    keys = ["cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias"]
    keys += [f"tokens_to_token.project.{kind}" for kind in ("weight", "bias")]
    for part in ("attention1", "attention2"):
        keys.append(f"tokens_to_token.{part}.w")
        for name in ("kqv", "proj", "norm1", "norm2", "mlp.0", "mlp.2"):
            keys += [f"tokens_to_token.{part}.{name}.{kind}" for kind in ("weight", "bias")]
    for i in range(7):
        keys.append(f"blocks.{i}.attn.qkv.weight")
        for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            keys += [f"blocks.{i}.{name}.{kind}" for kind in ("weight", "bias")]
    assert len(keys) == 111
    for pattern, replacement in OFFICIAL:
        keys = [re.sub(pattern, replacement, key) for key in keys]
    assert set(keys) == on_meta("t2t_vit_7").state_dict().keys()


def test_soft_split_is_channel_major():
    image = torch.arange(2 * 8 * 8.0).view(1, 2, 8, 8)
    patches = soft_split(image, 3, 2, 1)
    assert patches.shape == (1, 16, 18)
    padded = F.pad(image, (1, 1, 1, 1))
    row, column = 2, 1
    expected = padded[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]  # (channel, 3, 3)
    assert torch.equal(patches[0, 4 * row + column], expected.flatten())


def performer(weights, name, x):
    """The token Performer, written from the sheet."""

    def linear(part, y):
        return y @ weights[f"{name}.{part}.weight"].T + weights[f"{name}.{part}.bias"]

    def norm(part, y):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y * weights[f"{name}.{part}.weight"] + weights[f"{name}.{part}.bias"]

    w = weights[f"{name}.w"]
    m, t = w.shape
    kqv = linear("kqv", norm("norm1", x))
    k, q, v = kqv[..., :t], kqv[..., t : 2 * t], kqv[..., 2 * t :]
    k, q = (torch.exp(u @ w.T - (u * u).sum(-1, keepdim=True) / 2) / m**0.5 for u in (k, q))
    scores = torch.einsum("bim,bjm->bij", q, k)
    z = v + linear("proj", scores @ v / (scores.sum(-1, keepdim=True) + 1e-8))
    return z + linear("mlp.2", F.gelu(linear("mlp.0", norm("norm2", z))))


def test_against_the_formula():
    model = tiny((32, 32)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # away from a start at which much is zero
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    weights, x = model.state_dict(), IMAGES[..., :32].double()
    x = performer(weights, "patch_embed.attention1", F.unfold(x, 7, stride=4, padding=2).transpose(1, 2))
    x = F.unfold(x.transpose(1, 2).reshape(2, 8, 8, 8), 3, stride=2, padding=1).transpose(1, 2)
    x = performer(weights, "patch_embed.attention2", x)
    x = F.unfold(x.transpose(1, 2).reshape(2, 8, 4, 4), 3, stride=2, padding=1).transpose(1, 2)
    x = x @ weights["patch_embed.project.weight"].T + weights["patch_embed.project.bias"]
    x = torch.cat((weights["cls_token"].expand(2, -1, -1), x), dim=1) + sincos_1d(5, 24)
    for i in range(2):
        part = {key.removeprefix(f"blocks.{i}."): value for key, value in weights.items() if f"blocks.{i}." in key}
        y = F.layer_norm(x, (24,), part["norm1.weight"], part["norm1.bias"], 1e-5) @ part["attn.qkv.weight"].T
        q, k, v = y.view(2, 5, 3, 2, 12).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(2, 3) / 12**0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 24)
        x = x + F.linear(y, part["attn.proj.weight"], part["attn.proj.bias"])
        y = F.layer_norm(x, (24,), part["norm2.weight"], part["norm2.bias"], 1e-5)
        y = F.gelu(F.linear(y, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
        x = x + F.linear(y, part["mlp.fc2.weight"], part["mlp.fc2.bias"])
    x = F.layer_norm(x[:, 0], (24,), weights["norm.weight"], weights["norm.bias"], 1e-5)
    expected = F.linear(x, weights["head.weight"], weights["head.bias"])
    assert torch.allclose(model(IMAGES[..., :32].double()), expected, atol=1e-6)  # the sinusoid is in float32


def test_the_sinusoid_is_frozen_and_its_class_token_is_position_0():
    model = tiny()
    assert torch.equal(model.pos_embed, sincos_1d(7, 24))
    assert not model.pos_embed.requires_grad
    assert model.pos_embed[0, 0].tolist() == [0, 1] * 12


def test_set_input_size_is_a_network_of_that_size():
    model, other = tiny((32, 48)), tiny((64, 32))
    with pytest.raises(UserError, match="Images of 32 x 48 for a network made for 64 x 32"):
        other(IMAGES)
    other.set_input_size((32, 48))
    assert torch.equal(model(IMAGES), other(IMAGES))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "learnable", "join": "lape", "gab": True, "rel_pos": "mlp", "life": True},
        {"join": "lape"},
        {"position": "none", "pool": "avg", "class_token": False},
    ],
)
def test_every_trained_parameter_gets_a_gradient(options):
    model = tiny(**options).train()
    model(IMAGES).square().sum().backward()
    none = {name for name, p in model.named_parameters() if p.grad is None}
    frozen = {"patch_embed.attention1.w", "patch_embed.attention2.w"}
    assert none == frozen | ({"pos_embed"} if options.get("position", "sincos_1d") == "sincos_1d" else set())


def test_two_training_forwards_of_a_step_are_the_same():
    model = tiny(drop_path_rate=0.5).train()
    keys = attach_keys(model, 0, torch.device("cpu"))
    out = []
    for sample in (0, 0, 7):
        keys.set(0, 0, torch.tensor([sample, sample + 1]))
        torch.manual_seed(0)  # as the trainer does, for the dropout in the token module
        out.append(model(IMAGES))
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


def test_start():
    model = T2TTransformer(replace(T2TConfig(base="t2t"), depth=1), 64, seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert abs(module.weight.mean()) < 5 * 0.02 / module.weight.numel() ** 0.5, name
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5
            assert module.weight.eq(1).all()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    for part in (model.patch_embed.attention1, model.patch_embed.attention2):
        assert torch.allclose(part.w @ part.w.T, 32 * torch.eye(32), atol=1e-4)


def test_weight_decay():
    model = tiny()
    assert model.no_weight_decay() == {"cls_token", "pos_embed"}
    assert model.no_weight_decay(released=True) == {"cls_token"}
    held = {id(p): g["name"] for g in parameter_groups(model, OptimConfig()) for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = "exempt" if parameter.ndim == 1 or name == "cls_token" else "decayed"
        assert held.get(id(parameter)) == (expected if parameter.requires_grad else None), name


def test_layers():
    model = tiny()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == {name for name, _ in model.named_parameters()}
    for name, layer in layers.items():
        if name.startswith(("patch_embed", "cls_token", "pos_embed")):
            assert layer == 0
        elif name.startswith("blocks"):
            assert layer == 1 + int(name.split(".")[1])
        else:  # timm's rule: the last norm belongs to the last block
            assert layer == (2 if name.startswith("norm") else 3)


def test_refusals():
    with pytest.raises(UserError, match=r"tokens of 16 pixels: set model\.patch_size=16, not 8"):
        tiny(patch_size=8)
    with pytest.raises(UserError, match="a width of 256 does not divide into"):
        on_meta("t2t_vit_12", life=True)


def test_bf16_autocast():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IMAGES)
    assert torch.allclose(logits.float(), model(IMAGES), atol=0.05)
