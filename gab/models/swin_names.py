"""The Swin transformers of the papers, under the names that timm knows them by."""

from gab.config import SwinConfig
from gab.models.pretrained import swin_filter
from gab.models.registry import evaluation, register
from gab.models.swin import SwinTransformer

SMALL = SwinConfig(base="swin_s", gab=True, drop_path_rate=0.1)  # timm's default rate

register(
    "swin_small_patch4_window7_gab_224",
    SwinTransformer,
    SMALL,
    evaluation(
        hf_hub_id="timm/swin_small_patch4_window7_224.ms_in1k",
        first_conv="patch_embed.proj",
        classifier="head.fc",
        license="mit",
    ),
    weights_filter=swin_filter,
    feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
    tag="ms_in1k",
)
