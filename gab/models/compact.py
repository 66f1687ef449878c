"""The compact transformers ViT-Lite, CVT and CCT, for small images."""

from dataclasses import replace
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from gab.config import CompactConfig
from gab.errors import check_choice
from gab.models.block import Block, add_position
from gab.models.check import check_reduction
from gab.models.gaussian import Grid
from gab.models.pretrained import vit_filter
from gab.models.registry import evaluation, register
from gab.models.stem import Stem, to_tokens
from gab.models.vit import VisionTransformer

STEMS = ("patch", "conv")
POSITION_STD = 0.2

OFFICIAL = (  # from the names of SHI-Labs/Compact-Transformers to ours: pattern and replacement
    (r"^tokenizer\.conv_layers\.0\.0\.", "patch_embed.proj."),
    (r"^classifier\.class_emb$", "cls_token"),
    (r"^classifier\.positional_emb$", "pos_embed"),
    (r"^classifier\.attention_pool\.", "attention_pool."),
    (r"^classifier\.blocks\.(\d+)\.pre_norm\.", r"blocks.\1.norm1."),
    (r"^classifier\.blocks\.(\d+)\.norm1\.", r"blocks.\1.norm2."),
    (r"^classifier\.blocks\.(\d+)\.self_attn\.", r"blocks.\1.attn."),
    (r"^classifier\.blocks\.(\d+)\.linear([12])\.", r"blocks.\1.mlp.fc\2."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.fc\.", "head."),
)


class TokenizerConv(nn.Conv2d):
    """A convolution whose weights start Kaiming normal, its bias as PyTorch's."""

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor | None:
        """N(0, 2 / fan-in) for the weight; the network's rule for the bias."""
        if name != "weight":
            return None
        return nn.init.kaiming_normal_(torch.empty(parameter.shape), generator=generator)


class ConvTokenizer(Stem):
    """Tokens of 2 pixels that overlap: 3 x 3 convolution, ReLU, 3 x 3 maximum with stride 2 (CCT)."""

    def __init__(self, img_size: tuple[int, int], in_chans: int, dim: int):
        super().__init__(img_size, reduction=2)
        self.proj = TokenizerConv(in_chans, dim, 3, padding=1, bias=False)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, H W / 4, C)."""
        self.check_size(x)
        return to_tokens(self.pool(self.act(self.proj(x))))


class CompactBlock(Block):
    """A block whose second norm rewrites the residual stream before the MLP adds to it."""

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C); `position` (1, N, C) joins the normalised input of attention."""
        x = x + self.drop_path1(self.ls1(self.attn(add_position(self.norm1(x), position))))
        x = self.norm2(x)
        return x + self.drop_path2(self.ls2(self.mlp(x)))


class CompactTransformer(VisionTransformer):
    """ViT-Lite (patches, class token), CVT (patches, sequence pooling) and CCT (convolution, sequence pooling).

    "Escaping the Big Data Paradigm with Compact Transformers" (arXiv 2104.05704). Sequence pooling is the mean of the
    patch tokens, weighted by the softmax over them of a linear score; the bias of the score cannot change it.
    Arguments, attributes and errors are those of `VisionTransformer`.
    """

    eps = 1e-5
    pools = ("token", "seq", "avg")
    released_undecayed = frozenset()  # nothing by name in the released code

    attention_pool: nn.Linear | None

    def make_stem(self, cfg: Any, img_size: tuple[int, int]) -> PatchEmbed | Stem:
        """Patches, or CCT's convolution."""
        check_choice("model.stem", cfg.stem, STEMS)
        if cfg.stem == "conv":
            check_reduction(cfg, 2)
            return ConvTokenizer(img_size, self.in_chans, cfg.embed_dim)
        stem = super().make_stem(cfg, img_size)
        stem.proj = TokenizerConv(self.in_chans, cfg.embed_dim, cfg.patch_size, stride=cfg.patch_size)
        return stem

    def make_block(self, cfg: Any, grid: Grid, drop_path: float) -> nn.Module:
        """One layer."""
        attn = self.make_attention(cfg, grid)
        return CompactBlock(
            cfg.embed_dim, attn, cfg.mlp_ratio, cfg.layer_scale, cfg.proj_drop_rate, drop_path, self.eps
        )

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor | None:
        """The class token starts at zero, learnable positions from a truncated normal of 0.2."""
        if name == "cls_token":
            return torch.zeros(parameter.shape)
        if name == "pos_embed" and parameter.requires_grad:
            return nn.init.trunc_normal_(torch.empty(parameter.shape), std=POSITION_STD, generator=generator)
        return None

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, and another pooling if given; the score of sequence pooling is there while it is used."""
        super().reset_classifier(num_classes, global_pool)
        if self.global_pool != "seq":
            self.attention_pool = None
        elif getattr(self, "attention_pool", None) is None:
            self.attention_pool = nn.Linear(self.embed_dim, 1).to(next(self.parameters()))

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to features (B, C)."""
        if self.attention_pool is None:
            return super().pool(x)
        patches = x[:, self.num_prefix_tokens :]
        weights = self.attention_pool(patches).softmax(dim=1)  # (B, P, 1)
        return (weights.transpose(1, 2) @ patches).squeeze(1)


VIT_LITE = CompactConfig(base="vit_lite7")
CVT = replace(VIT_LITE, base="cvt7", class_token=False, pool="seq")
CCT = replace(CVT, base="cct7", stem="conv", patch_size=2)

for _name, _config in (("vit_lite_7_4_32", VIT_LITE), ("cvt_7_4_32", CVT), ("cct_7_3x1_32", CCT)):
    register(
        _name,
        CompactTransformer,
        _config,
        evaluation(  # CIFAR-10
            32,
            num_classes=10,
            crop_pct=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            first_conv="patch_embed.proj",
        ),
        weights_filter=vit_filter,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
    )
