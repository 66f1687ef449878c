"""How large a field is: the pixels that hold most of its mass, and how the mass grows with the distance."""

import numpy as np

from gab.errors import Unmeasurable

MASSES = (20, 30, 50, 99)  # percent


def normalised(field: np.ndarray) -> np.ndarray:
    """A map (H, W) divided by its sum; raises Unmeasurable where that says nothing."""
    total = field.sum(dtype=np.float64)
    if not np.isfinite(total) or not total > 0 or field.min() < 0:
        raise Unmeasurable(
            "the receptive field is zero, negative or not finite, so it has no size: no image pulls the target patch up"
        )
    return field / total


def area(field: np.ndarray, mass: float) -> float:
    """The least share of the pixels of a map (H, W) that holds `mass` percent of its sum.

    The side of a square of as many pixels is sqrt(area * H * W).
    """
    held = np.cumsum(np.sort(normalised(field), axis=None)[::-1])
    enough = mass / 100 * held[-1] * (1 - 1e-12)  # a share that is met but for rounding is met
    return (int(np.searchsorted(held, enough)) + 1) / field.size


def radial_mass(field: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """The share of the mass of a map (H, W) within 0, 1, 2, ... pixels of `centre` (y, x), up to the last pixel."""
    rows, columns = np.indices(field.shape)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    radii = np.arange(int(np.ceil(distance.max())) + 1)
    nearest = np.searchsorted(radii, distance)  # the first radius that reaches the pixel
    return np.cumsum(np.bincount(nearest.ravel(), weights=normalised(field).ravel(), minlength=len(radii)))


def own_share(field: np.ndarray, grid: tuple[int, int], target: tuple[int, int]) -> float:
    """The share of the mass of a map (H, W) in patch `target` (row, column) of a grid of (h, w) patches."""
    (height, width), (row, column) = field.shape, target
    top, bottom = (round(edge * height / grid[0]) for edge in (row, row + 1))
    left, right = (round(edge * width / grid[1]) for edge in (column, column + 1))
    return float(normalised(field)[top:bottom, left:right].sum())
