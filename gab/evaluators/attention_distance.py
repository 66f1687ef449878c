"""Mean attention distance: how far a head looks, as "An Image is Worth 16x16 Words" measures it (ICLR 2021, figure 7).

The distance in the image between a query patch and the patches that it attends to, weighted by the attention; mean
over queries and images, per layer and head. Prefix tokens have no place: as queries they are left out, and the weights
of the patches are taken relative to their sum. What prefix tokens get is told beside it (`to_prefix_percent`).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gab.errors import UserError
from gab.evaluators.attention_maps import AttentionLayer, attention_layers, watch
from gab.evaluators.frozen import frozen
from gab.evaluators.running import RunningMean
from gab.models.gaussian import Grid


class AttentionDistance:
    """A running mean over images, per layer and head.

    Attributes:
        names: of the layers, in order.
        patches: pixels per patch of each layer, the side of a square of its area.
        uniform: pixels; of each layer, the distance of attention that is the same everywhere it can be.
        count: images so far.
    """

    def __init__(self, model: nn.Module, image_size: Grid):
        """Raises UserError for a network without attention weights."""
        self.layers = attention_layers(model, image_size)
        self.names = [layer.name for layer in self.layers]
        self.patches = [(image_size[0] * image_size[1] / (h * w)) ** 0.5 for h, w in (one.grid for one in self.layers)]
        self._distances = [distances(layer, image_size) for layer in self.layers]
        self.uniform = [
            float(_mean_distance(torch.ones(1, *one.shape[:1], 1, *one.shape[1:]), one)[0]) for one in self._distances
        ]
        heads = [layer.module.num_heads for layer in self.layers]
        self._running = [RunningMean((2, number)) for number in heads]  # distances, and what goes to prefix tokens

    def add(self, model: nn.Module, images: Tensor) -> None:
        """Take in a batch, the network's input (B, 3, H, W)."""
        of_layers = zip(self._distances, self._running, strict=True)

        def take(layer: AttentionLayer, weights: Tensor) -> None:
            pixels, running = next(of_layers)
            found = _mean_distance(weights[..., layer.prefix :, layer.prefix :], pixels)  # (B, H)
            to_prefix = weights[..., layer.prefix :, : layer.prefix].sum(-1).mean((1, 3))
            running.add(torch.stack([found, to_prefix.double()]), dim=1)

        with frozen(model), torch.no_grad(), watch(self.layers, take):
            model(images.float())

    def merge(self, other: "AttentionDistance") -> None:
        """Take in the images of another process."""
        for own, theirs in zip(self._running, other._running, strict=True):
            own.merge(theirs)

    @property
    def count(self) -> int:
        return self._running[0].count

    @property
    def means(self) -> list[np.ndarray]:
        """Of every layer, (H,), pixels."""
        return [one.mean[0].numpy() for one in self._running]

    @property
    def standard_errors(self) -> list[np.ndarray]:
        """Of `means`, over images; NaN for a single one."""
        return [one.standard_error[0].numpy() for one in self._running]

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer and head, both from 1."""
        found = []
        shares = [one.mean[1].tolist() for one in self._running]
        of_layers = zip(self.means, self.standard_errors, shares, self.patches, self.uniform, strict=True)
        for layer, (means, errors, to_prefix, side, uniform) in enumerate(of_layers, start=1):
            for head, (mean, error, share) in enumerate(zip(means, errors, to_prefix, strict=True), start=1):
                row = {"layer": layer, "head": head, "pixels": float(mean), "patches": float(mean) / side}
                row |= {
                    "standard_error_pixels": float(error),
                    "uniform_pixels": uniform,
                    "to_prefix_percent": 100 * share,
                }
                found.append({**row, "images": self.count})
        return found

    def summary(self) -> dict[str, float]:
        """Pixels: means over heads, of all layers, of the first and of the last; and the largest standard error."""
        by_layer = [float(one.mean()) for one in self.means]
        found = {"pixels": float(np.mean(by_layer)), "first_pixels": by_layer[0], "last_pixels": by_layer[-1]}
        if self.count > 1:
            found["standard_error_pixels"] = float(max(one.max() for one in self.standard_errors))
        return found


def distances(layer: AttentionLayer, image_size: Grid) -> Tensor:
    """Pixels between the middles of any two patches of each window, float64 (W, P, P).

    NaN with padding, and between regions that a shifted window holds side by side although they lie apart: attention is
    masked there.
    """
    (height, width), places = layer.grid, layer.positions[:, layer.prefix :] - layer.prefix  # (W, P)
    row, column = places // width, places % width
    y, x = row.double() * (image_size[0] / height), column.double() * (image_size[1] / width)
    found = torch.hypot(y[:, :, None] - y[:, None], x[:, :, None] - x[:, None])
    seat = torch.arange(places.shape[1])
    moved = torch.stack((row - seat // layer.window[1], column - seat % layer.window[1]))  # the same within a region
    apart = (moved[..., :, None] != moved[..., None, :]).any(0)
    outside = places < 0
    return found.masked_fill(apart | outside[:, :, None] | outside[:, None], torch.nan)


def _mean_distance(weights: Tensor, pixels: Tensor) -> Tensor:
    """Mean over queries of weighted distances: (B, W, H, P, P) with (W, P, P) to float64 (B, H)."""
    pixels = pixels.to(weights.device)[:, None]  # (W, 1, P, P)
    inside = ~pixels.isnan()
    weights = weights.double() * inside
    by_query = (weights * pixels.nan_to_num()).sum(-1) / weights.sum(-1).clamp_min(1e-30)  # (B, W, H, P)
    queries = inside.any(-1)  # (W, 1, P)
    return (by_query * queries).sum((1, 3)) / queries.sum()


def attention_distance(model: nn.Module, images: Tensor | Iterable[Tensor], batch_size: int = 16) -> AttentionDistance:
    """Measure over images (n, 3, H, W), the network's input, or batches of them; batches change it by rounding alone.

    Raises:
        UserError: no images, or a network without attention weights.
    """
    found = None
    for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
        found = found or AttentionDistance(model, (batch.shape[2], batch.shape[3]))
        found.add(model, batch)
    if found is None:
        raise UserError("an attention distance needs images, and there are none")
    return found
