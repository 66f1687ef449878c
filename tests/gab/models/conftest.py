"""Small networks, and timm's with LayerScale raised so that attention counts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gab.config import GaussianConfig, SwinConfig, ViTConfig

RELPOS = ViTConfig(
    base="vit",
    qkv_bias=False,
    layer_scale=1e-6,
    class_token=False,
    pool="avg",
    position="none",
    rel_pos="mlp",
    init="pytorch",
    drop_path_rate=0.0,
)


@pytest.fixture
def relpos():
    """`relpos(**changes)`: the GAB paper's kind of ViT, tiny unless told otherwise."""

    def make(**changes) -> ViTConfig:
        return replace(RELPOS, **{"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, **changes})

    return make


@pytest.fixture
def deit():
    """`deit(**changes)`: a plain ViT with class token and learnable positions."""

    def make(**changes) -> ViTConfig:
        start = ViTConfig(base="deit", patch_size=8, embed_dim=24, depth=2, num_heads=3, drop_path_rate=0.0)
        return replace(start, **changes)

    return make


@pytest.fixture
def swin():
    """`swin(**changes)`: two stages on windows of 4 x 4, the second block of each shifted where it can be."""

    def make(**changes) -> SwinConfig:
        start = SwinConfig(
            base="swin", embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4, gab=True, drop_path_rate=0.0
        )
        return replace(start, **{"gaussian": GaussianConfig(), **changes})

    return make


@pytest.fixture
def raise_layer_scale():
    """LayerScale starts at 1e-6, which hides attention and every error in it."""

    def apply(model: nn.Module, value: float = 0.1) -> nn.Module:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(value)
        return model

    return apply


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
