"""Same weights, same input: outputs and gradients are timm's, fused and unfused."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from gab.config import ViTConfig
from gab.models.vit import VisionTransformer
from gab.models.vit_names import RELPOS, sized

SMALL, MEDIUM, BASE = (sized(RELPOS, size) for size in ("small", "medium", "base"))
TOLERANCE = 1e-5


def set_fused(model, fused):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


def results(model, images):
    """Logits, and gradients by name."""
    model.zero_grad()
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(images))).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours, theirs, images):
    """`ours` takes over the weights of `theirs`; then both agree."""
    assert ours.load_state_dict(theirs.state_dict())
    for fused in (True, False):
        set_fused(theirs.eval(), fused)
        set_fused(ours.eval(), fused)
        expected, expected_grads = results(theirs, images)
        logits, grads = results(ours, images)
        assert (logits - expected).abs().max() < TOLERANCE
        assert grads.keys() == expected_grads.keys()
        assert max((grads[name] - expected_grads[name]).abs().max() for name in grads) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "cfg", "count", "size"),
    [
        ("vit_relpos_small_patch16_224", SMALL, 21_983_920, 224),
        ("vit_relpos_medium_patch16_224", MEDIUM, 38_747_208, 64),
        ("vit_relpos_base_patch16_224", BASE, 86_429_560, 64),
    ],
)
def test_relpos(name, cfg, count, size, raise_layer_scale):
    theirs = raise_layer_scale(timm.create_model(name, img_size=size))
    ours = VisionTransformer(replace(cfg, gab=False), size)
    assert sum(p.numel() for p in ours.parameters()) == count
    assert len(ours.state_dict()) == 210
    assert_same(ours, theirs, torch.randn(1, 3, size, size))


@pytest.mark.parametrize(
    ("name", "dim", "heads", "count"),
    [("deit_tiny", 192, 3, 5_717_416), ("deit_small", 384, 6, 22_050_664), ("deit_base", 768, 12, 86_567_656)],
)
def test_deit_counts(name, dim, heads, count):
    with torch.device("meta"):
        ours = VisionTransformer(ViTConfig(base=name, embed_dim=dim, num_heads=heads), seed=0)
    assert sum(p.numel() for p in ours.parameters()) == count
    assert len(ours.state_dict()) == 152


def test_deit_outputs_and_gradients():
    ours = VisionTransformer(ViTConfig(base="deit", embed_dim=192, num_heads=3), 64)
    assert_same(ours, timm.create_model("deit_tiny_patch16_224", img_size=64), torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("rel_pos", ["mlp", "bias"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_relative_biases_with_a_class_token(relpos, rel_pos, pool, raise_layer_scale):
    cfg = relpos(class_token=True, pool=pool, rel_pos=rel_pos)
    theirs = VisionTransformerRelPos(
        img_size=(32, 48),
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        qkv_bias=False,
        class_token=True,
        global_pool=pool,
        fc_norm=pool == "avg",
        rel_pos_type=rel_pos,
    )
    assert_same(VisionTransformer(cfg, (32, 48)), raise_layer_scale(theirs), torch.randn(2, 3, 32, 48))


def test_plain_with_average_pooling_and_layer_scale(deit, raise_layer_scale):
    cfg = deit(class_token=False, pool="avg", layer_scale=1e-5, mlp_ratio=2.0)
    theirs = TimmViT(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
        class_token=False,
        global_pool="avg",
        init_values=1e-5,
    )
    assert_same(VisionTransformer(cfg, 32), raise_layer_scale(theirs), torch.randn(2, 3, 32, 32))
