"""The T2T-ViTs, under the names that timm knows them by."""

from gab.config import T2TConfig
from gab.models.pretrained import vit_filter
from gab.models.registry import evaluation, register
from gab.models.t2t import T2TTransformer

for _depth in (7, 12):
    register(
        f"t2t_vit_{_depth}",
        T2TTransformer,
        T2TConfig(base=f"t2t_vit{_depth}", depth=_depth, drop_path_rate=0.0),
        evaluation(first_conv=None),  # its first layer is linear
        weights_filter=vit_filter,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
    )
