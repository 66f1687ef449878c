"""The Swin transformers of the papers, under the names that timm knows them by."""

from dataclasses import replace
from typing import Any

from gab.config import SwinConfig, SwinV2Config
from gab.models.pretrained import swin_filter, swinv2_filter
from gab.models.registry import evaluation, register
from gab.models.swin import SwinTransformer
from gab.models.swinv2 import SwinTransformerV2

SMALL = SwinConfig(base="swin_s", gab=True, drop_path_rate=0.1)  # timm's default rate
SMALL_LAPE = replace(SMALL, gab=False, position="learnable", join="lape")
TINY_LAPE = replace(SMALL_LAPE, base="swin_t", depths=[2, 2, 6, 2])
V2_TINY_LIFE = SwinV2Config(base="swinv2_t", life=True, drop_path_rate=0.1)

FEATURES = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}


def _settings(size: int = 224, **options: Any) -> dict[str, Any]:
    return evaluation(size, first_conv="patch_embed.proj", classifier="head.fc", **options)


def _register(name: str, config: SwinConfig, settings: dict[str, Any], tag: str = "") -> None:
    register(name, SwinTransformer, config, settings, weights_filter=swin_filter, feature_cfg=FEATURES, tag=tag)


_register(
    "swin_small_patch4_window7_gab_224",
    SMALL,
    _settings(hf_hub_id="timm/swin_small_patch4_window7_224.ms_in1k", license="mit"),
    tag="ms_in1k",
)
_register("swin_tiny_patch4_window7_lape_224", TINY_LAPE, _settings())
_register("swin_small_patch4_window7_lape_224", SMALL_LAPE, _settings())

for _name, _config, _options in (
    ("swinv2_tiny_window8_life_256", V2_TINY_LIFE, _settings(256)),
    ("swinv2_tiny_patch1_window8_life_32", replace(V2_TINY_LIFE, patch_size=1), _settings(32, crop_pct=1.0)),
    ("swinv2_tiny_patch1_window8_life_64", replace(V2_TINY_LIFE, patch_size=1), _settings(64, crop_pct=1.0)),
):
    register(_name, SwinTransformerV2, _config, _options, weights_filter=swinv2_filter, feature_cfg=FEATURES)
