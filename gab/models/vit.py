"""The vision transformer: one part per socket, timm's protocol and parameter names around them."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed, to_2tuple
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from gab.config import ViTConfig
from gab.errors import UserError, check_choice
from gab.models import sockets
from gab.models.block import EPS, Attention, Block, add_position
from gab.models.check import check_numbers, check_patches
from gab.models.gaussian import Grid
from gab.models.init import initialise
from gab.models.joins import JOINS, Constant, Placement
from gab.models.position import position_embedding, resize_position
from gab.models.protocol import undecayed
from gab.models.recompute import recomputed
from gab.models.stem import Stem


def check(cfg: ViTConfig, pools: tuple[str, ...]) -> None:
    """Raises UserError for a shape or a choice that cannot be built, or a pooling that is not one of `pools`."""
    check_numbers(cfg)
    if cfg.embed_dim % cfg.num_heads:
        raise UserError(
            f"model.embed_dim={cfg.embed_dim} is not divisible by model.num_heads={cfg.num_heads}; "
            "set either so that every head gets the same width."
        )
    check_choice("model.pool", cfg.pool, pools)
    if cfg.pool == "token" and not cfg.class_token:
        raise UserError("model.pool=token needs a class token; set model.class_token=true or model.pool=avg.")
    if cfg.distillation_token and not (cfg.class_token and cfg.pool == "token"):
        raise UserError(
            "model.distillation_token stands beside a class token: set model.class_token=true and model.pool=token."
        )
    sockets.check_position(cfg)
    sockets.check_biases(cfg, prefix_tokens(cfg))
    sockets.check_life(cfg)


def prefix_tokens(cfg: ViTConfig) -> int:
    """How many tokens stand in front of the patches: class, then distillation."""
    return int(cfg.class_token) + int(cfg.distillation_token)


class VisionTransformer(nn.Module):
    """A ViT with three sockets: how positions join the tokens, what biases the scores, what makes q, k and v.

    Networks of its kind (compact ones, T2T-ViT, ViTAE) are subclasses that make another stem, block, norm or pooling.

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

    eps = EPS  # of the LayerNorms
    pools: tuple[str, ...] = ("token", "avg")
    released_undecayed = frozenset({"pos_embed", "cls_token"})  # by name, in the released code (methods sheet of LaPE)

    patch_embed: PatchEmbed | Stem
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
        check(cfg, self.pools)
        self.cfg = cfg
        self.in_chans = in_chans
        self.global_pool = cfg.pool
        self.num_features = self.head_hidden_size = self.embed_dim = dim = cfg.embed_dim
        self.num_prefix_tokens = prefix_tokens(cfg)
        self.grad_checkpointing = cfg.grad_checkpointing
        self.distilled_training = False

        self.patch_embed = self.make_stem(cfg, to_2tuple(img_size))
        grid = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.distillation_token else None
        self.position_kind = cfg.position
        layers = cfg.depth if JOINS[cfg.join].per_layer else 1
        self.pos_embed = position_embedding(cfg.position, grid, dim, self.num_prefix_tokens, layers)
        self.join = sockets.position_join(cfg, dim, cfg.depth, self.eps)
        rates = [cfg.drop_path_rate * i / max(cfg.depth - 1, 1) for i in range(cfg.depth)]
        self.blocks = nn.ModuleList(self.make_block(cfg, grid, rate) for rate in rates)
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": dim, "reduction": reduction} for i in range(cfg.depth)
        ]
        pooled_norm = cfg.pool == "avg"  # then the norm comes after pooling
        self.norm = nn.Identity() if pooled_norm else self.make_norm()
        self.fc_norm = self.make_norm() if pooled_norm else nn.Identity()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_scheme = cfg.init
        self.start(seed)

    def make_stem(self, cfg: ViTConfig, img_size: tuple[int, int]) -> PatchEmbed | Stem:
        """From images to patch tokens, with the grid bookkeeping of timm's PatchEmbed."""
        check_patches(img_size, cfg.patch_size)
        return PatchEmbed(img_size, cfg.patch_size, self.in_chans, cfg.embed_dim)

    def make_block(self, cfg: ViTConfig, grid: Grid, drop_path: float) -> nn.Module:
        """One layer, called with tokens (B, N, C) and what the join adds to its attention, (1, N, C) or None.

        Whatever in it knows the grid has `set_grid(grid)`.
        """
        dim = cfg.embed_dim
        attn = self.make_attention(cfg, grid)
        return Block(dim, attn, cfg.mlp_ratio, cfg.layer_scale, cfg.proj_drop_rate, drop_path, self.eps)

    def make_attention(self, cfg: ViTConfig, grid: Grid) -> Attention:
        """Attention of one layer, with its sockets filled."""
        prefix = self.num_prefix_tokens
        return Attention(
            cfg.embed_dim,
            cfg.num_heads,
            qkv=sockets.qkv(cfg, cfg.embed_dim, grid, prefix, cfg.qkv_bias),
            biases=sockets.score_biases(cfg, grid, cfg.num_heads, prefix),
            attn_drop=cfg.attn_drop_rate,
            proj_drop=cfg.proj_drop_rate,
        )

    def make_norm(self) -> nn.Module:
        """The last norm, before or after pooling."""
        return nn.LayerNorm(self.embed_dim, eps=self.eps)

    def start(self, seed: int | None = None) -> None:
        """Starts every parameter from (seed, its name); without a seed it is drawn from PyTorch's global generator."""
        initialise(self, self.init_scheme, seed)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C), class and distillation token first, without positions."""
        x = self.patch_embed(x)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        return torch.cat((*prefix, x), dim=1) if prefix else x

    def placements(self) -> list[Placement]:
        """What the join adds in each layer."""
        return [Placement()] * len(self.blocks) if self.join is None else self.join(self.pos_embed)

    def fold(self) -> None:
        """Makes what the join places constants (`gab.models.fold`)."""
        if self.join is not None:
            self.join = Constant(self.placements())
            self.pos_embed = None

    def run_block(self, block: nn.Module, x: Tensor, placement: Placement) -> Tensor:
        x = add_position(x, placement.stream)
        if self.grad_checkpointing:
            return recomputed(block, x, placement.attention)
        return block(x, placement.attention)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C); not normalised yet when the pooled features will be."""
        x = self.embed(x)
        for block, placement in zip(self.blocks, self.placements(), strict=True):
            x = self.run_block(block, x, placement)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to features (B, C), or for a network with a distillation token (B, 2, C)."""
        if self.global_pool == "avg":
            return x[:, self.num_prefix_tokens :].mean(dim=1)
        if self.global_pool == "token":
            return x[:, 0] if self.dist_token is None else x[:, :2]
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, N, C) to logits (B, classes), or to the pooled features (B, C), (B, 2, C) with two tokens.

        A network with a distillation token returns the mean of both heads, or in training, after
        `set_distilled_training(True)`, the logits of each.
        """
        x = self.head_drop(self.fc_norm(self.pool(x)))
        if pre_logits:
            return x
        if self.head_dist is None:
            return self.head(x)
        logits = self.head(x[:, 0]), self.head_dist(x[:, 1])
        return logits if self.distilled_training and self.training else (logits[0] + logits[1]) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to logits (B, classes); see `forward_head` for networks with two heads."""
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
            `intermediates_only`; each entry with its prefix tokens (B, 1 or 2, C) if asked for.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt is {output_fmt!r}; choose NCHW or NLC.")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x = self.embed(x)
        taken = []
        blocks = self.blocks[: last + 1] if stop_early else self.blocks
        for i, (block, placement) in enumerate(zip(blocks, self.placements(), strict=False)):
            x = self.run_block(block, x, placement)
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
        if self.join is not None:
            self.join.truncate(last + 1)
            if self.join.per_layer and self.pos_embed is not None:
                self.pos_embed = nn.Parameter(self.pos_embed.detach()[: last + 1])
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
            if callable(set_grid := getattr(module, "set_grid", None)):
                set_grid(new)
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` (none for 0), and another pooling if given.

        A distillation token has a head of its own while the tokens are pooled (`token`).
        """
        if global_pool is not None:
            if global_pool not in ("", *self.pools) or (global_pool == "token" and self.cls_token is None):
                known = ", ".join(pool for pool in self.pools if pool != "token" or self.cls_token is not None)
                raise UserError(f"global_pool={global_pool!r} is not possible for this network; choose '' or {known}.")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = self.make_head()
        two = self.dist_token is not None and self.global_pool == "token"
        self.head_dist = self.make_head() if two else None

    def make_head(self) -> nn.Module:
        head = nn.Linear(self.embed_dim, self.num_classes) if self.num_classes > 0 else nn.Identity()
        return head.to(next(self.parameters())).train(self.training)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The linear head, or Identity; both heads of a network that pools a distillation token."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Makes a network with a distillation token return (logits, logits of the distillation head) in training."""
        if enable and self.head_dist is None:
            raise UserError("This network has no distillation token: build it with distillation_token=True.")
        self.distilled_training = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades a second forward of every block for the memory of its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self, released: bool = False) -> set[str]:
        """Names of the parameters that are never decayed; with `released` those that the released code names."""
        return undecayed(self, self.released_undecayed if released else None)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|dist_token|pos_embed|patch_embed",
            "blocks": [(r"^(?:blocks|join\.norms)\.(\d+)", None), (r"^norm", (99999,))],
        }
