"""Swin transformer V2, with LIFE and the Gaussian attention bias in its windows."""

import math
from collections.abc import Sequence

import timm.models
import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, use_fused_attn
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2 import WindowAttention as TimmWindowAttention
from torch import Tensor, nn

from gab.attention import biased_attention
from gab.config import SwinV2Config
from gab.models.gaussian import Gaussian, Grid
from gab.models.init import initialise
from gab.models.life import LIFE
from gab.models.offsets import spread_offsets
from gab.models.protocol import undecayed
from gab.models.qkv import split_heads
from gab.models.stochastic import AttentionDropout
from gab.models.swin import check, timm_options

MAX_LOGIT_SCALE = math.log(100)


class WindowAttention(TimmWindowAttention):
    """timm's cosine attention in windows, with a Gaussian beside the continuous position bias, and LIFE for q, k, v.

    LIFE sees one window at a time, after the cyclic shift: its convolutions pad with zeros at the borders of the window
    and are not masked, so in shifted windows they mix regions that lie apart in the image, as in the released code.
    The separate q and v biases that the released code keeps beside LIFE without using them are not here.
    """

    qkv: nn.Linear | LIFE  # type: ignore[assignment]  # timm's is always linear
    k_bias: Tensor  # type: ignore[assignment]  # typed None
    relative_coords_table: Tensor
    gaussian: Gaussian | None
    folded: Tensor | None
    attn_drop: AttentionDropout  # type: ignore[assignment]  # timm's is another
    attention_backend = "auto"

    def __init__(self, dim: int, num_heads: int, window_size: Grid, life: bool, gaussian: Gaussian | None):
        super().__init__(dim, window_size, num_heads, qkv_bias=not life)
        if life:
            self.qkv = LIFE(dim, window_size)
        self.attn_drop = AttentionDropout()
        self.gaussian = gaussian
        self.fused_attn = bool(use_fused_attn())
        self.register_buffer("folded", None)

    def start_value(self, name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor | None:
        """The logit scale starts at ln 10, the q and v biases at zero."""
        return torch.full(parameter.shape, math.log(10) if name == "logit_scale" else 0.0)

    def make_qkv(self, x: Tensor) -> Tensor:
        """Tokens (B W, N, C) to q, k and v side by side (B W, N, 3C)."""
        if isinstance(self.qkv, LIFE):
            return self.qkv(x)
        return F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))

    def get_bias(self, dtype: torch.dtype) -> Tensor:
        """16 sigmoid(MLP of log offsets) plus Gaussian, (1, H, N, N), rounded once to `dtype`."""
        if self.folded is not None:
            return self.folded.to(dtype)
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        bias = 16 * spread_offsets(table, self.window_size).sigmoid()
        if self.gaussian is not None:
            bias = bias + self.gaussian()
        return bias.to(dtype)

    def fold(self) -> None:
        """Makes the sum of all biases a constant (`gab.models.fold`)."""
        self.folded = self.get_bias(torch.float32)
        self.cpb_mlp = self.gaussian = None  # type: ignore[assignment]  # gone

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens of all windows (B W, N, C), window index fastest, to the same; `mask` (W, N, N) is added to scores."""
        windows, tokens, dim = x.shape
        q, k, v = split_heads(self.make_qkv(x), self.num_heads)
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * math.sqrt(q.shape[-1])  # attention divides by √D
        q, k = (F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype)
        bias = self.get_bias(v.dtype)
        if mask is not None:
            bias = bias + mask.unsqueeze(1).to(v.dtype)  # (W, H, N, N)
        backend = self.attention_backend if self.fused_attn else "reference"
        x = biased_attention(q, k, v, bias, dropout=self.attn_drop, backend=backend)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(windows, tokens, dim)))

    def set_window_size(self, window_size: Grid) -> None:
        """Moves to another window: the position bias is evaluated at its offsets, sigma rescaled."""
        super().set_window_size(window_size)
        for part in (self.qkv, self.gaussian):
            if isinstance(part, LIFE | Gaussian):
                part.set_grid(self.window_size)


class SwinTransformerV2(timm.models.SwinTransformerV2):
    """timm's Swin transformer V2 with a choice of what makes q, k and v, and of biases, in every window.

    "Swin Transformer V2: Scaling Up Capacity and Resolution" (CVPR 2022). The norms after each branch start at zero, so
    at the start every block is the identity.

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
        cfg: SwinV2Config,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        seed: int | None = None,
    ):
        size = to_2tuple(img_size)
        check(cfg, size)
        super().__init__(size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool, **timm_options(cfg))
        for block in self.modules():
            if isinstance(block, SwinTransformerV2Block):
                heads, window = block.attn.num_heads, block.attn.window_size
                gaussian = Gaussian(cfg.gaussian, window, heads) if cfg.gab else None
                block.attn = WindowAttention(block.attn.dim, heads, window, cfg.life, gaussian)
        self.cfg = cfg
        self.set_grad_checkpointing(cfg.grad_checkpointing)
        self.start(seed)

    def start(self, seed: int | None = None) -> None:
        """Starts every parameter from (seed, its name); without a seed it is drawn from PyTorch's global generator."""
        initialise(self, "trunc_normal", seed)
        for block in self.modules():
            if isinstance(block, SwinTransformerV2Block):
                for norm in (block.norm1, block.norm2):
                    nn.init.zeros_(norm.weight)  # type: ignore[arg-type]  # typed for any norm

    def no_weight_decay(self, released: bool = False) -> set[str]:
        """Names of the parameters that are never decayed.

        With `released` logit scales and the position MLP are decayed: the released list names modules, which matches
        no parameter in some trainers.
        """
        if released:
            return undecayed(self, frozenset())
        return undecayed(self) | {name for name, _ in self.named_parameters() if ".cpb_mlp." in name}
