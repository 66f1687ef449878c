"""The ViTAEs of the paper, under the names that timm knows them by."""

from dataclasses import replace

from gab.config import ViTAEConfig
from gab.models.pretrained import vit_filter
from gab.models.registry import evaluation, register
from gab.models.vitae import CELLS, VitaeTransformer

TINY = ViTAEConfig(base="vitae_t", drop_path_rate=0.0)
SIZES = {
    "tiny": TINY,
    "6m": replace(TINY, base="vitae_6m", depth=10),
    "13m": replace(TINY, base="vitae_13m", depth=11, embed_dim=320, num_heads=5),  # 10.8M in the released code
    "small": replace(
        TINY, base="vitae_s", depth=14, embed_dim=384, num_heads=6, mlp_ratio=3.0, groups=96, token_widths=[96, 192]
    ),
}
FIRST = ("pcm.0", *(f"prm.convs.{i}" for i in range(len(CELLS[0][2]))))  # what sees the image

for _size, _config in SIZES.items():
    register(
        f"vitae_{_size}",
        VitaeTransformer,
        _config,
        evaluation(first_conv=tuple(f"patch_embed.cells.0.{name}" for name in FIRST)),
        weights_filter=vit_filter,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
    )
