import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gab.config import GaussianConfig
from gab.errors import UserError
from gab.models.gaussian import Gaussian, squared_distances


def make(grid=(14, 14), heads=1, prefix=0, **config) -> Gaussian:
    return Gaussian(GaussianConfig(**config), grid, heads, prefix)


def sliced(side: int, amplitude: float, sigma: float) -> torch.Tensor:
    """The paper's construction: a window of L x L slides in descending order over a table of (2L - 1)²."""
    axis = torch.arange(2 * side - 1) - (side - 1)
    distance = axis[:, None] ** 2 + axis**2
    a, s = torch.tensor(amplitude), torch.tensor(sigma)
    table = a * a * torch.exp(-0.5 / (s * s) * distance.float())
    rows = [
        table[side - 1 - r : 2 * side - 1 - r, side - 1 - c : 2 * side - 1 - c].flatten()
        for r in range(side)
        for c in range(side)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("side", "amplitude", "sigma"), [(14, 2.0, 5.0), (7, 2.0, 5.0), (4, -1.3, 0.7), (1, 2.0, 1.0)])
def test_closed_form_is_the_papers_slicing(side, amplitude, sigma):
    gaussian = make((side, side), amplitude=amplitude, sigma=sigma)
    assert torch.equal(gaussian()[0, 0], sliced(side, amplitude, sigma))


def test_vectors_of_the_sheet():
    bias = make()()[0, 0]
    distances = squared_distances((14, 14))
    expected = {0: 4.0, 1: 3.9207947, 2: 3.8431578, 4: 3.6924654, 25: 2.4261226, 100: 0.5413411, 338: 0.0046369}
    for squared, value in expected.items():
        assert bias[distances == squared].unique().item() == pytest.approx(value, abs=5e-7)
    assert bias.double().sum().item() == pytest.approx(63225.198629, rel=1e-6)
    assert bias.trace().item() == pytest.approx(784)
    assert bias[0].sum().item() == pytest.approx(180.832750, rel=1e-6)
    assert bias[90].sum().item() == pytest.approx(440.273319, rel=1e-6)
    assert bias[13, 14].item() == pytest.approx(0.1334931, abs=5e-7)
    weights = bias.softmax(-1)
    assert weights[90, 90].item() == pytest.approx(0.0202319, abs=1e-6)
    assert weights[90].min().item() == pytest.approx(0.000650961, abs=1e-8)
    assert weights[0, 0].item() == pytest.approx(0.0502975, abs=1e-6)
    assert weights[0, 195].item() == pytest.approx(0.00092551, abs=1e-7)
    window = make((7, 7))()[0, 0]
    assert window.double().sum().item() == pytest.approx(7201.976777, rel=1e-6)
    assert window[0, 48].item() == pytest.approx(0.9477110, abs=5e-7)
    assert window[24].sum().item() == pytest.approx(167.814949, rel=1e-6)


def test_gradients_of_the_sheet():
    gaussian = make()
    gaussian()[0, 0, 0, 1].backward()
    assert gaussian.amplitude.grad.item() == pytest.approx(3.9207947, abs=1e-6)
    assert gaussian.sigma.grad.item() == pytest.approx(0.0313664, abs=1e-6)


def test_class_token_gets_zero():
    patches = torch.tensor([[4, 2.4261226, 2.4261226, 1.4715178], [2.4261226, 4, 1.4715178, 2.4261226]])
    expected = torch.cat((patches, patches.flip(0, 1)))
    assert torch.allclose(make((2, 2), sigma=1.0)()[0, 0], expected, atol=1e-6)
    padded = make((2, 2), sigma=1.0, prefix=1)()[0, 0]
    assert padded.shape == (5, 5)
    assert torch.allclose(padded[1:, 1:], expected, atol=1e-6)
    assert not padded[0].any()
    assert not padded[:, 0].any()


def test_rows_and_columns_of_an_oblong_grid():
    bias = make((2, 3), sigma=1.0)()[0, 0].view(2, 3, 2, 3)
    assert bias[0, 0, 0, 2].item() == pytest.approx(4 * math.exp(-2), rel=1e-6)
    assert bias[0, 0, 1, 0].item() == pytest.approx(4 * math.exp(-0.5), rel=1e-6)


def test_per_head_pairs_are_independent():
    gaussian = make((3, 3), heads=2, per_head=True)
    with torch.no_grad():
        gaussian.amplitude.copy_(torch.tensor([1.0, 3.0]))
        gaussian.sigma.copy_(torch.tensor([0.5, 2.0]))
    for head in range(2):
        alone = make((3, 3), amplitude=[1.0, 3.0][head], sigma=[0.5, 2.0][head])
        assert torch.equal(gaussian()[0, head], alone()[0, 0])
    gaussian()[0, 1].sum().backward()
    assert gaussian.sigma.grad[0] == 0
    assert gaussian.sigma.grad[1] != 0


@pytest.mark.parametrize("prefix", [0, 1])
def test_gradcheck(prefix):
    gaussian = make((2, 3), heads=2, prefix=prefix, per_head=True).double()

    def bias(amplitude, sigma):
        return torch.func.functional_call(gaussian, {"amplitude": amplitude, "sigma": sigma}, ())

    pair = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.5, -2.0], [0.8, -3.0])]
    assert torch.autograd.gradcheck(bias, pair)


