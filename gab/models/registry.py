"""Our networks under timm's roof: `import gab; timm.create_model("vit_relpos_base_patch16_gab_224")`."""

from dataclasses import fields, replace
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from gab.config import GaussianConfig, SwinConfig, ViTConfig
from gab.models.pretrained import swin_filter, vit_filter
from gab.models.swin import SwinTransformer
from gab.models.vit import VisionTransformer

RELPOS = ViTConfig(
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
SMALL = replace(RELPOS, embed_dim=384, num_heads=6)
MEDIUM = replace(RELPOS, embed_dim=512, num_heads=8)
BASE = replace(RELPOS, embed_dim=768, num_heads=12)
SWIN_SMALL = SwinConfig(base="swin_s", gab=True, drop_path_rate=0.1)  # timm's default rate


def _cfg(weights: str, **options: Any) -> dict[str, Any]:
    """What timm keeps about a network: evaluation settings, and whose weights `pretrained=True` takes."""
    return {
        "hf_hub_id": f"timm/{weights}",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        **options,
    }


def _relpos_cfg(size: str) -> dict[str, Any]:
    return _cfg(
        f"vit_relpos_{size}_patch16_224.sw_in1k",
        mean=IMAGENET_INCEPTION_MEAN,
        std=IMAGENET_INCEPTION_STD,
        classifier="head",
        license="apache-2.0",
    )


default_cfgs = generate_default_cfgs(
    {
        **{f"vit_relpos_{size}_patch16_gab_224.sw_in1k": _relpos_cfg(size) for size in ("small", "medium", "base")},
        "swin_small_patch4_window7_gab_224.ms_in1k": _cfg(
            "swin_small_patch4_window7_224.ms_in1k",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            classifier="head.fc",
            license="mit",
        ),
    }
)


def _configure(cfg: Any, kwargs: dict[str, Any]) -> Any:
    """Takes from `kwargs` what names a field of `cfg` or of its Gaussian; returns `cfg` with it."""

    def taken(kind: type) -> dict[str, Any]:
        return {f.name: kwargs.pop(f.name) for f in fields(kind) if f.name in kwargs}

    gaussian = replace(cfg.gaussian, **taken(GaussianConfig))
    return replace(cfg, **{"gaussian": gaussian, **taken(type(cfg))})


def _vit(name: str, cfg: ViTConfig, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        model_cfg=_configure(cfg, kwargs),
        feature_cfg=feature_cfg,
        pretrained_filter_fn=vit_filter,
        **kwargs,
    )


@register_model
def vit_relpos_small_patch16_gab_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-S/16 with RelPosMlp and the Gaussian attention bias; keywords: any field of ViTConfig or GaussianConfig."""
    return _vit("vit_relpos_small_patch16_gab_224", SMALL, pretrained, **kwargs)


@register_model
def vit_relpos_medium_patch16_gab_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-M/16 with RelPosMlp and the Gaussian attention bias; keywords: any field of ViTConfig or GaussianConfig."""
    return _vit("vit_relpos_medium_patch16_gab_224", MEDIUM, pretrained, **kwargs)


@register_model
def vit_relpos_base_patch16_gab_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-B/16 with RelPosMlp and the Gaussian attention bias; keywords: any field of ViTConfig or GaussianConfig."""
    return _vit("vit_relpos_base_patch16_gab_224", BASE, pretrained, **kwargs)


@register_model
def swin_small_patch4_window7_gab_224(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin-S with the Gaussian attention bias in its windows; keywords: any field of SwinConfig or GaussianConfig."""
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        SwinTransformer,
        "swin_small_patch4_window7_gab_224",
        pretrained,
        model_cfg=_configure(SWIN_SMALL, kwargs),
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        pretrained_filter_fn=swin_filter,
        **kwargs,
    )
