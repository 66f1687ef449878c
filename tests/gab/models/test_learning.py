"""Each network learns: it fits 64 real images (scikit-learn's handwritten digits) to 100 % in seconds."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import gab  # noqa: F401  (registers the networks)

VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
COMPACT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
DEIT = "deit_tiny_patch16_lape_224"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_relpos_small_patch16_gab_224", {**VIT, "gab": False, "layer_scale": 0.1}),
    "gab": ("vit_relpos_small_patch16_gab_224", {**VIT, "layer_scale": 0.1}),
    "deit": (DEIT, {**VIT, "join": "add"}),
    "deit, table": (DEIT, {**VIT, "position": "none", "join": "add", "rel_pos": "table"}),
    **{join: (DEIT, {**VIT, "join": join}) for join in ("shared", "unshared", "lape", "lape_sharing")},
    "lape, sincos_2d": (DEIT, {**VIT, "position": "sincos_2d"}),
    "lape, distilled": ("deit_tiny_distilled_patch16_lape_224", VIT),
    "life": ("deit_tiny_patch16_life_224", VIT),
    "life, distilled": ("deit_tiny_distilled_patch16_life_224", VIT),
    "gab, lape and life": ("deit_tiny_patch16_life_224", {**VIT, "join": "lape", "gab": True, "class_bias": "learned"}),
    "vit_lite": ("vit_lite_7_4_32", COMPACT),
    "cvt, lape": ("cvt_7_4_32", {**COMPACT, "join": "lape"}),
    "cct, lape": ("cct_7_3x1_32", {**COMPACT, "join": "lape", "depth": 1}),
    "swin, gab": ("swin_small_patch4_window7_gab_224", SWIN),
    "swin, lape": ("swin_small_patch4_window7_lape_224", SWIN),
    "swinv2, life": ("swinv2_tiny_window8_life_256", SWIN),
    "t2t, lape": ("t2t_vit_7", {"embed_dim": 48, "depth": 2, "num_heads": 3, "token_width": 16, "join": "lape"}),
    "vitae": ("vitae_tiny", {"embed_dim": 48, "depth": 1, "num_heads": 3, "token_widths": [16, 16],
                             "prm_widths": [8, 8], "groups": 12}),
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """64 images (64, 3, 32, 32) in [-1, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[:64]).float().view(-1, 1, 8, 8) / 8 - 1
    return F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(
        labels[:64]
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_fits_real_images(network: str, digits: tuple[Tensor, Tensor]) -> None:
    name, options = NETWORKS[network]
    images, labels = digits
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, num_classes=10, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        logits = model(images)
        if (logits.argmax(1) == labels).all():
            break
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        pytest.fail(f"{(logits.argmax(1) == labels).float().mean():.0%} after 200 steps")
