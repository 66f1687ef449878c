"""A Gaussian fitted to a map by least squares, in the form of the GAB paper's supplement."""

from dataclasses import dataclass

import numpy as np

from gab.errors import Unmeasurable
from gab.evaluators.areas import normalised


@dataclass(frozen=True)
class GaussianFit:
    """offset + amplitude / (2 π σx σy) exp(-(x - x0)² / 2 σx² - (y - y0)² / 2 σy²), of a map that sums to 1.

    Attributes:
        r_squared: 1 - var(residual) / var(map).
        x, y: the middle, in pixels from that of the first pixel.
        sigma_x, sigma_y: pixels; far wider than the map where there is no peak to fit.
        amplitude: the mass of the whole Gaussian; below zero for a dip.
        offset: what is added everywhere, 0 in the paper's form.
    """

    r_squared: float
    sigma_x: float
    sigma_y: float
    x: float
    y: float
    amplitude: float
    offset: float = 0.0

    def values(self, shape: tuple[int, int]) -> np.ndarray:
        """The Gaussian on pixels (H, W)."""
        parameters = np.array([self.amplitude, self.x, self.y, self.sigma_x, self.sigma_y])
        return self.offset + _gaussian(parameters, *_axes(shape))


def fit_gaussian(field: np.ndarray, offset: bool = False) -> GaussianFit:
    """Fit a Gaussian to a map (H, W), without an offset or with a free one.

    The search begins where the paper's code does, and again at the map's own peak and spread: from there it also
    finds a peak that is narrow or far from the middle. The better of both is taken.

    Raises:
        Unmeasurable: the map is empty, not finite or the same everywhere.
    """
    from scipy.optimize import least_squares

    if min(field.shape) < 2 or not np.var(field) > 0:
        raise Unmeasurable("a Gaussian cannot be fitted to a map that is the same everywhere or not finite")
    data = normalised(np.asarray(field, dtype=np.float64))
    y, x = _axes(data.shape)

    def residual(p: np.ndarray) -> np.ndarray:
        level = p[5] if offset else 0.0
        return (level + _gaussian(p[:5], y, x) - data).ravel() / scale

    def slope(p: np.ndarray) -> np.ndarray:
        slopes = _slopes(p[:5], y, x) + ([np.ones_like(data)] if offset else [])
        return np.stack([one.ravel() for one in slopes], axis=1) / scale

    scale = np.abs(data).max()  # the search stops by relative changes, whatever the number of pixels
    found = [least_squares(residual, start, slope, method="lm", x_scale="jac") for start in _starts(data, offset)]
    best = min(found, key=lambda one: one.cost)
    amplitude, x0, y0, sigma_x, sigma_y, *level = (float(number) for number in best.x)
    r_squared = 1 - float(np.var(residual(best.x) * scale) / np.var(data))
    sign = np.sign(sigma_x * sigma_y)  # only squares of σ have a meaning, and the sign of their product
    return GaussianFit(r_squared, abs(sigma_x), abs(sigma_y), x0, y0, float(sign * amplitude), *level)


def _axes(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (H, 1) and columns (1, W)."""
    return np.arange(shape[0], dtype=np.float64)[:, None], np.arange(shape[1], dtype=np.float64)[None]


def _gaussian(p: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    amplitude, x0, y0, sigma_x, sigma_y = p
    across, down = np.exp(-0.5 * ((x - x0) / sigma_x) ** 2), np.exp(-0.5 * ((y - y0) / sigma_y) ** 2)
    return amplitude / (2 * np.pi * sigma_x * sigma_y) * across * down


def _slopes(p: np.ndarray, y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Derivatives by the five parameters, (H, W) each."""
    _, x0, y0, sigma_x, sigma_y = p
    values = _gaussian(p, y, x)
    u, v = (x - x0) / sigma_x, (y - y0) / sigma_y
    unit = _gaussian(np.array([1.0, *p[1:]]), y, x)
    return [
        unit,
        values * u / sigma_x,
        values * v / sigma_y,
        values * (u**2 - 1) / sigma_x,
        values * (v**2 - 1) / sigma_y,
    ]


def _starts(data: np.ndarray, offset: bool) -> list[np.ndarray]:
    """The paper's start, and one from the map: its brightest pixel, and the spread of the mass around that."""
    level = [0.0] if offset else []
    height, width = data.shape
    paper = [2.0, 0.8 * (width - 1) / 2, 0.8 * (height - 1) / 2, width / 10 / 1.5, height / 6 / 1.5]
    y, x = _axes(data.shape)
    y0, x0 = np.unravel_index(np.argmax(data), data.shape)
    spreads = [np.sqrt((data * (axis - middle) ** 2).sum()) for axis, middle in ((x, x0), (y, y0))]
    return [np.array(paper + level), np.array([1.0, x0, y0, *(max(spread, 0.5) for spread in spreads), *level])]
