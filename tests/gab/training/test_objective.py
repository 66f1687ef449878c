import math

import pytest
import torch
import torch.nn.functional as F

from gab.augment import Targets, mixed_cross_entropy
from gab.training.objective import Objective, mixed_binary_cross_entropy


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_binary_cross_entropy_by_hand() -> None:
    """Both classes of a mixed image are wanted wholly; a partner without a share is not wanted."""
    logits = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0], [0.2, 0.4, 0.6]])
    targets = Targets(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 2]), torch.tensor([0.7, 1.0, 0.3]))
    wanted = [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    losses = [
        softplus(-z) if own else softplus(z)
        for row, flags in zip(logits.tolist(), wanted, strict=True)
        for z, own in zip(row, flags, strict=True)
    ]
    assert mixed_binary_cross_entropy(logits, targets).item() == pytest.approx(sum(losses) / 9)


def test_a_share_of_zero_is_none() -> None:
    """Mixing may leave nothing of the image itself."""
    logits = torch.tensor([[0.3, -0.7]])
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.0]))
    wanted = torch.tensor([[0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(logits, wanted)
    assert torch.equal(mixed_binary_cross_entropy(logits, targets), expected)


def test_the_config_chooses_the_loss() -> None:
    logits, images = torch.randn(4, 5), torch.zeros(4, 3, 2, 2)
    targets = Targets(torch.arange(4), torch.arange(4).flip(0), torch.full((4,), 0.8))
    smoothed = Objective("ce", 0.1)(logits, targets, images)
    assert torch.equal(smoothed, mixed_cross_entropy(logits, targets, 0.1))
    assert not torch.equal(smoothed, Objective("ce", 0.0)(logits, targets, images))
    assert torch.equal(Objective("bce", 0.0)(logits, targets, images), mixed_binary_cross_entropy(logits, targets))
