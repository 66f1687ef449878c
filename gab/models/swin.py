"""Swin transformer with the Gaussian attention bias in its windows, and with absolute positions."""

from collections.abc import Sequence
from typing import Any

import timm.models
import torch
from timm.layers import to_2tuple, use_fused_attn
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from torch import Tensor, nn

from gab.attention import biased_attention
from gab.config import SwinConfig, SwinV2Config
from gab.errors import UserError
from gab.models import sockets
from gab.models.check import check_numbers, check_patches
from gab.models.gaussian import Gaussian, Grid
from gab.models.init import initialise
from gab.models.offsets import spread_offsets
from gab.models.protocol import undecayed
from gab.models.qkv import split_heads
from gab.models.stochastic import AttentionDropout
from gab.models.swin_position import give_positions

POSITIONS = ("none", "learnable")
RELATIVE = ("none", "bias")


class WindowAttention(TimmWindowAttention):
    """timm's window attention with one way for all biases: table plus Gaussian, then the mask of shifted windows.

    Either may be missing. How the paper treats shifted windows is not published; here the Gaussian is added before
    their mask.
    """

    relative_position_bias_table: nn.Parameter | None  # type: ignore[assignment]  # timm's is always there
    gaussian: Gaussian | None
    folded: Tensor | None
    attn_drop: AttentionDropout  # type: ignore[assignment]  # timm's is another
    attention_backend = "auto"

    def __init__(self, dim: int, num_heads: int, window_size: Grid, table: bool, gaussian: Gaussian | None):
        super().__init__(dim, num_heads, window_size=window_size)
        if not table:
            self.relative_position_bias_table = None
        self.attn_drop = AttentionDropout()
        self.gaussian = gaussian
        self.fused_attn = bool(use_fused_attn())  # type: ignore[misc]  # timm's is final, and off unless asked for
        self.register_buffer("folded", None)

    def get_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Table plus Gaussian, (1, 1 or H, N, N), rounded once to `dtype`; None without either."""
        if self.folded is not None:
            return self.folded.to(dtype)
        parts = []
        if self.relative_position_bias_table is not None:
            parts.append(spread_offsets(self.relative_position_bias_table, self.window_size))
        if self.gaussian is not None:
            parts.append(self.gaussian())
        return sum(parts[1:], start=parts[0]).to(dtype) if parts else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens of all windows (B W, N, C), window index fastest, to the same; `mask` (W, N, N) is added to scores."""
        windows, tokens, dim = x.shape
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        bias = self.get_bias(q.dtype)
        if mask is not None:
            mask = mask.unsqueeze(1).to(q.dtype)
            bias = mask if bias is None else bias + mask  # (W, 1 or H, N, N)
        backend = self.attention_backend if self.fused_attn else "reference"
        x = biased_attention(q, k, v, bias, dropout=self.attn_drop, backend=backend)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(windows, tokens, dim)))

    def fold(self) -> None:
        """Makes table plus Gaussian a constant (`gab.models.fold`)."""
        self.folded = self.get_bias(torch.float32)
        self.relative_position_bias_table = None
        self.gaussian = None

    def set_window_size(self, window_size: Grid) -> None:
        """Moves to another window: the table is interpolated, sigma rescaled."""
        if self.relative_position_bias_table is not None:
            super().set_window_size(window_size)
        else:
            self.window_size, self.window_area = window_size, window_size[0] * window_size[1]
        if self.gaussian is not None:
            self.gaussian.set_grid(self.window_size)


def check(cfg: SwinConfig | SwinV2Config, img_size: tuple[int, int]) -> None:
    """Raises UserError for a shape that cannot be built."""
    check_numbers(cfg)
    check_patches(img_size, cfg.patch_size)
    if len(cfg.depths) != len(cfg.num_heads):
        raise UserError(
            f"model.depths has {len(cfg.depths)} stages and model.num_heads {len(cfg.num_heads)}; give both one number "
            "per stage."
        )
    for stage, heads in enumerate(cfg.num_heads):
        width = cfg.embed_dim * 2**stage
        if width % heads:
            raise UserError(
                f"Stage {stage + 1} has width {width}, which model.num_heads[{stage}]={heads} does not divide; "
                "set model.embed_dim or model.num_heads so that every head gets the same width."
            )


def check_parts(cfg: SwinConfig) -> None:
    """Raises UserError for unknown parts, or parts that do not go together."""
    for key, value, known in (("rel_pos", cfg.rel_pos, RELATIVE), ("position", cfg.position, POSITIONS)):
        if value not in known:
            raise UserError(f"model.{key} is {value!r}; a Swin transformer takes one of {', '.join(known)}.")
    sockets.check_position(cfg)


def timm_options(cfg: SwinConfig | SwinV2Config) -> dict[str, Any]:
    """The shape and the rates of `cfg` as timm's Swin transformers take them."""
    return {
        "patch_size": cfg.patch_size,
        "embed_dim": cfg.embed_dim,
        "depths": tuple(cfg.depths),
        "num_heads": tuple(cfg.num_heads),
        "window_size": cfg.window_size,
        "mlp_ratio": cfg.mlp_ratio,
        "drop_rate": cfg.drop_rate,
        "drop_path_rate": cfg.drop_path_rate,
    }


class SwinTransformer(timm.models.SwinTransformer):
    """timm's Swin transformer, with a choice of biases in every window and of positions in every stage.

    Args:
        cfg: shape and switches.
        img_size: side of the images in pixels, or (height, width).
        in_chans: number of image channels.
        num_classes: number of logits; 0 for none.
        global_pool: `avg`, or '' for none.
        seed: of the start values; without one it is drawn from PyTorch's global generator.

    Raises:
        UserError: a configuration that cannot be built.
    """

    def __init__(
        self,
        cfg: SwinConfig,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        seed: int | None = None,
    ):
        size = to_2tuple(img_size)
        check(cfg, size)
        check_parts(cfg)
        super().__init__(size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool, **timm_options(cfg))
        for block in self.modules():
            if isinstance(block, SwinTransformerBlock):
                heads, window = block.attn.num_heads, block.attn.window_size
                gaussian = Gaussian(cfg.gaussian, window, heads) if cfg.gab else None
                block.attn = WindowAttention(block.attn.dim, heads, window, cfg.rel_pos == "bias", gaussian)
        if cfg.position != "none":
            for index, stage in enumerate(self.layers):
                give_positions(stage, cfg.embed_dim * 2**index, cfg)
        self.cfg = cfg
        self.set_grad_checkpointing(cfg.grad_checkpointing)
        self.start(seed)

    def start(self, seed: int | None = None) -> None:
        """Starts every parameter from (seed, its name); without a seed it is drawn from PyTorch's global generator."""
        initialise(self, "trunc_normal", seed)

    def no_weight_decay(self, released: bool = False) -> set[str]:
        """Names of the parameters that are never decayed; the released code has the same."""
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise learning rates.

        Patch merging and the embedding of a stage go with its first block.
        """
        blocks = [
            (r"^layers\.(\d+)\.(?:downsample|pos_embed)", (0,)),
            (r"^layers\.(\d+)\.(?:blocks|join\.norms)\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}
