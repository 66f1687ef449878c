"""How σ and A moved in several runs, on one data set or many: figures in the language of a single run's, and rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from gab.errors import UserError
from gab.tracking.figures import (
    BIASES,
    caption,
    draw_changes,
    layer_colours,
    layer_scale,
    new_figure,
    start_of,
    tidy,
    track,
)
from gab.tracking.record import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Mapping[str, Sequence[Row]]  # by the name of the run

# Okabe and Ito's colours; markers tell runs apart in print, and where there are more of them than colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
SIDE_BY_SIDE = 6  # runs


def check(records: Records) -> None:
    """Raise UserError for a run without a Gaussian."""
    for name, rows in records.items():
        if track(rows, "sigma") is None:
            raise UserError(f"{name} has no Gaussian, so it has neither σ nor A: give runs with model.gab=true")


def changes_over_time(records: Records) -> "Figure":
    """A column per run, σ above and A below, as `gab.tracking.figures.bias_over_time`; all of a row in one scale."""
    columns, depth = min(len(records), SIDE_BY_SIDE), _depth(records)
    blocks = -(-len(records) // columns)
    figure = new_figure(2.9 * columns + 1.6, 5.2 * blocks)
    panels = figure.subplots(2 * blocks, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for number, (name, rows) in enumerate(records.items()):
        for place, (field, (symbol, label)) in enumerate(BIASES.items()):
            axes = panels[2 * (number // columns) + place, number % columns]
            axes.set_visible(True)
            axes.sharey(panels[place, 0])
            epochs, layers = _tracked(rows, field)
            draw_changes(axes, epochs, layers, layer_colours(depth))
            axes.set_title(f"{name}\n{symbol}: {start_of(layers)}" if place == 0 else f"{symbol}: {start_of(layers)}")
            axes.title.set_fontsize("small")
            axes.set_ylabel(label if number % columns == 0 else "", fontsize="small")
    layer_scale(figure, panels, depth)
    caption(figure, "How far σ and A are from their start in every run, by layer; the panels of a row share one scale.")
    return figure


def changes_by_layer(records: Records) -> "Figure":
    """A line per run: how far σ and A of each layer are from their start at its end, mean over heads."""
    figure = new_figure(10.0, 4.4)
    panels = figure.subplots(1, len(BIASES))
    for axes, (field, (symbol, label)) in zip(panels, BIASES.items(), strict=True):
        axes.axhline(0.0, color="0.7", linewidth=0.8)
        for (name, rows), colour, marker in zip(records.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
            epochs, layers = _tracked(rows, field)
            change = [float((heads[:, -1] - heads[:, 0]).mean()) for heads in layers]
            numbers = range(1, len(change) + 1)
            axes.plot(numbers, change, color=colour, marker=marker, label=f"{name}, epoch {epochs[-1]:.3g}")
        axes.set(title=symbol, xlabel="layer", ylabel=label)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        tidy(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    caption(figure, "How far σ and A of each layer are from their start at the end of every run, mean over heads.")
    return figure


def rows_of_runs(records: Records) -> Iterator[dict[str, Any]]:
    """A row per run, evaluation, layer and head: |σ| (patches), A, and their changes since the start."""
    for name, rows in records.items():
        epochs, sigma = _tracked(rows, "sigma")
        _, amplitude = _tracked(rows, "amplitude")
        for layer, both in enumerate(zip(sigma, amplitude, strict=True), start=1):
            for head in range(len(both[0])):
                for at, epoch in enumerate(epochs):
                    row = {"run": name, "epoch": float(epoch), "layer": layer, "head": head + 1}
                    values = {field: float(heads[head, at]) for field, heads in zip(BIASES, both, strict=True)}
                    starts = {field: float(heads[head, 0]) for field, heads in zip(BIASES, both, strict=True)}
                    yield row | values | {f"{field}_change": values[field] - starts[field] for field in BIASES}


def _tracked(rows: Sequence[Row], field: str) -> tuple[np.ndarray, list[np.ndarray]]:
    found = track(rows, field)
    assert found is not None  # `check`
    return found


def _depth(records: Records) -> int:
    return max(len(_tracked(rows, "sigma")[1]) for rows in records.values())
