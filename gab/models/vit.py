"""The vision transformer: one part per socket, timm's protocol and parameter names around them."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed, to_2tuple
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from gab.config import ViTConfig
from gab.errors import UserError
from gab.models.block import EPS, Attention, Block
from gab.models.check import check_numbers, check_patches
from gab.models.gaussian import Gaussian, Grid
from gab.models.init import initialise
from gab.models.position import AddOnce, position_embedding, resize_position
from gab.models.protocol import undecayed
from gab.models.qkv import PlainQKV
from gab.models.relative import RelPosBias, RelPosMlp

RELATIVE = {"mlp": RelPosMlp, "bias": RelPosBias}
POOLS = ("token", "avg")


def check(cfg: ViTConfig, img_size: tuple[int, int]) -> None:
    """Raises UserError for a shape or a choice that cannot be built."""
    check_numbers(cfg)
    check_patches(img_size, cfg.patch_size)
    if cfg.embed_dim % cfg.num_heads:
        raise UserError(
            f"model.embed_dim={cfg.embed_dim} is not divisible by model.num_heads={cfg.num_heads}; "
            "set either so that every head gets the same width."
        )
    if cfg.pool not in POOLS:
        raise UserError(f"model.pool is {cfg.pool!r}; choose one of {', '.join(POOLS)}.")
    if cfg.pool == "token" and not cfg.class_token:
        raise UserError("model.pool=token needs a class token; set model.class_token=true or model.pool=avg.")
    if cfg.rel_pos != "none" and cfg.rel_pos not in RELATIVE:
        raise UserError(f"model.rel_pos is {cfg.rel_pos!r}; choose one of none, {', '.join(RELATIVE)}.")


def score_biases(cfg: ViTConfig, grid: Grid, prefix_tokens: int) -> dict[str, nn.Module]:
    """The parts of one layer's bias socket, by name."""
    biases: dict[str, nn.Module] = {}
    if cfg.rel_pos != "none":
        biases["rel_pos"] = RELATIVE[cfg.rel_pos](grid, cfg.num_heads, prefix_tokens)
    if cfg.gab:
        biases["gaussian"] = Gaussian(cfg.gaussian, grid, cfg.num_heads, prefix_tokens)
    return biases


def make_block(cfg: ViTConfig, grid: Grid, prefix_tokens: int, drop_path: float) -> Block:
    """One layer of the network that `cfg` describes."""
    attn = Attention(
        cfg.embed_dim,
        cfg.num_heads,
        qkv=PlainQKV(cfg.embed_dim, cfg.qkv_bias),
        biases=score_biases(cfg, grid, prefix_tokens),
        attn_drop=cfg.attn_drop_rate,
        proj_drop=cfg.proj_drop_rate,
    )
    return Block(cfg.embed_dim, attn, cfg.mlp_ratio, cfg.layer_scale, cfg.proj_drop_rate, drop_path)


class VisionTransformer(nn.Module):
    """A ViT with three sockets: how positions join the tokens, what biases the scores, what makes q, k and v.

    Args:
        cfg: shape, and one choice per socket.
        img_size: side of the images in pixels, or (height, width).
        in_chans: number of image channels.
        num_classes: number of logits; 0 for none.
        global_pool: instead of `cfg.pool`; '' leaves the tokens unpooled.
        seed: of the start values; without one it is drawn from PyTorch's global generator.

    Raises:
        UserError: a configuration that cannot be built.
    """

    pretrained_cfg: dict[str, Any]  # set by timm, when timm builds the network

    def __init__(
        self,
        cfg: ViTConfig,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        size = to_2tuple(img_size)
        check(cfg, size)
        dim = cfg.embed_dim
        self.in_chans = in_chans
        self.global_pool = cfg.pool
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.num_prefix_tokens = int(cfg.class_token)
        self.grad_checkpointing = cfg.grad_checkpointing

        self.patch_embed = PatchEmbed(size, cfg.patch_size, in_chans, dim)
        grid = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.class_token else None
        self.position_kind = cfg.position
        self.pos_embed = position_embedding(cfg.position, grid, dim, self.num_prefix_tokens)
        self.join = AddOnce()
        rates = [cfg.drop_path_rate * i / max(cfg.depth - 1, 1) for i in range(cfg.depth)]
        self.blocks = nn.ModuleList(make_block(cfg, grid, self.num_prefix_tokens, rate) for rate in rates)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": dim, "reduction": cfg.patch_size} for i in range(cfg.depth)
        ]
        pooled_norm = cfg.pool == "avg"  # then the norm comes after pooling
        self.norm = nn.Identity() if pooled_norm else nn.LayerNorm(dim, eps=EPS)
        self.fc_norm = nn.LayerNorm(dim, eps=EPS) if pooled_norm else nn.Identity()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_scheme = cfg.init
        initialise(self, self.init_scheme, seed)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C), the class token first, with what the join adds."""
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        return x if self.pos_embed is None else self.join(x, self.pos_embed)

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x) if self.grad_checkpointing else block(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C); not normalised yet when the pooled features will be."""
        x = self.embed(x)
        for block in self.blocks:
            x = self.run_block(block, x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, C) to logits (B, classes), or to the pooled features (B, C)."""
        if self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        elif self.global_pool == "token":
            x = x[:, 0]
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The tokens after the blocks `indices` (the last n if a number, all if None), and the final features.

        Returns:
            (features (B, N, C), list of (B, C, h, w) or, with output_fmt NLC, (B, h w, C)); without the features if
            `intermediates_only`; each entry with its prefix tokens (B, 1, C) if asked for.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt is {output_fmt!r}; choose NCHW or NLC.")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x = self.embed(x)
        taken = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self.run_block(block, x)
            if i in wanted:
                taken.append(self.norm(x) if norm else x)
        prefix = self.num_prefix_tokens
        intermediates: list[Any] = [y[:, prefix:] for y in taken]
        if output_fmt == "NCHW":
            intermediates = [y.transpose(1, 2).unflatten(2, (height, width)).contiguous() for y in intermediates]
        if return_prefix_tokens:
            intermediates = [(y, tokens[:, :prefix]) for y, tokens in zip(intermediates, taken, strict=True)]
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the layers after the last one in `indices`; returns the indices counted from 0."""
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return wanted

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Moves the network to other images or patches: positions and tables resampled, sigmas rescaled."""
        old = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size if img_size is None else to_2tuple(img_size), patch_size)
        new = self.patch_embed.grid_size
        self.pos_embed = resize_position(self.position_kind, self.pos_embed, old, new, self.num_prefix_tokens)
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_grid(new)
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` (none for 0), and another pooling if given."""
        if global_pool is not None:
            if global_pool not in ("", *POOLS) or (global_pool == "token" and self.cls_token is None):
                raise UserError(f"global_pool={global_pool!r} is not possible for this network; choose '' or avg.")
            self.global_pool = global_pool
        self.num_classes = num_classes
        head = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(self.patch_embed.proj.weight).train(self.training)

    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades a second forward of every block for the memory of its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed."""
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
