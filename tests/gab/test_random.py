import hashlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from gab.random import _mix_int, fold_in, hash_key, mix, seed_generators, uniform


def test_reference_values_of_splitmix64() -> None:
    """The first outputs of Vigna's splitmix64.c for the state 1234567: state k is the seed plus k golden ratios."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(4)]
    assert [_mix_int(state) for state in states] == outputs


def test_frozen_values() -> None:
    """A run that was begun by an earlier version must go on with the same draws."""
    assert hash_key("drop_path", 0, 0) == 6722771749062169878
    assert hash_key(1, 2, 3) == 4457002114988122575
    folded = fold_in(hash_key("mixing", 7, 11), torch.arange(3))
    assert folded.tolist() == [
        761583218157085434,
        -5832119544513172166,
        -2306987899144352276,
    ]
    assert uniform(torch.tensor([0, 1, -1])).tolist() == [0.8833107948303223, 0.5665615200996399, 0.8939428925514221]


def test_tensors_hash_as_integers_do() -> None:
    values = [0, 1, -1, 2**31, 2**62, -(2**63), 2**63 - 1, *np.random.default_rng(0).integers(-(2**63), 2**63, 100)]
    expected = [_mix_int(int(value) % 2**64) for value in values]
    assert [value % 2**64 for value in mix(torch.tensor(values)).tolist()] == expected


def test_fold_of_integers_and_tensors() -> None:
    keys, data = torch.tensor([3, -5, 2**62]), torch.tensor([0, 7, -2])
    both = fold_in(keys, data)
    for key, datum, expected in zip(keys.tolist(), data.tolist(), both):
        assert fold_in(key, torch.tensor(datum)) == expected
        assert fold_in(torch.tensor(key), datum) == expected
    assert torch.equal(fold_in(keys[:, None], data)[[0, 1, 2], [0, 1, 2]], both)


def test_keys_differ_by_every_part() -> None:
    parts = [0, 1, 2, -1, 2**40, "", "0", "1", "a"]
    chains = [chain for length in (1, 2, 3) for chain in itertools.product(parts, repeat=length)]
    keys = {hash_key(*chain) for chain in chains}
    assert len(keys) == len(chains)
    assert all(0 <= key < 2**63 for key in keys)


def test_a_string_is_not_the_integer_of_its_bytes() -> None:
    digest = int.from_bytes(hashlib.blake2b(b"name", digest_size=8).digest(), "little")
    assert hash_key("name") != hash_key(digest)


@pytest.mark.parametrize("keys", [torch.arange(40_000), fold_in(hash_key("erasing", 0, 0), torch.arange(40_000))])
def test_uniform(keys: torch.Tensor) -> None:
    """Consecutive integers are the worst case that occurs."""
    u = uniform(keys)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_neighbours_are_independent() -> None:
    """Sample i and i + 1; draws k and k + 1 of a sample; seeds and epochs one apart."""
    n = torch.arange(20_000)

    def draw(seed: int, epoch: int, shift: int, number: int) -> np.ndarray:
        return uniform(fold_in(fold_in(hash_key("erasing", seed, epoch), n + shift), number)).numpy()

    first = draw(0, 0, 0, 0)
    for other in (draw(0, 0, 1, 0), draw(0, 0, 0, 1), draw(0, 1, 0, 0), draw(1, 0, 0, 0)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / len(n) ** 0.5
        table = np.histogram2d(first, other, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_generators_are_seeded_as_by_torch() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draws = []
    for seed in (torch.manual_seed, lambda value: seed_generators(value, torch.device(device))):
        seed(hash_key("dropout", 3))
        draws.append((torch.rand(4), torch.rand(4, device=device)))
    for ours, theirs in zip(*draws, strict=True):
        assert torch.equal(ours, theirs)
