"""Absolute positions in a Swin transformer: one learnt embedding per stage, and the join's chain inside the stage.

How LaPE's embedding crosses patch merging and window shift is not published; this is our choice. The sum is taken on
the map, before timm's block shifts and partitions it, so the embedding is rolled and partitioned exactly like x.
"""

from typing import Any

from timm.models import checkpoint
from timm.models.swin_transformer import SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn

from gab.config import SwinConfig
from gab.models.block import add_position
from gab.models.gaussian import Grid
from gab.models.joins import JOINS, Constant, Join, Placement
from gab.models.position import position_embedding, resize_position
from gab.models.sockets import position_join

EPS = 1e-5  # of Swin's norms


class PositionedBlock(SwinTransformerBlock):
    """timm's block, with a position that joins the normalised input of attention."""

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Maps (B, h, w, C), and a position (1, h, w, C), to (B, h, w, C)."""
        x = x + self.drop_path1(self._attn(add_position(self.norm1(x), position)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PositionedStage(SwinTransformerStage):
    """timm's stage, whose blocks get positions.

    Attributes:
        pos_embed: (1, h w, C), or one per block (depth, h w, C); None once it is folded.
        join: from it to what is added where.
    """

    pos_embed: nn.Parameter | None
    join: Join
    output_resolution: Grid

    def placements(self) -> list[Placement]:
        """What the join adds in each block; each (1, h w, C) or None."""
        return self.join(self.pos_embed)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) of the stage before to (B, h, w, C)."""
        x = self.downsample(x)
        for block, placement in zip(self.blocks, self.placements(), strict=True):
            stream, position = (None if p is None else p.unflatten(1, self.output_resolution) for p in placement)
            x = add_position(x, stream)
            x = checkpoint(block, x, position) if self.grad_checkpointing else block(x, position)
        return x

    def set_input_size(self, feat_size: tuple[int, int], *args: Any, **kwargs: Any) -> None:
        """Moves to another map: the embedding is resampled, and timm's rule goes for the windows."""
        old = self.output_resolution
        super().set_input_size(feat_size, *args, **kwargs)
        self.pos_embed = resize_position("learnable", self.pos_embed, old, self.output_resolution, prefix_tokens=0)

    def fold(self) -> None:
        """Makes what the join places constants (`gab.models.fold`)."""
        self.join = Constant(self.placements())
        self.pos_embed = None


def give_positions(stage: Any, dim: int, cfg: SwinConfig) -> None:
    """Turns a stage of timm, of width `dim`, into one with positions; it and its blocks differ in `forward` alone."""
    for block in stage.blocks:
        block.__class__ = PositionedBlock
    stage.__class__ = PositionedStage
    layers = stage.depth if JOINS[cfg.join].per_layer else 1
    stage.pos_embed = position_embedding(cfg.position, stage.output_resolution, dim, prefix_tokens=0, layers=layers)
    stage.join = position_join(cfg, dim, stage.depth, EPS)
