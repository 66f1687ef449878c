"""The Gaussian and the other sockets inside the network, and how it is computed."""

import copy
from dataclasses import replace

import pytest
import torch
from timm.utils import ModelEmaV3

from gab.config import GaussianConfig
from gab.models import Gaussian, gaussians
from gab.models.vit import VisionTransformer
from gab.models.vit_names import RELPOS, sized

SMALL, MEDIUM, BASE = (sized(RELPOS, size) for size in ("small", "medium", "base"))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make(cfg, raise_layer_scale, **options):
    return raise_layer_scale(VisionTransformer(cfg, 32, num_classes=5, seed=0, **options)).eval()


def fill(model, name, value):
    with torch.no_grad():
        for gaussian in gaussians(model).values():
            getattr(gaussian, name).fill_(value)
    return model


@pytest.mark.parametrize(
    ("cfg", "shared", "per_head"),
    [(SMALL, 21_983_944, 21_984_064), (MEDIUM, 38_747_232, 38_747_400), (BASE, 86_429_584, 86_429_848)],
    ids=["small", "medium", "base"],
)
def test_parameter_counts(cfg, shared, per_head):
    for count, gaussian in ((shared, cfg.gaussian), (per_head, GaussianConfig(per_head=True))):
        with torch.device("meta"):
            model = VisionTransformer(replace(cfg, gaussian=gaussian), seed=0)
        assert sum(p.numel() for p in model.parameters()) == count


def test_zero_amplitude_is_the_baseline_bit_for_bit(relpos, raise_layer_scale):
    baseline = make(relpos(), raise_layer_scale)
    model = fill(make(relpos(gab=True), raise_layer_scale), "amplitude", 0.0)
    assert torch.equal(model(IMAGES), baseline(IMAGES))


@pytest.mark.parametrize("rel_pos", ["mlp", "bias", "none"])
@pytest.mark.parametrize("per_head", [False, True])
def test_fused_and_unfused_agree_with_a_strong_gaussian(relpos, raise_layer_scale, rel_pos, per_head):
    baseline = make(relpos(rel_pos=rel_pos), raise_layer_scale)(IMAGES)
    cfg = relpos(rel_pos=rel_pos, gab=True, gaussian=GaussianConfig(per_head=per_head, amplitude=6.0, sigma=0.7))
    model = make(cfg, raise_layer_scale)
    outputs = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        outputs.append(model(IMAGES))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    assert (outputs[0] - baseline).abs().max() > 1e-3


def test_a_strong_narrow_gaussian_makes_tokens_attend_to_themselves(relpos, raise_layer_scale):
    """Then attention is v alone, whatever q and k are."""
    model = make(relpos(gab=True, gaussian=GaussianConfig(amplitude=20.0, sigma=0.1)), raise_layer_scale)
    tokens = torch.randn(2, 16, 24)
    attn = model.blocks[0].attn
    value = attn.qkv(tokens)[..., 48:]
    assert torch.allclose(attn(tokens), attn.proj(value), atol=1e-5)


def test_every_parameter_gets_a_gradient_and_sigma_moves(relpos, raise_layer_scale):
    cfg = relpos(gab=True, class_token=True, pool="avg", position="learnable")
    model = make(cfg, raise_layer_scale).train()
    model(IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    start = {i: g.sigma.item() for i, g in gaussians(model).items()}
    assert all(g.sigma.grad != 0 and g.amplitude.grad != 0 for g in gaussians(model).values())
    torch.optim.AdamW(model.parameters(), 1e-2).step()
    assert all(g.sigma.item() != start[i] for i, g in gaussians(model).items())


def test_gaussians_are_numbered_from_one(relpos):
    model = VisionTransformer(relpos(gab=True), 32)
    layers = gaussians(model)
    assert list(layers) == [1, 2, 3]
    assert [name for name, m in model.named_modules() if isinstance(m, Gaussian)] == [
        f"blocks.{i}.attn.gaussian" for i in range(3)
    ]
    assert layers[3] is model.blocks[2].attn.gaussian
    assert gaussians(VisionTransformer(relpos(), 32)) == {}


@pytest.mark.parametrize("position", ["none", "learnable", "sincos_1d", "sincos_2d"])
def test_position_joins_before_the_blocks(deit, position):
    model = VisionTransformer(deit(position=position), 32)
    tokens = torch.cat((model.cls_token.expand(2, -1, -1), model.patch_embed(IMAGES)), 1)
    if position != "none":
        tokens = tokens + model.pos_embed
    expected = model.blocks[0](tokens)
    assert torch.equal(model.forward_intermediates(IMAGES, [0], output_fmt="NLC")[1][0], expected[:, 1:])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(relpos, raise_layer_scale, backend):
    model = make(relpos(gab=True, depth=1, class_token=True, position="learnable"), raise_layer_scale)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    expected, actual = model(IMAGES), compiled(IMAGES)
    assert torch.allclose(actual, expected, atol=1e-5)
    expected.sum().backward()
    actual.sum().backward()
    pairs = zip(model.parameters(), compiled.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-4) for a, b in pairs)


def test_bf16_autocast(relpos, raise_layer_scale):
    model = make(relpos(gab=True), raise_layer_scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.blocks[0].attn.get_bias(torch.bfloat16).dtype == torch.bfloat16
        logits = model(IMAGES)
    assert torch.allclose(logits.float(), model(IMAGES), atol=0.05)
    logits.float().sum().backward()
    assert all(g.sigma.grad.dtype == torch.float32 for g in gaussians(model).values())


def test_bfloat16_and_float64_networks(relpos, raise_layer_scale):
    model = make(relpos(gab=True), raise_layer_scale)
    expected = model(IMAGES)
    assert torch.allclose(copy.deepcopy(model).double()(IMAGES.double()).float(), expected, atol=1e-5)
    assert torch.allclose(copy.deepcopy(model).bfloat16()(IMAGES.bfloat16()).float(), expected, atol=0.1)


def test_gradient_checkpointing_changes_nothing(relpos, raise_layer_scale):
    grads = []
    for enable in (False, True):
        model = make(relpos(gab=True), raise_layer_scale).train()  # BiasDropout draws again in the second forward
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(IMAGES).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_deepcopy_and_ema(relpos, raise_layer_scale):
    model = make(relpos(gab=True), raise_layer_scale)
    ema = ModelEmaV3(model, decay=0.5)
    fill(model, "sigma", 3.0)
    ema.update(model)
    assert [g.sigma.item() for g in gaussians(ema.module).values()] == [4.0] * 3
    assert torch.equal(copy.deepcopy(model)(IMAGES), model(IMAGES))


def test_channels_last(relpos, raise_layer_scale):
    model = make(relpos(gab=True), raise_layer_scale)
    images = IMAGES.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images), model(IMAGES), atol=1e-6)
