"""T2T-ViT: tokens are made of overlapping tokens three times, then a ViT.

"Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (ICCV 2021), the form with Performers.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gab.config import T2TConfig, ViTConfig
from gab.models.check import check_reduction
from gab.models.performer import Performer
from gab.models.stem import Stem, to_map
from gab.models.vit import VisionTransformer

REDUCTION = 16
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride and padding of each

# From the released parameter names to ours: (pattern, replacement) for re.sub.
OFFICIAL = [(r"^tokens_to_token\.", r"patch_embed.")]


def soft_split(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """A map (B, C, H, W) to overlapping patches (B, N, C k k), channel by channel: the paper's soft split."""
    return F.unfold(x, kernel_size, padding=padding, stride=stride).transpose(1, 2)


class TokensToToken(Stem):
    """Images to tokens of 16 pixels: soft split and Performer, twice, then soft split and a linear map."""

    def __init__(self, cfg: T2TConfig, img_size: tuple[int, int], in_chans: int):
        super().__init__(img_size, REDUCTION)
        width = cfg.token_width
        first, second, third = (kernel * kernel for kernel, _, _ in SPLITS)
        self.attention1 = Performer(in_chans * first, width)
        self.attention2 = Performer(width * second, width)
        self.project = nn.Linear(width * third, cfg.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C), row-major."""
        self.check_size(x)
        height, width = self.grid_size
        x = self.attention1(soft_split(x, *SPLITS[0]))
        x = self.attention2(soft_split(to_map(x, (4 * height, 4 * width)), *SPLITS[1]))
        return self.project(soft_split(to_map(x, (2 * height, 2 * width)), *SPLITS[2]))


class T2TTransformer(VisionTransformer):
    """T2T-ViT. The ViT's sockets are those of the backbone; the token module is as published."""

    eps = 1e-5
    released_undecayed = frozenset({"cls_token"})

    def make_stem(self, cfg: ViTConfig, img_size: tuple[int, int]) -> Stem:
        assert isinstance(cfg, T2TConfig)
        check_reduction(cfg, REDUCTION)
        return TokensToToken(cfg, img_size, self.in_chans)
