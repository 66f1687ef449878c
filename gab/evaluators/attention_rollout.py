"""Attention roll-out of a network over images: what reaches its output, and in our reading the dense form per class.

A classifier has no dense head, so the dense form takes what its head says of every last patch by itself: an
approximation, as heads are trained on pooled tokens or on the class token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gab.errors import check_choice
from gab.evaluators import rollout
from gab.evaluators.attention_maps import AttentionLayer, attention_layers, watch
from gab.evaluators.frozen import frozen
from gab.evaluators.rollout import RollOut
from gab.models.gaussian import Grid


@dataclass(frozen=True)
class Attended:
    """Of one image.

    Attributes:
        ordinary: what reaches the output from every patch, (h, w), a share of all.
        dense: by class, as means over output patches of what reaches them, (h, w).
        probabilities: of the network, (classes,).
    """

    ordinary: np.ndarray
    dense: dict[int, np.ndarray]
    probabilities: np.ndarray


def attention_rollout(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[Sequence[int]],
    *,
    row: str = "auto",
    mode: str = "soft",
    renormalise: bool = False,
    **options: Any,
) -> list[Attended]:
    """Roll out the attention over each image, in eval mode and float32.

    Args:
        images: the network's input (B, 3, H, W).
        classes: of each image, those that the dense form is asked for; the predicted one is added.
        row: see `rollout.read`; `auto`: the token that the head reads, or all as it weighs them.
        mode, renormalise: see `rollout.dense_roll_out`.
        options: of `RollOut`: fusion, discard_ratio, start_layer.

    Raises:
        UserError: a network without attention weights, a class, row or option that it has not.
    """
    check_choice("row", row, rollout.ROWS)
    layers = attention_layers(model, (images.shape[2], images.shape[3]))
    found = []
    for image, asked in zip(images, classes, strict=True):  # one by one: a Swin's product has 3136 x 3136 numbers
        with frozen(model), torch.no_grad():
            features, matrix, grid = _product(model, layers, image[None].float(), options)
            prefix, as_map = layers[0].prefix, features.ndim == 4  # Swin's maps have channels last
            tokens = features.flatten(1, 2) if as_map else features[:, prefix:]
            probabilities = _logits(model, features)[0].softmax(-1)
            scores = patch_logits(model, tokens, prefix, as_map)[0].softmax(-1)
            ordinary = rollout.read(matrix, *_row(model, row, prefix, tokens), prefix=prefix)[0]
        chosen = list(dict.fromkeys([*asked, int(probabilities.argmax())]))
        dense = rollout.dense_roll_out(matrix[0], scores, chosen, prefix=prefix, mode=mode, renormalise=renormalise)
        maps = {one: _map(values, grid) for one, values in dense.items()}
        found.append(Attended(_map(ordinary, grid), maps, _numpy(probabilities)))
    return found


def _product(
    model: Any, layers: Sequence[AttentionLayer], image: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Grid]:
    """The features of an image (1, 3, H, W), R (1, N, N'), and the patches (h, w) that R leads from."""
    product = RollOut(prefix=layers[0].prefix, **options)
    first = grid = layers[0].grid

    def take(layer: AttentionLayer, weights: Tensor) -> None:
        nonlocal first, grid
        if layer.grid != grid:
            product.merge(grid)
            grid = layer.grid
        if product.matrix is None:
            first = grid
        product.add(weights, layer.positions)

    with watch(layers, take):
        features = model.forward_features(image)
    return features, rollout.finished(product), first


def patch_logits(model: Any, tokens: Tensor, prefix: int, as_map: bool) -> Tensor:
    """What the head says of every last patch (B, P, C), each as if the network had no other: (B, P, classes).

    Where the head reads prefix tokens, the patch stands there too, so all poolings read the patch alone.
    """
    alone = tokens.flatten(0, 1)[:, None].expand(-1, 1 if as_map else prefix + 1, -1)  # (B P, 1 + prefix, C)
    logits = _logits(model, alone[:, None] if as_map else alone)
    return logits.unflatten(0, tokens.shape[:2])


def _logits(model: Any, features: Tensor) -> Tensor:
    """Of the head; the mean where it has two."""
    logits = model.forward_head(features)
    return torch.stack(logits).mean(0) if isinstance(logits, tuple) else logits


def _row(model: Any, row: str, prefix: int, tokens: Tensor) -> tuple[str, Tensor | None]:
    """What `auto` means for this network; and the weights of sequence pooling, where that is how it reads."""
    if row != "auto":
        return row, None
    pool = getattr(model, "attention_pool", None)
    if pool is not None:
        return "mean", pool(tokens).squeeze(2).softmax(1)
    reads_class = prefix and getattr(model, "global_pool", "token") == "token"
    return ("class" if reads_class else "mean"), None


def _map(values: Tensor, grid: Grid) -> np.ndarray:
    return _numpy(values.view(grid))


def _numpy(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()
