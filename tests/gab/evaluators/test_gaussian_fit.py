"""The Gaussian fit on Gaussians whose σ is known, and against openerf's own."""

import numpy as np
import pytest

from gab.errors import UserError
from gab.evaluators.gaussian_fit import GaussianFit, fit_gaussian

CASES = {
    "round": (56, 56, 27.5, 27.5, 6.0, 6.0),
    "elliptic": (56, 56, 27.5, 27.5, 4.0, 11.0),
    "off the middle": (56, 56, 44.0, 9.0, 5.0, 3.0),
    "in a corner": (56, 56, 0.0, 55.0, 7.0, 7.0),
    "narrow": (112, 112, 80.3, 20.6, 1.0, 1.2),
    "wide": (40, 64, 30.0, 20.0, 25.0, 14.0),
}


@pytest.mark.parametrize("case", CASES)
def test_known_gaussians(case: str) -> None:
    height, width, x, y, sigma_x, sigma_y = CASES[case]
    field = 7e-5 * GaussianFit(1.0, sigma_x, sigma_y, x, y, 1.0).values((height, width))
    found = fit_gaussian(field)
    assert (found.sigma_x, found.sigma_y, found.x, found.y) == pytest.approx(
        (sigma_x, sigma_y, x, y), rel=1e-4, abs=1e-4
    )
    assert found.r_squared == pytest.approx(1)
    np.testing.assert_allclose(
        found.values((height, width)), field / field.sum(), atol=1e-6 * (field / field.sum()).max()
    )


def test_r_squared_with_noise() -> None:
    """1 - var(residual) / var(map), from the fit's own values."""
    field = GaussianFit(1.0, 6.0, 9.0, 30.0, 25.0, 1.0).values((56, 56))
    field += np.random.default_rng(0).exponential(field.max() / 10, field.shape)
    found = fit_gaussian(field)
    share = field / field.sum()
    assert found.r_squared == pytest.approx(1 - np.var(share - found.values(share.shape)) / np.var(share))
    assert 0.3 < found.r_squared < 0.99
    assert (found.sigma_x, found.sigma_y) == pytest.approx((6, 9), rel=0.3)


def maps() -> dict[str, np.ndarray]:
    """Maps (56, 56) that are no Gaussians: peaks with long tails, one rectified and noisy as a field is."""
    y, x = np.mgrid[:56, :56]
    noise = np.random.default_rng(0).normal(size=x.shape)
    return {
        "tails": np.exp(-np.hypot(x - 26, y - 29) / 3),
        "long tails": np.exp(-np.hypot(x - 26, y - 29) / 8),
        "flat": np.exp(-np.hypot((x - 30) / 9, (y - 20) / 4)),
        "noisy": np.maximum(np.exp(-((x - 26) ** 2 + (y - 29) ** 2) / 200) + 0.2 * noise, 0),
    }


@pytest.mark.parametrize("name", maps())
def test_openerf(name: str) -> None:
    """openerf's fit, which is lmfit's least squares of the paper's form from the paper's start; ours is no worse."""
    openerf = pytest.importorskip("openerf.fit")
    pytest.importorskip("lmfit")
    field = maps()[name]
    theirs, ours = openerf.fit_2d_gaussian(field), fit_gaussian(field)
    assert (ours.sigma_x, ours.sigma_y) == pytest.approx((theirs.sigma_x, theirs.sigma_y), rel=1e-4)
    assert (ours.x, ours.y, ours.amplitude) == pytest.approx((theirs.xc, theirs.yc, theirs.amp), rel=1e-4)
    assert ours.r_squared == pytest.approx(theirs.r_squared, abs=1e-5)
    again = GaussianFit(0.0, theirs.sigma_x, theirs.sigma_y, theirs.xc, theirs.yc, theirs.amp)
    squares = [np.square(fit.values(field.shape) - field / field.sum()).sum() for fit in (ours, again)]
    assert squares[0] <= squares[1] * (1 + 1e-9)


@pytest.mark.parametrize("field", [np.ones((5, 5)), np.zeros((5, 5)), np.full((5, 5), np.nan), np.ones((1, 5))])
def test_nothing_to_fit(field: np.ndarray) -> None:
    with pytest.raises(UserError, match="cannot be fitted"):
        fit_gaussian(field)
