"""What the figures of learned maps share: small panels in one scale."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNED = "PuOr_r"  # orange above, purple below a neutral zero, for every kind of sight and in print
ACROSS = 12  # panels side by side; more go into a second block
SHARE_IN_SCALE = 0.995  # of all values; the few beyond take the last colour

Panel = tuple[np.ndarray, tuple[int, int]]  # a map (h, w), and (row, column) of the patch that it belongs to


def signed_panels(
    columns: Sequence[str], rows: Sequence[str], panels: dict[tuple[int, int], Panel], label: str, size: float = 1.05
) -> "Figure":
    """Maps of signed values in one scale that is even around zero, a frame around the patch that each belongs to.

    Args:
        columns, rows: their titles; columns are broken into blocks of ACROSS, one below the other.
        panels: by (row, column); where one is missing nothing is drawn, nor where a value is NaN.
        label: of the scale, with its unit.
        size: of a panel, inches.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    limit = float(
        np.nanquantile(np.abs(np.concatenate([values.ravel() for values, _ in panels.values()])), SHARE_IN_SCALE)
    )
    norm = Normalize(-(limit or 1.0), limit or 1.0)
    blocks = -(-len(columns) // ACROSS)
    across = min(len(columns), ACROSS)
    figure = Figure(figsize=(size * across + 1.5, size * len(rows) * blocks + 0.75), layout="constrained")
    axes = figure.subplots(len(rows) * blocks, across, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for (row, column), panel in panels.items():
        axis = axes[column // ACROSS * len(rows) + row, column % ACROSS]
        image = _draw(axis, *panel, norm)
        if row == 0:
            axis.set_title(columns[column], fontsize="small")
        if column % ACROSS == 0:
            axis.set_ylabel(rows[row], fontsize="small")
    _one_frame_of_reference(axes)
    figure.colorbar(image, ax=axes, label=label, extend="both", fraction=0.05, aspect=25)
    return figure


def _draw(axis: Any, values: np.ndarray, patch: tuple[int, int], norm: Any) -> Any:
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    (height, width), (row, column) = values.shape, patch
    edges = (-0.5 - column, width - 0.5 - column, height - 0.5 - row, -0.5 - row)  # patches from the middle of this one
    axis.set_visible(True)
    image = axis.imshow(values, cmap=SIGNED, norm=norm, extent=edges, interpolation="nearest")
    axis.add_patch(Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor="black", linewidth=0.8))
    axis.tick_params(labelsize="x-small", length=2)
    for along in (axis.xaxis, axis.yaxis):
        along.set_major_locator(MaxNLocator(3, integer=True))
    return image


def _one_frame_of_reference(axes: Any) -> None:
    """Ticks on the first panel of the last row; the others are the same in small."""
    shown = [axis for axis in axes.flat if axis.get_visible()]
    with_ticks = next(axis for axis in axes[-1] if axis.get_visible()) if axes[-1, 0].get_visible() else shown[-1]
    for axis in shown:
        if axis is not with_ticks:
            axis.set_xticks([])
            axis.set_yticks([])
    with_ticks.set_xlabel("patches from the framed one", fontsize="small", loc="left")  # wider than a small panel
