"""Attention weights as a network computes them, layer by layer, and where on the image their tokens stand.

Weights pass through a module, the dropout of attention, once the network writes its attention out in place of a fused
kernel. A hook there hands them on; nothing is computed twice, and the output changes by rounding alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.errors import Unmeasurable, UserError
from gab.models.gaussian import Grid
from gab.models.performer import Performer


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One layer of attention among tokens.

    Attributes:
        name: of its module.
        module: computes the attention; its `attn_drop` is shown the weights.
        grid: patches (h, w) that the layer sees.
        window: patches (h, w) of a window; the grid where there are none.
        prefix: tokens without a place (class, distillation), in front of the patches.
        positions: int64 (W, N), which token stands at each place of each window, -1 where padding does. A layer without
            windows is a single one.
    """

    name: str
    module: Any
    grid: Grid
    window: Grid
    prefix: int
    positions: Tensor


Take = Callable[[AttentionLayer, Tensor], None]


def attention_layers(model: nn.Module, image_size: Grid) -> list[AttentionLayer]:
    """The layers of a ViT or a Swin transformer, ours or timm's, in the order of the network.

    The Performers of ViTAE's reduction cells and of T2T-ViT's token module have no weights and are left out.

    Args:
        image_size: pixels (H, W).

    Raises:
        UserError: the network has no such layer.
    """
    layers = [
        _layer(model, f"{name}.attn", block, image_size)
        for name, block in model.named_modules()
        if isinstance(getattr(getattr(block, "attn", None), "attn_drop", None), nn.Module)
    ]
    if not layers:
        why = "it is no transformer of patches, or its attention is written in another way"
        if any(isinstance(module, Performer) for module in model.modules()):
            why = "its Performers have linear attention"
        raise UserError(
            f"{type(model).__name__} has no attention weights to look at ({why}): choose a ViT or a Swin transformer"
        )
    return layers


def _layer(model: Any, name: str, block: Any, image_size: Grid) -> AttentionLayer:
    if hasattr(block, "window_size") and hasattr(block, "input_resolution"):
        grid, window = tuple(block.input_resolution), tuple(block.window_size)
        return AttentionLayer(
            name, block.attn, grid, window, 0, window_positions(grid, window, tuple(block.shift_size))
        )
    embed: Any = getattr(model, "patch_embed", None)
    if not hasattr(embed, "dynamic_feat_size"):
        raise UserError(f"nobody says on which grid {type(model).__name__} attends: choose a ViT or a Swin transformer")
    grid = height, width = tuple(embed.dynamic_feat_size(image_size))
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return AttentionLayer(name, block.attn, grid, grid, prefix, torch.arange(prefix + height * width)[None])


def window_positions(grid: Grid, window: Grid, shift: Grid) -> Tensor:
    """Which patch of `grid` stands at each place of each window after Swin's cyclic shift: (W, N), -1 for padding."""
    (height, width), (down, across) = grid, window
    patches = torch.arange(height * width).view(height, width).roll((-shift[0], -shift[1]), (0, 1))
    patches = F.pad(patches, (0, -width % across, 0, -height % down), value=-1)
    return patches.unfold(0, down, down).unfold(1, across, across).reshape(-1, down * across)


@contextmanager
def watch(layers: Sequence[AttentionLayer], take: Take) -> Iterator[None]:
    """Within, each forward pass calls `take(layer, weights)` in every layer, with float32 (B, W, H, N, N).

    Raises:
        Unmeasurable: from the forward pass, where what passes is no attention among the tokens of the layer.
    """
    hooks, fused = [], [(layer.module, getattr(layer.module, "fused_attn", False)) for layer in layers]
    try:
        for layer in layers:
            layer.module.fused_attn = False
            hooks.append(layer.module.attn_drop.register_forward_pre_hook(partial(_hand_on, layer, take)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, before in fused:
            module.fused_attn = before


def _hand_on(layer: AttentionLayer, take: Take, _: nn.Module, given: tuple[Tensor, ...]) -> None:
    weights = given[0].detach().float()
    windows, tokens = layer.positions.shape
    sums = weights.sum(-1)
    if (
        weights.ndim != 4
        or weights.shape[-2:] != (tokens, tokens)
        or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
    ):
        raise Unmeasurable(
            f"{layer.name} weights something else than {tokens} tokens against one another, so its maps would mislead: "
            "choose a ViT or a Swin transformer"
        )
    take(layer, weights.unflatten(0, (-1, windows)))
