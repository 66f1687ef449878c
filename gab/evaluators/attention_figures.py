"""Where attention goes and what positions are alike, as figures."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gab.evaluators.attention_distance import AttentionDistance
from gab.evaluators.attention_rollout import Attended
from gab.evaluators.erf import Target
from gab.evaluators.panels import Panel, signed_panels
from gab.evaluators.position_similarity import Similarity
from gab.evaluators.rollout import min_max, scaled
from gab.tracking.figures import caption, layer_colours, layer_scale, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = "#D55E00"  # Okabe and Ito's
HEADS = "#0072B2"
PALE = 0.5  # the least brightness of a picture under a map
HEAT = "viridis"


def distance_by_layer(found: AttentionDistance) -> "Figure":
    """Mean attention distance: a point per head, with its standard error, and the mean over the heads of a layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    layers = range(1, len(found.means) + 1)
    of_heads = zip(layers, found.means, found.standard_errors, strict=True)
    for number, (layer, means, errors) in enumerate(of_heads):
        shown: dict[str, Any] = {"fmt": "o", "color": HEADS, "markersize": 4, "alpha": 0.7, "elinewidth": 0.8}
        axes.errorbar(np.full(len(means), layer), means, errors, label=None if number else "a head", **shown)
    axes.plot(layers, [one.mean() for one in found.means], color=MEAN, linewidth=1.5, label="mean of the layer")
    axes.plot(layers, found.uniform, "--", color="0.4", linewidth=1, label="attention that is even everywhere")
    axes.set(xlabel="layer", ylabel="mean attention distance (pixels)", ylim=(0, 1.04 * axes.get_ylim()[1]))
    if len(set(found.patches)) == 1:
        side = found.patches[0]
        beside = axes.secondary_yaxis("right", functions=(lambda pixels: pixels / side, lambda patches: patches * side))
        beside.set_ylabel("mean attention distance (patches)")
    tidy(axes)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    bars = "; bars are standard errors over images" if found.count > 1 else ""
    caption(figure, f"How far each head looks on average over all queries and {found.count} images{bars}.")
    return figure


def similarity_maps(found: Sequence[Similarity], target: Target = 1) -> "Figure":
    """A column per layer, a row per chosen patch: cosine similarity of its position with that of all patches."""
    panels: dict[tuple[int, int], Panel] = {}
    for number, one in enumerate(found):
        for row, patch in enumerate(one.targets(target)):
            values = one.map(patch).copy()
            values[patch] = np.nan  # 1 always; left out, so that the scale is the others'
            panels[row, number] = values, patch
    rows = [f"row {row}, column {column}" for row, column in found[0].targets(target)]
    columns = [f"layer {one.layer}" for one in found]
    figure = signed_panels(columns, rows, panels, "cosine similarity", 1.4)
    caption(
        figure,
        "Cosine similarity of the position of one patch (framed) with that of every other, as each layer gets it; "
        "its own is 1. Orange patches have positions alike, purple ones opposite.",
    )
    return figure


def similarity_by_distance(found: Sequence[Similarity]) -> "Figure":
    """A line per layer: mean similarity of two positions by their distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    colours = layer_colours(len(found))
    axes.axhline(0.0, color="0.7", linewidth=0.8)
    for number, one in enumerate(found):
        radii, curve = one.by_distance()
        axes.plot(radii[1:], curve[1:], color=colours(number), marker="o", markersize=3, label=f"layer {one.layer}")
    axes.set(xlabel="distance of two patches (patches, rounded)", ylabel="mean cosine similarity of their positions")
    tidy(axes)
    if [one.layer for one in found] == list(range(1, len(found) + 1)) and len(found) > 4:
        layer_scale(figure, [axes], len(found))
    else:
        axes.legend(fontsize="small", frameon=False)
    caption(figure, "How alike the positions of two patches are, by their distance on the grid: mean over all pairs.")
    return figure


def roll_outs(
    images: np.ndarray, found: Sequence[Attended], labels: Sequence[int], classes: Sequence[str], ignored: str
) -> "Figure":
    """A row per image: itself, what reaches the output, and the dense form for each of its classes.

    Args:
        images: as they are shown, (n, H, W, 3) in 0 ... 1.
        labels: the true classes.
        classes: all names.
        ignored: what the method leaves out, for the caption.
    """
    from matplotlib.figure import Figure

    wide = 2 + max(len(one.dense) for one in found)
    figure = Figure(figsize=(2.25 * wide + 1.1, 2.45 * len(found) + 0.2), layout="constrained")
    axes = figure.subplots(len(found), wide, squeeze=False)
    for row, image, one, label in zip(axes, images, found, labels, strict=True):
        for axis in row:
            axis.set_axis_off()
        row[0].imshow(image)
        row[0].set_title(_short(classes[label]), fontsize="small")
        heat = _overlay(row[1], image, _scaled(scaled, one.ordinary))
        row[1].set_title("roll-out", fontsize="small")
        for axis, (number, values) in zip(row[2:], one.dense.items(), strict=False):
            _overlay(axis, image, _scaled(min_max, values))
            says = f"{100 * one.probabilities[number]:.0f} %" + (", true" if number == label else "")
            axis.set_title(f"dense: {_short(classes[number])} ({says})", fontsize="small")
    height, width = found[0].ordinary.shape
    figure.colorbar(heat, ax=axes, label="share of the largest value; dense: from least to largest", fraction=0.03)
    caption(
        figure,
        "Attention roll-out: what reaches the output from every patch, if attention only mixes tokens. Dense attention "
        "roll-out is our reading of a method whose algorithm is not published: rows are weighed by what the classifier "
        f"says of each patch alone, which approximates a dense head; in percent, what it says of the image. {ignored} "
        "The ordinary map does not depend on the class, and neither explains the prediction. "
        f"Values of {height} x {width} patches are drawn smoothly over the picture; dense maps are stretched to the "
        "whole scale, so that a flat one looks as strong as a peaked one.",
    )
    return figure


def _scaled(how: Callable[[Tensor], Tensor], values: np.ndarray) -> np.ndarray:
    """A map (h, w) in a scale of `gab.evaluators.rollout`."""
    return how(torch.from_numpy(values).flatten()).numpy().reshape(values.shape)


def _overlay(axis: Any, image: np.ndarray, values: np.ndarray) -> Any:
    """A map, blended bilinearly, on the picture in pale grey, which hardly changes the colours of the scale."""
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(PALE + (1 - PALE) * image.mean(-1), cmap="gray", vmin=0, vmax=1, extent=extent)
    return axis.imshow(values, cmap=HEAT, vmin=0, vmax=1, alpha=0.7, extent=extent, interpolation="bilinear")


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
