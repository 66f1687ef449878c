"""ViTAE: cells that reduce the image at several scales, then blocks with convolutions beside attention.

"ViTAE: Vision Transformer Advanced by Exploring Intrinsic Inductive Bias" (NeurIPS 2021), as released: no class token,
no positions and no last norm, unless asked for.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.config import ViTAEConfig, ViTConfig
from gab.errors import UserError
from gab.models.block import Attention, Block, add_position
from gab.models.check import check_reduction
from gab.models.gaussian import Grid
from gab.models.performer import Performer
from gab.models.stem import Stem, to_map, to_tokens
from gab.models.stochastic import DropPath
from gab.models.vit import VisionTransformer

REDUCTION = 16
CELLS = ((7, 4, (1, 2, 3, 4)), (3, 2, (1, 2, 3)), (3, 2, (1, 2)))  # kernel, stride and dilations of each reduction

# From the released parameter names to ours: (pattern, replacement) for re.sub, every one applied in this order.
OFFICIAL = [
    (r"^layers\.2\.NC\.(\d+)\.PCM\.", r"blocks.\1.pcm."),
    (r"^layers\.2\.NC\.", r"blocks."),
    (r"^layers\.2\.RC\.PRM\.convs\.(\d+)\.0\.", r"patch_embed.prm.convs.\1."),
    (r"^layers\.(\d)\.RC\.PRM\.convs\.(\d+)\.0\.", r"patch_embed.cells.\1.prm.convs.\2."),
    (r"^layers\.(\d)\.RC\.PCM\.", r"patch_embed.cells.\1.pcm."),
    (r"^layers\.(\d)\.RC\.attn\.", r"patch_embed.cells.\1.attn."),
]


def check(cfg: ViTAEConfig) -> None:
    """Raises UserError for widths and groups that ViTAE cannot be built with."""
    check_reduction(cfg, REDUCTION)
    for name in ("prm_widths", "token_widths"):
        widths = getattr(cfg, name)
        if len(widths) != len(CELLS) - 1 or min(widths) < 1:
            raise UserError(f"model.{name} is {list(widths)}; give a width for each of the first two reduction cells.")
    if cfg.embed_dim % len(CELLS[-1][2]):
        raise UserError(f"ViTAE's last reduction makes model.embed_dim={cfg.embed_dim} of two halves: set an even one.")
    hidden = int(cfg.embed_dim * cfg.mlp_ratio)
    if cfg.groups < 1 or cfg.embed_dim % cfg.groups or hidden % cfg.groups:
        raise UserError(
            f"model.groups={cfg.groups} does not divide model.embed_dim={cfg.embed_dim} and {hidden}, its product with "
            "model.mlp_ratio; set a number that divides both."
        )


class PyramidReduction(nn.Module):
    """PRM: one strided convolution per dilation, their outputs side by side, GELU."""

    def __init__(self, in_chans: int, width: int, kernel_size: int, stride: int, dilations: Sequence[int]):
        super().__init__()

        def conv(dilation: int) -> nn.Conv2d:
            extent = (kernel_size - 1) * dilation + 1
            padding = math.ceil((extent - stride) / 2)  # an even reduction, whatever the dilation
            return nn.Conv2d(in_chans, width, kernel_size, stride, padding, dilation)

        self.convs = nn.ModuleList(conv(dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, dilations x width, H / stride, W / stride)."""
        return F.gelu(torch.cat([conv(x) for conv in self.convs], dim=1))


class ReductionCell(nn.Module):
    """RC: Performer on the tokens of the pyramid, three convolutions on the map itself (PCM) beside it."""

    def __init__(
        self,
        in_chans: int,
        width: int,
        token_width: int,
        kernel_size: int,
        stride: int,
        dilations: Sequence[int],
    ):
        super().__init__()
        self.prm = PyramidReduction(in_chans, width, kernel_size, stride, dilations)
        self.pcm = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride // 2, 1),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, token_width, 3, 1, 1),
            nn.SiLU(),
        )
        self.attn = Performer(len(dilations) * width, token_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, token width, H / stride, W / stride)."""
        pyramid = self.prm(x)
        tokens = self.attn(to_tokens(pyramid), to_tokens(self.pcm(x)))
        return to_map(tokens, pyramid.shape[2:])


class ReductionCells(Stem):
    """Images to tokens of 16 pixels: two cells, and a third that is a pyramid alone."""

    def __init__(self, cfg: ViTAEConfig, img_size: tuple[int, int], in_chans: int):
        super().__init__(img_size, REDUCTION)
        *first, last = CELLS
        widths = [in_chans, *cfg.token_widths]
        self.cells = nn.Sequential(
            *(ReductionCell(widths[i], cfg.prm_widths[i], widths[i + 1], *cell) for i, cell in enumerate(first))
        )
        self.prm = PyramidReduction(widths[-1], cfg.embed_dim // len(last[2]), *last)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C), row-major."""
        self.check_size(x)
        return to_tokens(self.prm(self.cells(x)))


class ParallelConv(nn.Sequential):
    """PCM of a normal cell: three grouped convolutions over the token grid.

    Tokens without a place (class) get zero.
    """

    def __init__(self, dim: int, hidden: int, groups: int, grid: Grid, prefix_tokens: int):
        super().__init__(
            nn.Conv2d(dim, hidden, 3, padding=1, groups=groups),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, dim, 3, padding=1, groups=groups),
            nn.BatchNorm2d(dim),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=groups),
            nn.SiLU(),
        )
        self.grid = grid
        self.prefix_tokens = prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C), those without a place first, to the same."""
        patches = super().forward(to_map(x[:, self.prefix_tokens :], self.grid))
        return F.pad(to_tokens(patches), (0, 0, self.prefix_tokens, 0))

    def set_grid(self, grid: Grid) -> None:
        """Moves to another token grid; convolutions need nothing else."""
        self.grid = grid


class NormalCell(Block):
    """NC: a transformer block that adds convolutions of its un-normalised input, with a drop-path of their own."""

    def __init__(self, cfg: ViTAEConfig, attn: Attention, pcm: ParallelConv, drop_path: float, eps: float):
        super().__init__(cfg.embed_dim, attn, cfg.mlp_ratio, cfg.layer_scale, cfg.proj_drop_rate, drop_path, eps)
        self.pcm = pcm
        self.drop_path_pcm = DropPath(drop_path)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C); `position` (1, N, C) joins the normalised input of attention."""
        attended = self.drop_path1(self.ls1(self.attn(add_position(self.norm1(x), position))))
        x = x + attended + self.drop_path_pcm(self.pcm(x))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class VitaeTransformer(VisionTransformer):
    """ViTAE. The ViT's sockets are those of the normal cells; reduction cells are as published."""

    released_undecayed = frozenset()

    def make_stem(self, cfg: ViTConfig, img_size: tuple[int, int]) -> Stem:
        assert isinstance(cfg, ViTAEConfig)
        check(cfg)
        return ReductionCells(cfg, img_size, self.in_chans)

    def make_block(self, cfg: ViTConfig, grid: Grid, drop_path: float) -> nn.Module:
        assert isinstance(cfg, ViTAEConfig)
        hidden = int(cfg.embed_dim * cfg.mlp_ratio)
        pcm = ParallelConv(cfg.embed_dim, hidden, cfg.groups, grid, self.num_prefix_tokens)
        return NormalCell(cfg, self.make_attention(cfg, grid), pcm, drop_path, self.eps)

    def make_norm(self) -> nn.Module:
        """None: the pooled tokens go to the head as they are."""
        return nn.Identity()
