"""The pictures of a comparison, as SVG: every seed, the intervals, curves by epoch, and how σ and A moved."""

import io
import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gab.comparison.arms import Arm, Group
from gab.comparison.runs import Endpoint
from gab.comparison.verdict import Comparison, scores
from gab.tracking.figure_files import write
from gab.tracking.figures import layer_colours, layer_scale, new_figure, tidy, track
from gab.tracking.figures_of_runs import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In print, where COLOURS do not.
STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
WIDTH = 4.6  # inches: small, so that words stay readable on a phone


def svg(figure: "Figure") -> str:
    """A figure as SVG: equal for equal numbers."""
    text = io.StringIO()
    write(figure, text, "svg")
    return text.getvalue()


def every_seed(group: Group, comparisons: Sequence[Comparison], endpoint: Endpoint) -> "Figure":
    """A point for each run, an arm a row; lines join pairs, a bar is the mean with its standard deviation."""
    figure = new_figure(WIDTH, 0.7 + 0.55 * len(group.arms))
    axes = figure.subplots()
    rows = {id(arm): len(group.arms) - 1 - place for place, arm in enumerate(group.arms)}
    for one in comparisons:
        for a, b in zip(*one.paired_values, strict=True):
            axes.plot((a, b), (rows[id(one.baseline)], rows[id(one.arm)]), color="0.8", linewidth=0.8, zorder=1)
    for place, arm in enumerate(group.arms):
        values, colour = scores(arm, endpoint), COLOURS[place % len(COLOURS)]
        axes.scatter(values, np.full(len(values), rows[id(arm)]), s=22, color=colour, zorder=3, linewidths=0)
        if len(values) > 1:
            above = rows[id(arm)] + 0.22
            spread = values.std(ddof=1)
            axes.errorbar(values.mean(), above, xerr=spread, fmt="|", color=colour, capsize=3, markersize=9)
    axes.set_yticks(list(rows.values()), [arm.label for arm in group.arms])
    axes.set_ylim(-0.5, len(group.arms) - 0.4)
    axes.set_xlabel(_axis(endpoint))
    _tidy_values(axes)
    return figure


def intervals(comparisons: Sequence[Comparison]) -> "Figure | None":
    """The difference of every comparison with its 95 % intervals, and the band of what is too small to matter."""
    kinds = {
        "Welch": ("welch", "#0072B2"),
        "paired t": ("paired", "#009E73"),
        "seeds and images": ("crossed", "#D55E00"),
    }
    lines = [
        (f"{one.arm.label}, {one.group.label}" if len(comparisons) > 1 else "", name, colour, estimate)
        for one in comparisons
        for name, (kind, colour) in kinds.items()
        if (estimate := getattr(one, kind)) is not None and math.isfinite(estimate.low)
    ]
    if not lines:
        return None
    figure = new_figure(WIDTH, 0.8 + 0.3 * len(lines))
    axes = figure.subplots()
    delta = comparisons[0].rules.delta
    axes.axvspan(-delta, delta, color="0.9", zorder=0)
    axes.axvline(0, color="0.5", linewidth=0.8, zorder=1)
    for place, (_, _, colour, found) in enumerate(reversed(lines)):
        axes.plot((found.low, found.high), (place, place), color=colour, linewidth=2)
        axes.plot(found.difference, place, "o", color=colour, markersize=5)
    names = [f"{arm}: {name}" if arm else name for arm, name, _, _ in reversed(lines)]
    axes.set_yticks(range(len(lines)), names)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.set_xlabel(f"difference ({comparisons[0].endpoint.unit}); grey: ±{delta:g}")
    _tidy_values(axes)
    return figure


def curve(group: Group, field: str) -> "Figure | None":
    """Mean over seeds after every evaluated epoch, with the range of the runs; None with less than two epochs."""

    figure = new_figure(WIDTH, 2.9)
    axes = figure.subplots()
    drawn = [_draw(axes, arm, field, place) for place, arm in enumerate(group.arms)]
    if max(drawn) < 2:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel(_axis(Endpoint(field)))
    axes.legend(frameon=False, fontsize="small")
    tidy(axes)
    return figure


def _draw(axes: Any, arm: Arm, field: str, place: int) -> int:
    """Line and band of an arm; returns the number of epochs that all its runs have."""
    tracks = [
        {row["epoch"]: row[field] for row in run.all("eval") if row.get(field) is not None} for run in arm.runs.values()
    ]
    epochs = sorted(set.intersection(*map(set, tracks)))
    if epochs:
        values = np.array([[each[epoch] for epoch in epochs] for each in tracks])
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place % len(STYLES)]
        axes.plot(epochs, values.mean(axis=0), style, color=colour, label=f"{arm.label} ({len(tracks)})")
        if len(tracks) > 1:
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    return len(epochs)


def gaussians(group: Group) -> "Figure | None":
    """|σ| and A of every layer by epoch, mean over seeds, a line style for each arm; None where no run has any."""
    shown = {"sigma": "|σ| (patches)", "amplitude": "A"}
    having = [arm for arm in group.arms if track(arm.first.rows, "sigma") is not None]
    if not having:
        return None
    figure = new_figure(WIDTH, 4.6)
    panels = figure.subplots(2, sharex=True)
    for axes, (field, label) in zip(panels, shown.items(), strict=True):
        for arm, style in zip(having, cycle(STYLES), strict=False):
            epochs, layers = _layers(arm, field)
            colours = layer_colours(len(layers))
            for number, values in enumerate(layers):
                axes.plot(epochs, values, style, color=colours(number))
        axes.set_ylabel(label)
        tidy(axes)
    panels[-1].set_xlabel("epoch")
    layer_scale(figure, panels, len(layers))
    if len(having) > 1:
        _name_styles(figure, having)
    return figure


def _layers(arm: Arm, field: str) -> tuple[list[float], np.ndarray]:
    """Epochs that all its runs have, n of them, and means over seeds and heads (layers, n)."""
    tracks = []
    for run in arm.runs.values():
        if found := track(run.rows, field):
            epochs, layers = found
            means = np.array([heads.mean(axis=0) for heads in layers])
            tracks.append(dict(zip(epochs.tolist(), means.T, strict=True)))
    common = sorted(set.intersection(*map(set, tracks)))
    return common, np.mean([[each[epoch] for epoch in common] for each in tracks], axis=0).T


def _name_styles(figure: "Figure", arms: Sequence[Arm]) -> None:
    from matplotlib.lines import Line2D

    styles = zip(arms, cycle(STYLES), strict=False)
    handles = [Line2D([], [], color="0.3", linestyle=style, label=arm.label) for arm, style in styles]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize="small")


def _axis(endpoint: Endpoint) -> str:
    return f"{endpoint.words} ({'nats' if endpoint.is_loss else '%'})"


def _tidy_values(axes: Any) -> None:
    """A faint grid along x, no frame."""
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
