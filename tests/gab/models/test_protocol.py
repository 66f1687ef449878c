"""timm's protocol on the ViT and on Swin."""

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torch import nn

from gab.errors import UserError
from gab.models import gaussians
from gab.models.swin import SwinTransformer
from gab.models.vit import VisionTransformer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vit(relpos):
    def make(**changes):
        return VisionTransformer(relpos(gab=True, **changes), 32, num_classes=5, seed=0).eval()

    return make


def test_forward_is_features_then_head(vit):
    model = vit()
    features = model.forward_features(IMAGES)
    assert features.shape == (2, 16, 24)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.allclose(pooled, model.fc_norm(features.mean(1)))
    assert torch.equal(model.get_classifier()(pooled), model(IMAGES))


def test_token_pooling_normalises_before(vit):
    model = vit(class_token=True, pool="token")
    features = model.forward_features(IMAGES)
    assert features.shape == (2, 17, 24)
    assert isinstance(model.norm, nn.LayerNorm)
    assert isinstance(model.fc_norm, nn.Identity)
    assert torch.equal(model.head(features[:, 0]), model(IMAGES))


def test_reset_classifier(vit):
    model = vit()
    model.reset_classifier(7)
    assert model(IMAGES).shape == (2, 7)
    assert not model.head.training
    model.reset_classifier(0)
    assert model(IMAGES).shape == (2, 24)
    model.reset_classifier(0, "")
    assert model(IMAGES).shape == (2, 16, 24)
    with pytest.raises(UserError, match="global_pool='token' .* choose '' or avg"):
        model.reset_classifier(3, "token")


def test_no_weight_decay_reaches_timms_groups(vit):
    model = vit(rel_pos="bias", class_token=True, position="learnable")
    names = model.no_weight_decay()
    assert {"cls_token", "pos_embed", "blocks.0.attn.gaussian.sigma", "blocks.2.attn.gaussian.amplitude"} <= names
    assert "blocks.0.attn.rel_pos.relative_position_bias_table" in names
    exempt, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=names)
    assert exempt["weight_decay"] == 0
    exempt_ids = {id(p) for p in exempt["params"]}
    assert all(id(p) in exempt_ids for n, p in model.named_parameters() if p.ndim < 2 or n in names)
    assert len(decayed["params"]) == 4 * 3 + 2  # qkv, proj, fc1, fc2 of every block; patch embedding and head


def test_relative_mlps_are_decayed(vit):
    assert not any("rel_pos" in name for name in vit().no_weight_decay())


@pytest.mark.parametrize("network", ["vit", "swin"])
def test_group_matcher_sorts_layers_as_timms(network, vit, swin):
    if network == "vit":
        ours, theirs = vit(), timm.create_model("vit_relpos_small_patch16_224", embed_dim=24, num_heads=3, depth=3)
    else:
        ours = SwinTransformer(swin(depths=[2, 2]), 64, num_classes=5)
        theirs = timm.models.SwinTransformer(64, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4)
    own = group_parameters(ours, ours.group_matcher(), reverse=True)
    reference = group_parameters(theirs, theirs.group_matcher(), reverse=True)
    assert all(own[name] == reference[name] for name in reference)
    for name in own.keys() - reference.keys():
        block = name.partition("attn")[0]
        assert name.startswith(f"{block}attn.gaussian")
        assert own[name] == reference[f"{block}attn.qkv.weight"]


def test_forward_intermediates(vit):
    model = vit(class_token=True, pool="token")
    features, taken = model.forward_intermediates(IMAGES, indices=[0, 2])
    assert torch.equal(features, model.forward_features(IMAGES))
    assert [t.shape for t in taken] == [(2, 24, 4, 4)] * 2
    tokens = model.forward_intermediates(IMAGES, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(tokens[0], features[:, 1:])
    assert torch.equal(taken[1].flatten(2).transpose(1, 2), run(model, 3)[:, 1:])
    early = model.forward_intermediates(
        IMAGES, indices=[0], return_prefix_tokens=True, stop_early=True, output_fmt="NLC", intermediates_only=True
    )
    patches, prefix = early[0]
    assert torch.equal(torch.cat((prefix, patches), 1), run(model, 1))
    with pytest.raises(UserError, match="choose NCHW or NLC"):
        model.forward_intermediates(IMAGES, output_fmt="NHWC")


def run(model, blocks):
    x = model.embed(IMAGES)
    if model.pos_embed is not None:
        x = x + model.pos_embed
    for block in model.blocks[:blocks]:
        x = block(x)
    return x


def test_prune_intermediate_layers(vit):
    model = vit()
    expected = model.forward_intermediates(IMAGES, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.blocks) == 2
    assert torch.equal(model(IMAGES).transpose(1, 2).unflatten(2, (4, 4)), expected)


def test_features_only():
    small = {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 32}
    model = timm.create_model("vit_relpos_small_patch16_gab_224", features_only=True, out_indices=(1, 3), **small)
    assert [f.shape for f in model(IMAGES)] == [(2, 24, 2, 2)] * 2
    assert model.feature_info.channels() == [24, 24]
    assert model.feature_info.reduction() == [16, 16]


def test_gradient_checkpointing_on_both(vit, swin):
    for model, images in (
        (vit(), IMAGES),
        (SwinTransformer(swin(), 64, num_classes=5).eval(), torch.ones(2, 3, 64, 64)),
    ):
        grads = []
        for enable in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            model(images).square().sum().backward()
            grads.append([g.sigma.grad.clone() for g in gaussians(model).values()])
        assert grads[0] == grads[1]


@pytest.mark.parametrize("rel_pos", ["mlp", "bias"])
def test_set_input_size(vit, rel_pos):
    model = vit(rel_pos=rel_pos, class_token=True, position="learnable")
    model.set_input_size(48)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    assert model.pos_embed.shape == (1, 37, 24)
    assert [g.sigma.item() for g in gaussians(model).values()] == pytest.approx([7.5] * 3)
    model.set_input_size(img_size=(32, 64))
    assert model(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    model.set_input_size((32, 32), patch_size=16)
    assert model(IMAGES).shape == (2, 5)
    assert gaussians(model)[1].sigma.item() == pytest.approx(2.5)


def test_set_input_size_is_known_to_timm(vit):
    model = vit()
    model.set_input_size(48)
    assert timm.models.get_model_args(model)["img_size"] == (48, 48)


def test_attention_extract_sees_weights_without_fusion(vit):
    from timm.utils import AttentionExtract

    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    weights = AttentionExtract(model, method="hook")(IMAGES)
    assert len(weights) == 3
    assert all(torch.allclose(w.sum(-1), torch.ones(2, 3, 16)) for w in weights.values())
