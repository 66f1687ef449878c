import math
from dataclasses import replace

import pytest
import timm.layers
import torch

from gab.config import GaussianConfig
from gab.errors import UserError
from gab.models.gaussian import Gaussian
from gab.models.relative import (
    NormedRelPosTable,
    RelPosBias,
    RelPosMlp,
    RelPosTable,
    log_offsets,
    start_errors,
)
from gab.models.vit import VisionTransformer


def test_log_offsets_of_the_sheet():
    table = log_offsets((14, 14))
    assert table.shape == (27, 27, 2)
    assert table[26, 0, 0].item() == pytest.approx(2.6390573)
    assert table[0, 12, 1].item() == pytest.approx(-0.6931472)
    assert table[13, 13].tolist() == [0, 0]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(("ours", "theirs"), [(RelPosMlp, timm.layers.RelPosMlp), (RelPosBias, timm.layers.RelPosBias)])
def test_values_and_gradients_are_timms(ours, theirs, grid, prefix):
    a, b = ours(grid, 3, prefix).eval(), theirs(grid, 3, prefix_tokens=prefix).eval()
    assert a.load_state_dict(b.state_dict())
    upstream = torch.randn_like(a())
    assert torch.equal(a(), b.get_bias())
    (a() * upstream).sum().backward()
    (b.get_bias() * upstream).sum().backward()
    for mine, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5)


def test_hidden_dropout_in_training():
    part = RelPosMlp((4, 4), 2)
    assert part.mlp.drop1.p == 0.125
    assert not torch.equal(part(), part())
    assert torch.equal(part.eval()(), part())


def test_mlp_on_another_grid_keeps_its_function():
    part = RelPosMlp((4, 4), 2).eval()
    near = part().view(2, 4, 4, 4, 4)[:, 0, 0, 1, 1]
    part.set_grid((6, 6))
    assert part().shape == (1, 2, 36, 36)
    assert torch.allclose(part().view(2, 6, 6, 6, 6)[:, 0, 0, 1, 1], near)


def test_table_is_interpolated():
    part = RelPosBias((4, 4), 2)
    with torch.no_grad():
        part.relative_position_bias_table.copy_(log_offsets((4, 4)).flatten(0, 1))
    part.set_grid((7, 7))
    assert part.relative_position_bias_table.shape == (169, 2)
    assert part().shape == (1, 2, 49, 49)
    centre = part.relative_position_bias_table.view(13, 13, 2)
    assert centre[6, 6].abs().max() < 1e-5
    assert centre[12, 0].tolist() == pytest.approx([math.log(4), -math.log(4)], abs=1e-4)


@pytest.mark.parametrize("rel_pos", [RelPosBias, RelPosMlp])
def test_gradients_repeat_bit_for_bit_on_two_threads(rel_pos):
    """Three heads: with so few, the backward of plain indexing was seen to differ from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        part = rel_pos((14, 14), 3).eval()
        gaussian = Gaussian(GaussianConfig(), (14, 14), 3)
        parameters = [*part.parameters(), *gaussian.parameters()]
        upstream = torch.randn(1, 3, 196, 196)
        seen = set()
        for _ in range(20):
            grads = torch.autograd.grad(((part() + gaussian()) * upstream).sum(), parameters)
            seen.add(b"".join(grad.numpy().tobytes() for grad in grads))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1


def test_the_table_between_patches_alone_is_zero_for_prefix_tokens():
    part = RelPosTable((3, 4), 2, 2)
    with torch.no_grad():
        part.relative_position_bias_table.normal_()
    bias = part()
    assert bias.shape == (1, 2, 14, 14)
    assert not bias[:, :, :2].any()
    assert not bias[:, :, :, :2].any()
    alone = RelPosBias((3, 4), 2)
    alone.load_state_dict(part.state_dict())
    assert torch.equal(bias[:, :, 2:, 2:], alone())


def test_the_normed_table_is_normalised_over_the_keys():
    part = NormedRelPosTable((4, 4), 2, 1)
    with torch.no_grad():
        part.relative_position_bias_table.normal_()
    patches = part()[0, :, 1:, 1:]
    assert torch.allclose(patches.mean(-1), torch.zeros(2, 16), atol=1e-5)
    assert torch.allclose(patches.var(-1, correction=0), torch.ones(2, 16), atol=1e-3)
    part.set_grid((6, 6))
    assert part().shape == (1, 2, 37, 37)
    assert part.norm.weight.shape == (36,)
    assert torch.allclose(part.norm.weight, torch.ones(36))


def test_tables_start_at_zero_or_from_a_truncated_normal(deit):
    for rel_pos, start in (("table", 0.0), ("table_norm", 0.0), ("bias", 0.02)):
        model = VisionTransformer(deit(rel_pos=rel_pos, embed_dim=96, num_heads=12), 64, seed=0)
        table = model.blocks[0].attn.rel_pos.relative_position_bias_table
        assert table.std().item() == pytest.approx(start, rel=0.1)
        assert "blocks.0.attn.rel_pos.relative_position_bias_table" in model.no_weight_decay()


@pytest.mark.parametrize("scheme", ["pytorch", "trunc_normal"])
@pytest.mark.parametrize("kind", ["table", "bias"])
@pytest.mark.parametrize("class_token", [True, False])
def test_a_table_starts_as_the_gaussian_exactly(kind, scheme, class_token, relpos):
    config = relpos(rel_pos=kind, rel_pos_start="gaussian", gab=True, init=scheme, class_token=class_token)
    for block in VisionTransformer(config, 48, seed=0).blocks:
        assert torch.equal(block.attn.rel_pos(), block.attn.gaussian().expand(-1, 3, -1, -1))


@pytest.mark.parametrize("scheme", ["pytorch", "trunc_normal"])
def test_the_mlp_starts_near_the_gaussian(scheme, relpos):
    """To what its last layer can do, with and without the Gaussian beside it, and not drowned by its own dropout."""
    config = relpos(rel_pos_start="gaussian", gaussian=GaussianConfig(sigma="auto"), init=scheme)
    own, beside, other = (
        VisionTransformer(replace(config, gab=gab), 112, seed=seed).blocks[1].attn
        for gab, seed in ((False, 0), (True, 0), (False, 1))
    )
    assert torch.equal(own.rel_pos.mlp.fc2.weight, beside.rel_pos.mlp.fc2.weight)
    assert not torch.equal(own.rel_pos.mlp.fc2.weight, other.rel_pos.mlp.fc2.weight)
    wanted, error = beside.gaussian(), own.rel_pos.gaussian_error()
    assert 0.1 < error < 0.4
    assert start_errors(own) == [error]
    found = own.rel_pos.eval()()
    assert (found - wanted).abs().max() < 1.2 < wanted.max() / 3
    drawn = torch.stack([own.rel_pos.train()() for _ in range(50)])
    assert drawn.std(0).mean() < 0.4


def test_only_what_was_asked_for_has_an_error(relpos):
    assert start_errors(VisionTransformer(relpos(), 32, seed=0)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rel_pos": "none", "position": "learnable"}, r"rel_pos_start=gaussian needs a relative bias"),
        ({"rel_pos": "table_norm"}, r"rel_pos_start=gaussian is for model\.rel_pos=mlp, bias or table"),
        ({"rel_pos_start": "bell"}, r"model\.rel_pos_start=bell is unknown: choose one of default, gaussian"),
    ],
)
def test_starts_that_cannot_be(changes, message, relpos):
    with pytest.raises(UserError, match=message):
        VisionTransformer(relpos(**{"rel_pos_start": "gaussian", **changes}), 32)
