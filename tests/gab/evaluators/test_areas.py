"""Areas and mass by distance on maps whose answers are known."""

import numpy as np
import pytest

from gab.errors import UserError
from gab.evaluators.areas import area, own_share, radial_mass


def test_areas_of_a_ramp() -> None:
    """1, 2, 3 and 4 of 10: the largest alone hold 40 %, the two largest 70 %."""
    field = np.array([[1.0, 4.0], [3.0, 2.0]])
    assert [area(field, mass) for mass in (20, 40, 41, 70, 71, 90, 99)] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]


def test_areas_of_an_even_map() -> None:
    assert [area(np.ones((10, 10)), mass) for mass in (20, 30, 50, 99)] == [0.2, 0.3, 0.5, 0.99]


@pytest.mark.parametrize("mass", [20, 30, 50, 99])
def test_areas_of_a_gaussian(mass: int) -> None:
    """A level set of a Gaussian with π r² = -2 π σ² ln(1 - mass)."""
    y, x = np.mgrid[:301, :301] - 150.0
    field = np.exp(-(x**2 + y**2) / (2 * 20.0**2))
    assert area(field, mass) * field.size == pytest.approx(-2 * np.pi * 20.0**2 * np.log(1 - mass / 100), rel=0.01)


def test_radial_mass() -> None:
    field = np.zeros((9, 9))
    field[4, 4], field[4, 6], field[1, 0] = 1.0, 2.0, 1.0  # at 0, 2 and 5 pixels
    curve = radial_mass(field, (4.0, 4.0))
    assert curve.tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75, 0.75, 1.0, 1.0])
    assert radial_mass(field, (0.0, 0.0))[-1] == pytest.approx(1)


def test_radial_mass_of_a_gaussian() -> None:
    """1 - exp(-r² / 2 σ²), off the middle as well."""
    y, x = np.mgrid[:200, :200].astype(float)
    curve = radial_mass(np.exp(-((x - 90) ** 2 + (y - 110) ** 2) / (2 * 12.0**2)), (110.0, 90.0))
    np.testing.assert_allclose(curve[:50], 1 - np.exp(-(np.arange(50) ** 2) / (2 * 12.0**2)), atol=0.03)


def test_share_of_the_patch() -> None:
    field = np.ones((8, 12))
    assert own_share(field, (2, 3), (1, 2)) == pytest.approx(1 / 6)
    field[4:, 8:] = 0.0
    assert own_share(field, (2, 3), (1, 2)) == 0.0


@pytest.mark.parametrize("field", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.array([[1.0, -0.5]])])
def test_maps_without_a_size(field: np.ndarray) -> None:
    with pytest.raises(UserError, match="zero, negative or not finite"):
        area(field, 50)
