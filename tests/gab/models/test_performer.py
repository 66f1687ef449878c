"""The Performer against its formula, and its numerics."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gab.errors import UserError
from gab.models.init import initialise
from gab.models.performer import Performer, linear_attention, random_features


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def performer() -> Performer:
    model = Performer(12, 8)
    initialise(model, "trunc_normal", seed=0)
    return model.eval()


def test_without_queries_and_keys_it_is_the_mean_of_the_values() -> None:
    values, zero = draw(2, 7, 8), torch.zeros(2, 7, 8)
    mean = values.mean(dim=1, keepdim=True).expand_as(values)
    assert torch.allclose(linear_attention(zero, zero, values, draw(4, 8)), mean, atol=1e-6)


def test_against_the_formula() -> None:
    q, k, v = (draw(2, 5, 8, seed=i).double() for i in range(3))
    w = draw(4, 8, seed=3).double()
    out = linear_attention(q, k, v, w)

    def phi(u: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.exp(w[j] @ u - u @ u / 2) for j in range(4)]) / 2

    for image in range(2):
        for i in range(5):
            weights = torch.stack([phi(q[image, i]) @ phi(k[image, n]) for n in range(5)])
            expected = (weights[:, None] * v[image]).sum(0) / (weights.sum() + 1e-8)
            assert torch.allclose(out[image, i], expected, atol=1e-12)


def test_features_estimate_the_softmax_kernel() -> None:
    q, k = 0.5 * draw(1, 1, 4), 0.5 * draw(1, 1, 4, seed=1)
    w = draw(200_000, 4, seed=2)
    assert (random_features(q, w) * random_features(k, w)).sum().item() == pytest.approx(
        (q * k).sum().exp().item(), rel=0.01
    )


def test_keys_come_first_and_the_skip_is_the_values(performer: Performer) -> None:
    x = draw(2, 5, 12)
    k, q, v = performer.kqv(performer.norm1(x)).split(8, dim=-1)
    attended = v + performer.proj(linear_attention(q, k, v, performer.w))
    local = draw(2, 5, 8)
    for extra in (None, local):
        a = attended if extra is None else attended + extra
        assert torch.allclose(performer(x, extra), a + performer.mlp(performer.norm2(a)), atol=1e-6)
    torch.nn.init.zeros_(performer.proj.weight)
    torch.nn.init.zeros_(performer.mlp[2].weight)
    assert torch.equal(performer(x), v)


class Dtypes(TorchDispatchMode):
    """Records the types that exponentials, sums, divisions and products are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.setdefault(func.overloadpacket.__name__, set()).add(
            next((a.dtype for a in args if isinstance(a, torch.Tensor)), None)
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_leaves_the_exponentials_in_float32(performer: Performer, autocast: bool) -> None:
    x = draw(2, 5, 12)
    if not autocast:
        performer, x = performer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Dtypes() as dtypes:
        out = performer(x)
    assert {out.dtype} == dtypes.seen["addmm"] == {torch.bfloat16}
    for operation in ("exp", "sum", "div", "bmm"):
        assert dtypes.seen[operation] == {torch.float32}


def test_large_queries_stay_finite_under_autocast(performer: Performer) -> None:
    """In half precision, u wᵀ and |u|² / 2 of some hundreds cancel to nothing that is right."""
    q, k, v = (scale * draw(1, 9, 8, seed=i) for i, scale in enumerate((4.0, 4.0, 1.0)))
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(q, k, v, performer.w)
    assert torch.equal(out, linear_attention(q, k, v, performer.w))
    assert out.isfinite().all()


def test_directions_are_orthogonal_drawn_and_frozen(performer: Performer) -> None:
    assert torch.allclose(performer.w @ performer.w.T, 4 * torch.eye(4), atol=1e-5)
    assert not performer.w.requires_grad
    again, other = Performer(12, 8), Performer(12, 8)
    initialise(again, "trunc_normal", seed=0)
    initialise(other, "trunc_normal", seed=1)
    assert torch.equal(again.w, performer.w)
    assert not torch.equal(other.w, performer.w)
    performer.train()(draw(2, 5, 12)).sum().backward()
    assert [name for name, p in performer.named_parameters() if p.grad is None] == ["w"]


def test_dropout_is_always_on_in_training(performer: Performer) -> None:
    x = draw(2, 5, 12)
    performer.train()
    out = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        out.append(performer(x))
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    assert [m.p for m in performer.modules() if isinstance(m, torch.nn.Dropout)] == [0.1, 0.1]


def test_odd_width() -> None:
    with pytest.raises(UserError, match="its width of 7 must be even"):
        Performer(12, 7)
