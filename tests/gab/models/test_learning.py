"""Each network learns: it fits 64 real images (scikit-learn's handwritten digits) to 100 % in seconds.

And each published one takes a step at full size.
"""

import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gab  # noqa: F401  (registers the networks)
from gab.models.registry import REGISTERED

VIT = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SWIN = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
COMPACT = {"img_size": 16, "embed_dim": 48, "depth": 1, "num_heads": 3}
DEIT = "deit_tiny_patch16_lape_224"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gab": ("vit_relpos_small_patch16_gab_224", {**VIT, "layer_scale": 0.1}),
    "deit, table": (DEIT, {**VIT, "position": "none", "join": "add", "rel_pos": "table"}),
    **{join: (DEIT, {**VIT, "join": join}) for join in ("shared", "unshared", "lape", "lape_sharing")},
    "lape, sincos_2d": (DEIT, {**VIT, "position": "sincos_2d"}),
    "lape, distilled": ("deit_tiny_distilled_patch16_lape_224", VIT),
    "life": ("deit_tiny_patch16_life_224", VIT),
    "gab, lape and life": ("deit_tiny_patch16_life_224", {**VIT, "join": "lape", "gab": True, "class_bias": "learned"}),
    "vit_lite": ("vit_lite_7_4_32", COMPACT),
    "cvt, lape": ("cvt_7_4_32", {**COMPACT, "join": "lape"}),
    "cct, lape": ("cct_7_3x1_32", {**COMPACT, "join": "lape"}),
    "swin, gab": ("swin_small_patch4_window7_gab_224", SWIN),
    "swin, lape": ("swin_small_patch4_window7_lape_224", SWIN),
    "swinv2, life": ("swinv2_tiny_window8_life_256", SWIN),
    "t2t, lape": ("t2t_vit_7", {"embed_dim": 48, "depth": 1, "num_heads": 3, "token_width": 16, "join": "lape"}),
    "vitae": ("vitae_tiny", {"embed_dim": 48, "depth": 1, "num_heads": 3, "token_widths": [16, 16],
                             "prm_widths": [8, 8], "groups": 12}),
}  # fmt: skip

PUBLISHED = [  # the smallest of each kind and size of image; the others differ in width and depth
    name for name in REGISTERED if not re.match(r"gab_|.*(small|medium|base|13m|6m|vit_12)", name)
] + ["vit_relpos_small_patch16_gab_224"]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """64 images (64, 3, 8, 8) in [-1, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[:64]).float().view(-1, 1, 8, 8) / 8 - 1
    return images.expand(-1, 3, -1, -1), torch.from_numpy(labels[:64])


@pytest.mark.parametrize("network", NETWORKS)
def test_fits_real_images(network: str, digits: tuple[Tensor, Tensor]) -> None:
    name, options = NETWORKS[network]
    options = {"img_size": 32, "num_classes": 10, **options}
    images, labels = F.interpolate(digits[0], options["img_size"], mode="bilinear"), digits[1]
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        train(model.train(), optimizer, images, labels, steps=10)
        with torch.no_grad():
            correct = int((model.eval()(images).argmax(1) == labels).sum())
        if correct == len(labels):
            return
    pytest.fail(f"{correct} of {len(labels)} after 200 steps")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_network_takes_a_step(name: str) -> None:
    """At full size: loss and weights stay finite."""
    torch.manual_seed(0)
    model = timm.create_model(name, drop_path_rate=0.1).train()
    side = timm.get_pretrained_cfg(name).input_size[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = torch.randn(1, 3, side, side), torch.tensor([1])
    assert train(model, optimizer, images, labels, steps=1).isfinite()
    assert all(p.isfinite().all() for p in model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """The loss of the last step."""
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss
