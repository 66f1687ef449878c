"""Learned attention biases as figures: maps around a query, per layer and per head, and how Gaussian they are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gab.evaluators.bias_maps import LayerBias
from gab.evaluators.erf import Target
from gab.evaluators.panels import Panel, signed_panels
from gab.tracking.figures import caption, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_HEADS = 160  # of all layers; a figure of more takes minutes and cannot be read
UNIT = "bias, less its mean (logits)"
NAMES = {"relative": "relative bias", "gaussian": "Gaussian", "sum": "sum of both"}
FORMS = {"paper": ("minimum as floor (paper)", "#0072B2", "o"), "offset": ("free offset", "#D55E00", "s")}
STYLES: dict[str, Any] = {"sigma_x": "-", "sigma_y": "--"}
FAR = 20  # patches; a middle farther away makes the scale logarithmic from there
A_FIT = 0.5  # R² below which the σ of a fit says nothing


def bias_maps(biases: Sequence[LayerBias], query: Target = 1) -> "Figure":
    """Mean over heads: a column per layer, a row per part, all in one scale."""
    parts = [part for part in NAMES if any(part in layer.parts for layer in biases)]
    panels = {
        (parts.index(part), number): _panel(layer, layer.maps(part, query).mean(0), query)
        for number, layer in enumerate(biases)
        for part in layer.parts
    }
    figure = signed_panels(_columns(biases), [NAMES[part] for part in parts], panels, UNIT, 1.15)
    caption(
        figure, f"What every layer adds to the scores of the keys around a query (framed), mean over heads. {_RULE}"
    )
    return figure


def bias_heads(biases: Sequence[LayerBias], part: str, query: Target = 1) -> "Figure":
    """One part: a column per layer, a row per head, all in one scale."""
    panels: dict[tuple[int, int], Panel] = {}
    for number, layer in enumerate(biases):
        if part in layer.parts:
            maps = layer.maps(part, query)
            panels |= {(head, number): _panel(layer, one, query) for head, one in enumerate(maps)}
    heads = 1 + max(head for head, _ in panels)
    figure = signed_panels(_columns(biases), [f"head {head + 1}" for head in range(heads)], panels, UNIT, 0.8)
    caption(figure, f"{NAMES[part].capitalize()} of every layer and head around a query (framed). {_RULE}")
    return figure


_RULE = (
    "Softmax ignores what is the same for all keys, so each map is shown less its mean: orange keys are favoured, "
    "purple ones are disfavoured."
)


def _columns(biases: Sequence[LayerBias]) -> list[str]:
    return [f"layer {number}" for number in range(1, len(biases) + 1)]


def _panel(layer: LayerBias, values: np.ndarray, query: Target) -> Panel:
    return values - values.mean(), layer.query(query)


def fits(rows: Sequence[dict[str, Any]]) -> "Figure | None":
    """R² and σ by layer of the Gaussians fitted to the relative bias, in both forms; None where nothing was fitted.

    Args:
        rows: of `bias_maps.fit_rows`.
    """
    from matplotlib.figure import Figure

    fitted = [row for row in rows if row["part"] == "relative" and row["r_squared"] is not None]
    if not fitted:
        return None
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    quality, middle, width = panels = figure.subplots(1, 3)
    for form, (_, colour, marker) in FORMS.items():
        chosen = [row for row in fitted if row["form"] == form]
        layers = [row["layer"] for row in chosen]
        quality.plot(layers, [row["r_squared"] for row in chosen], color=colour, marker=marker)
        middle.plot(layers, [row["centre_distance"] for row in chosen], color=colour, marker=marker)
        for axis, style in STYLES.items():
            values = [row[axis] if _peaks(row) else np.nan for row in chosen]  # a gap in the line
            width.plot(layers, values, style, color=colour, marker=marker, linewidth=1)
    quality.set(ylabel="R² of the Gaussian", ylim=(min(0, *quality.get_ylim()), 1.03))
    _distance_scale(middle)
    width.set(ylabel="its σ (patches)", ylim=(0, None))
    for axes in panels:
        axes.set(xlabel="layer", xlim=(0.5, max(row["layer"] for row in rows) + 0.5))
        tidy(axes)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    caption(
        figure,
        "How well a Gaussian describes the relative bias of the query, mean over heads, by layer. A slope is a "
        f"Gaussian too, whose middle lies far away: σ is shown where R² is at least {A_FIT} and it peaks on the grid.",
    )
    return figure


def _peaks(row: dict[str, Any]) -> bool:
    """Whether a fit is a peak on the grid that describes the map."""
    return row["r_squared"] >= A_FIT and row["height"] > 0 and row["inside"]


def _distance_scale(axes: Any) -> None:
    """From zero; logarithmic beyond FAR, where middles lie that say no more than `outside`."""
    from matplotlib.ticker import ScalarFormatter

    highest = axes.get_ylim()[1]
    if highest > FAR:
        axes.set_yscale("symlog", linthresh=FAR)
        axes.set_yticks([tick for tick in (0, 5, 10, 20, 100, 1000, 10000) if tick < highest])
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set(ylabel="its middle from the query (patches)", ylim=(0, 1.3 * highest if highest > FAR else None))


def _legend() -> list[Any]:
    """Colours are forms of the fit, line styles the axes of σ."""
    from matplotlib.lines import Line2D

    forms = [Line2D([], [], color=colour, marker=marker, label=label) for label, colour, marker in FORMS.values()]
    names = {"sigma_x": "σ across", "sigma_y": "σ down"}
    return forms + [Line2D([], [], color="0.3", linestyle=STYLES[axis], label=name) for axis, name in names.items()]