@settings(deadline=None, max_examples=50)
@given(st.floats(-3.4e38, 3.4e38))
def test_finite_for_every_sigma(sigma):
    gaussian = make((4, 4), sigma=sigma)
    bias = gaussian()
    bias.sum().backward()
    assert bias.isfinite().all()
    assert gaussian.sigma.grad.isfinite().all()
    assert gaussian.amplitude.grad.isfinite().all()
    assert bias.diagonal(dim1=-2, dim2=-1).eq(4).all()


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 9.9e-4, 1e-20, 1e25])
def test_finite_at_the_floor_and_beyond_squares(sigma):
    gaussian = make((4, 4), sigma=sigma)
    gaussian().sum().backward()
    assert gaussian.sigma.grad.isfinite().all()


def test_float32_under_autocast_and_in_half_networks():
    exact = make()()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make()(), exact)
    assert torch.equal(make().bfloat16()(), exact)  # 2 and 5 are exact in bfloat16, squared distances stay integers


def test_only_the_pair_is_saved():
    assert set(make().state_dict()) == {"amplitude", "sigma"}


def test_sigma_keeps_its_extent_on_the_image():
    gaussian = make((14, 14))
    parameter = gaussian.sigma
    gaussian.set_grid((24, 24))
    assert gaussian.sigma is parameter  # optimisers keep hold of it
    assert gaussian.sigma.item() == pytest.approx(8.5714286)
    assert gaussian()[0, 0, 0, 1].item() == pytest.approx(3.9728702, abs=5e-7)
    assert gaussian.amplitude.item() == 2
    gaussian.set_grid((14, 14))
    assert gaussian.sigma.item() == pytest.approx(5)
    gaussian.set_grid((14, 56))
    assert gaussian.sigma.item() == pytest.approx(10)


@pytest.mark.parametrize(("grid", "sigma"), [((14, 14), 5.0), ((4, 4), 10 / 7), ((7, 28), 5.0)])
def test_auto_sigma_is_in_proportion_to_the_grid(grid, sigma):
    assert make(grid, sigma="auto").sigma.item() == pytest.approx(sigma)


def test_bad_sigma_names_the_setting():
    with pytest.raises(UserError, match=r"model\.gaussian\.sigma is 'wide'"):
        make(sigma="wide")


def test_deepcopy():
    gaussian = make((3, 3))
    assert torch.equal(copy.deepcopy(gaussian)(), gaussian())


# -- a class token ----------------------------------------------------------------------------------------------------


def test_zero_lifts_the_patches_above_the_class_key():
    """The sheet's vector: one class token on a 2 x 2 grid, first row and column 0."""
    bias = make((2, 2), prefix=1, sigma=1.0)()[0, 0]
    assert not bias[0].any()
    assert not bias[:, 0].any()
    assert torch.allclose(bias[1, 1:], torch.tensor([4.0, 2.4261226, 2.4261226, 1.4715178]))


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("per_head", [False, True])
def test_the_mean_of_the_row_favours_neither(prefix, per_head):
    gaussian = make((3, 4), heads=2, prefix=prefix, class_bias="row_mean", per_head=per_head)
    with torch.no_grad():
        gaussian.sigma.copy_(torch.linspace(0.7, 2.0, len(gaussian.sigma)))
    bias = gaussian()[0]
    assert not bias[:, :prefix].any()  # the class token as a query has no place
    patches = bias[:, prefix:, prefix:]
    for column in range(prefix):
        assert torch.allclose(bias[:, prefix:, column], patches.mean(-1))
    assert (bias[0, prefix:, 0].max() - bias[0, prefix:, 0].min()) > 0.01  # corners have less of the bell than centres


def test_a_learned_scalar_starts_at_zero_and_moves():
    gaussian = make((3, 3), heads=2, prefix=1, class_bias="learned", per_head=True)
    assert torch.equal(gaussian(), make((3, 3), heads=2, prefix=1, per_head=True)())
    assert gaussian.class_bias.shape == (1,)
    with torch.no_grad():
        gaussian.class_bias.fill_(1.5)
    bias = gaussian()[0]
    assert bias[:, 1:, 0].eq(1.5).all()
    assert not bias[:, 0].any()
    gaussian()[0, :, 1:, 0].sum().backward()
    assert gaussian.class_bias.grad.item() == 2 * 9


def test_class_biases_that_cannot_be():
    with pytest.raises(UserError, match=r"class_bias=mean is unknown: choose one of zero, row_mean, learned"):
        make(class_bias="mean", prefix=1)
    with pytest.raises(UserError, match=r"class_bias=learned needs a class token"):
        make(class_bias="learned")


def test_frozen_it_has_no_gradient_and_still_moves_with_the_grid():
    gaussian = make((4, 4), frozen=True, class_bias="learned", prefix=1)
    assert {name for name, p in gaussian.named_parameters() if p.requires_grad} == {"class_bias"}
    assert torch.equal(gaussian(), make((4, 4), class_bias="learned", prefix=1)())
    gaussian.set_grid((8, 8))
    assert (gaussian.sigma.item(), gaussian.sigma.requires_grad) == (10.0, False)
