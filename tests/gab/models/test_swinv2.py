"""Swin V2: timm's network, and LIFE and the Gaussian in its windows."""

import copy
import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from timm.layers import DropPath as TimmDropPath
from timm.models import group_parameters

from gab.config import GaussianConfig, SwinV2Config
from gab.errors import UserError
from gab.models import gaussians, variant
from gab.models.fold import fold
from gab.models.life import LIFE
from gab.models.stochastic import DropPath, attach_keys
from gab.models.swin_names import V2_TINY_LIFE
from gab.models.swinv2 import SwinTransformerV2

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SHAPE = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
TINY = SwinV2Config(base="swinv2", drop_path_rate=0.0, **SHAPE)
LIFE_256 = "swinv2_tiny_window8_life_256"


def make(size=64, **changes) -> SwinTransformerV2:
    """A network whose branches and biases matter: its post-norms start at zero, as timm's."""
    return shaken(SwinTransformerV2(replace(TINY, **changes), size, num_classes=5, seed=0))


def shaken(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((1.0 if "cpb_mlp" in name else 0.2) * torch.randn(parameter.shape))
    return model.eval()


def set_fused(model, fused):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model


def results(model, images):
    model.zero_grad()
    logits = model(images)
    F.cross_entropy(logits, torch.arange(len(images))).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("size", [64, 72], ids=["windows fit", "windows are padded"])
def test_without_life_it_is_timms(size):
    theirs = shaken(timm.models.SwinTransformerV2(size, num_classes=5, drop_path_rate=0.0, **SHAPE))
    with torch.no_grad():
        theirs.layers[0].blocks[0].attn.logit_scale.fill_(math.log(500))  # beyond the bound
    ours = make(size)
    assert ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, size, size)
    expected, expected_grads = results(theirs, images)
    for fused in (True, False):
        logits, grads = results(set_fused(ours, fused), images)
        assert (logits - expected).abs().max() < 1e-5
        assert max((grads[name] - expected_grads[name]).abs().max() for name in expected_grads) < 2e-5
    with torch.no_grad():
        ours.layers[0].blocks[1].attn.v_bias.add_(0.5)
    assert (ours(images) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "plain", "life"),
    [
        (LIFE_256, 27_655_054, 27_800_782),
        ("swinv2_tiny_patch1_window8_life_32", 27_650_734, 27_796_462),
        ("swinv2_tiny_patch1_window8_life_64", 27_650_734, 27_796_462),
    ],
)
def test_parameter_counts(name, plain, life):
    """8,832 fewer than released: q and v biases beside LIFE, which nothing uses."""
    with torch.device("meta"):
        models = [timm.create_model(name, num_classes=100, life=switch, seed=0) for switch in (False, True)]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts == [plain, life]
    biases = [p.numel() for name, p in models[0].named_parameters() if name.endswith(("q_bias", "v_bias"))]
    assert sum(biases) == 8832
    assert not [name for name in models[1].state_dict() if name.endswith("_bias")]


def test_life_sees_one_window_after_the_shift():
    model = make(life=True)
    block = model.layers[0].blocks[1]
    seen = []
    block.attn.qkv.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    x = torch.randn(1, 16, 16, 12)
    block(x)
    tokens, qkv = seen[0]
    shifted = x.roll((-2, -2), (1, 2))
    assert torch.equal(tokens[-1], shifted[0, -4:, -4:].flatten(0, 1))  # of four corners of the map
    alone = LIFE(12, (4, 4))
    alone.load_state_dict(block.attn.qkv.state_dict())
    assert torch.allclose(qkv[-1:], alone(tokens[-1:]), atol=1e-6)


def test_cosine_attention_of_life_by_its_formula():
    model = make(life=True, gab=True)
    attn = model.layers[0].blocks[1].attn
    mask = model.layers[0].blocks[1].attn_mask
    x = torch.randn(len(mask), 16, 12)
    q, k, v = (t.unflatten(2, (2, 6)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=2))
    cosine = torch.einsum("whid,whjd->whij", q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True))
    offset = torch.arange(-3, 4) * 8 / 3
    offset = offset.sign() * (1 + offset.abs()).log2() / 3
    table = attn.cpb_mlp(torch.cartesian_prod(offset, offset))  # (49, H)
    i = torch.arange(16)
    rows, columns = i[:, None] // 4 - i // 4, i[:, None] % 4 - i % 4
    bias = 16 * table[(rows + 3) * 7 + columns + 3].permute(2, 0, 1).sigmoid()
    gaussian = attn.gaussian.amplitude**2 * torch.exp(-(rows**2 + columns**2) / (2 * attn.gaussian.sigma**2))
    scores = attn.logit_scale.exp() * cosine + bias + gaussian + mask[:, None]
    expected = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    for fused in (True, False):
        assert torch.allclose(set_fused(attn, fused)(x, mask), expected, atol=1e-5)


@pytest.mark.parametrize("life", [False, True])
def test_start(life):
    model = SwinTransformerV2(replace(TINY, embed_dim=48, life=life), 64, seed=0)
    for name, p in model.named_parameters():
        module, kind = name.split(".")[-2:]
        if kind == "logit_scale":
            assert torch.allclose(p, torch.tensor(math.log(10)))
        elif module in ("norm1", "norm2") or (kind.endswith("bias") and "patch_embed.proj" not in name):
            assert not p.any()
        elif module == "norm":
            assert p.eq(1).all()
        elif module in ("depthwise", "pointwise"):
            assert p.abs().max().item() == pytest.approx(p[0].numel() ** -0.5, rel=0.05)
        elif p.ndim == 2 and p.numel() > 500:
            assert p.std().item() == pytest.approx(0.02, rel=0.1)
    images = torch.randn(1, 3, 64, 64)
    first = model.layers[0](model.patch_embed(images))
    assert torch.equal(first, model.patch_embed(images))  # every block is the identity


