from dataclasses import replace

import pytest
import timm
import torch

from gab.config import GaussianConfig, SwinConfig
from gab.errors import UserError
from gab.models import gaussians
from gab.models.swin import SwinTransformer
from gab.models.swin_names import SMALL as SWIN_SMALL

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make(cfg: SwinConfig, size=64):
    return SwinTransformer(cfg, size, num_classes=5, seed=0).eval()


def set_fused(model, fused):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model


def results(model, images):
    model.zero_grad()
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(images))).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_swin_small_is_timms():
    """At 112 px all four stages are there, the first two with shifted windows; strong tables make biases count."""
    theirs = timm.create_model("swin_small_patch4_window7_224", img_size=112).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_()
    ours = SwinTransformer(replace(SWIN_SMALL, gab=False), 112).eval()
    assert ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 112, 112)
    for fused in (True, False):
        expected, expected_grads = results(set_fused(theirs, fused), images)
        logits, grads = results(set_fused(ours, fused), images)
        assert (logits - expected).abs().max() < 1e-5
        assert grads.keys() == expected_grads.keys()
        assert max((grads[name] - expected_grads[name]).abs().max() for name in grads) < 1e-5


@pytest.mark.parametrize(
    ("cfg", "count"),
    [
        (replace(SWIN_SMALL, gab=False), 49_606_258),
        (SWIN_SMALL, 49_606_306),
        (replace(SWIN_SMALL, gaussian=GaussianConfig(per_head=True)), 49_606_822),
    ],
)
def test_parameter_counts(cfg, count):
    with torch.device("meta"):
        model = SwinTransformer(cfg, seed=0)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(gaussians(model)) == (24 if cfg.gab else 0)


def test_gaussian_joins_the_table_before_the_shift_mask(swin):
    model = make(swin())
    block = model.layers[0].blocks[1]
    assert any(block.shift_size)
    bias = block.attn.get_bias(torch.float32)
    with torch.no_grad():
        block.attn.gaussian.amplitude.zero_()
    assert torch.allclose(bias - block.attn.get_bias(torch.float32), make_gaussian_bias(), atol=1e-6)
    tokens = torch.randn(16, 16, 12)
    with torch.no_grad():
        block.attn.gaussian.amplitude.fill_(8.0)
        masked = block.attn(tokens, mask=block.attn_mask)
    separated = block.attn_mask[-1] < 0
    moved = tokens.clone()
    moved[-1, separated[0]] += 1  # tokens of another region in the last window
    changed = block.attn(moved, mask=block.attn_mask)
    assert torch.allclose(changed[-1, 0], masked[-1, 0], atol=1e-5)


def make_gaussian_bias():
    rows = torch.arange(4).repeat_interleave(4)
    columns = torch.arange(4).repeat(4)
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return 4 * torch.exp(-squared / 50)


def test_fused_and_unfused_agree_with_a_strong_gaussian(swin):
    baseline = make(replace(swin(), gab=False))(IMAGES)
    model = make(swin(gaussian=GaussianConfig(amplitude=4.0, sigma=0.7)))
    fused, unfused = (set_fused(model, on)(IMAGES) for on in (True, False))
    assert (fused - unfused).abs().max() < 1e-5
    assert (fused - baseline).abs().max() > 1e-4


def test_zero_amplitude_is_the_baseline_bit_for_bit(swin):
    model = make(swin(gaussian=GaussianConfig(amplitude=0.0)))
    assert torch.equal(model(IMAGES), make(replace(swin(), gab=False))(IMAGES))


def test_gradients_and_decay(swin):
    model = make(swin()).train()
    model(IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(g.sigma.grad != 0 for g in gaussians(model).values())
    exempt = model.no_weight_decay()
    assert len(exempt) == 12  # four blocks: a table, an amplitude, a sigma
    assert "layers.0.blocks.1.attn.gaussian.sigma" in exempt


def test_another_window(swin):
    model = make(swin())
    model.set_input_size(img_size=(128, 128), window_size=8)
    assert gaussians(model)[1].sigma.item() == pytest.approx(10)
    assert model(torch.randn(1, 3, 128, 128)).shape == (1, 5)


def test_unpatchable_image_and_heads(swin):
    with pytest.raises(UserError, match="30 x 30 do not divide into patches"):
        make(swin(), 30)
    with pytest.raises(UserError, match=r"Stage 2 has width 24, which model\.num_heads\[1\]=5 does not divide"):
        make(swin(num_heads=[2, 5]))
    with pytest.raises(UserError, match=r"model\.num_heads is \[2, 0\]; it must be at least 1"):
        make(swin(num_heads=[2, 0]))
    with pytest.raises(UserError, match="2 stages and"):
        make(swin(num_heads=[2]))
