import math

import pytest
import torch

from gab.errors import UserError
from gab.models.position import position_embedding, resize_position, sincos_1d, sincos_2d


def test_sincos_1d():
    table = sincos_1d(5, 8)[0]
    for p in range(5):
        for i in range(8):
            angle = p / 10000 ** (2 * (i // 2) / 8)
            assert table[p, i].item() == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)


def test_sincos_2d():
    dim, grid = 8, (2, 3)
    table = sincos_2d(grid, dim, prefix_tokens=1)[0]
    assert not table[0].any()
    for token in range(6):
        row, column = divmod(token, 3)
        for i in range(dim):
            place = column if i < dim // 2 else row
            pair, odd = divmod(i % (dim // 2), 2)
            angle = place * math.exp(-2 * pair * math.log(10000) / (dim / 2))
            expected = math.cos(angle) if odd else math.sin(angle)
            assert table[1 + token, i].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["sincos_1d", "sincos_2d"])
def test_sinusoids_are_frozen_and_computed_again_on_another_grid(kind):
    embedding = position_embedding(kind, (4, 4), 8, 1)
    assert not embedding.requires_grad
    resized = resize_position(kind, embedding, (4, 4), (6, 5), 1)
    assert torch.equal(resized, position_embedding(kind, (6, 5), 8, 1))
    assert not resized.requires_grad


def test_learnable_is_resampled_with_its_prefix_rows_kept():
    embedding = position_embedding("learnable", (4, 4), 8, 1)
    with torch.no_grad():
        embedding.fill_(0.5)
        embedding[:, 0] = 7.0
    resized = resize_position("learnable", embedding, (4, 4), (8, 8), 1)
    assert resized.shape == (1, 65, 8)
    assert resized.requires_grad
    assert resized[:, 0].eq(7).all()
    assert torch.allclose(resized[:, 1:], torch.tensor(0.5), atol=1e-5)
    assert resize_position("learnable", embedding, (4, 4), (4, 4), 1) is embedding


def test_none_and_errors():
    assert position_embedding("none", (4, 4), 8, 0) is None
    with pytest.raises(UserError, match=r"model\.position=sine is unknown: choose one of none, learnable"):
        position_embedding("sine", (4, 4), 8, 0)
    with pytest.raises(UserError, match="multiple of 4"):
        position_embedding("sincos_2d", (4, 4), 6, 0)
