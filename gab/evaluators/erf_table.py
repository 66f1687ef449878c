"""The numbers of receptive fields as tables: a row per target patch, and the mass by distance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gab.evaluators.areas import MASSES, radial_mass
from gab.evaluators.erf import ENOUGH, ReceptiveField

MIXED = (
    "Rows differ in `measured`: these are different functionals of a network, so their numbers are not to be compared "
    "with one another."
)


def rows(field: ReceptiveField) -> list[dict[str, Any]]:
    """One row per target: σ in pixels and patches, areas in percent of the pixels and as side of a square (pixels).

    The fit's columns are empty where there are too few images for one.
    """
    height, width = field.image_size
    down, across = field.patch_size
    fits = field.fit() if field.count >= ENOUGH else [None] * len(field.targets)
    found = []
    for (row, column), fit, areas, own in zip(
        field.targets, fits, field.areas(), field.own_shares(), strict=True
    ):  # fmt: skip
        numbers: dict[str, Any] = {"row": row, "column": column, "images": field.count, "measured": field.measured}
        numbers |= {"r_squared": fit and fit.r_squared, "sigma_x": fit and fit.sigma_x, "sigma_y": fit and fit.sigma_y}
        numbers |= {"sigma_x_patches": fit and fit.sigma_x / across, "sigma_y_patches": fit and fit.sigma_y / down}
        numbers |= {"centre_x": fit and fit.x, "centre_y": fit and fit.y}
        numbers |= {f"area_{mass}": 100 * areas[mass] for mass in MASSES}
        numbers |= {f"side_{mass}": (areas[mass] * height * width) ** 0.5 for mass in MASSES}
        numbers |= {"own_patch": 100 * own, "relative_error": field.relative_error}
        found.append(numbers)
    return found


def summary(field: ReceptiveField) -> dict[str, float]:
    """Means over the targets of what `rows` has; the fit first."""
    table = rows(field)
    names = ("r_squared", "sigma_x", "sigma_y", *(f"area_{mass}" for mass in MASSES), "own_patch", "relative_error")
    return {name: float(np.mean([row[name] for row in table])) for name in names if table[0][name] is not None}


def mixes(table: Sequence[dict[str, Any]]) -> bool:
    """Whether a table over models has fields of different readouts."""
    return len({row["measured"] for row in table}) > 1


def radial_rows(field: ReceptiveField) -> list[dict[str, Any]]:
    """The share of the mass (percent) within each radius (pixels) of a target's middle, a column per target."""
    curves = [radial_mass(one, centre) for one, centre in zip(field.maps, field.centres(), strict=True)]
    names = [f"mass_{row}_{column}" for row, column in field.targets]
    table = []
    for radius in range(max(map(len, curves))):
        inside = [100 * curve[min(radius, len(curve) - 1)] for curve in curves]
        table.append({"radius": radius, **dict(zip(names, inside, strict=True))})
    return table


def markdown(table: Sequence[dict[str, Any]], names: dict[str, str]) -> str:
    """A Markdown table of the columns `names` (by key: their heads), with a sentence below where readouts are mixed."""
    lines = ["| " + " | ".join(names.values()) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_text(row[key]) for key in names) + " |" for row in table]
    return "\n".join(lines) + "\n" + (f"\n{MIXED}\n" if mixes(table) else "")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)
