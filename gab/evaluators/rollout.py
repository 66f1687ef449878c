"""Attention roll-out: how much of every patch reaches every token when attention only mixes tokens, beside a skip.

Ordinary roll-out ("Quantifying Attention Flow in Transformers", Abnar and Zuidema, ACL 2020), for weights A_l that are
fused over the heads to F_l, I being the skip:

    Â_l = F_l + I, every row divided by its sum,    R_1 = Â_1,    R_l = Â_l R_{l-1}

All rows of R sum to 1. The dense form is our reading of one sentence in the abstract of the LIFE paper (arXiv
2305.08551: class-specific maps from the attention of all tokens), whose algorithm is not published where we could read
it: M_c(j) = Σ_i p_i(c) R[i, j] / Σ_i p_i(c), over patches i and j, with the score p_i(c) of class c at token i.

What a network does besides is ignored: values, MLPs, LayerScale, convolutions. Windows are mixed where they stand, and
patch merging averages rows; these rules are ours too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gab.errors import UserError, check_choice
from gab.models.gaussian import Grid

FUSIONS = ("mean", "max", "min")
ROWS = ("auto", "class", "distillation", "both", "mean")
MODES = ("soft", "hard")


class RollOut:
    """The product R of the layers so far; no weights are kept.

    Args:
        fusion: of the heads; the paper's is the mean.
        discard_ratio: the share of the least fused weights of an image that is taken as zero; those towards prefix
            tokens stay.
        start_layer: the first one of the product, from 1.
        prefix: tokens in front of the patches.

    Attributes:
        matrix: (B, N of the last layer, N of the first), float32; None before the first.
    """

    def __init__(self, *, fusion: str = "mean", discard_ratio: float = 0.0, start_layer: int = 1, prefix: int = 0):
        check_choice("fusion", fusion, FUSIONS)
        if not 0 <= discard_ratio < 1:
            raise UserError(f"discard_ratio={discard_ratio:g}: give a share from 0 to less than 1")
        if start_layer < 1:
            raise UserError(f"start_layer={start_layer}: layers count from 1")
        self.fusion, self.discard_ratio = fusion, discard_ratio
        self.start_layer, self.prefix = start_layer, prefix
        self.layers = 0
        self.matrix: Tensor | None = None

    def add(self, weights: Tensor, positions: Tensor | None = None) -> None:
        """Multiply by a layer, from the left.

        Args:
            weights: after the softmax, (B, H, N, N), or in windows (B, W, H, N, N).
            positions: (W, N), see `AttentionLayer`; needed with windows.
        """
        self.layers += 1
        if self.layers < self.start_layer:
            return
        if positions is None:
            weights, positions = weights.unsqueeze(1), torch.arange(weights.shape[-1])[None]
        positions = positions.to(weights.device)
        inside = positions >= 0
        fused = self._fuse(weights) * inside[:, None]  # (B, W, N, N), nothing from padding
        if self.matrix is None:
            size = int(positions.max()) + 1
            self.matrix = torch.eye(size, device=fused.device).expand(len(fused), -1, -1).clone()
        rows = self.matrix[:, positions]  # (B, W, N, N of the first layer)
        mixed = (fused @ rows + rows) / (fused.sum(-1, keepdim=True) + 1)
        self.matrix[:, positions[inside]] = mixed[:, inside]

    def merge(self, grid: Grid) -> None:
        """Average the rows of 2 x 2 patches of `grid`, as patch merging joins them."""
        if self.matrix is not None:
            maps = self.matrix.transpose(1, 2).unflatten(2, grid)  # (B, N of the first layer, h, w)
            merged = F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
            self.matrix = merged.flatten(2).transpose(1, 2).contiguous()

    def _fuse(self, weights: Tensor) -> Tensor:
        """(B, W, H, N, N) to (B, W, N, N)."""
        weights = weights.float()
        fused = weights.mean(2) if self.fusion == "mean" else getattr(weights, f"a{self.fusion}")(2)
        if count := int(self.discard_ratio * fused[0].numel()):
            least = fused.flatten(1).topk(count, largest=False).indices
            kept = torch.ones_like(fused).flatten(1).scatter(1, least, 0.0).view_as(fused)
            kept[..., : self.prefix] = 1.0
            fused = fused * kept
        return fused


def roll_out(weights: Iterable[Tensor], **options: Any) -> Tensor:
    """R (B, N, N) of weights (B, H, N, N), first layer first; options are those of `RollOut`.

    Raises:
        UserError: an option that cannot be, or no layer to start from.
    """
    product = RollOut(**options)
    for layer in weights:
        product.add(layer)
    return finished(product)


def finished(product: RollOut) -> Tensor:
    """Its matrix; raises UserError where it starts behind the last layer."""
    if product.matrix is None:
        raise UserError(f"start_layer={product.start_layer} lies behind the last of {product.layers} layers")
    return product.matrix


def read(matrix: Tensor, row: str = "class", pooling: Tensor | None = None, *, prefix: int = 0) -> Tensor:
    """What reaches the output of a network from every patch: (B, N, N') to (B, P), not scaled.

    Args:
        row: of the `class` token, of the `distillation` token, the mean of `both`, or the `mean` over patches.
        pooling: in place of that, the weights (B, P) of sequence pooling.

    Raises:
        UserError: the network has no such token.
    """
    if pooling is not None:
        found = (pooling[:, None] @ matrix[:, prefix:])[:, 0]
    elif row == "mean":
        found = matrix[:, prefix:].mean(1)
    else:
        known = {"class": [0], "distillation": [1], "both": [0, 1]}
        check_choice("row", row, (*known, "mean"))
        tokens = known[row]
        if max(tokens) >= prefix:
            raise UserError(f"row={row}: this network has {prefix} tokens beside its patches; choose row=mean")
        found = matrix[:, tokens].mean(1)
    return found[:, prefix:]


def dense_roll_out(
    matrix: Tensor,
    scores: Tensor,
    classes: Sequence[int],
    *,
    prefix: int = 0,
    mode: str = "soft",
    renormalise: bool = False,
) -> dict[int, Tensor]:
    """Dense attention roll-out of one image, our reading: a map (P,) for every class, not scaled.

    Args:
        matrix: R (N, N').
        scores: p (n, classes) of the output patches.
        classes: those asked for.
        mode: `soft` weighs rows by p, `hard` by whether p is the largest of its token.
        renormalise: divide the rows among patches by their sums, so that what went to prefix tokens is not lost.

    Returns:
        By class; one that no token has a score of is left out.

    Raises:
        UserError: a class that is not there, an unknown mode.
    """
    check_choice("mode", mode, MODES)
    wrong = [one for one in classes if not 0 <= one < scores.shape[1]]
    if wrong:
        raise UserError(
            f"class {wrong[0]} is not among the {scores.shape[1]} that there are: give 0 to {scores.shape[1] - 1}"
        )
    if mode == "hard":
        scores = F.one_hot(scores.argmax(1), scores.shape[1]).to(scores)
    rows = matrix[prefix:, prefix:]
    if renormalise:
        rows = rows / rows.sum(1, keepdim=True)
    totals = scores.sum(0)
    return {one: scores[:, one] @ rows / totals[one] for one in classes if totals[one] > 0}


def scaled(found: Tensor) -> Tensor:
    """Maps (..., P) divided by their largest value."""
    return found / found.amax(-1, keepdim=True)


def min_max(found: Tensor) -> Tensor:
    """Maps (..., P) moved to 0 ... 1; zeros where a map is the same everywhere."""
    low, high = found.amin(-1, keepdim=True), found.amax(-1, keepdim=True)
    return torch.where(high > low, (found - low) / (high - low).clamp_min(1e-30), 0.0)
