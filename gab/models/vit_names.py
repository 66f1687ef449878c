"""The ViTs of the papers, under the names that timm knows them by."""

from dataclasses import replace
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

from gab.config import ViTConfig
from gab.models.pretrained import vit_filter
from gab.models.registry import evaluation, register
from gab.models.vit import VisionTransformer

SIZES = {"tiny": (192, 3), "small": (384, 6), "medium": (512, 8), "base": (768, 12)}  # width and heads

RELPOS = ViTConfig(  # of the GAB paper, after timm's vit_relpos
    base="vit",
    qkv_bias=False,
    layer_scale=1e-6,
    class_token=False,
    pool="avg",
    position="none",
    rel_pos="mlp",
    gab=True,
    init="pytorch",
    drop_path_rate=0.0,
)
DEIT = ViTConfig(base="deit", drop_path_rate=0.0)


def sized(config: ViTConfig, size: str, **changes: Any) -> ViTConfig:
    """`config` in the width of `size`."""
    width, heads = SIZES[size]
    return replace(config, embed_dim=width, num_heads=heads, **changes)


def _register(name: str, config: ViTConfig, settings: dict[str, Any], tag: str = "") -> None:
    features = {"out_indices": 3, "feature_cls": "getter"}
    settings = {"first_conv": "patch_embed.proj", **settings}
    register(name, VisionTransformer, config, settings, weights_filter=vit_filter, feature_cfg=features, tag=tag)


for _size in ("small", "medium", "base"):
    _relpos = evaluation(
        hf_hub_id=f"timm/vit_relpos_{_size}_patch16_224.sw_in1k",
        mean=IMAGENET_INCEPTION_MEAN,
        std=IMAGENET_INCEPTION_STD,
        license="apache-2.0",
    )
    _register(f"vit_relpos_{_size}_patch16_gab_224", sized(RELPOS, _size), _relpos, tag="sw_in1k")

for _size in ("tiny", "small", "base"):
    _lape = sized(DEIT, _size, join="lape")
    _distilled = replace(_lape, distillation_token=True)
    _register(f"deit_{_size}_patch16_lape_224", _lape, evaluation(crop_pct=1.0))
    _heads = evaluation(crop_pct=1.0, classifier=("head", "head_dist"))
    _register(f"deit_{_size}_distilled_patch16_lape_224", _distilled, _heads)
    _register(f"deit_{_size}_patch16_life_224", sized(DEIT, _size, life=True), evaluation(crop_pct=0.875))

_register(
    "deit_tiny_distilled_patch16_life_224",
    sized(DEIT, "tiny", life=True, distillation_token=True),
    evaluation(crop_pct=0.875, classifier=("head", "head_dist")),
)
for _side in (32, 64):  # for small images: CIFAR and Tiny-ImageNet, seen whole
    _small = sized(DEIT, "tiny", life=True, patch_size=4)
    _register(f"deit_tiny_patch4_life_{_side}", _small, evaluation(_side, crop_pct=1.0))
