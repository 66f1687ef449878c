"""Figures of one run, drawn from the rows of its record: top-1 by epoch, and how σ and A moved in every layer."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gab.tracking.figure_files import save
from gab.tracking.record import Row

if TYPE_CHECKING:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; the styles do so in print.
CURVES = {"top1": ("weights", "#0072B2", "-"), "top1_ema": ("EMA of the weights", "#D55E00", "--")}
BIASES = {"sigma": ("σ", "change of σ since the start (patches)"), "amplitude": ("A", "change of A since the start")}
HEADS = " Thick lines are means over the heads of a layer, thin ones its heads."
FEW_POINTS = 30  # up to here every point is marked


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws every figure for which the record has numbers, into `folder`; returns the files."""
    drawn = {"top1": top1_curve(rows), "bias_over_time": bias_over_time(rows)}
    return [file for name, figure in drawn.items() if figure is not None for file in save(figure, folder / name)]


def top1_curve(rows: Sequence[Row]) -> "Figure | None":
    """Top-1 (percent) by epoch, of the raw and of the EMA weights; None without an evaluation."""
    evaluations = [row for row in rows if row["kind"] == "eval"]
    curves = {}
    for field in CURVES:
        points = [(row["epoch"], row[field]) for row in evaluations if row.get(field) is not None]
        if points:
            curves[field] = np.array(points, dtype=float).T  # epochs, values
    if not curves:
        return None
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for field, (epochs, values) in curves.items():
        label, colour, style = CURVES[field]
        axes.plot(epochs, values, style, color=colour, label=f"{label}: {values[-1]:.2f} %", **markers(epochs))
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.legend(title="at the last epoch", loc="lower right", frameon=False)
    tidy(axes)
    return figure


def bias_over_time(rows: Sequence[Row]) -> "Figure | None":
    """|σ| and A of every layer by epoch, as change from the first row that has them; None without a Gaussian.

    All layers share one scale, so that a layer that stays put looks like it. In a per-head run a thick line is the mean
    over the heads of a layer, and the thin ones are its heads.
    """
    tracks = {field: found for field in BIASES if (found := track(rows, field)) is not None}
    if not tracks:
        return None
    figure = new_figure(10.0, 4.2)
    panels = figure.subplots(1, len(tracks), squeeze=False)[0]
    for axes, (field, (epochs, layers)) in zip(panels, tracks.items(), strict=True):
        symbol, label = BIASES[field]
        draw_changes(axes, epochs, layers, layer_colours(len(layers)))
        axes.set_title(f"{symbol}: {start_of(layers)}", fontsize="medium")
        axes.set_ylabel(label)
    layer_scale(figure, panels, len(layers))
    caption(
        figure,
        f"How far σ and A are from their start, by layer, all in one scale.{HEADS if len(layers[0]) > 1 else ''}",
    )
    return figure


def draw_changes(axes: Any, epochs: np.ndarray, layers: list[np.ndarray], colours: "ListedColormap") -> None:
    """One thick line per layer, thin ones for its heads; `layers` holds arrays (heads, rows)."""
    axes.axhline(0.0, color="0.7", linewidth=0.8)
    for number, heads in enumerate(layers, start=1):
        change, colour = heads - heads[:, :1], colours(number - 1)
        axes.plot(epochs, change.mean(axis=0), color=colour, label=f"layer {number}", zorder=3, **markers(epochs))
        if len(heads) > 1:
            axes.plot(epochs, change.T, color=colour, linewidth=0.5, alpha=0.5)
    axes.set_xlabel("epoch")
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    tidy(axes)


def track(rows: Sequence[Row], field: str) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Epochs (rows) and, for each layer, an array (heads, rows); a value per layer is one head."""
    found = [row for row in rows if row.get(field)]
    if not found:
        return None
    shown = np.abs if field == "sigma" else np.asarray  # only the square of σ has a meaning
    layers: list[tuple[Any, ...]] = list(zip(*(row[field] for row in found), strict=True))
    values = [shown(np.array(layer, dtype=float).reshape(len(found), -1).T) for layer in layers]
    return np.array([row["epoch"] for row in found], dtype=float), values


def layer_colours(layers: int) -> "ListedColormap":
    """A sequential map, even in lightness for every kind of sight, without its palest end."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.93, layers)))


def layer_scale(figure: "Figure", panels: Any, layers: int) -> None:
    """A colour bar that tells the layers, at most about a dozen of them by number."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    scale = ScalarMappable(BoundaryNorm(np.arange(layers + 1) + 0.5, layers), layer_colours(layers))
    bar = figure.colorbar(scale, ax=panels, label="layer", ticks=np.arange(1, layers + 1, 1 + layers // 13))
    bar.minorticks_off()


def start_of(values: list[np.ndarray]) -> str:
    """`started at 5`, or the range over layers and heads."""
    first = np.concatenate([heads[:, 0] for heads in values])
    low, high = f"{first.min():.4g}", f"{first.max():.4g}"
    return f"started at {low}" if low == high else f"started between {low} and {high}"


def new_figure(width: float, height: float) -> "Figure":
    """A figure outside pyplot: no window, no global state, drawn by Agg. Sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def caption(figure: "Figure", text: str) -> None:
    """A few sentences below a figure, in lines of its width."""
    characters = int(figure.get_figwidth() * 16.5)
    lines = textwrap.wrap(text, characters)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * len(lines))
    figure.supxlabel("\n".join(lines), fontsize="small", x=0.01, ha="left")


def markers(epochs: np.ndarray) -> dict[str, Any]:
    """Matplotlib options that mark the points of a curve, if it has few."""
    return {"marker": "o", "markersize": 3} if len(epochs) <= FEW_POINTS else {}


def tidy(axes: Any) -> None:
    """Whole numbers along x, a faint grid, no frame."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
