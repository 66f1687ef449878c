"""LIFE: what each scale sees, the auxiliary tokens, counts and start."""

import pytest
import torch
import torch.nn.functional as F

from gab.config import ViTConfig
from gab.errors import UserError
from gab.models.life import LIFE
from gab.models.vit import VisionTransformer
from gab.training.flops import macs

DIM, GRID = 12, (9, 8)
THIRD = DIM // 3


def tokens(prefix: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, prefix + GRID[0] * GRID[1], DIM)


def split(qkv: torch.Tensor) -> torch.Tensor:
    """(B, N, 3 C) to (q k v, scales, B, N, C / 3)."""
    return qkv.unflatten(2, (3, 3, THIRD)).permute(2, 3, 0, 1, 4)


def test_patches_by_the_formula():
    """Section 2 of the methods sheet, scale by scale, with thirds cut inside each scale."""
    part, x = LIFE(DIM, GRID), tokens()
    maps = [part.scale1(x).transpose(1, 2).reshape(2, DIM, *GRID)]
    for scale, kernel in ((part.scale2, 3), (part.scale3, 5)):
        spread = F.conv2d(maps[-1], scale.depthwise.weight, padding=kernel // 2, groups=DIM)
        maps.append(torch.einsum("oc,bchw->bohw", scale.pointwise.weight[:, :, 0, 0], spread))
    scales = [m.reshape(2, DIM, -1).transpose(1, 2) for m in maps]
    expected = [torch.cat([s[..., i * THIRD : (i + 1) * THIRD] for s in scales], -1) for i in range(3)]
    assert torch.allclose(part(x), torch.cat(expected, -1), atol=1e-5)


@pytest.mark.parametrize("aux_key", ["released", "per_scale"])
def test_auxiliary_tokens_skip_the_depthwise_convolutions(aux_key):
    part, x = LIFE(DIM, GRID, 2, aux_key=aux_key), tokens(2)
    first = part.scale1(x)[:, :2]
    second = first @ part.scale2.pointwise.weight[:, :, 0, 0].T
    third = second @ part.scale3.pointwise.weight[:, :, 0, 0].T
    parts = split(part(x))[..., :2, :]
    for which in range(3):
        for number, scale in enumerate((first, second, third)):
            if which == 1 and aux_key == "released":
                scale = first
            expected = scale[..., which * THIRD : (which + 1) * THIRD]
            assert torch.allclose(parts[which, number], expected, atol=1e-6)
    assert not torch.allclose(first[..., THIRD : 2 * THIRD], second[..., THIRD : 2 * THIRD], atol=1e-2)


def test_two_equal_auxiliary_tokens_and_their_exchange():
    part, x = LIFE(DIM, GRID, 2), tokens(2)
    swapped = torch.cat((x[:, 1:2], x[:, :1], x[:, 2:]), 1)
    out, other = part(x), part(swapped)
    assert torch.equal(out[:, 0], other[:, 1])
    assert torch.equal(out[:, 1], other[:, 0])
    assert torch.equal(out[:, 2:], other[:, 2:])
    x[:, 1] = x[:, 0]
    out = part(x)
    assert torch.equal(out[:, 0], out[:, 1])


def test_each_scale_sees_its_neighbourhood():
    """Changing one patch changes 1 x 1, 3 x 3 and 7 x 7 patches."""
    part, x = LIFE(DIM, GRID, 1), tokens(1, batch=1)
    moved = x.clone()
    moved[0, 1 + 4 * GRID[1] + 4] += 1  # row 4, column 4
    change = (split(part(moved)) - split(part(x))).abs().amax((0, 2, 4))  # (scales, N)
    assert not change[:, 0].any()
    for scale, radius in enumerate((0, 1, 3)):
        seen = change[scale, 1:].view(GRID) > 0
        expected = torch.zeros(GRID, dtype=torch.bool)
        expected[4 - radius : 5 + radius, 4 - radius : 5 + radius] = True
        assert torch.equal(seen, expected)


def test_qkv_norm_is_one_norm_for_all_three():
    part, x = LIFE(DIM, GRID, qkv_norm=True), tokens()
    plain = LIFE(DIM, GRID)
    plain.load_state_dict({k: v for k, v in part.state_dict().items() if not k.startswith("norm")})
    expected = [F.layer_norm(y, (DIM,), eps=1e-5) for y in plain(x).chunk(3, dim=-1)]
    assert torch.allclose(part(x), torch.cat(expected, -1), atol=1e-6)


def test_another_grid():
    part = LIFE(DIM, GRID)
    part.set_grid((4, 5))
    assert part(torch.randn(1, 20, DIM)).shape == (1, 20, 3 * DIM)


def test_refusals(deit):
    with pytest.raises(UserError, match=r"width of 16.*multiple of 3"):
        LIFE(16, GRID)
    for life in (True, False):
        with pytest.raises(UserError, match=r"model\.aux_key=mean is unknown: choose one of released, per_scale"):
            VisionTransformer(deit(life=life, aux_key="mean"), 32)
    with pytest.raises(UserError, match=r"model\.qkv_norm is a part of LIFE: set model\.life=true"):
        VisionTransformer(deit(qkv_norm=True), 32)


SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
COUNTS = [
    ("tiny", 16, 224, 100, 5_617_444),
    ("small", 16, 224, 100, 21_851_620),
    ("base", 16, 224, 100, 86_170_468),
    ("tiny", 16, 224, 1000, 5_791_144),
    ("small", 16, 224, 1000, 22_198_120),
    ("base", 16, 224, 1000, 86_862_568),
    ("tiny", 4, 32, 10, 5_436_490),
    ("tiny", 4, 32, 100, 5_453_860),
    ("tiny", 2, 32, 100, 5_483_812),
    ("tiny", 4, 64, 100, 5_490_724),
    ("tiny", 4, 64, 200, 5_510_024),
    ("small", 4, 32, 10, 21_489_802),
    ("small", 4, 32, 100, 21_524_452),
]


def on_meta(size: str, patch_size: int, image_size: int, num_classes: int, **options) -> VisionTransformer:
    dim, heads = SIZES[size]
    cfg = ViTConfig(base="deit", embed_dim=dim, num_heads=heads, patch_size=patch_size, **options)
    with torch.device("meta"):
        return VisionTransformer(cfg, image_size, num_classes=num_classes, seed=0)


def size_of(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("size", "patch_size", "image_size", "num_classes", "count"), COUNTS)
def test_counts(size, patch_size, image_size, num_classes, count):
    shape = size, patch_size, image_size, num_classes
    assert size_of(on_meta(*shape, life=True)) == count
    assert count - size_of(on_meta(*shape)) == 32 * SIZES[size][0] * 12


def test_count_with_the_norm():
    assert size_of(on_meta("tiny", 4, 32, 100, life=True, qkv_norm=True)) == 5_458_468


@pytest.mark.parametrize(("life", "gmacs"), [(False, 0.365), (True, 0.370)])
def test_macs(life, gmacs):
    model = VisionTransformer(
        ViTConfig(base="deit", embed_dim=192, num_heads=3, patch_size=4, life=life), 32, num_classes=100
    )
    assert macs(model, 32) / 1e9 == pytest.approx(gmacs, abs=0.0006)


def test_start():
    """Linear truncated normal 0.02, convolutions PyTorch's own: 0.191, 0.116 and 0.042 at width 192 (the sheet)."""
    part = VisionTransformer(
        ViTConfig(base="d", embed_dim=192, num_heads=3, depth=1, life=True, qkv_norm=True), 32, seed=0
    ).blocks[0].attn.qkv  # fmt: skip
    for weight, std in {
        part.scale1.weight: 0.02,
        part.scale2.depthwise.weight: 0.192,
        part.scale3.depthwise.weight: 0.115,
        part.scale2.pointwise.weight: 0.0417,
        part.scale3.pointwise.weight: 0.0417,
    }.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(weight.mean().item()) < 0.1 * std
    assert not part.scale1.bias.any()
    assert part.norm.weight.eq(1).all()


def test_weight_decay(deit):
    model = VisionTransformer(deit(life=True, distillation_token=True), 32)
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "dist_token"}  # convolutions are decayed
    assert model.no_weight_decay(released=True) == {"pos_embed", "cls_token"}


def test_the_bias_of_scale1_is_there_without_qkv_bias(deit):
    assert VisionTransformer(deit(life=True, qkv_bias=False), 32).blocks[0].attn.qkv.scale1.bias is not None


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_any_number_of_auxiliary_tokens(deit, prefix):
    tokens = {"class_token": prefix > 0, "distillation_token": prefix > 1, "pool": "token" if prefix else "avg"}
    model = VisionTransformer(deit(life=True, **tokens), (32, 48), num_classes=5)
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 5)