def test_starts_alike_with_and_without_life():
    plain, life = (SwinTransformerV2(replace(TINY, life=life), 64, seed=3).state_dict() for life in (False, True))
    assert all(torch.equal(plain[name], life[name]) for name in plain.keys() & life.keys())
    assert [name for name in plain.keys() - life.keys() if not name.endswith(("qkv.weight", "q_bias", "v_bias"))] == []


@pytest.mark.parametrize("life", [False, True])
def test_decay_and_layers(life):
    model = make(life=life)
    theirs = timm.models.SwinTransformerV2(64, **SHAPE)
    assert model.no_weight_decay() == theirs.no_weight_decay()
    assert model.no_weight_decay(released=True) == set()
    assert len(model.no_weight_decay()) == 4 * 4  # in each block a scale, and three tensors of the MLP
    with_gaussian = make(life=life, gab=True)
    assert with_gaussian.no_weight_decay() - model.no_weight_decay() == with_gaussian.no_weight_decay(released=True)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    assert [layers[f"layers.{i}.blocks.{j}.attn.logit_scale"] for i in range(2) for j in range(2)] == [1, 2, 3, 4]


@pytest.mark.parametrize("changes", [{}, {"life": True}, {"life": True, "gab": True}], ids=str)
def test_gradients_with_and_without_checkpointing(changes):
    grads = []
    model = make(**changes).train()
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(IMAGES).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_drop_path_becomes_a_function_of_keys():
    model = make(drop_path_rate=0.5, life=True).train()
    rates = [m.drop_prob for m in model.modules() if isinstance(m, TimmDropPath)]
    keys = attach_keys(model, seed=0, device=torch.device("cpu"))
    assert not [m for m in model.modules() if isinstance(m, TimmDropPath)]
    assert [m.p for m in model.modules() if isinstance(m, DropPath)] == rates
    assert len(rates) == 6  # of four blocks the first has none

    def run(*indices):
        keys.set(0, 0, torch.tensor(indices))
        return model(IMAGES)

    first, other = run(3, 5), run(4, 5)
    assert torch.equal(first, run(3, 5))
    assert not torch.allclose(first[0], other[0])
    assert torch.allclose(first[1], other[1], atol=1e-6)


def test_another_image_size_and_window():
    model = make(life=True, gab=True)
    sigma = gaussians(model)[1].sigma.item()
    model.set_input_size((128, 96), window_size=8)
    assert gaussians(model)[1].sigma.item() == pytest.approx(2 * sigma)
    assert model.layers[0].blocks[0].attn.qkv.grid == (8, 8)
    assert model(torch.randn(1, 3, 128, 96)).shape == (1, 5)


def test_windows_shrink_with_the_map():
    model = make(32, life=True)  # the second stage has maps of 4 x 4
    assert [stage.blocks[1].attn.qkv.grid for stage in model.layers] == [(4, 4), (4, 4)]
    model = make(16, life=True)
    assert [stage.blocks[1].attn.qkv.grid for stage in model.layers] == [(4, 4), (2, 2)]
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)


def test_folds():
    model = make(life=True, gab=True)
    folded = fold(copy.deepcopy(model))
    assert torch.allclose(folded(IMAGES), model(IMAGES), atol=1e-6)
    assert not [name for name, _ in folded.named_parameters() if "cpb_mlp" in name or "gaussian" in name]


def test_features_and_keywords():
    model = timm.create_model(
        LIFE_256, features_only=True, out_indices=(0, 1), img_size=64, per_head=True, gab=True, **SHAPE
    )
    assert [f.shape for f in model(IMAGES)] == [(2, 16, 16, 12), (2, 8, 8, 24)]
    assert len(gaussians(model)[4].sigma) == 4
    with pytest.raises(TypeError, match="qkv_norm"):  # ignored by the released code, so not offered
        timm.create_model(LIFE_256, qkv_norm=True)


def test_own_checkpoint(tmp_path):
    options = {**SHAPE, "gab": True}
    start = timm.create_model(LIFE_256, **options)
    with torch.no_grad():
        gaussians(start)[1].sigma.fill_(3.5)
    torch.save(start.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model(LIFE_256, pretrained=True, pretrained_cfg_overlay=overlay, img_size=128, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def test_bf16_autocast():
    model = make(life=True, gab=True, gaussian=GaussianConfig(amplitude=1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(IMAGES)
    assert torch.allclose(logits.float(), model(IMAGES), atol=0.1)
    logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_compiles_without_graph_breaks():
    model = make(life=True, depths=[2], num_heads=[2], gab=True)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(IMAGES), model(IMAGES), atol=1e-5)


def test_refusals():
    with pytest.raises(UserError, match="a width of 16 does not divide into"):
        make(life=True, embed_dim=16)
    with pytest.raises(UserError, match=r"Stage 1 has width 12, which model\.num_heads\[0\]=5 does not divide"):
        make(num_heads=[5, 5])
    with pytest.raises(UserError, match="needs a class token"):
        make(gab=True, gaussian=GaussianConfig(class_bias="learned"))


def test_config_files(pytestconfig):
    folder = pytestconfig.rootpath / "conf" / "model"
    plain, life = (OmegaConf.load(folder / f"swinv2_t{switch}.yaml") for switch in ("", "_life"))
    assert life == {"defaults": ["swinv2_t", "_self_"], "life": True}
    plain.pop("defaults")
    composed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SwinV2Config), plain))
    assert composed == replace(V2_TINY_LIFE, life=False, drop_path_rate=0.2)
    assert variant(replace(composed, life=True, gab=True)) == "swinv2_t_gab_life"
