import torch

from gab.attention import biased_attention
from gab.attention.dropout import row_numbers, survivors
from gab.models.stochastic import AttentionDropout, attach_keys


def kept(count=64, p=0.3, salt=1):
    """(B, 2, 32, 33)."""
    return survivors(row_numbers(torch.arange(count), salt, 2, 32), 33, p)


def test_rate():
    for p in (0.0, 0.1, 0.5, 0.9):
        share = 1 - kept(p=p).float().mean()  # of 135,168
        assert abs(share - p) < 4 * (p * (1 - p) / 135_168) ** 0.5 + 1e-9


def test_nothing_is_related():
    """Neighbours in every dimension, diagonals, and other layers agree as often as chance has them."""
    x = kept(p=0.5)
    pairs = [(x.roll(1, dim), x) for dim in range(4)]
    pairs += [(x.roll((1, shift), (2, 3)), x) for shift in (-1, 1, 2)]
    pairs += [(x.roll(2**bit, 3), x) for bit in range(1, 5)]
    pairs.append((kept(p=0.5, salt=2), x))
    for first, second in pairs:
        assert abs((first == second).float().mean() - 0.5) < 4.5 * 0.5 / x.numel() ** 0.5


def test_belongs_to_the_sample():
    """Not to the batch that it is in."""
    whole = kept(64)
    some = survivors(row_numbers(torch.tensor([7, 63, 0]), 1, 2, 32), 33, 0.3)
    assert torch.equal(some, whole[[7, 63, 0]])


def test_scales_what_is_left():
    weights = torch.rand(8, 2, 32, 32)
    left = AttentionDropout(0.25)(weights)
    assert torch.equal(left.unique().min(), torch.tensor(0.0))
    mask = left > 0
    assert torch.allclose(left[mask], weights[mask] / 0.75)
    assert torch.equal(AttentionDropout(0.25).eval()(weights), weights)


def test_the_trainer_sets_keys():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = AttentionDropout(0.5), AttentionDropout(0.5)

    model = Two()
    keys = attach_keys(model, 0, torch.device("cpu"))
    weights = torch.ones(6, 2, 8, 8)

    def draw(indices, epoch=0):
        keys.set(epoch, 0, indices)
        return model.first(weights[: len(indices)]), model.second(weights[: len(indices)])

    indices = torch.tensor([5, 3, 8, 1, 0, 9])
    first, second = draw(indices)
    parts = [draw(part)[0] for part in indices.split([2, 4])]
    assert torch.equal(first, torch.cat(parts))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(indices, epoch=1)[0])


def test_without_keys_it_draws_from_the_global_generator():
    q = torch.randn(2, 2, 8, 4)
    attend = lambda: biased_attention(q, q, q, dropout=AttentionDropout(0.5))  # noqa: E731
    torch.manual_seed(1)
    first, second = attend(), attend()
    torch.manual_seed(1)
    assert torch.equal(first, attend())
    assert not torch.equal(first, second)
