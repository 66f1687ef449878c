"""ViT-Lite, CVT and CCT: the released outputs, counts and starts, and what is unusual about their block."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from omegaconf import OmegaConf
from timm.models import group_parameters

from gab.config import CompactConfig
from gab.errors import UserError
from gab.models import variant
from gab.models.compact import CCT, CVT, VIT_LITE, CompactTransformer

SMALL = {"embed_dim": 24, "num_heads": 3, "depth": 2}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def make(config: CompactConfig, size=16, **options):
    return CompactTransformer(replace(config, **SMALL), size, num_classes=5, seed=0, **options).eval()


@pytest.mark.parametrize(
    ("name", "ten", "hundred", "keys"),
    [
        ("vit_lite_7_4_32", 3_716_874, 3_740_004, 85),
        ("cvt_7_4_32", 3_716_619, 3_739_749, 86),
        ("cct_7_3x1_32", 3_760_139, 3_783_269, 85),
    ],
)
def test_parameter_counts(name, ten, hundred, keys):
    with torch.device("meta"):
        models = [
            timm.create_model(name, seed=0, **options) for options in ({}, {"num_classes": 100}, {"join": "lape"})
        ]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts == [ten, hundred, ten + 3584]
    assert len(models[0].state_dict()) == keys


def test_block_and_pooling_by_their_formulas():
    model = make(replace(CVT, join="lape"))
    x, w = model.patch_embed(IMAGES), model.pos_embed
    for block, norm in zip(model.blocks, model.join.norms, strict=True):
        w = norm(w)
        x = x + block.attn(block.norm1(x) + w)
        x = block.norm2(x)
        x = x + block.mlp(x)
    x = model.norm(x)
    weights = (x @ model.attention_pool.weight[0]).softmax(dim=1)
    expected = model.head((weights[..., None] * x).sum(dim=1))
    assert torch.allclose(model(IMAGES), expected, atol=1e-6)
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}
    assert model.blocks[0].attn.attn_drop.p == 0.1
    assert model.blocks[0].attn.qkv.bias is None


def test_bias_of_the_pooling_changes_nothing():
    model = make(CCT)
    expected = model(IMAGES)
    with torch.no_grad():
        model.attention_pool.bias.fill_(3.0)
    assert torch.allclose(model(IMAGES), expected, atol=1e-6)
    with torch.no_grad():
        model.attention_pool.weight.add_(1.0 * torch.randn_like(model.attention_pool.weight))
    assert (model(IMAGES) - expected).abs().max() > 1e-4


def test_tokenizer_of_cct():
    model = make(CCT)
    x = torch.nn.functional.conv2d(IMAGES, model.patch_embed.proj.weight, padding=1).relu()
    assert model.patch_embed.proj.bias is None
    x = torch.nn.functional.pad(x, (1, 1, 1, 1))  # zeros lie below every activation, as -inf would
    x = torch.stack([x[:, :, i : i + 16 : 2, j : j + 16 : 2] for i in range(3) for j in range(3)]).amax(0)
    assert torch.allclose(model.patch_embed(IMAGES), x.flatten(2).transpose(1, 2), atol=1e-6)


def test_start():
    model = CompactTransformer(VIT_LITE, 32, num_classes=10, seed=0)
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.2, rel=0.02)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.02)
    assert model.patch_embed.proj.bias.abs().max().item() == pytest.approx(48**-0.5, rel=0.05)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(m.weight.std().item() == pytest.approx(0.02, rel=0.05) for m in linear)
    assert not any(m.bias.any() for m in linear if m.bias is not None)
    conv = CompactTransformer(CCT, 32, num_classes=10, seed=0).patch_embed.proj.weight
    assert conv.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.02)
    rates = [block.drop_path1.p for block in model.blocks]
    assert rates == pytest.approx([i / 60 for i in range(7)])


def test_decay_and_layers():
    model = make(replace(VIT_LITE, join="lape"))
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    assert model.no_weight_decay(released=True) == set()
    model = make(replace(CVT, join="lape"))
    groups = group_parameters(model, model.group_matcher())
    layers = {name: number for number, names in groups.items() for name in names}
    assert layers["pos_embed"] == layers["patch_embed.proj.weight"] == 0
    assert layers["join.norms.1.weight"] == layers["blocks.1.norm2.weight"] == 2
    assert layers["attention_pool.weight"] == layers["head.weight"] == 3


@pytest.mark.parametrize("config", [VIT_LITE, CVT, CCT], ids=["vit_lite", "cvt", "cct"])
@pytest.mark.parametrize(
    "changes",
    [
        {"join": "lape", "gab": True, "life": True},
        {"join": "unshared", "rel_pos": "mlp"},
        {"position": "sincos_2d", "drop_path_rate": 0.3},
    ],
    ids=["together", "unshared", "sincos"],
)
def test_images_that_are_not_square_and_gradients(config, changes):
    model = make(replace(config, **changes), (16, 24)).train()
    model(torch.randn(2, 3, 16, 24)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [VIT_LITE, CCT], ids=["vit_lite", "cct"])
def test_another_image_size(config):
    model = make(config)
    model.set_input_size(32)
    tokens = (32 // config.patch_size) ** 2 + config.class_token
    assert model.pos_embed.shape == (1, tokens, 24)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_another_pooling():
    model = make(CVT)
    model.reset_classifier(3, "avg")
    assert model.attention_pool is None
    assert torch.allclose(model(IMAGES), model.head(model.forward_features(IMAGES).mean(1)), atol=1e-6)
    model.reset_classifier(3, "seq")
    assert model.forward_head(model.forward_features(IMAGES), pre_logits=True).shape == (2, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "patches"}, "model.stem=patches is unknown: choose one of patch, conv"),
        ({"stem": "conv"}, "tokens of 2 pixels: set model.patch_size=2, not 4"),
        ({"pool": "max"}, "model.pool=max is unknown: choose one of token, seq, avg"),
        ({"pool": "token", "class_token": False}, "model.pool=token needs a class token"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make(replace(VIT_LITE, **changes))


@pytest.mark.parametrize(
    ("name", "config"),
    [("vit_lite7", VIT_LITE), ("cvt7", CVT), ("cct7", CCT)],
)
def test_config_files_describe_the_registered_networks(name, config, pytestconfig):
    folder = pytestconfig.rootpath / "conf" / "model"
    plain, lape = (OmegaConf.load(folder / f"{name}{switch}.yaml") for switch in ("", "_lape"))
    assert lape == {"defaults": [name, "_self_"], "join": "lape"}
    plain.pop("defaults")
    composed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CompactConfig), plain))
    assert composed == config
    assert variant(replace(composed, join="lape")) == f"{name}_lape"
