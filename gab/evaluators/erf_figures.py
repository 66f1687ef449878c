"""Receptive fields as figures: every map in two scales, with its target, its Gaussian and its mass by distance."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from gab.evaluators.areas import area, radial_mass
from gab.evaluators.erf import ENOUGH, ReceptiveField
from gab.evaluators.gaussian_fit import GaussianFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "cividis"  # even in lightness for every kind of sight, and in print
DECADES = 4  # of the logarithmic scale
MARK = "#D55E00"  # of Okabe and Ito, seen on both ends of the map


def compare_fields(fields: dict[str, ReceptiveField]) -> "Figure":
    """A row per field, of its first target: the map in linear and logarithmic scale, and the mass by distance.

    Dashed ellipses are one and two σ of the fitted Gaussian where it explains half of the map or more.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    notes = _notes(fields)
    size = (11.7, 3.9 * len(fields) + 0.22 * len(notes))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))  # scales keep off the next axes
    axes = figure.subplots(len(fields), 3, squeeze=False, width_ratios=(1, 1, 0.9))
    curves = {name: radial_mass(field.maps[0], field.centres()[0]) for name, field in fields.items()}
    for (name, field), row in zip(fields.items(), axes, strict=True):
        fit = field.fit()[0] if field.count >= ENOUGH else None
        for panel, logarithmic in zip(row, (False, True), strict=False):
            image = _draw_map(panel, field, 0, fit, logarithmic)
            label = "share of the largest value" + (", log scale" if logarithmic else "")
            beside = panel.inset_axes((1.03, 0.0, 0.05, 1.0))  # as high as the map
            figure.colorbar(image, cax=beside, label=label, extend="min" if logarithmic else "neither")
        row[0].set_title(f"{name}\n{_caption(field, fit)}", fontsize="small", loc="left")  # reaches over two panels
        _draw_radial(row[2], curves, name, field)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize="small")
    return figure


def all_targets(field: ReceptiveField) -> "Figure":
    """The maps of several targets in one logarithmic scale, laid out as the patches are in the image."""
    from matplotlib.figure import Figure

    rows, columns = (sorted({target[axis] for target in field.targets}) for axis in (0, 1))
    figure = Figure(figsize=(2.3 * len(columns) + 1.4, 2.3 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for panel in axes.flat:
        panel.set_visible(False)
    for number, (row, column) in enumerate(field.targets):
        panel = axes[rows.index(row), columns.index(column)]
        panel.set_visible(True)
        image = _draw_map(panel, field, number, None, logarithmic=True)
        panel.set_title(f"row {row}, column {column}", fontsize="small")
        panel.label_outer()
    figure.colorbar(image, ax=axes, label="share of the largest value of each map, log scale", extend="min")
    figure.suptitle(f"receptive fields of {len(field.targets)} patches\n{_measured(field)}", fontsize="medium")
    if notes := _notes({"the network": field}):
        figure.supxlabel("\n".join(notes), fontsize="small")
    return figure


def _draw_map(panel: Any, field: ReceptiveField, number: int, fit: GaussianFit | None, logarithmic: bool) -> Any:
    """One map with its target patch; returns what a colour bar needs."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Ellipse, Rectangle

    shown = field.maps[number] / field.maps[number].max()
    floor = 10.0**-DECADES
    norm = LogNorm(floor, 1.0) if logarithmic else Normalize(0.0, 1.0)
    image = panel.imshow(np.maximum(shown, floor) if logarithmic else shown, cmap=COLOURS, norm=norm)
    (down, across), (row, column) = field.patch_size, field.targets[number]
    corner = (column * across - 0.5, row * down - 0.5)
    panel.add_patch(Rectangle(corner, across, down, fill=False, edgecolor=MARK, linewidth=1.2))
    if fit is not None and fit.r_squared >= 0.5:
        for sigmas in (1, 2):
            size = (2 * sigmas * fit.sigma_x, 2 * sigmas * fit.sigma_y)
            panel.add_patch(Ellipse((fit.x, fit.y), *size, fill=False, edgecolor="white", linestyle="--", linewidth=1))
    panel.set_xlabel("x (pixels)")
    panel.set_ylabel("y (pixels)")
    return image


def _draw_radial(panel: Any, curves: dict[str, np.ndarray], name: str, field: ReceptiveField) -> None:
    """The mass by distance of one field, among the others."""
    for other, curve in curves.items():
        if other != name:
            panel.plot(100 * curve, color="0.75", linewidth=1, label="other rows")
    panel.plot(100 * curves[name], color="#0072B2", linewidth=2, label="this row")
    if len(curves) > 1:
        panel.legend(handles=panel.get_lines()[-2:], loc="lower right", fontsize="small", frameon=False)
    half = area(field.maps[0], 50)
    panel.set_title(f"half of the mass in {100 * half:.2f} % of the pixels", fontsize="small", loc="left")
    panel.set_xlabel("distance from the target (pixels)")
    panel.set_ylabel("mass within this distance (%)")
    panel.set_ylim(0, 102)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _measured(field: ReceptiveField) -> str:
    if field.count < 2:
        return f"{field.measured}; one image"
    return f"{field.measured}; {field.count} images, relative error {100 * field.relative_error:.0f} %"


def _caption(field: ReceptiveField, fit: GaussianFit | None) -> str:
    row, column = field.targets[0]
    caption = f"row {row}, column {column}; {_measured(field)}"
    if fit is None:
        return f"{caption}, too few for a fit"
    return f"{caption}; fit: R² {fit.r_squared:.3f}, σ {fit.sigma_x:.1f} x {fit.sigma_y:.1f} px"


def _notes(fields: dict[str, ReceptiveField]) -> list[str]:
    """What must be known of the maps, in lines."""
    sentences = [f"{name}: {note}" for name, field in fields.items() for note in field.notes]
    if len({field.measured for field in fields.values()}) > 1:
        sentences.append("The rows show different functionals of the networks, so they are not to be compared.")
    return [line for sentence in sentences for line in textwrap.wrap(sentence, 150)]
